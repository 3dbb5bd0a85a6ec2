"""A client that leaves frees its slot, streamed or not. Told twice: by the protocol, and over a socket."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from fake_engine import Client, FakeEngine, eventually, says


async def leave(app: Any, body: dict[str, Any], engine: FakeEngine) -> list[dict[str, Any]]:
    """Post a body, leave once the engine runs it, and return what was sent until the application gave up."""
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "app": app,
    }
    serving = asyncio.create_task(app(scope, receive, send))
    while not engine.running:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    gone.set()
    await asyncio.wait_for(serving, timeout=1)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_cancels_every_choice(client: Client, engine: FakeEngine, stream: bool) -> None:
    engine.answer, engine.pace_s = says("x" * 100), 0.02
    sent = asyncio.run(leave(client.app, {"prompt": "p", "max_tokens": 100, "n": 3, "stream": stream}, engine))
    assert [ticket.cancelled for ticket in engine.tickets] == ["abort"] * 3
    assert not engine.running
    assert (sent[0]["status"] == 200) == stream
    handled = client.get("/metrics").text
    status = 200 if stream else 499
    line = f'quietserve_http_requests_total{{handler="/v1/completions",method="POST",status="{status}"}} 1.0'
    assert line in handled


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_anything_is_decided(client: Client, engine: FakeEngine, stream: bool) -> None:
    engine.pace_s = 60
    asyncio.run(leave(client.app, {"prompt": "p", "stream": stream}, engine))
    assert not engine.running


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_over_a_socket(url: str, engine: FakeEngine, stream: bool) -> None:
    engine.answer, engine.pace_s = says("x" * 150), 0.05
    body = {"prompt": "p", "max_tokens": 150, "stream": stream}
    begin = time.monotonic()
    if stream:
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as reply:
            next(reply.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, timeout=0.2)
    assert eventually(lambda: not engine.running)
    assert engine.tickets[0].cancelled
    assert time.monotonic() - begin < 2, "far less than the answer would have taken"
