"""Server-sent events, and the race between an answer and a client that leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .ballots import Standing
from .choices import Writer
from .errors import EXPECTED, as_api_error, error_reply
from .metrics import Metrics

if TYPE_CHECKING:
    from .choices import Decided

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_LONG = 256  # tokens
SILENCE_S = 15.0  # after which something is sent, lest somebody between takes the connection for dead


class EventStream(Response):
    """A reply that is sent while it is being written; a client that leaves ends the writing at once."""

    media_type = "text/event-stream"

    def __init__(self, writer: Writer[Any, Any, Any], metrics: Metrics) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._writer, self._metrics = writer, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send every event; an ASGI application."""
        with suppress(ClientDisconnect, OSError), self._writer.run:
            await unless_disconnected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in kept_alive(events(self._writer, self._metrics), SILENCE_S):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events(writer: Writer[Any, Any, Any], metrics: Metrics) -> AsyncIterator[bytes]:
    """One event for each thing to tell; the usage where it was asked for, or an error; then the end of the stream."""
    try:
        async for news in writer.run.progress():
            if isinstance(news, Standing):
                yield f": {news}\n\n".encode()  # a comment: a client that knows only answers passes it over
            elif event := await apart_if_long(partial(_told, writer, *news), news[1:]):
                yield event
        if writer.request.include_usage:
            yield _event(writer.usage_chunk())
    except Exception as error:  # the status is long sent: an event is the only way to tell
        if not isinstance(error, EXPECTED):
            logger.exception("a stream failed")
        told = as_api_error(error)
        metrics.refused(told)
        yield _event(error_reply(told))
    yield DONE


async def kept_alive(events: AsyncIterator[bytes], silence_s: float) -> AsyncIterator[bytes]:
    """The events, and a comment whenever none has come for so long."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=silence_s)
            if not coming.done():
                yield KEEP_ALIVE
                continue
            try:
                event, coming = coming.result(), None
            except StopAsyncIteration:
                return
            yield event
    finally:
        if coming and not coming.done():
            coming.cancel()


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def apart_if_long(write: Callable[[], T], decided: "Iterable[Decided]") -> T:
    """What `write` makes of what was decided: of much on a thread, as what there is to tell of each token may take seconds."""
    long = sum(len(part.tokens) + len(part.prompt) for part in decided) > _LONG
    return await asyncio.to_thread(write) if long else write()


def _told(writer: Writer[Any, Any, Any], index: int, decided: "Decided") -> bytes | None:
    chunk = writer.chunk(index, decided)
    return chunk and _event(chunk)


def _event(body: BaseModel) -> bytes:
    return f"data: {body.model_dump_json(exclude_unset=True)}\n\n".encode()
