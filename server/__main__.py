"""`quietserve serve`: the only place where settings, checkpoint, engine and HTTP meet."""

import asyncio
import contextlib
import json
import logging
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import uvicorn

from ..model.bundled import DEFAULT
from ..model.checkpoint import CheckpointError, Loaded, load
from ..model.decode import is_out_of_memory
from ..model.linears import Kind
from ..model.parallel import LostError, Processes
from ..model.probe import Probe, load_probe
from ..model.ranker import Ranker, load_ranker
from .app import create_app
from .engine import Engine
from .errors import ApiError
from .logs import configure
from .metrics import Metrics
from .pipeline import Pipeline
from .presets import Preset
from .schemas import CompletionRequest
from .service import Service
from .settings import Settings, SettingsError, check_processes

logger = logging.getLogger("quietserve.server")

T = TypeVar("T")

EXAMPLE_PROMPT = (
    "Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. "
    "Where is the dial now?\nAnswer:"
)
EXAMPLE_DEPTH = 12
SMALL_MODEL = 20_000_000  # parameters

_PACKED: dict[str, Kind] = {"half": "half", "int8": "int8"}  # our own; the others are done while loading
_LAST_REPLIES_S = 5  # for what is still being sent when the engine has nothing left to do


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; the exit code is 2 where a flag, the checkpoint or the address will not do.

    Of several processes that hold the model together, the first one serves; it is 1 where another one is lost.
    """
    try:
        settings, processes = Settings.from_args(sys.argv[1:] if argv is None else argv), Processes.from_environment()
        check_processes(settings, processes.size)
        keys = settings.read_keys()
        configure(settings.log_level, settings.log_format)
        if processes.rank:
            return _follow(settings, processes)
        with _bind(settings) as listener:
            return _serve(settings, keys, listener, processes)
    except (SettingsError, CheckpointError, LostError) as error:  # made for users
        print(f"quietserve serve: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, LostError) else 2


def _follow(settings: Settings, processes: Processes) -> int:
    """Have a part of the model, and do with it what the first process says, until that one leaves."""
    _, (loaded, *_) = _load_models(settings, processes)
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # they come to all processes; the first one lets what runs finish
        signal.signal(signal_, signal.SIG_IGN)
    processes.follow(loaded.model.backbone)
    processes.leave()
    return 0


def _serve(settings: Settings, keys: Sequence[str], listener: socket.socket, processes: Processes) -> int:
    service = _service(settings)
    app = create_app(service, keys=keys, allowed_origins=settings.allowed_origins, playground=settings.playground)
    # Their log goes where ours does; what they would say of each request, with its path, `Books` says without.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=_LAST_REPLIES_S
    )
    server = LoadingServer(
        config,
        service,
        settings.shutdown_timeout,
        lambda: _load_all(settings, service, listener, processes),
        lambda: processes.failure,
    )
    try:
        server.run([listener])
    finally:
        processes.leave()
    return 0


def _service(settings: Settings) -> Service:
    """The models under their names, and their presets, none of them loaded."""
    metrics = Metrics(settings.name, vllm_names=settings.metrics_compat == "vllm")
    others = [Service(model.name, Metrics(model.name, beside=metrics)) for model in settings.also]
    service = Service(settings.name, metrics, others=others)
    for preset in settings.model_preset:
        service.find(preset.model).presets[preset.name] = preset
    return service


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


def _load_all(settings: Settings, service: Service, listener: socket.socket, processes: Processes) -> list[Pipeline]:
    """A pipeline for each model; none works before all are loaded."""
    device, every = _load_models(settings, processes)
    processes.lead(every[0].model.backbone)
    rankers, probes = _load_rankers(settings, every), _load_probes(settings, every)
    pipelines = [
        _pipeline(settings, one, loaded, rankers[number], probes[number])
        for number, (one, loaded) in enumerate(zip(service.every, every, strict=True))
    ]
    for one, loaded, pipeline in zip(service.every, every, pipelines, strict=True):
        _start(settings, device, one, loaded, pipeline)
    with contextlib.suppress(OSError):  # nobody may be there to read it, nor a disk to hold it
        guarded, names = bool(settings.api_key or settings.api_key_file), [one.model_name for one in service.every]
        _announce(_url(listener), names, pipelines[0].engine, guarded)
    return pipelines


def _load_models(settings: Settings, processes: Processes) -> tuple[str, list[Loaded]]:
    """The device, and on it the checkpoints, laid out for serving; of each what this process has of it."""
    try:
        device = processes.join(_device(settings.device))
    except ValueError as error:
        raise SettingsError(f"argument --device: {error}") from error
    paths = [settings.model or DEFAULT, *(model.path for model in settings.also)]
    every = [_load(settings, path, device, processes.size) for path in paths]
    torch.set_num_threads(settings.num_threads or max(map(_num_threads, every)))
    for loaded in every:
        try:
            loaded.model.speed_up(_PACKED.get(settings.quantization, "float"))
        except ValueError as error:
            raise CheckpointError(f"{loaded.name}: {error}") from error
    return device, every


def _load(settings: Settings, path: str | Path, device: str, num_parts: int) -> Loaded:
    quantization = "none" if settings.quantization in _PACKED else settings.quantization
    return load(path, dtype=settings.dtype, device=device, quantization=quantization, num_parts=num_parts)


def _pipeline(
    settings: Settings, service: Service, loaded: Loaded, rankers: Mapping[str, Ranker], probes: Mapping[str, Probe]
) -> Pipeline:
    if settings.also and not loaded.model.can_think:  # how deep to think is said of the others
        settings = replace(settings, default_thought_depth=None, max_thought_depth=None)
    try:
        engine = _engine(settings, loaded, service.metrics, rankers, probes)
        pipeline = Pipeline(
            engine,
            settings.default_thought_depth,
            settings.max_best_of,
            settings.request_timeout,
            settings.max_self_correction_turns,
            loaded.correction,
        )
    except SettingsError as error:
        raise SettingsError(f"{service.model_name}: {error}" if settings.also else str(error)) from error
    _check_presets(pipeline, service.presets.values())
    return pipeline


def _start(settings: Settings, device: str, service: Service, loaded: Loaded, pipeline: Pipeline) -> None:
    """Let the engine work, and say so."""
    engine, dtype = pipeline.engine, str(loaded.model.backbone.dtype).removeprefix("torch.")
    service.metrics.describe_model(settings.quantization, dtype, device, engine.model_bytes, engine.kv_cache_bytes)
    service.metrics.describe_probes(list(engine.probes))
    engine.start()
    fields = {"model": service.model_name, "device": device, "dtype": dtype, "quantization": settings.quantization}
    logger.info("ready", extra={"fields": fields})


def _load_rankers(settings: Settings, every: Sequence[Loaded]) -> list[dict[str, Ranker]]:
    """Those of each model. Raises CheckpointError for one that fits none."""
    rankers: list[dict[str, Ranker]] = [{} for _ in every]
    for given in settings.ranker:
        for number, ranker in _fitting(given.path, every, load_ranker):
            rankers[number][given.name] = ranker
    return rankers


def _load_probes(settings: Settings, every: Sequence[Loaded]) -> list[dict[str, Probe]]:
    """Those of each model. Raises CheckpointError for one that fits none, unless it is to be left out."""
    probes: list[dict[str, Probe]] = [{} for _ in every]
    for given in settings.probe:
        try:
            for number, probe in _fitting(given.path, every, load_probe):
                probes[number][given.name] = probe
        except CheckpointError as error:
            if not settings.skip_bad_probes:
                raise
            logger.warning("the probe %s is left out: %s", given.name, " ".join(str(error).split()))
    return probes


def _fitting(path: str, every: Sequence[Loaded], load_one: Callable[[str, Loaded], T]) -> list[tuple[int, T]]:
    """What lies there, loaded for each model that it fits, with the model's number. Raises CheckpointError if that is none."""
    fitting, errors = [], []
    for number, loaded in enumerate(every):
        try:
            fitting.append((number, load_one(path, loaded)))
        except CheckpointError as error:
            errors.append(error)
    if not fitting:
        raise CheckpointError("; ".join(dict.fromkeys(map(str, errors)))) from errors[0]
    return fitting


def _check_presets(pipeline: Pipeline, presets: Iterable[Preset]) -> None:
    """Raises SettingsError for one that asks for what this server does not do."""
    some_prompt = [pipeline.engine.tokens.encode("a", special=False)[0]]
    for preset in presets:
        try:
            pipeline.plan(CompletionRequest.model_validate({"prompt": some_prompt, **preset.defaults}))
        except ApiError as error:
            raise SettingsError(f"argument --model-preset: {preset.name}: {error.message}") from error


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


def _engine(
    settings: Settings,
    loaded: Loaded,
    metrics: Metrics,
    rankers: Mapping[str, Ranker],
    probes: Mapping[str, Probe],
) -> Engine:
    try:
        engine = Engine(
            model=loaded.model,
            tokens=loaded.tokens,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_queued_reqs=settings.max_num_queued_reqs,
            kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
            max_thought_depth=settings.max_thought_depth,
            max_num_thoughts=settings.max_num_thoughts,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            pipeline_depth=settings.pipeline_depth,
            prefix_caching=settings.prefix_caching,
            cuda_graphs=settings.cuda_graphs and not settings.also,  # a recording bears no other thread beside it
            observer=metrics,
            rankers=rankers,
            probes=probes,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            "there is too little memory for the cache: lower max_num_seqs, max_model_len or max_thought_depth, "
            "or set kv_cache_memory_bytes"
        ) from error
    default, most = settings.default_thought_depth or 0, engine.max_thought_depth
    if default > most:
        raise SettingsError(f"default_thought_depth is {default}; it must be between 0 and {most}")
    return engine


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(url: str, names: Sequence[str], engine: Engine, guarded: bool) -> None:
    """Say what is served where, and how to ask the first model, whose engine it is."""
    body = {"model": names[0], "prompt": EXAMPLE_PROMPT, "max_tokens": 8, "temperature": 0}
    if engine.max_thought_depth:
        body |= {"thought_depth": min(EXAMPLE_DEPTH, engine.max_thought_depth), "return_thoughts": True}
    headers = "-H 'Content-Type: application/json'" + ' -H "Authorization: Bearer $QUIETSERVE_API_KEY"' * guarded
    print(f"Serving {', '.join(names)} on {url}. Try:\n")
    print(f"curl {url}/v1/completions {headers} -d {shlex.quote(json.dumps(body))}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
