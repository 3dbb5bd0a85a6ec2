"""`torchrun ... quietserve serve`: one server over HTTP, whose model two processes hold together."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import events

import tiny
from quietserve.model.checkpoint import load
from quietserve.model.config import QuietConfig
from quietserve.server.__main__ import main
from serving import COMMAND, ENVIRONMENT, SERVE, address_in, running, serving, wait_until_ready

pytestmark = pytest.mark.processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
PREFIX = "Count past 9 from 0. a is 3. a plus 4 is b. "
BODIES: list[dict[str, Any]] = [
    {"prompt": PREFIX + "b", "temperature": 0, "thought_depth": 0, "logprobs": 2},
    {"prompt": [PREFIX + "c", PREFIX + "d", "x"], "n": 2, "thought_depth": 3, "return_thoughts": True},
    {"prompt": PREFIX + "b", "best_of": 4, "voting": "majority", "thought_depth": 2, "return_samples": True},
    {"prompt": PREFIX + "b", "best_of": 3, "voting": "ranker", "ranker": "judge", "thought_depth": 0},
    {"prompt": "x", "self_correction_turns": 1, "return_drafts": True, "thought_depth": 2, "max_tokens": 5},
    {"prompt": "x", "num_thoughts": 2, "thought_depth": 4, "probes": ["read"]},
    {"prompt": PREFIX, "echo": True, "logprobs": 1, "max_tokens": 1, "thought_depth": 2},
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    model = tiny.save(folder / "tiny", quiet=QuietConfig(thought_stop_tokens=tuple("aeiou")))
    loaded = load(model)
    ranker, probe = tiny.save_ranker(folder / "judge", loaded), tiny.save_probe(folder / "read", loaded)
    return [str(model), "--ranker", f"judge={ranker}", "--probe", f"read={probe}"]


def answers(url: str) -> list[Any]:
    """What is said to each body, but for what differs from one time to the next."""
    found = []
    with httpx.Client(base_url=url, timeout=120) as client:
        for seed, body in enumerate(BODIES):
            reply = client.post("/v1/completions", json={"max_tokens": 8, "seed": seed, **body})
            assert reply.status_code == 200, reply.text
            found.append({key: reply.json()[key] for key in ("choices", "usage", "voting") if key in reply.json()})
    return found


def test_two_processes_answer_as_one(flags: list[str]) -> None:
    """The first one alone speaks HTTP. SIGTERM to all of them lets what runs finish, and then them leave in good order."""
    with serving(*flags) as url:
        alone = answers(url)
    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "lo"}
    command = [*TORCHRUN, *COMMAND, *SERVE, *flags]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as torchrun:
        try:
            assert torchrun.stdout
            assert torchrun.stderr
            url = address_in(torchrun.stdout.readline())
            wait_until_ready(url)
            check_alike(answers(url), alone)
            assert let_finish(url, processes_of(torchrun.pid)) == "length"
            assert torchrun.wait(120) == 0
            assert torchrun.stderr.read() == ""
            assert torchrun.stdout.read().count("Serving") == 0, "the other one announces nothing"
        finally:
            left = processes_of(torchrun.pid)
            torchrun.kill()
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def let_finish(url: str, processes: list[int]) -> str:
    """The last of a stream during which all processes are told to end."""
    body = {"prompt": "abc", "max_tokens": 60, "ignore_eos": True, "stream": True, "thought_depth": 2}
    with (
        httpx.Client(base_url=url, timeout=120) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        lines = stream.iter_text()
        begun = next(lines)
        for process in processes:
            os.kill(process, signal.SIGTERM)
        return events(begun + "".join(lines))[-1]["choices"][0]["finish_reason"]


def check_alike(found: Any, expected: Any) -> None:
    """Equal, but for numbers that rounding may move."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-3)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            check_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            check_alike(one, two)
    else:
        assert found == expected


def processes_of(parent: int) -> list[int]:
    """Those that a process has started."""
    file = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in file.read_text().split()] if file.exists() else []


def test_a_follower_that_is_gone_ends_the_server(flags: list[str], free_port: int) -> None:
    """Idle as it is; and it says why."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "GLOO_SOCKET_IFNAME": "lo"}
    environments = [{**ENVIRONMENT, **meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    with subprocess.Popen([*COMMAND, *SERVE, *flags], env=environments[1]) as follower:
        with running(*flags, env=environments[0], stderr=subprocess.PIPE) as server:
            follower.kill()
            _, said = server.process.communicate(timeout=120)
        assert server.process.returncode == 1
        assert "quietserve serve: the processes are together no longer: " in said


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("flags_besides", "message"),
    [
        (["--also", "score-small"], "argument --also: 2 processes hold one model together; start others apart"),
        (["--quantization", "int8"], "argument --quantization: int8 is for a whole model, and 2 processes hold parts"),
        (["--quantization", "bnb-4bit"], "argument --quantization: bnb-4bit is for a whole model"),
    ],
)
def test_what_does_not_go_with_it(
    flags_besides: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["quiet-small", "--port", "0", *flags_besides]) == 2
    assert message in capsys.readouterr().err
