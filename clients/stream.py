"""Server-sent events: from bytes, however they are cut, to what each event holds."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from .errors import ApiError, build_error, shape_errors

T = TypeVar("T")


class StreamReader(Generic[T]):
    """Turns the bytes of a stream into what `parse` makes of its events.

    Bytes and not httpx's `iter_lines`, which also splits at the line separators of Unicode that a JSON string may hold.

    Args:
        parse: reads the JSON of one event, which may hold several things or none.
        request_id: of the reply, for the errors.
    """

    def __init__(self, parse: Callable[[Any, str | None], tuple[T, ...]], request_id: str | None = None) -> None:
        self._parse = parse
        self._request_id = request_id
        self._rest = b""
        self._data: list[bytes] = []
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[T]:
        """What these bytes complete; raises `ApiError` at an error event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in (ended.removesuffix(b"\r") for ended in lines):
            if line.startswith(b"data:"):  # other fields mean nothing to us; a comment (": keep-alive") to nobody
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield from self._read_event(data)

    def finish(self) -> None:
        """Say that the bytes have ended; raises `ApiError` if the answer had not."""
        if not self._done:
            message = "the stream broke off before the answer ended"
            raise ApiError(None, "connection_lost", None, message, self._request_id)

    def _read_event(self, data: bytes) -> tuple[T, ...]:
        if data == b"[DONE]":
            self._done = True
            return ()
        with shape_errors(self._request_id):
            event = json.loads(data)
            if event.get("error"):
                raise build_error(None, event["error"], self._request_id)
            return self._parse(event, self._request_id)
