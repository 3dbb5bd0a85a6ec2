"""The log: a line an event, with its request, and nothing of what users wrote."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from fake_engine import Client, FakeEngine

from quietserve.server import logs
from quietserve.server.app import create_app
from quietserve.server.service import Service

SECRET = "Rumpelstilzchen"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the root logger writes, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(log: io.StringIO) -> list[dict]:
    """Without what the client in this process says, which is not part of a server."""
    return [told for told in map(json.loads, log.getvalue().splitlines()) if told["logger"] not in ("httpx", "asyncio")]


def test_a_request_is_a_line_of_numbers(client: Client, log: io.StringIO) -> None:
    client.post("/v1/completions", {"prompt": SECRET, "max_tokens": 9}, headers={"x-request-id": "mine"})
    (told,) = lines(log)
    assert told["request_id"] == "mine"
    assert (told["message"], told["route"], told["status"]) == ("replied", "/v1/completions", 200)
    assert (told["prompt_tokens"], told["visible_tokens"], told["finish_reason"]) == (len(SECRET), 9, "length")
    assert SECRET not in str(lines(log))


def test_nothing_that_users_write_is_in_it(service: Service, engine: FakeEngine, log: io.StringIO) -> None:
    client = Client(create_app(service, keys=["key-" + SECRET]))
    headers = {"Authorization": f"Bearer key-{SECRET}"}
    for body in (
        {"prompt": SECRET},
        {"prompt": [SECRET]},
        {"prompt": "x", SECRET: 1},
        {"prompt": "x", "stop": {SECRET: 1}},
    ):
        client.post("/v1/completions", body, headers=headers)
    client.post("/v1/chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}, headers=headers)
    client.get(f"/v1/models/{SECRET}", headers=headers)
    client.get(f"/{SECRET}?key={SECRET}", headers=headers)
    client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}"})
    client.request(SECRET, "/v1/models", headers=headers | {"x-request-id": f"<{SECRET}>"})
    engine.refusal = ValueError(f"cannot read {SECRET}")
    client.post("/v1/completions", {"prompt": SECRET}, headers=headers)
    engine.refusal, engine.failure = None, ValueError(f"cannot read {SECRET}")
    client.post("/v1/completions", {"prompt": SECRET, "stream": True}, headers=headers)
    assert SECRET not in str(lines(log))
    errors = [told for told in lines(log) if told["level"] == "error"]
    assert [(told["error"], told["reason"]) for told in errors] == [("ValueError", "(not shown)")] * 2
    assert all("fake_engine.py" in told["where"] and "/" not in told["where"] for told in errors)


def test_what_happens_on_the_device_is_told_with_its_reason(log: io.StringIO) -> None:
    try:
        raise RuntimeError("out of\nregisters")
    except RuntimeError:
        logging.getLogger("quietserve").exception("a forward failed")
    (told,) = lines(log)
    assert (told["error"], told["reason"]) == ("RuntimeError", "out of registers")
    assert told["where"].startswith("test_what_happens_on_the_device_is_told_with_its_reason (test_logs.py:")


def test_the_lines_for_people_hold_the_same() -> None:
    record = logging.LogRecord("quietserve.server.app", logging.INFO, "", 0, "replied\n%d", (2,), None)
    record.fields, record.request_id = {"status": 200, "run": None}, "abc"
    line = logs.TextLines().format(record)
    assert line.endswith("INFO server.app: [abc] replied 2 status=200")
    assert "\n" not in line


def test_machines_that_ask_every_second_are_not_logged(client: Client, log: io.StringIO) -> None:
    for path in ("/health", "/ready", "/ping", "/metrics"):
        client.get(path)
    assert {told["level"] for told in lines(log)} == {"debug"}
