"""`quietserve serve`: the only place where settings, checkpoint, engine and HTTP meet."""

import asyncio
import json
import logging
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

import torch
import uvicorn

from ..model.bundled import DEFAULT
from ..model.checkpoint import CheckpointError, Loaded, load
from .app import create_app
from .engine import Engine
from .metrics import Metrics
from .pipeline import Pipeline
from .settings import Settings, SettingsError

EXAMPLE_PROMPT = (
    "Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. "
    "Where is the dial now?\nAnswer:"
)
EXAMPLE_DEPTH = 12
SMALL_MODEL = 20_000_000  # parameters

_LAST_REPLIES_S = 5  # for what is still being sent when the engine has nothing left to do


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; the exit code is 2 where a flag, the checkpoint or the address will not do."""
    try:
        settings = Settings.from_args(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
        with _bind(settings) as listener:
            return _serve(settings, listener)
    except (SettingsError, CheckpointError) as error:  # both are ValueErrors made for users
        print(f"quietserve serve: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _serve(settings: Settings, listener: socket.socket) -> int:
    device = _device(settings.device)
    loaded = load(settings.model or DEFAULT, dtype=settings.dtype, device=device)
    torch.set_num_threads(settings.num_threads or _num_threads(loaded))
    try:
        loaded.model.speed_up("float" if settings.quantization == "none" else settings.quantization)
    except ValueError as error:
        raise CheckpointError(f"{loaded.name}: {error}") from error
    name = settings.served_model_name or loaded.name
    metrics = Metrics(name)
    engine = _engine(settings, loaded, metrics)
    pipeline = Pipeline(engine, settings.default_thought_depth)
    metrics.describe_model(
        str(loaded.model.backbone.dtype).removeprefix("torch."), device, engine.model_bytes, engine.kv_cache_bytes
    )
    engine.start()
    try:
        _announce(listener, name, engine)
        app = create_app(pipeline, metrics, name)
        config = uvicorn.Config(app, log_level=settings.log_level, timeout_graceful_shutdown=_LAST_REPLIES_S)
        DrainingServer(config, pipeline, settings.shutdown_timeout).run([listener])
    finally:
        engine.close(timeout_s=0)
    return 0


class DrainingServer(uvicorn.Server):
    """Answers on while running work finishes: after the first signal nothing new is taken, the second one ends it.

    Args:
        config: uvicorn's.
        pipeline: what must become idle.
        timeout_s: how long it may take to.
    """

    def __init__(self, config: uvicorn.Config, pipeline: Pipeline, timeout_s: float) -> None:
        super().__init__(config)
        self._pipeline = pipeline
        self._timeout_s = timeout_s
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; the second time, leave."""
        if self._pipeline.draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
        else:
            self._pipeline.draining = True
            self._deadline = time.monotonic() + self._timeout_s

    async def on_tick(self, counter: int) -> bool:
        """Leave when nothing is left to do, or no more time to do it."""
        engine = self._pipeline.engine
        idle = not engine.num_running and not engine.num_waiting
        if self._pipeline.draining and (idle or time.monotonic() > self._deadline):
            await asyncio.to_thread(engine.close, 0)  # what still runs ends with an error its client can read
            self.should_exit = True
        return await super().on_tick(counter)


def _bind(settings: Settings) -> socket.socket:
    """The address, taken before the model is loaded: whoever cannot have it learns so at once."""
    host, port = settings.host, settings.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"argument --device: cannot use {wanted!r}: {str(error).splitlines()[0]}") from error
    return wanted


def _num_threads(loaded: Loaded) -> int:
    """A small model's products are too short to share, and threads that wait for each other slow them down."""
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return 1 if num_parameters < SMALL_MODEL else torch.get_num_threads()


def _engine(settings: Settings, loaded: Loaded, metrics: Metrics) -> Engine:
    try:
        engine = Engine(
            model=loaded.model,
            tokens=loaded.tokens,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_queued_reqs=settings.max_num_queued_reqs,
            max_thought_depth=settings.max_thought_depth,
            max_num_thoughts=settings.max_num_thoughts,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            pipeline_depth=settings.pipeline_depth,
            prefix_caching=settings.prefix_caching,
            cuda_graphs=settings.cuda_graphs,
            observer=metrics,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    default, most = settings.default_thought_depth or 0, engine.max_thought_depth
    if default > most:
        raise SettingsError(f"default_thought_depth is {default}; it must be between 0 and {most}")
    return engine


def _announce(listener: socket.socket, name: str, engine: Engine) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    body = {"model": name, "prompt": EXAMPLE_PROMPT, "max_tokens": 8, "temperature": 0}
    if engine.max_thought_depth:
        body |= {"thought_depth": min(EXAMPLE_DEPTH, engine.max_thought_depth), "return_thoughts": True}
    print(f"Serving {name} on {url}. Try:\n")
    print(
        f"curl {url}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
