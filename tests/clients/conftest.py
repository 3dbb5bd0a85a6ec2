"""A server of the contract's HTTP side, with canned answers, on a real socket."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL = {"id": "tiny", "object": "model", "max_model_len": 256, "capabilities": {"max_thought_depth": 16}}


class Handler(BaseHTTPRequestHandler):
    """Answers a chat with the words of the last message, each one thought about; some questions go wrong."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FakeServer"

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [MODEL]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        question = body["messages"][-1]["content"]
        if question == "refuse":
            error = {"message": "too\ndeep", "type": "invalid_request_error", "param": "thought_depth", "code": "no"}
            return self.reply(400, {"error": error})
        return self.stream(question, body.get("include_reasoning", False))

    def reply(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-request-id", "req-1")
        self.end_headers()
        self.wfile.write(content)

    def stream(self, question: str, include_reasoning: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.chunk(": keep-alive\n\n")
        for word in question.split():
            delta = {"content": word + " "} | ({"reasoning": f"hm {word}"} if include_reasoning else {})
            self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if question.endswith("break"):
            self.close_connection = True
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def event(self, body: Any) -> None:
        self.chunk(f"data: {json.dumps(body)}\n\n")

    def chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


class FakeServer(ThreadingHTTPServer):
    """Remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIETSERVE_URL", "QUIETSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
