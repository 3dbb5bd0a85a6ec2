"""Replicas on Ray Serve, on this machine: killed, redeployed, asked for what lies in one of them. `make test-ray`."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import RayActorError

from examples import ALL_BUNDLED, EXAMPLES, check
from quietserve.server.ingress import Asked, Head, Ingress, merge_metrics, preferred
from quietserve.server.replicas import Replica, Scale, build, num_replicas
from quietserve.server.settings import SettingsError
from serving import cancelled, serving

KILLS = int(os.environ.get("KILLS", "20"))
FLAGS = "quiet-small --max-num-seqs 8 --log-level warning --shutdown-timeout 120"
TITLE = "ray::ServeReplica:default:engine"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=8, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(FLAGS)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def deploy(flags: str) -> None:
    serve.run(build(Scale(flags=flags, min_replicas=2, max_replicas=2)), name="default")


def body(prompt: str = "A dial is at 3.", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": True, "thought_depth": 4} | more


def ask(url: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body(**more), timeout=120)


def text_of(url: str, **more: Any) -> str:
    return ask(url, **more).json()["choices"][0]["text"]


def events(url: str, **more: Any) -> list[str]:
    with httpx.stream("POST", f"{url}/v1/completions", json=body(stream=True, **more), timeout=120) as stream:
        return [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]


def joined(url: str, **more: Any) -> str:
    *told, done = events(url, **more)
    assert done == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in told)  # a busy server tells tokens together


def samples(url: str, name: str) -> dict[str, float]:
    """By replica, over all other labels."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == f"quietserve_{name}":
                found[sample.labels["replica"]] += sample.value
    return dict(found)


def pids() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith(TITLE):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)


def test_what_is_said_is_what_one_process_says(url: str) -> None:
    with serving(*FLAGS.split()) as plain:
        for prompt in ("A dial is at 3.", "Anna has the ball.", "Mary has 4 apples."):
            assert text_of(url, prompt=prompt) == text_of(plain, prompt=prompt)
            assert joined(url, prompt=prompt) == joined(plain, prompt=prompt)
        for wrong in ({"thought_depth": 99}, {"thought_dept": 1}, {"model": "none"}):
            here, there = ask(url, **wrong), ask(plain, **wrong)
            assert (here.status_code, here.json()) == (there.status_code, there.json())
        assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"] == "quiet-small"
        assert httpx.get(f"{url}/nothing", timeout=60).status_code == 404
        assert httpx.get(f"{url}/ready", timeout=60).status_code == 200


def test_requests_that_begin_alike_go_to_one_replica_and_both_have_work(url: str) -> None:
    for beginning in range(8):
        before = samples(url, "requests_finished_total")
        for ending in range(3):
            ask(url, prompt=f"{beginning} {'It goes up 4. ' * 40} {ending}", max_tokens=1)
        after = samples(url, "requests_finished_total")
        assert sorted(after[name] - before[name] for name in after) == [0, 3]
    assert len(after) == 2
    assert min(after.values()) > 0


def test_a_request_is_cancelled_wherever_it_runs(url: str) -> None:
    for number in range(4):
        endless = body(f"{number} is where the dial is.", stream=True, max_tokens=900)
        assert '"finish_reason":"abort"' in cancelled(url, f"mine-{number}", endless)
    assert httpx.post(f"{url}/v1/requests/nobody/cancel", timeout=60).status_code == 404


def test_a_client_that_leaves_frees_its_slot(url: str) -> None:
    for stream in (True, False):
        with httpx.Client(timeout=120) as client:
            if stream:
                with client.stream("POST", f"{url}/v1/completions", json=body(stream=True, max_tokens=900)) as reply:
                    next(reply.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{url}/v1/completions", json=body(max_tokens=900, thought_depth=16), timeout=1)
        wait_for(lambda: sum(samples(url, "num_requests_running").values()) == 0, "the slot is free")


def test_every_example_of_the_documentation_says_what_its_page_says(url: str) -> None:
    """Several models, votes, corrections, a ranker, probes: whatever flags bring to one process they bring to replicas."""
    deploy(ALL_BUNDLED)
    try:
        for example in EXAMPLES:
            check(example, url)
    finally:
        deploy(FLAGS)


def test_a_replica_that_is_to_go_finishes_what_it_has(url: str) -> None:
    """Streams broke in silence here: the ingress that carried them was given less time to go than the replicas were."""
    begun, told = threading.Barrier(5), []

    def listen(number: int) -> None:
        endless = body(f"A dial is at {number}.", stream=True, max_tokens=300)
        with httpx.stream("POST", f"{url}/v1/completions", json=endless, timeout=120) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            next(lines)
            begun.wait(60)
            told.append(list(lines)[-2:])

    before = pids()
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(listen, number) for number in range(4)]
        begun.wait(60)
        deploy(f"{FLAGS} --max-num-queued-reqs 99")  # new replicas, in place of both
        for client in clients:
            client.result()
    assert not set(before) & set(pids())
    for last, done in told:
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert done == "data: [DONE]"


def test_a_replica_that_cannot_load_is_reported_and_the_old_ones_go_on(url: str, tmp_path: Path) -> None:
    before = text_of(url)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError):
        deploy(f"{tmp_path} --max-num-seqs 8")
    status = serve.status().applications["default"].deployments["engine"]
    assert str(tmp_path) in status.message
    assert text_of(url, model="quiet-small") == before
    deploy(FLAGS)


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, url: str) -> None:
        self.url, self.stop = url, threading.Event()
        self.right = {number: text_of(url, prompt=f"A dial is at {number}.") for number in range(6)}
        self.told: Counter[str] = Counter()
        self.wrong: list[str] = []

    def ask_plainly(self, number: int) -> None:
        while not self.stop.is_set():
            reply = ask(self.url, prompt=f"A dial is at {number}.")
            self.told["plain"] += 1
            if reply.status_code != 200 or reply.json()["choices"][0]["text"] != self.right[number]:
                self.wrong.append(reply.text)

    def ask_streaming(self, number: int) -> None:
        while not self.stop.is_set():
            *_, last, done = events(self.url, prompt=f"A dial is at {number}.", max_tokens=200)
            told = json.loads(last)
            how = told["error"]["code"] if "error" in told else told["choices"][0]["finish_reason"]
            self.told[f"stream: {how}"] += 1
            if done != "[DONE]" or how not in ("length", "replica_lost"):
                self.wrong.append(last)


def test_no_plain_request_fails_and_every_stream_ends_while_replicas_are_killed(url: str) -> None:
    load = Load(url)
    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(load.ask_plainly, number) for number in range(6)]
        clients += [pool.submit(load.ask_streaming, number) for number in range(4)]
        try:
            for kill in range(KILLS):
                wait_for(lambda: len(pids()) == 2 and len(samples(url, "draining")) == 2, "both replicas are there")
                os.kill(sorted(pids())[kill % 2], signal.SIGKILL)
        finally:
            load.stop.set()
        for client in clients:
            client.result()
    print(f"{KILLS} kills: {dict(load.told)}")
    assert load.wrong == []
    assert load.told["stream: replica_lost"] > 0
    wait_for(lambda: len(samples(url, "draining")) == 2, "both replicas are there")
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio"):
        assert sum(samples(url, gauge).values()) == 0
    finished, counted = samples(url, "requests_finished_total"), samples(url, "e2e_request_latency_seconds_count")
    assert finished == dict.fromkeys(finished, 0) | counted


def test_there_are_more_replicas_while_slots_are_short_and_fewer_afterwards(url: str) -> None:
    scale = Scale(flags="quiet-small --max-num-seqs 2", max_replicas=2, upscale_delay_s=1, downscale_delay_s=1)
    serve.run(build(scale), name="default")
    wait_for(lambda: len(pids()) == 1, "one is enough")
    stop = threading.Event()

    def keep_asking(number: int) -> None:
        while not stop.is_set():
            assert ask(url, prompt=f"{number}: a dial is at 3.", max_tokens=200).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(keep_asking, number) for number in range(8)]
        try:
            wait_for(lambda: len(samples(url, "draining")) == 2, "a second one")
        finally:
            stop.set()
        for client in clients:
            client.result()
    wait_for(lambda: len(pids()) == 1, "one is enough again")
    assert ask(url).status_code == 200


def test_a_replica_is_as_healthy_as_its_device_thread() -> None:
    """Without a cluster: Ray replaces one that raises here."""
    replica = Replica("quiet-small --max-num-seqs 1")
    replica.check_health()
    (service,) = replica._service.every
    assert service.pipeline
    service.pipeline.engine.close(timeout_s=0)
    with pytest.raises(RuntimeError, match="device thread of quiet-small has died"):
        replica.check_health()


def test_flags_are_judged_before_anything_starts() -> None:
    with pytest.raises(SettingsError, match="--max-num-seqs"):
        build(Scale(flags="quiet-small --max-num-seqs 0"))
    with pytest.raises(ValueError, match="min_replica"):
        Scale.model_validate({"min_replica": 2})
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Scale(min_replicas=0)


class Named(str):
    """Stands for a replica's id."""

    @property
    def unique_id(self) -> str:
        return str(self)


@given(
    st.binary(max_size=40),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3).map(Named), st.integers(0, 9), min_size=1),
)
def test_all_are_ranked_those_with_much_to_do_last(key: bytes, work: dict[Any, int]) -> None:
    ranked = preferred(key, work)
    assert sorted(ranked) == sorted(work)
    mean = (sum(work.values()) + 1) / len(work)
    busy = [work[replica] + 1 > max(1, 1.5 * mean) for replica in ranked]
    assert busy == sorted(busy)
    assert ranked == preferred(key, dict(reversed(work.items())))


@given(st.binary(max_size=40), st.sets(st.text("abcdef", min_size=1, max_size=3).map(Named), min_size=2))
def test_when_a_replica_goes_only_its_requests_move(key: bytes, replicas: set[Any]) -> None:
    first, second, *_ = preferred(key, dict.fromkeys(replicas, 0))
    others = preferred(key, dict.fromkeys(replicas - {second}, 0))
    assert others[0] == first
    assert preferred(key, dict.fromkeys(replicas - {first}, 0))[0] == second


@pytest.mark.parametrize(("answers", "wanted"), [((0, 0), 1), ((8, 1), 2), ((8, 8), 2), ((20, 9), 4)])
def test_there_are_as_many_replicas_as_answers_need_slots(answers: tuple[int, int], wanted: int) -> None:
    told = {"slots": {"a": 8.0, "b": 8.0}, "answers": dict(zip("ab", answers, strict=True))}
    assert num_replicas(SimpleNamespace(aggregated_metrics=told))[0] == wanted


def test_metrics_of_replicas_are_told_apart() -> None:
    one = b'# HELP a_total What.\n# TYPE a_total counter\na_total{kind="x"} 3.0\n'
    assert merge_metrics({0: one, 1: one}) == (
        b'# HELP a_total What.\n# TYPE a_total counter\na_total{kind="x",replica="0"} 3.0\na_total{kind="x",replica="1"} 3.0\n'
    )


def test_a_request_is_alike_by_its_beginning() -> None:
    asked = [Asked("POST", "/", b"", [], b"a" * 400 + end) for end in (b"b", b"c")]
    assert asked[0].key == asked[1].key


class Engines:
    """Stands for the handle of replicas that say one thing after the other, and then fail as they are told to."""

    def __init__(self, *says: list[Any]) -> None:
        self._says = iter(says)

    def options(self, **_: Any) -> "Engines":
        return self

    def remote(self, _: Asked) -> "Engines":
        self._items = iter(next(self._says))
        return self

    def __aiter__(self) -> "Engines":
        return self

    async def __anext__(self) -> Any:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            return item
        raise StopAsyncIteration

    def cancel(self) -> None:
        pass


HEAD, WHOLE = Head(200, [], None), Head(200, [], b"whole")
COMMENT, NEWS = b": keep-alive\n\n", b"data: {}\n\n"


@pytest.mark.parametrize(
    ("says", "carried", "code"),
    [
        ([[RayActorError(), WHOLE], [WHOLE]], [WHOLE], None),
        ([[HEAD, RayActorError()], [HEAD, NEWS]], [HEAD, NEWS], None),
        ([[HEAD, COMMENT, RayActorError()], [HEAD, NEWS]], [HEAD, COMMENT, NEWS], None),
        (
            [[HEAD, COMMENT, RayActorError()], [Head(503, [], b'{"error":{"code":"draining"}}')]],
            [HEAD, COMMENT],
            "draining",
        ),
        ([[HEAD, NEWS, RayActorError()]], [HEAD, NEWS], "replica_lost"),
        ([[HEAD, NEWS, ValueError("a fault")]], [HEAD, NEWS], "internal_error"),
        ([[ValueError("a fault")]], [], "internal_error"),
        ([[RayActorError()]] * 5, [], "replica_lost"),
    ],
)
def test_what_is_carried_when_replicas_fail(says: list[list[Any]], carried: list[Any], code: str | None) -> None:
    async def carry() -> list[Any]:
        return [item async for item in Ingress(Engines(*says))._carry(Asked("POST", "/", b"", [], b""))]  # type: ignore[arg-type]

    *before, last = asyncio.run(carry())
    if code is None:
        assert [*before, last] == carried
    else:
        assert before == carried
        told = last.decode().removeprefix("data: ") if carried else last.body.decode()
        assert json.loads(told.partition("\n")[0])["error"]["code"] == code
        assert not carried or told.endswith("data: [DONE]\n\n")
