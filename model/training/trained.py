"""What of a model learns, and what training leaves: a checkpoint that is served as it is."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from .. import checkpoint
from ..checkpoint import Loaded
from ..quiet_model import QuietModel
from .lora import Lora, merge


def twin(model: QuietModel, lora: Lora | None) -> QuietModel:
    """A copy that stays as it is; adapters leave the language model alone, so with them both hold the same weights of that."""
    lm = model.backbone
    shared = [*lm.parameters(), *lm.buffers()] if lora else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared}).eval().requires_grad_(False)


def choose_what_learns(model: QuietModel, lora: Lora | None, thinking: bool = True) -> None:
    """Everything, or new adapters of the language model; markers and mixing head only where `thinking` is trained."""
    if lora:
        lora.add_to(model.backbone.lm)
    for name, parameter in model.named_parameters():
        of_lm = name.startswith("backbone.")
        parameter.requires_grad_(not lora or "lora_" in name if of_lm else thinking)


def save(
    loaded: Loaded,
    state: Mapping[str, Tensor],
    folder: Path,
    lora: Lora | None,
    base: Path | str,
    reopen: Callable[[], QuietModel],
) -> None:
    """Write the checkpoint; adapters are kept in peft's format, too, and merged into a base that is read anew.

    Args:
        loaded: the model as it was trained.
        state: its weights, under the names of `QuietModel.state_dict()`.
        folder: for the checkpoint.
        lora: its adapters' shape.
        base: what they were trained on.
        reopen: reads that in full precision, with whatever was added to it before the adapters.
    """
    model, tokenizer = loaded.model, loaded.tokens.tokenizer
    if not lora:
        checkpoint.save(model, tokenizer, folder, state=state, correction=loaded.correction)
        return
    lm_state = {k.removeprefix("backbone.lm."): v for k, v in state.items() if k.startswith("backbone.lm.")}
    lora.save(lm_state, str(base), folder)
    whole = reopen()
    whole.quiet = model.quiet
    lora.add_to(whole.backbone.lm)
    whole.load_state_dict({k: v for k, v in state.items() if _is_learned(k)}, strict=False)
    merge(whole.backbone.lm)
    checkpoint.save(whole, tokenizer, folder, correction=loaded.correction)


def _is_learned(name: str) -> bool:
    return "lora_" in name or not name.startswith("backbone.")
