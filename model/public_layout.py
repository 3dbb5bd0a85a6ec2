"""The public layout of Quiet-STaR checkpoints (`ezelikman/quietstar-8-ahead` and its variants), read and written.

Markers and mixing head stand among the language model's own tensors. Their names, and the names of the config fields that say
what they are, are known here and nowhere else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint_folder import CheckpointError, read_json, read_tensors, write_json
from .config import QuietConfig

# Row 0 of an embedding is stored divided by this, row 1 is an unused log-standard-deviation.
_SCALE = 100.0
_MARKERS = ("start_embedding", "end_embedding")
_PUBLIC_HEAD, _OUR_HEAD = "talk_head.0.", "mixing_head.layers."
# max_thoughts is n_ahead + 2 in the public checkpoints, and n_ahead counts START, END and one predicted token.
_MORE_THAN_DEPTH = 5
_FLAGS = {  # what the head variants we know need these config fields to be
    "use_weighted_talk_head": (True,),
    "use_shallow_talk": (False,),
    "merged_lm_and_talk_heads": (False, None),
    "merged_talk_heads": (True,),
    "merged_lm_and_think_heads": (True,),
    "use_concat_talk_head": (True, False),
    "use_complex_talk_head": (True, False),
}
_FIELDS = {"max_thoughts", *_FLAGS, "use_complex_think_head", "use_shallow_think"}
_CODE = "auto_map"  # names files of code beside a checkpoint, which we neither run nor copy
_UNTOLD = ("thought_stop_tokens", "thought_temperature", "start_token", "end_token")  # what it has no place for
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def is_marker(name: str) -> bool:
    """Whether a tensor is a marker's embedding."""
    return name.startswith(("start_embed", "end_embed"))


def is_thinking(name: str) -> bool:
    """Whether a tensor belongs to the markers or the head, and not to the language model."""
    return name.startswith(_PUBLIC_HEAD) or is_marker(name)


def read(folder: Path, config: Mapping[str, Any], names: list[str]) -> tuple[QuietConfig, dict[str, Tensor]]:
    """Markers and head under our names. Raises CheckpointError naming the field or tensor that is not as we know it.

    Args:
        folder: where the files are.
        config: of the language model.
        names: of the tensors for which `is_thinking` holds.
    """
    for field, known in _FLAGS.items():
        if field in config and config[field] not in known:
            raise CheckpointError(f"{folder / 'config.json'}: {field} is {config[field]!r}; only {known} is supported")
    stored = read_tensors(folder, names)
    tensors = {}
    for name in _MARKERS:
        if name not in stored:
            raise CheckpointError(f"{folder}: tensor {name!r} is missing")
        tensors[name] = stored.pop(name)[0].double() * _SCALE
    tensors |= {_OUR_HEAD + name.removeprefix(_PUBLIC_HEAD): value for name, value in stored.items()}
    max_thoughts = config.get("max_thoughts", 10)
    if type(max_thoughts) is not int:
        raise CheckpointError(f"{folder / 'config.json'}: max_thoughts is {max_thoughts!r}; it must be a whole number")
    return QuietConfig(
        thought_depth=max(max_thoughts - _MORE_THAN_DEPTH, 0),
        mixing_layers=3 if any(name.startswith(f"{_OUR_HEAD}4.") for name in tensors) else 1,
        mixing_input="both" if config.get("use_concat_talk_head", True) else "thought",
    ), tensors


def losses(quiet: QuietConfig) -> list[str]:
    """What the layout has no place for, each with the value that it is read back as."""
    default = QuietConfig()
    told = [(name, getattr(quiet, name), getattr(default, name)) for name in _UNTOLD]
    return [f"{name} {_shown(value)} (becomes {_shown(usual)})" for name, value, usual in told if value != usual]


def _shown(value: object) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def tensors(thinking: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Markers and head under the public names; the inverse of `read`.

    Markers are stored in twice the width, so that dividing and multiplying by 100 gives them back to the bit.
    """
    found = {}
    for name, value in thinking.items():
        if name in _MARKERS:
            wide = value.to(torch.float64 if value.dtype == torch.float32 else torch.float32) / _SCALE
            found[name] = torch.stack([wide, torch.zeros_like(wide)])
        else:
            found[_PUBLIC_HEAD + name.removeprefix(_OUR_HEAD)] = value
    return found


def with_fields(config: Mapping[str, Any], quiet: QuietConfig) -> dict[str, Any]:
    """A language model's config with what the layout says of thinking."""
    flags = {field: known[0] for field, known in _FLAGS.items()}
    return dict(config) | {
        **flags,
        "max_thoughts": quiet.thought_depth + _MORE_THAN_DEPTH,
        "use_concat_talk_head": quiet.mixing_input == "both",
        "use_complex_talk_head": quiet.mixing_layers == 3,
        "use_complex_think_head": False,  # of a second head, which `merged_lm_and_think_heads` says is not there
        "use_shallow_think": True,
    }


def without_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with none of it."""
    return {field: value for field, value in config.items() if field not in {*_FIELDS, _CODE}}


def rename_markers(folder: Path, quiet: QuietConfig) -> None:
    """Give the marker tokens in a tokenizer's files their public names; ids stay. Raises CheckpointError."""
    public = QuietConfig()
    renamed = {quiet.start_token: public.start_token, quiet.end_token: public.end_token}
    renamed = {old: new for old, new in renamed.items() if old != new}
    if not renamed:
        return
    contents = {file: read_json(file) for name in _TOKENIZER_FILES if (file := folder / name).exists()}
    for name in set(renamed.values()) - renamed.keys():
        if any(_holds(values, name) for values in contents.values()):
            raise CheckpointError(f"the tokenizer has a token {name!r} already, which is not the marker")
    for file, values in contents.items():
        write_json(file, _renamed(values, renamed))


def _holds(values: Any, text: str) -> bool:
    if isinstance(values, dict):
        return text in values or any(_holds(value, text) for value in values.values())
    return any(_holds(value, text) for value in values) if isinstance(values, list) else values == text


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    """Parsed JSON with every string that is one of `names`, as a key or a value, replaced."""
    if isinstance(values, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, names) for value in values]
    return names.get(values, values) if isinstance(values, str) else values
