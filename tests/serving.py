"""Real servers on the loopback: a process, as a user runs it, or an application in this one."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

COMMAND = [sys.executable, "-m", "quietserve.clients.command"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: "subprocess.Popen[str]"


@contextmanager
def serving(*flags: str, **settings: Any) -> Iterator[str]:
    """A ready server's address; it is ended with SIGTERM, and must end well."""
    with running(*flags, **settings) as server:
        yield server.url
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@contextmanager
def running(*flags: str, **settings: Any) -> Iterator[Server]:
    """A ready server; killed in the end, if it still runs. The settings are for `Popen`."""
    command = [*COMMAND, "serve", "--port", "0", "--log-level", "warning", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **({"env": ENVIRONMENT} | settings)) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://\S+?:\d+", said)
            assert found, f"the server said {said!r}"
            wait_until_ready(found.group())
            yield Server(found.group(), process)
        finally:
            process.kill()


def wait_until_ready(url: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=50)) as client:
        assert client.get(f"{url}/ready", timeout=30).status_code == 200


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """A real server on a free port of the loopback, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
