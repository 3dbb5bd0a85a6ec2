"""Checkpoints on disk: our own layout, the public Quiet-STaR layout, and plain language models.

Ours is a Hugging Face folder that `transformers` loads as the plain base, with two files beside it: `quiet_config.json`
(`QuietConfig`) and `quiet.safetensors` (markers and mixing head). The public layout keeps those tensors among the model's own;
its names are known here and nowhere else.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .backbone import Backbone
from .cache import check_cached
from .config import QuietConfig
from .quantize import loading_options, settle
from .quiet_model import QuietModel
from .tokens import Tokens

QUIET_CONFIG, QUIET_TENSORS = "quiet_config.json", "quiet.safetensors"

# The public layout: row 0 of an embedding is stored divided by this, row 1 is an unused log-standard-deviation.
_PUBLIC_SCALE = 100.0
_PUBLIC_HEAD = "talk_head.0."
_PUBLIC_FLAGS = {  # what the head variants we know need these config fields to be
    "use_weighted_talk_head": (True,),
    "use_shallow_talk": (False,),
    "merged_lm_and_talk_heads": (False, None),
    "merged_talk_heads": (True,),
    "merged_lm_and_think_heads": (True,),
    "use_concat_talk_head": (True, False),
    "use_complex_talk_head": (True, False),
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message is one line and names the file and the key."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    model: QuietModel
    tokens: Tokens
    name: str


def load(path: str | Path, dtype: str = "auto", device: str = "cpu", quantization: str = "none") -> Loaded:
    """Load a checkpoint folder, or a model of the Hugging Face hub by its name.

    Args:
        path: folder or hub name.
        dtype: `auto` (float32 on CPU, the checkpoint's own elsewhere), `float32`, `bfloat16` or `float16`.
        device: where to put it.
        quantization: `none` (as the files have it, which may be quantised by bitsandbytes), `bnb-8bit` or `bnb-4bit`: linear
            layers are rounded as they are read.

    Raises:
        CheckpointError: a file is missing, damaged or does not hold the tensors it should, or the quantisation cannot be had.
            Nothing is half loaded.
    """
    folder = _folder(path)
    config = _read_json(folder / "config.json")
    _check_files(folder)
    lm, extra = _load_lm(folder, config, dtype, device, quantization)
    tokenizer = _load_tokenizer(folder)
    if (folder / QUIET_CONFIG).exists():
        if extra:
            raise CheckpointError(f"{folder}: tensor {sorted(extra)[0]!r} is not expected beside {QUIET_CONFIG}")
        quiet, tensors = _own_quiet(folder)
    elif (folder / QUIET_TENSORS).exists():
        raise CheckpointError(f"{folder / QUIET_CONFIG}: missing beside {QUIET_TENSORS}")
    elif extra:
        quiet, tensors = _public_quiet(folder, config, extra)
    else:
        quiet, tensors = None, {}
    backbone = _adopt(lm, folder)
    tokens = Tokens(tokenizer, _eos_ids(lm), _marker_names(quiet), backbone.vocab_size)
    if quiet and len(tokens.markers) < 2:
        raise CheckpointError(f"{folder}: the tokenizer lacks {quiet.start_token!r} or {quiet.end_token!r}")
    model = QuietModel(backbone, quiet, tuple(tokens.markers.values()), _stop_ids(quiet, tokens, folder))
    _fill(model, tensors, folder)
    return Loaded(model.to(device).eval().requires_grad_(False), tokens, Path(path).resolve().name)


def _adopt(lm: PreTrainedModel, folder: Path) -> Backbone:
    """Take the model as a backbone, if what we compute is what it computes."""
    name = type(lm).__name__
    try:
        backbone = Backbone(lm.eval())
        check_cached(backbone)
        return backbone
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {name} is not supported: {error}") from error
    except Exception as error:  # a model that is built otherwise fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder / 'config.json'}: {name} cannot be read through our cache: {reason}") from error


def save(model: QuietModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a checkpoint in our layout: aside first, then moved; without its `config.json`, which goes last, it is none."""
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with quiet_libraries():
        model.backbone.lm.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    if model.quiet is not None:
        (aside / QUIET_CONFIG).write_text(json.dumps(model.quiet.to_dict(), indent=2) + "\n")
        save_file(_thinking_state(model), aside / QUIET_TENSORS)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, folder / file.name)
    aside.rmdir()


def _thinking_state(model: QuietModel) -> dict[str, Tensor]:
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such checkpoint folder")
    from huggingface_hub import snapshot_download  # slow to import, and wanted only here

    try:
        return Path(snapshot_download(str(path)))
    except Exception as error:  # the hub's client raises many kinds, and none of them is of use to the caller
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: neither a folder nor a model the hub gives: {reason}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object")
    return values


def _check_files(folder: Path) -> None:
    """Open every tensor file once: a truncated one is named before anything is built."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in wanted if not (folder / name).exists()]
    else:
        missing = [] if (folder / "model.safetensors").exists() else ["model.safetensors"]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: missing")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged or truncated: {error}") from error


def _load_lm(
    folder: Path, config: dict[str, Any], dtype: str, device: str, quantization: str
) -> tuple[PreTrainedModel, list[str]]:
    """The language model, and the names of the public layout's tensors that stand among its own."""
    try:
        options = loading_options(quantization, config.get("quantization_config"), device)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if dtype == "auto" and device == "cpu":
        dtype = "float32"  # half precision is slow or inexact on most CPUs
    try:
        with quiet_libraries():
            settings = dict(config)
            if settings.get("model_type") == "quiet":
                settings["model_type"] = "mistral"
            kind = settings.pop("model_type")
            parsed = AutoConfig.for_model(kind, **settings)
            pair: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=parsed,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
            lm, report = pair
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'}: has no {error}") from error
    except Exception as error:  # the library raises many kinds; the first line says which
        raise CheckpointError(f"{folder}: not a causal language model: {str(error).splitlines()[0]}") from error
    extra = [name for name in report["unexpected_keys"] if name.startswith((_PUBLIC_HEAD, "start_embed", "end_embed"))]
    for what, names in (
        ("missing", report["missing_keys"]),
        ("not expected", set(report["unexpected_keys"]) - set(extra)),
        ("of another shape", {str(entry[0]) for entry in report["mismatched_keys"]}),
    ):
        if names:
            raise CheckpointError(f"{folder}: tensor {sorted(names)[0]!r} is {what}")
    if options:
        _settle(lm, folder)
    return lm.to(device), extra


def _settle(lm: PreTrainedModel, folder: Path) -> None:
    try:
        settle(lm)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {type(lm).__name__}: {error}") from error


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise CheckpointError(f"{folder}: no readable tokenizer: {str(error).splitlines()[0]}") from error


def _own_quiet(folder: Path) -> tuple[QuietConfig, dict[str, Tensor]]:
    file = folder / QUIET_CONFIG
    try:
        quiet = QuietConfig.from_dict(_read_json(file))
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not (folder / QUIET_TENSORS).exists():
        raise CheckpointError(f"{folder / QUIET_TENSORS}: missing")
    return quiet, load_file(folder / QUIET_TENSORS)


def _public_quiet(folder: Path, config: dict[str, Any], names: list[str]) -> tuple[QuietConfig, dict[str, Tensor]]:
    """Markers and head of the public layout (`ezelikman/quietstar-8-ahead` and its variants), under our names."""
    for field, known in _PUBLIC_FLAGS.items():
        if field in config and config[field] not in known:
            raise CheckpointError(f"{folder / 'config.json'}: {field} is {config[field]!r}; only {known} is supported")
    stored = _read_tensors(folder, names)
    tensors = {}
    for name in ("start_embedding", "end_embedding"):
        if name not in stored:
            raise CheckpointError(f"{folder}: tensor {name!r} is missing")
        tensors[name] = stored.pop(name)[0].float() * _PUBLIC_SCALE
    tensors |= {"mixing_head.layers." + name.removeprefix(_PUBLIC_HEAD): value for name, value in stored.items()}
    # max_thoughts is n_ahead + 2 in the public checkpoints, and n_ahead counts START, END and one predicted token.
    max_thoughts = config.get("max_thoughts", 10)
    if type(max_thoughts) is not int:
        raise CheckpointError(f"{folder / 'config.json'}: max_thoughts is {max_thoughts!r}; it must be a whole number")
    return QuietConfig(
        thought_depth=max(max_thoughts - 5, 0),
        mixing_layers=3 if any(name.startswith("mixing_head.layers.4.") for name in tensors) else 1,
        mixing_input="both" if config.get("use_concat_talk_head", True) else "thought",
    ), tensors


def _read_tensors(folder: Path, names: list[str]) -> dict[str, Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in set(opened.keys()) & set(names)}
    return found


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
