"""Several processes behind one address: the configuration files of HAProxy and nginx, as they stand but for the ports."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Forked, cancelled, forked

pytestmark = pytest.mark.processes

FOLDER = Path(__file__).parents[2] / "docs/deploy"
PORTS = ("8001", "8002")
COMMANDS = {
    "haproxy": lambda program, file: [program, "-db", "-f", file],
    "nginx": lambda program, file: [
        program,
        "-g",
        "daemon off; pid nginx.pid; error_log stderr;",
        "-p",
        ".",
        "-c",
        file,
    ],
}
FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}


@dataclass
class Balanced:
    """Two processes, and the address in front of them."""

    url: str
    processes: list[Forked]

    def ask(self, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body(**more), timeout=60)


def body(prompt: str = "A dial is at 3.", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": 48, "ignore_eos": True, "thought_depth": 4} | more


@pytest.fixture(params=["haproxy", "nginx"])
def program(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def balanced(program: str, tmp_path: Path) -> Iterator[Balanced]:
    with ExitStack() as stack:
        processes = [stack.enter_context(forked()) for _ in PORTS]
        url = stack.enter_context(balancer(program, [server.url for server in processes], tmp_path))
        yield Balanced(url, processes)


@contextmanager
def balancer(program: str, urls: list[str], folder: Path) -> Iterator[str]:
    found = shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"there is no {program} here")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    text = (FOLDER / FILES[program]).read_text().replace("8000", str(port))
    for written, url in zip(PORTS, urls, strict=True):
        text = text.replace(f"127.0.0.1:{written}", url.removeprefix("http://"))
    file = folder / FILES[program]
    file.write_text(text)
    with subprocess.Popen(COMMANDS[program](found, str(file)), cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                assert client.get(f"{url}/ready", timeout=30).status_code == 200
            yield url
        finally:
            process.terminate()


def finished(server: Forked) -> int:
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    return sum(
        int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("quietserve_requests_finished_total")
    )


@pytest.mark.parametrize("leaves", [signal.SIGKILL, signal.SIGTERM])
def test_no_plain_request_fails_when_a_process_goes(balanced: Balanced, leaves: signal.Signals) -> None:
    right = balanced.ask().json()["choices"][0]["text"]
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(balanced.ask, user=f"{number}") for number in range(36)]
        asked[4].result()  # now there is work in both
        os.kill(balanced.processes[0].process.pid, leaves)
        replies = [future.result() for future in asked]
    assert [reply.status_code for reply in replies] == [200] * 36
    assert {reply.json()["choices"][0]["text"] for reply in replies} == {right}
    assert balanced.ask().status_code == 200


def test_a_stream_comes_as_it_is_made_and_does_not_end_well_when_its_process_dies(balanced: Balanced) -> None:
    endless = body(stream=True, max_tokens=900)
    with httpx.stream("POST", f"{balanced.url}/v1/completions", json=endless, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")  # long before the end
        for server in balanced.processes:
            server.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)


@pytest.mark.parametrize("program", ["haproxy"])
def test_what_begins_alike_goes_where_its_beginning_is_and_both_have_work(balanced: Balanced) -> None:
    for beginning in range(12):
        before = [finished(server) for server in balanced.processes]
        for ending in range(3):
            assert balanced.ask(prompt=f"{beginning} {'It goes up 4. ' * 40} {ending}", max_tokens=1).status_code == 200
        assert sorted(finished(server) - was for server, was in zip(balanced.processes, before, strict=True)) == [0, 3]
    assert all(finished(server) for server in balanced.processes)


@pytest.mark.parametrize("program", ["haproxy"])
def test_a_request_is_cancelled_by_its_id_wherever_it_runs(balanced: Balanced) -> None:
    for number in range(6):
        endless = body(f"{number} is where the dial is.", stream=True, max_tokens=900)
        assert '"finish_reason":"abort"' in cancelled(balanced.url, f"mine-{number}", endless)
