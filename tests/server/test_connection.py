"""What one turn of the event loop writes to a connection leaves at once."""

import asyncio
import http.client
import json
import re
import socket
import time
from typing import Any

import pytest

from serving import serve

REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]}


def read(app: Any) -> list[bytes]:
    """What comes of a reply, as it comes."""
    with serve(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as client:
        client.sendall(REQUEST)
        parts = [client.recv(65536)]
        while not b"".join(parts).endswith(b"12345678"):
            parts.append(client.recv(65536))
        return parts


def test_a_head_is_never_seen_without_its_body() -> None:
    """Of 36 requests to a process that was killed, one came back with a head and nothing behind it: nginx had passed it on
    before the body was sent, and could not ask another process any more.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(HEAD)
            time.sleep(0.05)  # as when another thread has the interpreter
            await send({"type": "http.response.body", "body": b"12345678"})

    (reply,) = read(app)
    assert reply.startswith(b"HTTP/1.1 200 OK")


def test_what_is_written_later_does_not_keep_what_is_there() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(HEAD)
            await send({"type": "http.response.body", "body": b"1234", "more_body": True})
            await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": b"5678"})

    first, second = read(app)
    assert first.endswith(b"1234")
    assert second == b"5678"


def test_what_was_written_is_sent_before_the_connection_is_closed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({**HEAD, "headers": [*HEAD["headers"], (b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"12345678"})

    (reply,) = read(app)
    assert b"connection: close" in reply


def test_who_writes_more_than_is_read_has_to_wait() -> None:
    written = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal written
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200})
            while written < 10**9:
                await send({"type": "http.response.body", "body": bytes(10**5), "more_body": True})
                written += 10**5

    with serve(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as client:
        client.sendall(REQUEST)
        client.recv(100)
        time.sleep(0.2)
        before = written
        time.sleep(0.2)
        assert written == before < 10**8


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nnot a chunk\r\n",
        b"what is this\r\n\r\n",
    ],
    ids=["no host", "length", "chunk", "nothing"],
)
def test_what_is_no_http_is_refused_as_all_else_is(sent: bytes) -> None:
    """uvicorn answered such requests itself, in plain text and without the id that every reply has."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    with serve(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as client:
        client.sendall(sent)
        reply = http.client.HTTPResponse(client)
        reply.begin()
        told = json.loads(reply.read())["error"]
        assert client.recv(1) == b"", "it is closed"
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    assert (told["type"], told["code"], told["param"]) == ("invalid_request_error", "invalid_http", None)
