"""Checkpoints on disk: our own layout, the public Quiet-STaR layout, and plain language models.

Ours is a Hugging Face folder that `transformers` loads as the plain base, with files beside it: `quiet_config.json`
(`QuietConfig`), `quiet.safetensors` (markers and mixing head) and, where it learned to correct itself, `correction.json`
(`CorrectionConfig`). The public layout keeps the tensors among the model's own.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from . import public_layout, shards
from .backbone import Backbone
from .cache import check_cached
from .checkpoint_folder import (
    CONFIG,
    CheckpointError,
    check_files,
    find,
    first_line,
    read_json,
    replacing,
    stored_dtype,
    write_json,
)
from .config import QuietConfig
from .correction import CorrectionConfig
from .quantize import is_quantized, loading_options, settle
from .quiet_model import QuietModel
from .tokens import Tokens

__all__ = ["CheckpointError", "Layout", "Loaded", "load", "quiet_libraries", "save"]

Layout = Literal["quietserve", "public", "plain"]

QUIET_CONFIG, QUIET_TENSORS = "quiet_config.json", "quiet.safetensors"
CORRECTION = "correction.json"
INTEGRATION = "integration.json"  # of what `train negative --arm nat` leaves

_Config = TypeVar("_Config", QuietConfig, CorrectionConfig)

_LM = "backbone.lm."  # where a `QuietModel` has its language model


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    model: QuietModel
    tokens: Tokens
    name: str
    correction: CorrectionConfig | None = None  # how it learned to correct itself, if it did


def load(
    path: str | Path, dtype: str = "auto", device: str = "cpu", quantization: str = "none", num_parts: int = 1
) -> Loaded:
    """Load a checkpoint folder, or a model of the Hugging Face hub by its name.

    Args:
        path: folder or hub name.
        dtype: `auto` (float32 on CPU, the checkpoint's own elsewhere), `stored` (which loses nothing of the files), `float32`,
            `bfloat16` or `float16`.
        device: where to put it.
        quantization: `none` (as the files have it, which may be quantised by bitsandbytes), `bnb-8bit` or `bnb-4bit`: linear
            layers are rounded as they are read.
        num_parts: processes that hold a part of the layers each. They have met (`parallel.Processes.join`), all of them call this,
            and one is to lead the others then.

    Raises:
        CheckpointError: a file is missing, damaged or does not hold the tensors it should, or the device or the quantisation cannot
            be had. Nothing is half loaded.
    """
    _check_device(device)
    folder = find(path)
    if (folder / INTEGRATION).exists():
        raise CheckpointError(
            f"{folder}: holds two adapters and what weighs them, which are not merged; `quietserve train negative --arm nce "
            "--teacher` makes a checkpoint of them"
        )
    config = read_json(folder / CONFIG)
    check_files(folder)
    lm, extra = _load_lm(folder, config, dtype, device, quantization, num_parts)
    tokenizer = _load_tokenizer(folder)
    if (folder / QUIET_CONFIG).exists():
        if extra:
            raise CheckpointError(f"{folder}: tensor {sorted(extra)[0]!r} is not expected beside {QUIET_CONFIG}")
        quiet, tensors = _own_quiet(folder)
    elif (folder / QUIET_TENSORS).exists():
        raise CheckpointError(f"{folder / QUIET_CONFIG}: missing beside {QUIET_TENSORS}")
    elif extra:
        quiet, tensors = public_layout.read(folder, config, extra)
    else:
        quiet, tensors = None, {}
    backbone = _adopt(lm, folder)
    tokens = Tokens(tokenizer, _eos_ids(lm), _marker_names(quiet), backbone.vocab_size)
    if quiet and len(tokens.markers) < 2:
        raise CheckpointError(f"{folder}: the tokenizer lacks {quiet.start_token!r} or {quiet.end_token!r}")
    model = QuietModel(backbone, quiet, tuple(tokens.markers.values()), _stop_ids(quiet, tokens, folder))
    _fill(model, tensors, folder)
    model = model.to(device).eval().requires_grad_(False)
    return Loaded(model, tokens, Path(path).resolve().name, _correction(folder))


def _check_device(wanted: str) -> None:
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without it
        raise CheckpointError(f"device {wanted!r} cannot be used: {first_line(error)}") from error


def _adopt(lm: PreTrainedModel, folder: Path) -> Backbone:
    """Take the model as a backbone, if what we compute is what it computes."""
    name = type(lm).__name__
    try:
        backbone = Backbone(lm.eval())
        check_cached(backbone)
        return backbone
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {name} is not supported: {error}") from error
    except Exception as error:  # a model that is built otherwise fails in its own way
        reason = first_line(error)
        raise CheckpointError(f"{folder / CONFIG}: {name} cannot be read through our cache: {reason}") from error


def save(
    model: QuietModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    layout: Layout = "quietserve",
    allow_loss: bool = False,
    max_shard_size: str = "50GB",
    correction: CorrectionConfig | None = None,
) -> None:
    """Write a checkpoint; it takes the place of one that is in the folder, whole or not at all.

    Args:
        model: on any device, in any dtype.
        tokenizer: as it was loaded.
        folder: made if need be; what else is in it stays.
        state: the tensors to write in place of the model's own, under the names of `QuietModel.state_dict()`.
        layout: ours, the public one, or the language model alone.
        allow_loss: write the public layout even if it has no place for some of `quiet`: see `public_layout.losses`.
        max_shard_size: of a file of tensors, as `save_pretrained` has it.
        correction: how it learned to correct itself.

    Raises:
        CheckpointError: the layout cannot hold the model, `state` has other names, or it could not be written. What was in the
            folder is as it was, unless the message says that it was saved.
    """
    folder = Path(folder)
    _check_layout(model, layout, allow_loss, folder)
    lm, thinking = _parts(model, state, folder)
    if layout == "public":
        lm |= public_layout.tensors(thinking)
    dtype = next(value.dtype for value in lm.values() if value.is_floating_point())
    rounded = is_quantized(model.backbone.lm)  # by bitsandbytes, which has rules of its own for what is written
    with replacing(folder) as aside:
        with quiet_libraries():
            model.backbone.lm.save_pretrained(
                aside,
                state_dict=None if rounded else lm,
                max_shard_size=max_shard_size,
                save_original_format=not rounded,
            )
            tokenizer.save_pretrained(aside)
        config = public_layout.without_fields(read_json(aside / CONFIG))
        if not rounded:
            config["dtype"] = str(dtype).removeprefix("torch.")
        if model.quiet and layout == "public":
            config = public_layout.with_fields(config, model.quiet)
            public_layout.rename_markers(aside, model.quiet)
        write_json(aside / CONFIG, config)
        if model.quiet and layout == "quietserve":
            write_json(aside / QUIET_CONFIG, model.quiet.to_dict())
            save_file(thinking, aside / QUIET_TENSORS)
        if correction:
            write_json(aside / CORRECTION, correction.to_dict())


def _check_layout(model: QuietModel, layout: Layout, allow_loss: bool, folder: Path) -> None:
    if layout != "quietserve" and is_quantized(model.backbone.lm):
        reason = f"its layers are quantised by bitsandbytes, which the {layout} layout is not for; convert the original"
    elif layout == "public" and model.quiet is None:
        reason = "the model does not think, and the public layout is for those that do; the plain one has room for it"
    elif layout == "public" and model.quiet and not allow_loss and (lost := public_layout.losses(model.quiet)):
        reason = f"the public layout has no place for {', '.join(lost)}"
    else:
        return
    raise CheckpointError(f"{folder}: not saved: {reason}")


def _parts(
    model: QuietModel, state: Mapping[str, Tensor] | None, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the language model under its own names, where they are, and copies of the rest under ours, on the CPU.

    Tied tensors are there once: a state gathered from several machines may hold each a copy of its own.
    """
    own = model.state_dict()
    tied: Mapping[str, str] = model.backbone.lm.all_tied_weights_keys
    if state is not None:
        if is_quantized(model.backbone.lm):
            raise CheckpointError(f"{folder}: not saved: a quantised model can be saved only with its own tensors")
        for name in sorted((own.keys() ^ state.keys()) - {_LM + name for name in tied}):
            raise CheckpointError(
                f"{folder}: not saved: tensor {name!r} is {'missing' if name in own else 'not expected'}"
            )
        own = state
    lm = {name.removeprefix(_LM): value.detach() for name, value in own.items() if name.startswith(_LM)}
    lm = {name: value for name, value in lm.items() if tied.get(name) not in lm}
    rest = {name: value.detach().cpu().clone().contiguous() for name, value in own.items() if not name.startswith(_LM)}
    return lm, rest


def _load_lm(
    folder: Path, config: dict[str, Any], dtype: str, device: str, quantization: str, num_parts: int
) -> tuple[PreTrainedModel, list[str]]:
    """The language model, and the names of the public layout's tensors that stand among its own."""
    shape = _library_config(folder, config)
    try:
        rounding = loading_options(quantization, config.get("quantization_config"), device)
        splitting = shards.loading_options(shape, num_parts)
        if rounding and splitting:
            raise ValueError(f"its layers are bitsandbytes', and cannot be split among {num_parts} processes")
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    try:
        with quiet_libraries():
            pair: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=shape,
                dtype=_dtype(folder, config, dtype, device),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **rounding,
                **splitting,
            )
    except Exception as error:  # the library raises many kinds; the first line says which
        raise CheckpointError(f"{folder}: not a causal language model: {first_line(error)}") from error
    lm, report = pair
    extra = _check_report(folder, report)
    if rounding:
        _settle(lm, folder, settle)
    if splitting:
        _settle(lm, folder, shards.settle)
    return lm.to(device), extra


def _library_config(folder: Path, config: Mapping[str, Any]) -> PreTrainedConfig:
    settings = dict(config)
    if settings.get("model_type") == "quiet":
        settings["model_type"] = "mistral"
    try:
        with quiet_libraries():
            kind = settings.pop("model_type")
            return AutoConfig.for_model(kind, **settings)
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG}: has no {error}") from error
    except Exception as error:
        raise CheckpointError(f"{folder}: not a causal language model: {first_line(error)}") from error


def _dtype(folder: Path, config: dict[str, Any], dtype: str, device: str) -> str:
    """The dtype for the library, whose `auto` is what `config.json` says."""
    if dtype == "auto" and device == "cpu":
        return "float32"  # half precision is slow or inexact on most CPUs
    if dtype != "stored":
        return dtype
    if config.get("quantization_config") is not None:
        return "auto"  # some tables of a quantised file are wider than what they scale
    # A public marker is wider than its model, see `public_layout.tensors`.
    return str(stored_dtype(folder, lambda name: not public_layout.is_marker(name))).removeprefix("torch.")


def _check_report(folder: Path, report: dict[str, Any]) -> list[str]:
    """The thinking tensors that the library did not expect. Raises CheckpointError where it found others, or lacks one."""
    extra = [name for name in report["unexpected_keys"] if public_layout.is_thinking(name)]
    for what, names in (
        ("missing", report["missing_keys"]),
        ("not expected", set(report["unexpected_keys"]) - set(extra)),
        ("of another shape", {str(entry[0]) for entry in report["mismatched_keys"]}),
    ):
        if names:
            raise CheckpointError(f"{folder}: tensor {sorted(names)[0]!r} is {what}")
    return extra


def _settle(lm: PreTrainedModel, folder: Path, settle_lm: Callable[[PreTrainedModel], None]) -> None:
    try:
        settle_lm(lm)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {type(lm).__name__}: {error}") from error


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise CheckpointError(f"{folder}: no readable tokenizer: {first_line(error)}") from error


def _own_quiet(folder: Path) -> tuple[QuietConfig, dict[str, Tensor]]:
    quiet = _read_config(folder / QUIET_CONFIG, QuietConfig)
    if not (folder / QUIET_TENSORS).exists():
        raise CheckpointError(f"{folder / QUIET_TENSORS}: missing")
    return quiet, load_file(folder / QUIET_TENSORS)


def _correction(folder: Path) -> CorrectionConfig | None:
    file = folder / CORRECTION
    return _read_config(file, CorrectionConfig) if file.exists() else None


def _read_config(file: Path, kind: type[_Config]) -> _Config:
    try:
        return kind.from_dict(read_json(file))
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _eos_ids(lm: PreTrainedModel) -> list[int]:
    generation = getattr(lm, "generation_config", None)
    found = getattr(generation, "eos_token_id", None) or lm.config.eos_token_id
    return found if isinstance(found, list) else [found] if found is not None else []


def _marker_names(quiet: QuietConfig | None) -> tuple[str, ...]:
    return (quiet.start_token, quiet.end_token) if quiet else ()


def _stop_ids(quiet: QuietConfig | None, tokens: Tokens, folder: Path) -> tuple[int, ...]:
    vocab = tokens.tokenizer.get_vocab()
    names = quiet.thought_stop_tokens if quiet else ()
    for name in names:
        if name not in vocab:
            raise CheckpointError(f"{folder / QUIET_CONFIG}: thought_stop_tokens: the tokenizer has no {name!r}")
    return tuple(vocab[name] for name in names)


def _fill(model: QuietModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put the markers and the head in; a missing, extra or misshapen tensor is an error."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    for name in sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"{folder}: tensor {name!r} is {'missing' if name in own else 'not expected'}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, not {list(value.shape)}"
            raise CheckpointError(f"{folder}: tensor {name!r} has shape {shapes}")
        value.copy_(tensors[name])


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and load reports on a user's terminal: we raise what matters."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
