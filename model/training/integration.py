"""The unit that weighs what was learnt from right answers against what was learnt from wrong ones, token by token.

Two low-rank adapters stand on a layer W: a positive one (A_p, B_p) and a negative one (A_n, B_n), which is frozen when the
positive one is trained. "Turning Dust into Gold" (arXiv 2312.12832), "Negative Assistant Training":

    h = W x,  h_pos = h + s B_p A_p x,  h_neg = h + s B_n A_n x
    a = softmax([q k_pos, q k_neg]),  q = W_Q x,  k = W_K h_pos or h_neg
    out = h + (1.5 - a_neg) V(h_pos) + (a_neg - 0.5) V(h_neg),  V(u) = W_2 GELU(W_1 u),  W_2 zero at first

What it adds depends on the input, so it cannot be merged into W and is not served: it stays a folder of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from .. import checkpoint
from ..checkpoint import INTEGRATION, CheckpointError, Loaded
from ..checkpoint_folder import read_json, write_json
from ..quiet_model import QuietModel
from .loop import write_aside
from .lora import Lora

SETTINGS, TENSORS = INTEGRATION, "integration.safetensors"
POSITIVE, NEGATIVE = "positive", "negative"  # the adapters' names

Mode = Literal["integrated", "negative", "base"]
Part = Literal["negative", "rest"]  # the negative adapters, or the positive ones and the units


class IntegratedLinear(nn.Module):
    """A linear layer with both adapters, and the unit that weighs them.

    Args:
        adapted: peft's layer, which holds W and the adapters; its own forward is not used.
        inner: width of queries, keys and V.
    """

    def __init__(self, adapted: Any, inner: int) -> None:
        super().__init__()
        self.in_features, self.out_features = int(adapted.in_features), int(adapted.out_features)
        self.adapted = adapted
        self.query = nn.Linear(self.in_features, inner, bias=False)
        self.key = nn.Linear(self.out_features, inner, bias=False)
        self.narrow = nn.Linear(self.out_features, inner, bias=False)
        self.widen = nn.Linear(inner, self.out_features, bias=False)
        nn.init.zeros_(self.widen.weight)
        self.mode: Mode = "integrated"
        self.share: Tensor | None = None  # a_neg - 0.5 [...] of the last integrated forward, without gradients

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., out_features] of inputs [..., in_features], in the dtype of the layer's own."""
        out = self.adapted.base_layer(inputs)
        if self.mode == "base":
            return out
        inputs = inputs.to(self.query.weight.dtype)
        negative = out + self._adapter(NEGATIVE, inputs)
        if self.mode == "negative":
            return negative.to(out.dtype)
        positive = out + self._adapter(POSITIVE, inputs)
        # A softmax of two is a sigmoid of their difference, and what is linear is applied once, to sums.
        share = (self.query(inputs) * self.key(negative - positive)).sum(-1, keepdim=True).sigmoid() - 0.5
        self.share = share.detach().squeeze(-1)
        mixed = (1 - share) * gelu(self.narrow(positive)) + share * gelu(self.narrow(negative))
        return (out + self.widen(mixed)).to(out.dtype)

    def _adapter(self, name: str, inputs: Tensor) -> Tensor:
        layer = self.adapted
        return layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](inputs))) * layer.scaling[name]


@dataclass(frozen=True)
class Integration:
    """What a folder's tensors belong to; `integration.json` holds exactly these fields."""

    base: str  # a folder or hub name
    arm: str  # how it was trained
    inner: int
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises CheckpointError where it is missing, or holds other fields."""
        file = folder / SETTINGS
        values, known = read_json(file), {field.name for field in fields(cls)}
        for name in sorted(known ^ values.keys()):
            raise CheckpointError(f"{file}: key {name!r} is {'missing' if name in known else 'not expected'}")
        return cls(**{**values, "targets": tuple(values["targets"])})

    @property
    def lora(self) -> Lora:
        """Either adapter's shape."""
        return Lora(self.rank, self.alpha, self.targets, self.dropout)


def integrate(lm: PreTrainedModel, lora: Lora, inner: int) -> None:
    """Put both adapters, which change nothing yet, and the units into a model.

    Raises ValueError where a target is no linear layer of it, or peft is not installed.
    """
    for name, adapted in _adapt(lm, lora, (POSITIVE, NEGATIVE)):
        for adapters in (adapted.lora_A, adapted.lora_B):
            adapters.float()  # steps of a small learning rate would be lost in bfloat16
        lm.set_submodule(name, IntegratedLinear(adapted, inner).to(adapted.lora_A[NEGATIVE].weight.device))


def layer_shapes(lm: PreTrainedModel, lora: Lora) -> list[tuple[int, int]]:
    """What goes in and what comes out of each layer that adapters stand on; `lm` has some afterwards."""
    return [(int(adapted.in_features), int(adapted.out_features)) for _, adapted in _adapt(lm, lora, (POSITIVE,))]


def _adapt(lm: PreTrainedModel, lora: Lora, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Put new adapters into a model; returns peft's layers by their names."""
    config = lora.config()
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in names:
        inject_adapter_in_model(config, lm, adapter_name=name)
        del lm.peft_config  # where it finds one, peft warns of what is meant here
    found: list[tuple[str, Any]] = [
        (n, module) for n, module in lm.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    for name, adapted in found:
        if not len(adapted.lora_A) or adapted is lm.get_output_embeddings():
            raise ValueError(f"--lora-targets: {name} is no linear layer between the embeddings")
    return found


def units(model: nn.Module) -> list[IntegratedLinear]:
    """The layers that have one, in the model's order."""
    return [module for module in model.modules() if isinstance(module, IntegratedLinear)]


@contextmanager
def in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Inside, every unit computes as `mode` says: both adapters weighed, the negative one added to W, or W alone."""
    before: list[tuple[IntegratedLinear, Mode]] = [(unit, unit.mode) for unit in units(model)]
    try:
        for unit, _ in before:
            unit.mode = mode
        yield
    finally:
        for unit, own in before:
            unit.mode = own


def choose_part(model: nn.Module, part: Part) -> None:
    """Let the negative adapters learn, or the positive ones and the units; everything else is frozen."""
    learned = {id(parameter) for unit in units(model) for parameter in _of_part(unit, part)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learned)
        parameter.grad = None  # an earlier stage's last one would count when the gradient is clipped


def _of_part(unit: IntegratedLinear, part: Part) -> list[nn.Parameter]:
    named = [(name, parameter) for name, parameter in unit.named_parameters() if ".base_layer." not in name]
    return [parameter for name, parameter in named if (f".{NEGATIVE}." in name) == (part == "negative")]


@torch.no_grad()
def shuffle_negative(model: nn.Module, seed: int) -> None:
    """Put the entries of each matrix of the negative adapters in random order: their sizes stay, what they say goes."""
    rng = torch.Generator().manual_seed(seed)
    for unit in units(model):
        for parameter in _of_part(unit, "negative"):
            order = torch.randperm(parameter.numel(), generator=rng).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def num_trained(in_features: int, out_features: int, rank: int, inner: int) -> int:
    """Parameters of one layer that learn beside the frozen negative adapter."""
    return rank * (in_features + out_features) + inner * (in_features + 3 * out_features)


def save_integrated(model: QuietModel, settings: Integration, folder: Path) -> None:
    """Write the adapters and the units; the settings come last, and only with them it is a whole."""
    lm = model.backbone.lm
    tensors = {name: lm.get_parameter(name).detach().cpu().contiguous() for name in _names(lm)}
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / TENSORS, lambda file: save_file(tensors, file))
    write_aside(folder / SETTINGS, lambda file: write_json(file, asdict(settings)))


def load_integrated(folder: Path | str, dtype: str = "auto", device: str = "cpu", quantization: str = "none") -> Loaded:
    """Build a base with its adapters and units; `dtype`, `device` and `quantization` are the base's, as `checkpoint.load` has them.

    Raises CheckpointError: a file is missing or damaged, the base cannot be loaded, or a tensor is missing, not expected or
    of another shape. Nothing is half loaded.
    """
    folder = Path(folder)
    settings = Integration.read(folder)
    try:
        loaded = checkpoint.load(settings.base, dtype, device, quantization)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / SETTINGS}: its base: {error}") from error
    lm = loaded.model.backbone.lm
    try:
        integrate(lm, settings.lora, settings.inner)
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    _fill(lm, tensors, folder / TENSORS)
    loaded.model.eval().requires_grad_(False)
    return replace(loaded, name=folder.resolve().name)


def _names(lm: nn.Module) -> list[str]:
    """What of a model is no base's."""
    prefixes = tuple(f"{name}." for name, module in lm.named_modules() if isinstance(module, IntegratedLinear))
    return [name for name, _ in lm.named_parameters() if name.startswith(prefixes) and ".base_layer." not in name]


@torch.no_grad()
def _fill(lm: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    own = {name: lm.get_parameter(name) for name in _names(lm)}
    for name in sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"{file}: tensor {name!r} is {'missing' if name in own else 'not expected'}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, not {list(value.shape)}"
            raise CheckpointError(f"{file}: tensor {name!r} has shape {shapes}")
    for name, value in own.items():
        value.copy_(tensors[name])
