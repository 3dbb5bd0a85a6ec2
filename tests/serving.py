"""Real servers on the loopback: a process, as a user runs it, or an application in this one."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn

from quietserve.clients.command import main
from quietserve.server.connection import HttpConnection

COMMAND = [sys.executable, "-m", "quietserve.clients.command"]
SERVE = ["serve", "--port", "0", "--log-level", "warning"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: "subprocess.Popen[str]"


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """A ready server's address; it is ended with SIGTERM, and must end well."""
    with forked(*flags) as server:
        yield server.url
        server.process.terminate()
        server.process.join(30)
        assert server.process.exitcode == 0


@dataclass
class Forked:
    """A server that runs, in a process that was forked."""

    url: str
    process: multiprocessing.Process


@contextmanager
def forked(*flags: str) -> Iterator[Forked]:
    """A ready server; killed in the end, if it still runs.

    A process of its own that runs the command, but forked from one that has imported it: that is most of what a start costs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["quietserve.server.process"])
    said, says = context.Pipe(duplex=False)
    process = context.Process(target=_be_served, args=(says, *SERVE, *flags))
    with patch.dict(os.environ, ENVIRONMENT):  # the one that is forked from has that of the first start
        process.start()
    says.close()
    try:
        with said, open(said.fileno(), closefd=False) as lines:
            url = address_in(lines.readline())
            wait_until_ready(url)
            yield Forked(url, process)
    finally:
        process.kill()
        process.join()


def _be_served(says: Connection, *argv: str) -> None:
    """The command in this process; what it prints is said."""
    os.dup2(says.fileno(), sys.stdout.fileno())
    sys.exit(main(list(argv)))


@contextmanager
def running(*flags: str, **settings: Any) -> Iterator[Server]:
    """A ready server; killed in the end, if it still runs. The settings are for `Popen`."""
    command = [*COMMAND, *SERVE, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **({"env": ENVIRONMENT} | settings)) as process:
        try:
            assert process.stdout is not None
            url = address_in(process.stdout.readline())
            wait_until_ready(url)
            yield Server(url, process)
        finally:
            process.kill()


def cancelled(url: str, name: str, body: dict[str, Any]) -> str:
    """The rest of a stream, called `name`, that is cancelled by that name once it has begun."""
    headers = {"x-request-id": name}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=120) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert httpx.post(f"{url}/v1/requests/{name}/cancel", timeout=60).status_code == 200
        return "".join(lines)


def address_in(said: str) -> str:
    found = re.search(r"http://\S+?:\d+", said)
    assert found, f"the server said {said!r}"
    return found.group()


def wait_until_ready(url: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=50)) as client:
        assert client.get(f"{url}/ready", timeout=30).status_code == 200


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """A real server on a free port of the loopback, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=HttpConnection, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
