"""Everything that can go wrong, often: afterwards nothing runs, the books balance, and the next answer is right.

`FAULTS=20 pytest tests/test_faults.py` does twenty times as much, 10,000 malformed bodies among it; with `FAULTS_TABLE=FILE` the
counts are written there.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import tiny
from faults import LONG, PROBE, QUEUE, SLOTS, Victim, read_books, send_and_leave, settled, victim
from quietserve.server.__main__ import main as serve
from serving import running

pytestmark = pytest.mark.processes

TIMES = int(os.environ.get("FAULTS", "1"))
TABLE = os.environ.get("FAULTS_TABLE")

Count = Callable[..., None]


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, dict[str, int]]]:
    table: dict[str, dict[str, int]] = {}
    yield table
    if TABLE:
        Path(TABLE).write_text(json.dumps(table, indent=1) + "\n")


@pytest.fixture
def count(counted: dict[str, dict[str, int]]) -> Count:
    """Enter what was done and what came of it into the table."""

    def enter(fault: str, **counts: int) -> None:
        counted[fault] = counts

    return enter


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim() as made:
        yield made


@pytest.fixture(autouse=True)
def _afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every fault that the shared server was made to suffer has left nothing behind."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").check()


# --- clients ---------------------------------------------------------------------------------------------------------

PHASES = {
    "waiting": {"max_tokens": 50},
    "prefill": {"prompt": "p" * 300, "max_tokens": 50},
    "decode": {"max_tokens": 400},
    "thought": {"max_tokens": 400, "thought_depth": 12},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("phase", PHASES)
def test_clients_that_leave(server: Victim, phase: str, stream: bool, count: Count) -> None:
    times, body = 5 * TIMES, LONG | PHASES[phase] | {"stream": stream}
    before = read_books(server.url)

    async def leave() -> None:
        if phase == "waiting":
            async with httpx.AsyncClient(timeout=60) as client:
                blocking = [
                    asyncio.create_task(client.post(f"{server.url}/v1/completions", json=LONG)) for _ in range(SLOTS)
                ]
                while server.engine.num_running < SLOTS:
                    await asyncio.sleep(0.005)
                await asyncio.gather(*(send_and_leave(server.url, body, 0.05, read_first=False) for _ in range(QUEUE)))
                for task in blocking:
                    task.cancel()
                await asyncio.gather(*blocking, return_exceptions=True)
            return
        for i in range(times):
            read_first = stream and phase in ("decode", "thought")
            prompt = f"{stream} {i} {body['prompt']}"  # each its own, or it would be found in the cache and not read
            await send_and_leave(server.url, body | {"prompt": prompt}, 0.01 + 0.02 * (i % 3), read_first)

    for _ in range(max(1, times // QUEUE) if phase == "waiting" else 1):
        asyncio.run(leave())
        settled(server.url)
    after = settled(server.url)
    cancelled = after.total("cancelled_requests_total") - before.total("cancelled_requests_total")
    there = after.total("cancelled_requests_total", phase=phase) - before.total("cancelled_requests_total", phase=phase)
    assert cancelled > 0
    assert there > 0, "none of them left in the phase that was meant"
    count(f"client left, {phase}, {'streamed' if stream else 'whole'}", cancelled=int(cancelled), in_phase=int(there))


def test_malformed_bodies(server: Victim, count: Count) -> None:
    """Mutations of a good body: whatever is not answered is refused with an error object."""
    dice, told = random.Random(7), Counter[int]()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(500 * TIMES if TIMES > 1 else 150):
            path = dice.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
            content = malformed(dice)
            reply = client.post(path, content=content, headers={"content-type": "application/json"})
            told[reply.status_code] += 1
            if reply.status_code == 200:
                continue
            assert reply.status_code in (400, 404, 504), (reply.status_code, content)  # some ask for too little time
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"].count("\n") == 0
            assert b"Traceback" not in reply.content
    count("malformed body", sent=sum(told.values()), refused=sum(told.values()) - told[200], answered=told[200])


GOOD = {
    "prompt": "abc",
    "messages": [{"role": "user", "content": "abc"}],
    "tokens": [5, 6],
    "max_tokens": 2,
    "temperature": 0.5,
    "n": 1,
    "stop": ["x"],
    "logit_bias": {"65": 1.0},
    "thought_depth": 1,
    "stream": False,
    "seed": 3,
}
STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 2**70, -(2**70), 1e308, "", "x" * 5000, "\ud800", "\x00", [], {}, [[]], [{}], [None], {"a": None},
    [1, "a"], "<|startthought|>", [1], [2**40], {"": 1}, "NaN", [[1], [-1]], {"type": "text"}, [{"role": "user"}],
]  # fmt: skip


def malformed(dice: random.Random) -> bytes:
    body: dict[str, Any] = {k: v for k, v in GOOD.items() if dice.random() < 0.6}
    for _ in range(dice.randint(0, 3)):
        key = dice.choice([*GOOD, "best_of", "logprobs", "stream_options", "reasoning_effort", "timeout_s", "frob"])
        body[key] = dice.choice(STRANGE)
    content = bytearray(json.dumps(body).encode())
    kind = dice.randrange(6)
    if kind == 0:
        del content[dice.randrange(len(content)) :]
    elif kind == 1:
        for _ in range(dice.randint(1, 5)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    elif kind == 2:
        at = dice.randrange(len(content))
        content[at:at] = dice.choice([b"[" * 2000, b'{"a":' * 2000, b"1e999", b"NaN", b"\xff\xfe", b"9" * 5000, b'"'])
    elif kind == 3:
        content = bytearray(dice.randbytes(dice.randrange(200)))
    return bytes(content)


def test_bytes_that_are_no_http(server: Victim, count: Count) -> None:
    dice, sent = random.Random(8), 20 * TIMES
    host, port = server.url.removeprefix("http://").split(":")
    heads = [
        b"",
        b"GET ",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01",
        b"GET / HTTP/9.9\r\n\r\n",
    ]
    for _ in range(sent):
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            wire.sendall(dice.choice(heads) + dice.randbytes(dice.randrange(300)))
            wire.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                told = wire.recv(100)
                assert not told or told.startswith(b"HTTP/1.1 4")
    count("bytes that are no HTTP", sent=sent)


def test_bodies_that_are_too_large(server: Victim, count: Count) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**20

    sent = refused = 0
    for _ in range(2 * TIMES):
        for content in (b" " * (17 * 2**20), pieces()):
            sent += 1
            with suppress(httpx.WriteError, httpx.ReadError):  # the server may hang up before all is sent
                url, kind = f"{server.url}/v1/completions", {"content-type": "application/json"}
                reply = httpx.post(url, content=content, headers=kind, timeout=60)
                assert reply.status_code == 413
                assert reply.json()["error"]["code"] == "request_too_large"
                refused += 1
    assert refused
    count("body too large", sent=sent, told_413=refused)


def test_slow_readers_and_slow_writers_hold_nobody_up(server: Victim, count: Count) -> None:
    """Streams that nobody reads, and requests that never end, beside ones that are answered meanwhile."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(LONG | {"stream": True, "logprobs": 20, "max_tokens": 300}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    wires = []
    for i in range(8 * TIMES):
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        wire.connect((host, int(port)))
        wire.sendall(head % len(content) + (content if i % 2 else content[:40]))
        wires.append(wire)
        if i % 4 == 0:
            assert server.post(PROBE | {"max_tokens": 2}).status_code in (200, 503)
    settled(server.url)
    assert server.post(PROBE).json()["choices"][0]["text"] == server.right_answer
    for wire in wires:
        wire.close()
    count("slow reader or writer", connections=len(wires))


def test_the_queue_is_full(server: Victim, count: Count) -> None:
    async def rush() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=64)
        ) as client:
            body = LONG | {"max_tokens": 60}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(40)))

    told = Counter[int]()
    for _ in range(TIMES):
        for reply in asyncio.run(rush()):
            told[reply.status_code] += 1
            if reply.status_code != 200:
                assert reply.json()["error"]["code"] == "queue_full"
                assert int(reply.headers["retry-after"]) > 0
    assert set(told) == {200, 503}
    assert told[200] >= (SLOTS + QUEUE) * TIMES
    count("queue full", sent=sum(told.values()), answered=told[200], told_503=told[503])


# --- the device ------------------------------------------------------------------------------------------------------


def mixed(number: int) -> dict[str, Any]:
    return {"prompt": f"number {number}", "max_tokens": 10 + number % 7, "seed": number, "thought_depth": number % 5}


def ask_all(server: Victim, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=SLOTS + QUEUE)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    return asyncio.run(ask())


def texts(replies: list[httpx.Response]) -> list[str]:
    return [reply.json()["choices"][0]["text"] for reply in replies]


@pytest.fixture
def broken_model(server: Victim, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace a function of the model that serves."""
    model = server.engine._decoder.model
    return lambda name, replacement: monkeypatch.setattr(model, name, replacement)


def test_memory_runs_out_now_and_then(server: Victim, broken_model: Callable[..., None], count: Count) -> None:
    """A forward that fails is repeated by halves: nobody who is not alone in it notices."""
    bodies = [mixed(i) for i in range(20 * TIMES)]
    wanted, dice, failures = texts(ask_all(server, bodies)), random.Random(3), [0]
    right = server.engine._decoder.model.run

    def run(rows: Any, cache: Any) -> torch.Tensor:
        if len(set(rows.slots)) > 1 and dice.random() < 0.1:
            failures[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(rows, cache)

    before = settled(server.url).total("oom_total")
    broken_model("run", run)
    assert texts(ask_all(server, bodies)) == wanted
    assert settled(server.url).total("oom_total") - before == failures[0] > 0
    count("out of memory, forwards", failures=failures[0], requests=len(bodies), answered_right=len(bodies))


def test_memory_does_not_suffice_for_one_request(
    server: Victim, broken_model: Callable[..., None], count: Count
) -> None:
    right = server.engine._decoder.model.run
    guilty = server.engine.tokens.encode("!")[0]

    def run(rows: Any, cache: Any) -> torch.Tensor:
        if guilty in rows.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(rows, cache)

    bodies = [mixed(i) | {"logit_bias": {str(guilty): -100}} for i in range(8)]
    wanted = texts(ask_all(server, bodies))
    broken_model("run", run)
    told = 0
    for _ in range(TIMES):
        replies = ask_all(server, [*bodies, {"prompt": "too much!"}])
        assert texts(replies[:-1]) == wanted
        assert replies[-1].status_code == 503
        assert replies[-1].json()["error"]["code"] == "out_of_memory"
        assert replies[-1].headers["retry-after"]
        told += 1
    count("out of memory, one request", told_503=told, others_answered_right=8 * told)


def test_logits_that_are_no_numbers(server: Victim, broken_model: Callable[..., None], count: Count) -> None:
    """Once: the answer starts over and is right. Always: that answer ends with an error, and no other."""
    right, dice, spoilt = server.engine._decoder.model.logits, random.Random(4), [0]
    bodies = [mixed(i) for i in range(12 * TIMES)]
    wanted = texts(ask_all(server, bodies))

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        told = right(hidden)
        if len(told) and dice.random() < 0.01:
            told[dice.randrange(len(told))] = torch.nan
            spoilt[0] += 1
        return told

    broken_model("logits", logits)
    replies = ask_all(server, bodies)
    failed = [i for i, reply in enumerate(replies) if reply.status_code != 200]
    for i, reply in enumerate(replies):
        if i in failed:
            assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        else:
            assert texts([reply]) == [wanted[i]]
    assert spoilt[0]
    count(
        "logits are no numbers",
        spoilt=spoilt[0],
        requests=len(bodies),
        told_500=len(failed),
        rest_right=len(bodies) - len(failed),
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_device_thread_dies(count: Count) -> None:
    """Everyone is told, the load balancer too; what came before is in the books."""
    for _ in range(TIMES):
        with victim() as server:
            streams, told = [], Counter[str]()

            def listen(streams: list[str] = streams, url: str = server.url) -> None:
                with httpx.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as reply:
                    streams.append(reply.read().decode())

            threads = [threading.Thread(target=listen) for _ in range(6)]
            for thread in threads:
                thread.start()
            while server.engine.num_running + server.engine.num_waiting < len(threads):
                time.sleep(0.01)
            server.engine._decoder.step = None  # type: ignore[assignment]
            server.engine._observer.forward = None  # type: ignore[method-assign]
            server.engine._decoder.drop = None  # type: ignore[assignment]
            for thread in threads:
                thread.join()
            for stream in streams:
                *_, last, done, end = stream.split("\n\n")
                assert (done, end) == ("data: [DONE]", "")
                told[json.loads(last.removeprefix("data: "))["error"]["code"]] += 1
            assert told == {"internal_error": 6}
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.get(f"{server.url}/ready").status_code == 503
            assert server.post(PROBE).json()["error"]["code"] == "draining"
            books = settled(server.url)
            assert books.total("requests_finished_total") == books.total("e2e_request_latency_seconds_count") == 7
    count("device thread died", times=TIMES, streams_told=6 * TIMES)


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("faults") / "tiny-quiet", stops="")


@pytest.mark.parametrize("signals", [1, 2])
def test_the_process_is_told_to_end_under_load(checkpoint: Path, signals: int, count: Count) -> None:
    """The first signal lets what runs finish, and refuses what is new; the second one ends it, with an error for each."""
    told = Counter[str]()
    for _ in range(max(1, TIMES // 4)):
        with running(str(checkpoint), "--max-num-seqs", "4", "--max-model-len", "400") as server:
            replies: list[httpx.Response] = []

            def ask(url: str = server.url, replies: list[httpx.Response] = replies) -> None:
                body = LONG | {"max_tokens": 150 if signals == 1 else 380, "thought_depth": 0 if signals == 1 else 16}
                replies.append(httpx.post(f"{url}/v1/completions", json=body, timeout=120))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            while read_books(server.url).total("num_requests_running") < 4:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            while httpx.get(f"{server.url}/ready").status_code == 200:
                time.sleep(0.01)
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert read_books(server.url).total("draining") == 1
            late = httpx.post(f"{server.url}/v1/completions", json=PROBE)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
            assert server.process.wait(30) == 0
            for reply in replies:
                if signals == 1:
                    assert reply.json()["usage"]["completion_tokens"] == 150
                else:
                    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
                told["answered" if reply.status_code == 200 else reply.json()["error"]["code"]] += 1
    assert set(told) == ({"answered"} if signals == 1 else {"draining"})
    count("SIGTERM under load" if signals == 1 else "second SIGTERM", **told)


def test_the_disk_is_full_while_logging(checkpoint: Path, count: Count) -> None:
    requests = 20 * TIMES
    with (
        open("/dev/full", "w") as full,
        running(
            str(checkpoint), "--max-model-len", "128", "--log-level", "debug", "--log-format", "json", stderr=full
        ) as server,
    ):
        for i in range(requests):
            assert httpx.post(f"{server.url}/v1/completions", json=mixed(i), timeout=60).status_code == 200
        books = settled(server.url)
        assert books.total("requests_finished_total") == requests
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    count("disk full while logging", requests=requests, answered=requests)


def damage(folder: Path, file: str, kind: str) -> None:
    path = folder / file
    content = path.read_bytes()
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) * 2 // 3])
        case "garbled":
            path.write_bytes(bytes(random.Random(1).randbytes(64)) + content[64:])


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "quiet.safetensors", "quiet_config.json", "tokenizer.json"]
)
def test_a_checkpoint_that_is_damaged(
    checkpoint: Path, tmp_path: Path, file: str, count: Count, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file, exit code 2, and nothing is promised before."""
    kinds = ("missing", "empty", "cut", "garbled") if TIMES > 1 else ("cut",)
    for kind in kinds:
        folder = tmp_path / kind / "tiny-quiet"
        shutil.copytree(checkpoint, folder)
        damage(folder, file, kind)
        assert serve([str(folder), "--port", "0"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.strip().splitlines()
        assert line.startswith("quietserve serve: ")
        assert "tiny-quiet" in line
    refused = len(kinds)
    count(f"damaged {file}", started=refused, refused_in_one_line=refused)
