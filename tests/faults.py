"""A real server in this process, with a real tiny model, whose insides can be broken; and its books, read over HTTP."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

import tiny
from quietserve.model.tokens import Tokens
from quietserve.server.app import create_app
from quietserve.server.engine import Engine
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline
from quietserve.server.service import Service
from serving import serve

SLOTS, QUEUE = 4, 8
PROBE = {"prompt": "is all well?", "max_tokens": 12, "seed": 5, "thought_depth": 3, "ignore_eos": True}
LONG = {"prompt": "tell me more", "max_tokens": 400, "thought_depth": 0, "ignore_eos": True}


@dataclass
class Victim:
    """A server that runs."""

    url: str
    engine: Engine
    right_answer: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def post(self, body: dict[str, Any], timeout_s: float = 60.0) -> httpx.Response:
        """Ask for a completion."""
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout_s)

    def check(self) -> None:
        """Nothing runs or waits, the books balance, and the next request is answered as the first one was."""
        books = settled(self.url)
        assert books.total("requests_finished_total") == books.total("e2e_request_latency_seconds_count")
        assert books.total("cancelled_requests_total") == books.total(
            "requests_finished_total", finished_reason="abort"
        )
        visible = sum(books.total("generation_tokens_total", kind=kind) for kind in ("visible", "discarded"))
        assert visible == books.total("request_generation_tokens_sum")
        assert books.total("generation_tokens_total", kind="thought") == books.total("request_thought_tokens_sum")
        assert books.total("prompt_tokens_total") == books.total("request_prompt_tokens_sum")
        reply = self.post(PROBE)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["text"] == self.right_answer


@contextlib.contextmanager
def victim() -> Iterator[Victim]:
    """A server with few slots and a short queue that reads prompts eight tokens at a time."""
    metrics = Metrics("tiny")
    engine = Engine(
        # In float32, one choice in some ten thousand hangs on the order of a sum, and so on who shares the batch.
        model=tiny.quiet_model(stops="aeiou").double(),
        tokens=Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:]),
        max_num_seqs=SLOTS,
        max_num_queued_reqs=QUEUE,
        max_model_len=480,
        max_num_batched_tokens=8,
        observer=metrics,
    )
    engine.start()
    try:
        with serve(create_app(Service("tiny", metrics, pipeline=Pipeline(engine)))) as url:
            made = Victim(url, engine)
            made.right_answer = made.post(PROBE).json()["choices"][0]["text"]
            yield made
    finally:
        engine.close(timeout_s=5)


@dataclass
class Books:
    """What /metrics says."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of this name that have these labels."""
        wanted = labels.items()
        return math.fsum(
            value for (n, have), value in self.samples.items() if n == f"quietserve_{name}" and wanted <= set(have)
        )


def read_books(url: str) -> Books:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    return Books({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})


def settled(url: str, within_s: float = 30.0) -> Books:
    """The books once nothing runs and nothing waits; an error where that takes too long."""
    deadline = time.monotonic() + within_s
    while True:
        books = read_books(url)
        busy = {n: books.total(n) for n in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")}
        if not any(busy.values()):
            return books
        assert time.monotonic() < deadline, f"still busy: {busy}"
        time.sleep(0.02)


async def send_and_leave(url: str, body: dict[str, Any], after_s: float, read_first: bool) -> None:
    """Ask, and be gone without a word after a while, or when the first byte of the reply has come."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    if read_first:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), 10)
    await asyncio.sleep(after_s)
    writer.transport.abort()
