"""What a server has in it, from its settings: checkpoints, rankers and probes, each model's engine and pipeline."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ..model.bundled import DEFAULT
from ..model.checkpoint import CheckpointError, Loaded, load
from ..model.decode import is_out_of_memory
from ..model.linears import Kind
from ..model.parallel import Processes
from ..model.probe import Probe, load_probe
from ..model.ranker import Ranker, load_ranker
from .engine import Engine
from .errors import ApiError
from .metrics import Metrics
from .pipeline import Pipeline
from .presets import Preset
from .schemas import CompletionRequest
from .service import Service
from .settings import Settings, SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SMALL_MODEL = 20_000_000  # parameters

_PACKED: dict[str, Kind] = {"half": "half", "int8": "int8"}  # our own; the others are done while loading


def make_service(settings: Settings) -> Service:
    """The models under their names, and their presets, none of them loaded."""
    metrics = Metrics(settings.name, vllm_names=settings.metrics_compat == "vllm")
    others = [Service(model.name, Metrics(model.name, beside=metrics)) for model in settings.also]
    service = Service(settings.name, metrics, others=others)
    for preset in settings.model_preset:
        service.find(preset.model).presets[preset.name] = preset
    return service


def load_pipelines(settings: Settings, service: Service, processes: Processes) -> list[Pipeline]:
    """A pipeline for each model, in their order, whose engine works; none does before all are loaded.

    Raises SettingsError and CheckpointError.
    """
    device, every = load_models(settings, processes)
    processes.lead(every[0].model.backbone)
    rankers, probes = _load_rankers(settings, every), _load_probes(settings, every)
    pipelines = [
        _pipeline(settings, one, loaded, rankers[number], probes[number])
        for number, (one, loaded) in enumerate(zip(service.every, every, strict=True))
    ]
    for one, loaded, pipeline in zip(service.every, every, pipelines, strict=True):
        _start(settings, device, one, loaded, pipeline)
    return pipelines


def load_models(settings: Settings, processes: Processes) -> tuple[str, list[Loaded]]:
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
