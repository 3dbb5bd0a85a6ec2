"""A small client of a quietserve server: typed calls, blocking (`Client`) or asynchronous (`AsyncClient`).

    with Client() as client:
        reply = client.chat("The dial is at 3. ...", thought_depth=12)
        print(reply.text, reply.usage.reasoning_tokens)

What to send and how to read what comes back are functions that do no input or output; the two clients only carry
the bytes.
"""

import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

Message = Mapping[str, Any]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
T = TypeVar("T")


# --- what comes back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thought:
    """The hidden text behind one visible token; `position` counts the tokens of the answer from 0."""

    position: int
    token: str
    thought: str
    token_ids: tuple[int, ...]
    mixing_weight: float
    thought_index: int


@dataclass(frozen=True)
class Usage:
    """Token counts; `completion_tokens` includes the hidden `reasoning_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Choice:
    """One answer; `reasoning` is the text of its thoughts, empty unless `include_reasoning` asked for it."""

    index: int
    text: str
    finish_reason: str
    reasoning: str
    thoughts: tuple[Thought, ...]


@dataclass(frozen=True)
class Reply:
    """The answers to a conversation or a prompt; `raw` is the whole JSON body, for what has no name here."""

    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """Why the first answer ended: `stop`, `length` or `abort`."""
        return self.choices[0].finish_reason

    @property
    def thoughts(self) -> tuple[Thought, ...]:
        """The first answer's thoughts, empty unless `return_thoughts` asked for them."""
        return self.choices[0].thoughts

    @property
    def reasoning(self) -> str:
        """The text of the first answer's thoughts, empty unless `include_reasoning` asked for it."""
        return self.choices[0].reasoning


@dataclass(frozen=True)
class Delta:
    """What one event of a stream adds to the answer `index`; an event may carry nothing but `usage`."""

    index: int
    text: str
    finish_reason: str | None
    reasoning: str
    thoughts: tuple[Thought, ...]
    usage: Usage | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Model:
    """A served model; the limits are None where the server names none."""

    id: str
    max_model_len: int | None
    max_thought_depth: int | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


class ApiError(Exception):
    """A request that came to nothing; `str()` is one line for people.

    `status` is None where the failure has no HTTP status: no connection, or an error after a stream had begun.
    `code` is the server's, or one of ours: `connection_failed`, `connection_lost`, `timeout`, `bad_response`.
    """

    def __init__(
        self, status: int | None, code: str | None, param: str | None, message: str, request_id: str | None = None
    ) -> None:
        super().__init__(status, code, param, message, request_id)
        self.status = status
        self.code = code
        self.param = param
        self.message = message
        self.request_id = request_id

    def __str__(self) -> str:
        """The message on one line."""
        return " ".join(self.message.split())


# --- what to send, how to read the reply: no input or output ---------------------------------------------------------


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the function that reads a successful reply to it."""

    method: str
    path: str
    parse: Callable[[Any], T]
    body: Mapping[str, Any] | None = None


def chat_call(messages: str | Sequence[Message], thought_depth: int | None, params: Mapping[str, Any]) -> Call[Reply]:
    """Ask for an answer to a conversation; a string is one user's message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = _build_body({"messages": list(messages)}, thought_depth, params)
    return Call("POST", "/v1/chat/completions", _parse_reply, body)


def complete_call(prompt: Prompt, thought_depth: int | None, params: Mapping[str, Any]) -> Call[Reply]:
    """Ask for the continuation of a text, of token ids, or of a list of either."""
    return Call("POST", "/v1/completions", _parse_reply, _build_body({"prompt": prompt}, thought_depth, params))


def streamed(call: Call[Any]) -> Call[tuple[Delta, ...]]:
    """The same call, answered piece by piece; its parser reads one event."""
    return Call(call.method, call.path, _parse_chunk, {**(call.body or {}), "stream": True})


def models_call() -> Call[tuple[Model, ...]]:
    """Ask which models are served."""
    return Call("GET", "/v1/models", lambda body: tuple(_parse_model(raw) for raw in body["data"]))


def read_reply(call: Call[T], response: httpx.Response) -> T:
    """Parse a whole reply; raises `ApiError` for an error reply or one that is not in the contract's shape."""
    if not response.is_success:
        raise _read_error(response)
    request_id = response.headers.get("x-request-id")
    with _shape_errors(request_id):
        return call.parse(json.loads(response.content))


def read_ready(response: httpx.Response) -> bool:
    """Whether `/ready` said yes; 503 is its no, anything else an error."""
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return False
    if not response.is_success:
        raise _read_error(response)
    return True


class StreamReader:
    """Turns the bytes of a stream of server-sent events into deltas.

    Bytes and not httpx's `iter_lines`, which also splits at the line separators of Unicode that a JSON string may hold.
    """

    def __init__(self, call: Call[tuple[Delta, ...]], response: httpx.Response) -> None:
        if not response.is_success:
            raise _read_error(response)
        self._parse = call.parse
        self._request_id: str | None = response.headers.get("x-request-id")
        self._rest = b""
        self._data: list[bytes] = []
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Delta]:
        """The deltas that these bytes complete; raises `ApiError` at an error event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in (ended.removesuffix(b"\r") for ended in lines):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield from self._read_event(data)

    def finish(self) -> None:
        """Say that the bytes have ended; raises `ApiError` if the answer had not."""
        if not self._done:
            raise ApiError(
                None, "connection_lost", None, "the stream broke off before the answer ended", self._request_id
            )

    def _read_event(self, data: bytes) -> tuple[Delta, ...]:
        if data == b"[DONE]":
            self._done = True
            return ()
        with _shape_errors(self._request_id):
            event = json.loads(data)
            if event.get("error"):
                raise _build_error(None, event["error"], self._request_id)
            return self._parse(event)


@contextmanager
def connection_errors(base_url: str) -> Iterator[None]:
    """Say in one line of ours what httpx says about a connection."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        message = f"cannot connect to {base_url}; is the server running?"
        raise ApiError(None, "connection_failed", None, message) from error
    except httpx.TimeoutException as error:
        raise ApiError(None, "timeout", None, f"{base_url} did not answer in time") from error
    except httpx.RequestError as error:
        raise ApiError(None, "connection_lost", None, f"the connection to {base_url} broke off") from error


def _build_body(body: dict[str, Any], thought_depth: int | None, params: Mapping[str, Any]) -> dict[str, Any]:
    if "stream" in params:
        raise TypeError("stream is not a parameter here: call stream_chat or stream_complete")
    given = {**params, "thought_depth": thought_depth}
    return body | {name: value for name, value in given.items() if value is not None}


def _parse_reply(body: Any) -> Reply:
    choices = tuple(Choice(finish_reason=raw["finish_reason"], **_parse_choice(raw)) for raw in body["choices"])
    if not choices:
        raise ValueError("no choices")
    return Reply(body["model"], choices, _parse_usage(body["usage"]), raw=body)


def _parse_chunk(body: Any) -> tuple[Delta, ...]:
    usage = _parse_usage(body["usage"]) if body.get("usage") else None
    # The usage chunk has no choices: it becomes a delta that adds nothing to the first answer.
    choices: list[Any] = body["choices"] or [{"index": 0}]
    return tuple(
        Delta(finish_reason=raw.get("finish_reason"), usage=usage, raw=body, **_parse_choice(raw)) for raw in choices
    )


def _parse_choice(raw: Any) -> dict[str, Any]:
    """What an answer and a piece of one share; chat nests the text in `message` or `delta`, completions do not."""
    part = raw.get("message") or raw.get("delta") or raw
    return {
        "index": raw["index"],
        "text": part.get("content") or part.get("text") or "",
        "reasoning": part.get("reasoning") or "",
        "thoughts": tuple(_parse_thought(thought) for thought in raw.get("thoughts") or ()),
    }


def _parse_thought(raw: Any) -> Thought:
    return Thought(
        position=raw["position"],
        token=raw["token"],
        thought=raw["thought"],
        token_ids=tuple(raw["token_ids"]),
        mixing_weight=raw["mixing_weight"],
        thought_index=raw.get("thought_index", 0),
    )


def _parse_usage(raw: Any) -> Usage:
    return Usage(
        prompt_tokens=raw["prompt_tokens"],
        completion_tokens=raw["completion_tokens"],
        total_tokens=raw["total_tokens"],
        reasoning_tokens=(raw.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
    )


def _parse_model(raw: Any) -> Model:
    capabilities = raw.get("capabilities") or {}
    return Model(raw["id"], raw.get("max_model_len"), capabilities.get("max_thought_depth"), raw)


@contextmanager
def _shape_errors(request_id: str | None) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = "the reply is not in the API's shape; is this address a quietserve server?"
        raise ApiError(None, "bad_response", None, message, request_id) from error


def _read_error(response: httpx.Response) -> ApiError:
    request_id = response.headers.get("x-request-id")
    try:
        return _build_error(response.status_code, json.loads(response.content)["error"], request_id)
    except (LookupError, TypeError, ValueError, AttributeError):
        message = f"the server answered with HTTP status {response.status_code} and no error object"
        return ApiError(response.status_code, None, None, message, request_id)


def _build_error(status: int | None, error: Any, request_id: str | None) -> ApiError:
    return ApiError(status, error.get("code"), error.get("param"), str(error["message"]), request_id)


def _http_options(base_url: str, api_key: str | None, timeout_s: float | None) -> dict[str, Any]:
    """What the two httpx clients are made with; raises `ValueError` for an address that cannot be one."""
    try:
        url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))  # the OpenAI SDKs write the /v1
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url {base_url!r} is not of the form http://HOST:PORT")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout_s}


# --- the clients -----------------------------------------------------------------------------------------------------


class Client:
    """Talks to a server, blocking; a context manager that closes its connections.

    Every call takes the API's other parameters by name (`temperature=0`, `return_thoughts=True`), leaves out those that
    are None, and raises `ApiError`. `timeout_s` bounds the wait for the next bytes, not the whole answer; None waits
    for ever.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **_http_options(base_url, api_key, timeout_s))
        self.base_url = base_url

    def chat(self, messages: str | Sequence[Message], *, thought_depth: int | None = None, **params: Any) -> Reply:
        """Answer a conversation, or one question given as a string."""
        return self._send(chat_call(messages, thought_depth, params))

    def complete(self, prompt: Prompt, *, thought_depth: int | None = None, **params: Any) -> Reply:
        """Continue a text, or each of a list of texts."""
        return self._send(complete_call(prompt, thought_depth, params))

    def stream_chat(
        self, messages: str | Sequence[Message], *, thought_depth: int | None = None, **params: Any
    ) -> Generator[Delta, None, None]:
        """Answer a conversation piece by piece; closing the iterator early frees its place on the server."""
        return self._stream(streamed(chat_call(messages, thought_depth, params)))

    def stream_complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, **params: Any
    ) -> Generator[Delta, None, None]:
        """Continue a text piece by piece; closing the iterator early frees its place on the server."""
        return self._stream(streamed(complete_call(prompt, thought_depth, params)))

    def models(self) -> tuple[Model, ...]:
        """The served models, the default one first."""
        return self._send(models_call())

    def ready(self) -> bool:
        """Whether the server takes work now: false while it loads its model or shuts down."""
        with connection_errors(self.base_url):
            return read_ready(self._http.get("/ready"))

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
        with connection_errors(self.base_url):
            return read_reply(call, self._http.request(call.method, call.path, json=call.body))

    def _stream(self, call: Call[tuple[Delta, ...]]) -> Generator[Delta, None, None]:
        with (
            connection_errors(self.base_url),
            self._http.stream(call.method, call.path, json=call.body) as response,
        ):
            if not response.is_success:
                response.read()
            reader = StreamReader(call, response)
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
            reader.finish()


class AsyncClient:
    """`Client` for asyncio and trio: the same calls and errors."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **_http_options(base_url, api_key, timeout_s))
        self.base_url = base_url

    async def chat(
        self, messages: str | Sequence[Message], *, thought_depth: int | None = None, **params: Any
    ) -> Reply:
        """Answer a conversation, or one question given as a string."""
        return await self._send(chat_call(messages, thought_depth, params))

    async def complete(self, prompt: Prompt, *, thought_depth: int | None = None, **params: Any) -> Reply:
        """Continue a text, or each of a list of texts."""
        return await self._send(complete_call(prompt, thought_depth, params))

    def stream_chat(
        self, messages: str | Sequence[Message], *, thought_depth: int | None = None, **params: Any
    ) -> AsyncGenerator[Delta, None]:
        """Answer a conversation piece by piece; to stop early, iterate inside `contextlib.aclosing`."""
        return self._stream(streamed(chat_call(messages, thought_depth, params)))

    def stream_complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, **params: Any
    ) -> AsyncGenerator[Delta, None]:
        """Continue a text piece by piece; to stop early, iterate inside `contextlib.aclosing`."""
        return self._stream(streamed(complete_call(prompt, thought_depth, params)))

    async def models(self) -> tuple[Model, ...]:
        """The served models, the default one first."""
        return await self._send(models_call())

    async def ready(self) -> bool:
        """Whether the server takes work now: false while it loads its model or shuts down."""
        with connection_errors(self.base_url):
            return read_ready(await self._http.get("/ready"))

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
            return read_reply(call, await self._http.request(call.method, call.path, json=call.body))

    async def _stream(self, call: Call[tuple[Delta, ...]]) -> AsyncGenerator[Delta, None]:
        with connection_errors(self.base_url):
            async with self._http.stream(call.method, call.path, json=call.body) as response:
                if not response.is_success:
                    await response.aread()
                reader = StreamReader(call, response)
                async for chunk in response.aiter_bytes():
                    for delta in reader.feed(chunk):
                        yield delta
                reader.finish()
