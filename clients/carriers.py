"""How calls reach a server and replies come back: over httpx, again where it helps. Blocking and asynchronous."""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, Self, TypeVar

import anyio
import httpx

from .calls import Call
from .errors import ApiError, connection_errors, read_error
from .replies import Delta
from .retries import Attempts, RetryPolicy
from .stream import StreamReader

DEFAULT_URL = "http://127.0.0.1:8000"

T = TypeVar("T")


class Route:
    """What the two carriers have in common: where to, with which key, and how patiently."""

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        read_timeout_s: float | None,
        max_retries: int,
        max_retry_wait_s: float,
    ) -> None:
        self.base_url = base_url if base_url is not None else os.environ.get("QUIETSERVE_URL") or DEFAULT_URL
        self._url = _parse_url(self.base_url)
        self._headers = _authorization(api_key if api_key is not None else os.environ.get("QUIETSERVE_API_KEY"))
        self._read_timeout_s = read_timeout_s
        self._retries = RetryPolicy(max_retries, max_retry_wait_s, read_timeout_s)

    def _request_options(self, call: Call[Any], attempts: Attempts) -> dict[str, Any]:
        """What httpx builds the next attempt from; retries shorten the wait for a reply, not those within a stream."""
        left_s = attempts.time_left_s
        timeout = httpx.Timeout(left_s, read=self._read_timeout_s if call.streams else left_s)
        return {
            "method": call.method,
            "url": call.path,
            "json": call.body,
            "headers": call.headers,
            "timeout": timeout,
        }


class Carrier(Route):
    """Carries calls, blocking; a context manager that closes its connections."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        read_timeout_s: float | None = 600.0,
        max_retries: int = 2,
        max_retry_wait_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(base_url, api_key, read_timeout_s, max_retries, max_retry_wait_s)
        self._http = httpx.Client(base_url=self._url, headers=self._headers, transport=transport)
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """The client, its connections kept for the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def _send(self, call: Call[T]) -> T:
        with connection_errors(self.base_url), closing(self._open(call)) as response:
            response.read()
            return call.read(response)

    def _stream(self, call: Call[tuple[Delta, ...]]) -> Generator[Delta, None, None]:
        with connection_errors(self.base_url), closing(self._open(call)) as response:
            reader = StreamReader(call.parse, response.headers.get("x-request-id"))
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
            reader.finish()

    def _open(self, call: Call[Any]) -> httpx.Response:
        """The beginning of the reply, after as many attempts as it takes and may take."""
        attempts = Attempts(self._retries)
        while True:
            try:
                return self._attempt(call, attempts)
            except ApiError as error:
                wait_s = attempts.wait_after(error)
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _attempt(self, call: Call[Any], attempts: Attempts) -> httpx.Response:
        request = self._http.build_request(**self._request_options(call, attempts))
        with connection_errors(self.base_url):
            response = self._http.send(request, stream=True)
            if call.accepts(response):
                return response
            with closing(response):
                response.read()
        raise read_error(response)


class AsyncCarrier(Route):
    """`Carrier` for asyncio and trio."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        read_timeout_s: float | None = 600.0,
        max_retries: int = 2,
        max_retry_wait_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__(base_url, api_key, read_timeout_s, max_retries, max_retry_wait_s)
        self._http = httpx.AsyncClient(base_url=self._url, headers=self._headers, transport=transport)
        self._sleep = sleep

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """The client, its connections kept for the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        with connection_errors(self.base_url):
            async with aclosing(await self._open(call)) as response:
                await response.aread()
                return call.read(response)

    async def _stream(self, call: Call[tuple[Delta, ...]]) -> AsyncGenerator[Delta, None]:
        with connection_errors(self.base_url):
            async with aclosing(await self._open(call)) as response:
                reader = StreamReader(call.parse, response.headers.get("x-request-id"))
                async for chunk in response.aiter_bytes():
                    for delta in reader.feed(chunk):
                        yield delta
                reader.finish()

    async def _open(self, call: Call[Any]) -> httpx.Response:
        """The beginning of the reply, after as many attempts as it takes and may take."""
        attempts = Attempts(self._retries)
        while True:
            try:
                return await self._attempt(call, attempts)
            except ApiError as error:
                wait_s = attempts.wait_after(error)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def _attempt(self, call: Call[Any], attempts: Attempts) -> httpx.Response:
        request = self._http.build_request(**self._request_options(call, attempts))
        with connection_errors(self.base_url):
            response = await self._http.send(request, stream=True)
            if call.accepts(response):
                return response
            async with aclosing(response):
                await response.aread()
        raise read_error(response)


def _parse_url(base_url: str) -> httpx.URL:
    """The server's address; raises `ValueError` for one that cannot be."""
    try:
        url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))  # the OpenAI SDKs write the /v1
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url {base_url!r} is not of the form http://HOST:PORT")
    return url


def _authorization(api_key: str | None) -> dict[str, str]:
    """The header that opens the server; raises `ValueError` for a key that no header can hold, without repeating it."""
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable():
        raise ValueError("an API key is made of visible ASCII characters")
    return {"Authorization": f"Bearer {api_key}"}
