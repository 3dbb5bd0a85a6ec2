"""A connection whose replies leave whole: a head without its body can neither be read nor, by a balancer, be asked for again."""

import asyncio
import uuid
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import InvalidRequestError, error_reply

MOST_BYTES = 65536


class HttpConnection(H11Protocol):
    """uvicorn's, which would send the head of a reply and its body one after the other.

    Between the two the device thread can hold the interpreter for milliseconds, and the process can be killed: a balancer
    that has passed the head on has to break the reply off, where one that has seen nothing asks another process.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Write through a `Gathering`."""
        super().connection_made(cast("asyncio.Transport", Gathering(transport)))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is no request, which the application never sees, as the application refuses all else."""
        body = error_reply(InvalidRequestError("The request is not valid HTTP.", code="invalid_http")).model_dump_json()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": uuid.uuid4().hex,
            "connection": "close",
        }
        head = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
        for event in (head, h11.Data(data=body.encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Gathering:
    """A transport that sends what is written in one turn of the event loop at once, when the turn ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._written = transport, bytearray()

    def write(self, data: bytes) -> None:
        """Send it with whatever else is written before the loop's next turn."""
        if not self._written:
            asyncio.get_running_loop().call_soon(self._send)
        self._written += data
        if len(self._written) > MOST_BYTES:  # whoever writes on and on has to learn that nobody reads
            self._send()

    def close(self) -> None:
        """Send what is written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        written, self._written = self._written, bytearray()
        if written:
            self._transport.write(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
