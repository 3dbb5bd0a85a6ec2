"""`quietserve serve` as a process: what it prints, how it answers, how it ends."""

import asyncio
import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fake_engine import Client, FakeEngine, events

import tiny
from quietserve.model.bundled import BUNDLED
from quietserve.model.config import SamplingParams
from quietserve.server.process import EXAMPLES, LoadingServer, _announce
from quietserve.server.scheduler import Attempt, Ticket
from quietserve.server.service import Service

pytestmark = pytest.mark.processes

FLAGS = ["--port", "0", "--served-model-name", "tiny", "--max-num-seqs", "2", "--log-level", "error", "--device", "cpu"]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    folder = tiny.save(tmp_path / "checkpoint")
    command = [sys.executable, "-m", "quietserve.server", str(folder), *FLAGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_says_where_it_listens_answers_and_drains(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert select.select([process.stdout], [], [], 60)[0], "it printed nothing for a minute"
    first = process.stdout.readline()
    process.stdout.readline()
    curl = process.stdout.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+", first)
    assert url
    assert curl.startswith(f"curl {url[0]}/v1/completions -H 'Content-Type: application/json' -d '{{")

    with httpx.Client(base_url=url[0], timeout=30) as client:
        example = json.loads(re.search("-d '(.*)'", curl)[1])
        reply = client.post("/v1/completions", json=example)
        assert reply.status_code == 200, reply.text
        thought = sum(len(entry["token_ids"]) for entry in reply.json()["choices"][0]["thoughts"])
        assert reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought > 0

        body = {"prompt": "abc", "max_tokens": 150, "ignore_eos": True, "stream": True, "thought_depth": 2}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_text()
            begun = next(lines)
            process.send_signal(signal.SIGTERM)
            assert drained(client) == 503
            assert client.post("/v1/completions", json=example).json()["error"]["code"] == "draining"
            assert client.get("/health").status_code == 200
            text = begun + "".join(lines)
        assert events(text)[-1]["choices"][0]["finish_reason"] == "length", "what ran was let finish"
    assert process.wait(20) == 0
    assert process.stderr
    assert process.stderr.read() == ""


def drained(client: httpx.Client) -> int:
    """The status of /ready, once it changes."""
    for _ in range(100):
        if (status := client.get("/ready").status_code) != 200:
            return status
    return 200


@pytest.mark.parametrize(("timeout_s", "busy", "leaves"), [(60, True, False), (60, False, True), (-1, True, True)])
def test_it_leaves_when_idle_or_out_of_time(
    client: Client, service: Service, engine: FakeEngine, timeout_s: float, busy: bool, leaves: bool
) -> None:
    server = LoadingServer(uvicorn.Config(client.app), service, timeout_s, load=lambda: [service.ready_pipeline()])
    engine.running = [Ticket(Attempt((1,), SamplingParams()))] * busy
    assert not asyncio.run(server.on_tick(1)), "no signal yet"
    server.handle_exit(signal.SIGTERM, None)
    assert asyncio.run(server.on_tick(1)) == leaves
    server.handle_exit(signal.SIGINT, None)
    assert asyncio.run(server.on_tick(1)), "the second signal"


@pytest.mark.parametrize("guarded", [False, True])
def test_the_example_carries_a_key_where_one_is_asked_for(
    engine: FakeEngine, guarded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to be refused by the very server that printed it."""
    _announce("http://x:1", ["fake"], engine, guarded)
    assert ("Bearer $QUIETSERVE_API_KEY" in capsys.readouterr().out) == guarded


def test_every_model_is_announced(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the first was; the example asks it."""
    _announce("http://x:1", ["fake", "karel"], engine, guarded=False)
    told = capsys.readouterr().out
    assert told.startswith("Serving fake, karel on http://x:1. Try:")
    assert '"model": "fake"' in told


def test_the_example_is_something_that_the_model_knows(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of programs was asked where a dial is, and wrote `put put put put`."""
    assert EXAMPLES.keys() == BUNDLED.keys()
    _announce("http://x:1", ["karel-small", "quiet-small"], engine, guarded=False)
    assert "Question: 4x4 @r3c1N" in capsys.readouterr().out
    _announce("http://x:1", ["mine"], engine, guarded=False)
    assert "Once upon a time" in capsys.readouterr().out
