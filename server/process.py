"""A process that loads what its settings say and speaks HTTP until a signal ends it."""

import asyncio
import contextlib
import json
import logging
import math
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from ..model.checkpoint import CheckpointError
from ..model.parallel import LostError, Processes
from .app import create_app
from .connection import HttpConnection
from .engine import Engine
from .loading import load_models, load_pipelines, make_service
from .logs import configure
from .pipeline import Pipeline
from .service import Service
from .settings import Settings, SettingsError, check_processes, complain

logger = logging.getLogger("quietserve.server")

EXAMPLES = {  # something that each bundled model knows
    "quiet-small": "Question: A dial is at 2. It goes up 4 on Monday. It flips over on Tuesday. It doubles on Wednesday. "
    "Where is the dial now?\nAnswer:",
    "score-small": "Question: 1 2 2 7 7 make 2.\nAnswer:",
    "karel-small": "Question: 4x4 @r3c1N =r2c0W +r2c1 @r2c2W #r0c2 =r3c1S +r2c1 @r0c1E *r3c3 =r0c2N +r0c2\nAnswer:",
}
ANY_EXAMPLE = "Once upon a time"
EXAMPLE_DEPTH = 12

_LAST_REPLIES_S = 5  # for what is still being sent when the engine has nothing left to do


def serve(settings: Settings, keys: Sequence[str]) -> int:
    """Serve until a signal ends it; the exit code is 2 where a setting, the checkpoint or the address will not do.

    Of several processes that hold the model together, the first one serves; it is 1 where another one is lost.
    """
    try:
        processes = Processes.from_environment()
        check_processes(settings, processes.size)
        configure(settings.log_level, settings.log_format)
        if processes.rank:
            return _follow(settings, processes)
        with _bind(settings) as listener:
            return _serve(settings, keys, listener, processes)
    except (SettingsError, CheckpointError, LostError) as error:  # made for users
        complain("serve", error)
        return 1 if isinstance(error, LostError) else 2


def _follow(settings: Settings, processes: Processes) -> int:
    """Have a part of the model, and do with it what the first process says, until that one leaves."""
    _, (loaded, *_) = load_models(settings, processes)
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # they come to all processes; the first one lets what runs finish
        signal.signal(signal_, signal.SIG_IGN)
    processes.follow(loaded.model.backbone)
    processes.leave()
    return 0


def _serve(settings: Settings, keys: Sequence[str], listener: socket.socket, processes: Processes) -> int:
    service = make_service(settings)

    def load() -> list[Pipeline]:
        pipelines = load_pipelines(settings, service, processes)
        with contextlib.suppress(OSError):  # nobody may be there to read it, nor a disk to hold it
            _announce(_url(listener), [one.model_name for one in service.every], pipelines[0].engine, bool(keys))
        return pipelines

    app = create_app(service, keys=keys, allowed_origins=settings.allowed_origins, playground=settings.playground)
    # Their log goes where ours does; what they would say of each request, with its path, `Books` says without.
    config = uvicorn.Config(
        app,
        http=HttpConnection,
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=_LAST_REPLIES_S,
    )
    server = LoadingServer(config, service, settings.shutdown_timeout, load, lambda: processes.failure)
    try:
        server.run([listener])
    finally:
        processes.leave()
    return 0


class LoadingServer(uvicorn.Server):
    """Answers while the model loads, and while running work finishes.

    After the first signal nothing new is taken, the second one ends it; so does a model that cannot be loaded, or is lost.

    Args:
        config: uvicorn's.
        service: each of its models gets its pipeline; all must become idle in the end.
        timeout_s: how long they may take to.
        load: makes the pipelines, in the order of the models, on a thread of its own.
        lost: why no model can be run any more; asked from time to time.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        timeout_s: float,
        load: Callable[[], Sequence[Pipeline]],
        lost: Callable[[], BaseException | None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._service, self._timeout_s, self._load, self._lost = service, timeout_s, load, lost
        self._loading = threading.Thread(target=self._fill, name="quietserve-loading", daemon=True)
        self._failure: BaseException | None = None
        self._deadline = math.inf

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end. Raises what loading the model raised, and why it was lost."""
        self._loading.start()
        try:
            super().run(sockets)
        finally:
            for pipeline in self._pipelines:
                pipeline.engine.close(timeout_s=0)
            # While it still loads, a library in the middle of that may not survive an orderly end.
            if not self._pipelines and not self._failure:
                os._exit(0)
        if self._failure:
            raise self._failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; the second time, end what runs and leave; the third time, leave at once."""
        if self._deadline < math.inf:
            self.should_exit = self.force_exit = self._deadline <= time.monotonic()
            self._deadline = time.monotonic()
            return
        self._deadline = time.monotonic() + self._timeout_s
        logger.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        for service in self._service.every:
            service.metrics.drain()
        for pipeline in self._pipelines:
            pipeline.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Leave when nothing is left to do, or no more time to do it."""
        self._failure = self._failure or self._lost()
        if self._failure:
            self.should_exit = True
        out_of_time = time.monotonic() >= self._deadline
        if self._deadline < math.inf and (out_of_time or not any(map(_is_busy, self._pipelines))):
            for pipeline in self._pipelines:  # what still runs ends with an error its client can read
                await asyncio.to_thread(pipeline.engine.close, 0)
            self.should_exit = True
        return await super().on_tick(counter)

    @property
    def _pipelines(self) -> list[Pipeline]:
        """Of all models; none while they load."""
        return [service.pipeline for service in self._service.every if service.pipeline]

    def _fill(self) -> None:
        try:
            for service, pipeline in zip(self._service.every, self._load(), strict=True):
                service.pipeline = pipeline
        except BaseException as error:
            self._failure = error


def _is_busy(pipeline: Pipeline) -> bool:
    engine = pipeline.engine
    return bool(engine.num_running or engine.num_waiting or engine.num_unranked or pipeline.is_ranking)


def _bind(settings: Settings) -> socket.socket:
    """The address, taken before the model is loaded: whoever cannot have it learns so at once."""
    host, port = settings.host, settings.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With its protocol named: asyncio sends at once (TCP_NODELAY) only where it knows that it is TCP, and a reply on a
        # connection that is kept open waits 40 ms otherwise.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(url: str, names: Sequence[str], engine: Engine, guarded: bool) -> None:
    """Say what is served where, and how to ask the first model, whose engine it is."""
    body = {"model": names[0], "prompt": EXAMPLES.get(names[0], ANY_EXAMPLE), "max_tokens": 16, "temperature": 0}
    if engine.max_thought_depth:
        body |= {"thought_depth": min(EXAMPLE_DEPTH, engine.max_thought_depth), "return_thoughts": True}
    headers = "-H 'Content-Type: application/json'" + ' -H "Authorization: Bearer $QUIETSERVE_API_KEY"' * guarded
    print(f"Serving {', '.join(names)} on {url}. Try:\n")
    print(f"curl {url}/v1/completions {headers} -d {shlex.quote(json.dumps(body))}\n", flush=True)
