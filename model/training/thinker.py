"""The model under training: any causal language model, given what it takes to think.

Its markers begin as the text that opens an aside, and the mixing weight at 0: it starts as the model it was. From random
markers the weight dies and nothing is left to reinforce. Quiet-STaR (arXiv 2403.09629), "Optimizing Rationale Generation".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .. import checkpoint
from ..checkpoint import CheckpointError, Loaded
from ..config import QuietConfig
from ..quiet_model import QuietModel


@dataclass(frozen=True)
class ThinkerConfig:
    """How a model is opened for training."""

    depth: int  # of its users, unless they ask for another
    thought_temperature: float = 0.0  # the same
    marker: str = " ---"  # the text that START and END begin as
    stops: tuple[str, ...] | None = (
        None  # tokens at which a thought ends itself; None: the marker and the end of a text
    )
    dtype: str = "float32"
    quantization: str = "none"
    gradient_checkpointing: bool = False


def open_thinker(base: str | Path, config: ThinkerConfig, device: str = "cpu") -> Loaded:
    """Load a base; one that thinks already goes on with its own markers, head and stops, to the depth that is trained.

    Raises CheckpointError for a base that cannot be loaded or has no room for markers.
    """
    loaded = checkpoint.load(base, config.dtype, device, config.quantization)
    model = loaded.model
    if model.quiet is None:
        model = _give_thoughts(loaded, config)
    else:
        model.quiet = replace(model.quiet, thought_depth=config.depth)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    return replace(loaded, model=model)


def checkpoint_gradients(model: QuietModel) -> None:
    """Compute a layer's activations twice rather than keep them."""
    lm: Any = model.backbone.lm  # the method's name changed within the versions we take
    getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)({"use_reentrant": False})


def _give_thoughts(loaded: Loaded, config: ThinkerConfig) -> QuietModel:
    tokenizer, lm = loaded.tokens.tokenizer, loaded.model.backbone.lm
    stops = _stop_tokens(tokenizer, config)
    quiet = QuietConfig(config.depth, config.thought_temperature, stops)
    hidden = _add_markers(tokenizer, (quiet.start_token, quiet.end_token))
    if len(tokenizer) > loaded.model.backbone.vocab_size:  # stock transformers must be able to embed them, too
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = QuietModel(loaded.model.backbone, quiet, hidden, tuple(tokenizer.convert_tokens_to_ids(list(stops))))
    ids = tokenizer(config.marker, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"--marker {config.marker!r} is no token; it must be a text that opens an aside")
    with torch.no_grad():
        aside = model.backbone.embed(torch.tensor(ids, device=model.backbone.device)).mean(0)
        model.start_embedding.copy_(aside)
        model.end_embedding.copy_(aside)
    return model.to(model.backbone.device)


def _stop_tokens(tokenizer: Any, config: ThinkerConfig) -> tuple[str, ...]:
    if config.stops is not None:
        for name in config.stops:
            if name not in tokenizer.get_vocab():
                raise ValueError(f"--stops: the tokenizer has no token {name!r}")
        return config.stops
    ids = tokenizer(config.marker, add_special_tokens=False)["input_ids"]
    closing = tokenizer.convert_ids_to_tokens(ids) if len(ids) == 1 else []
    return (*closing, *([tokenizer.eos_token] if tokenizer.eos_token else []))


def _add_markers(tokenizer: Any, names: Sequence[str]) -> tuple[int, ...]:
    """The ids of the markers' names, new ones where there were none. Raises CheckpointError where they are taken."""
    known, special = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    for name in names:
        if name in known and name not in special:
            raise CheckpointError(f"the tokenizer has no room for the marker {name!r}: an ordinary token has that name")
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)}, replace_extra_special_tokens=False)
    for name in names:
        if len(tokenizer(name, add_special_tokens=False)["input_ids"]) != 1:
            raise CheckpointError(f"the tokenizer has no room for the marker {name!r}: it cannot be made one token")
    return tuple(tokenizer.convert_tokens_to_ids(list(names)))


def decoder_layers(lm: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of a language model, which weights are split by."""
    kinds = set(lm._no_split_modules or ())
    return [module for module in lm.modules() if type(module).__name__ in kinds]
