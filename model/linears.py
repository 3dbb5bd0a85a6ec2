"""Linear layers whose weights are laid out for the CPU: the same products, sooner. Inference only.

Three layouts, each the work of a library inside torch:

- `HalfLinear`: float16 weights, float32 inputs and sums (FBGEMM). The fastest exact one: it reads half the bytes. Weights that
  came from a bfloat16 or float16 file lose nothing by it, so it is also how bfloat16 models run on a CPU that has no
  bfloat16 arithmetic.
- `BlockedLinear`: the weight's own dtype in oneDNN's blocks. Loses nothing, and gains where several rows are read.
- `Int8Linear`: int8 weights and inputs (FBGEMM). Not lossless.

The operators are private or deprecated. Each layout is compared with the plain product before it is used, and a layer for
which none will do stays as it is.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from .mixing import MixingHead

Kind = Literal["float", "half", "int8"]

_CHECKED_ROWS = (1, 2, 7, 11, 32, 150)
_INT8_TOP = 127
# AVX2 adds two products of bytes in 16 bits: those with weights of 7 bits always fit, with weights of 8 they saturate.
_WEIGHT_TOP = 63
_NO_COPIES = "a packed linear layer can be neither copied nor saved: do that before the model is packed"
_SMALLEST_SCALE = 1e-30  # of a row of zeros

_log = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """A linear layer without gradients whose weight is held in the layout of a library.

    `weight` is a stand-in on the meta device: its shape, dtype and bytes are those of what is held, its values cannot be read.

    Raises:
        RuntimeError: gradients are asked for, or the layer is to be copied or saved.
    """

    weight: Tensor
    bias: Tensor | None
    max_error = 1e-5  # of a float32 product's size
    min_outputs, min_size = 128, 1 << 15  # below them the call costs more than the layout gains

    def __init__(self, plain: nn.Linear, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("weight", torch.empty_like(plain.weight, dtype=dtype, device="meta"), persistent=False)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach(), persistent=False)

    @classmethod
    def suits(cls, weight: Tensor) -> bool:
        """Whether a weight [out, in] may be held this way and is large enough to gain by it."""
        return weight.shape[0] >= cls.min_outputs and weight.numel() >= cls.min_size

    def forward(self, inputs: Tensor) -> Tensor:
        """Products [..., out_features] of inputs [..., in_features], in their dtype."""
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a packed linear layer has no gradient; call it under torch.no_grad()")
        if inputs.dim() == 1:  # the operators want rows
            return self._product(inputs[None])[0]
        return self._product(inputs)

    def _product(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        raise RuntimeError(_NO_COPIES)

    def __reduce__(self) -> str:
        raise RuntimeError(_NO_COPIES)  # FBGEMM's weight is a pointer dressed as a tensor: a copy of it owns nothing

    def extra_repr(self) -> str:
        """As `nn.Linear` has it, and the dtype held."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.weight.dtype}"


class BlockedLinear(PackedLinear):
    """The weight in its own dtype, float32 or bfloat16, in oneDNN's blocks."""

    min_outputs, min_size = 512, 1 << 17

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def _product(self, inputs: Tensor) -> Tensor:
        return self._multiply(inputs, self._blocks, self.bias, "none", [], "")


class HalfLinear(PackedLinear):
    """The weight in float16; inputs and sums are float32, whatever dtype comes and goes."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain, torch.float16)
        weight, bias = plain.weight.detach().float(), None if plain.bias is None else plain.bias.detach().float()
        self._held: tuple[Any, ...]
        self._multiply: Callable[..., Tensor]
        if torch.get_num_threads() == 1:
            self._held = torch.fbgemm_pack_gemm_matrix_fp16(weight), bias
            self._multiply = torch.fbgemm_linear_fp16_weight_fp32_activation
        else:  # the same product on all threads; each call costs 20 microseconds more
            self._held = (torch.ops.quantized.linear_prepack_fp16(weight, bias),)
            self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    @classmethod
    def suits(cls, weight: Tensor) -> bool:
        """Whether it is large enough and float16 can hold its values, to the rounding of a float32 product."""
        return super().suits(weight) and _half_error(weight) <= 1e-6

    def _product(self, inputs: Tensor) -> Tensor:
        return self._multiply(inputs.float(), *self._held).to(inputs.dtype)


class RoundedLinear(HalfLinear):
    """The weight rounded to float16."""

    max_error = 1e-3

    @classmethod
    def suits(cls, weight: Tensor) -> bool:
        """Whether it is large enough and no value is out of float16's range."""
        return PackedLinear.suits(weight) and _half_error(weight) <= cls.max_error


class Int8Linear(PackedLinear):
    """The weight in int8, one scale an output; each row of inputs is quantised by itself, so that its neighbours do not count."""

    max_error = 5e-2
    min_size = 1 << 19  # below it float16 is as fast

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain, torch.int8)
        self._panels = _int8_panels(plain.weight.detach().float())
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def _product(self, inputs: Tensor) -> Tensor:
        rows = inputs.float()
        scale = rows.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST_SCALE)
        products = self._multiply(rows / scale, 1 / _INT8_TOP, _INT8_TOP + 1, self._panels).mul_(scale)
        return (products if self.bias is None else products.add_(self.bias)).to(inputs.dtype)


def pack(module: nn.Module, kind: Kind = "float") -> int:
    """Replace the `nn.Linear` layers inside a model by packed ones, in place: the last thing to do to a model that will serve.

    Embeddings stay, also one whose weight is the output layer's too; so do mixing heads, and layers too small to gain. Call it
    after `torch.set_num_threads`.

    Args:
        module: a model on the CPU.
        kind: `float` changes results by rounding alone. `half` rounds weights to float16 (2e-4 of a product's size). `int8`
            rounds weights and inputs (2e-2 of a product's size), but treats two as `half` does: small layers, which gain
            nothing more, and the output layer, whose errors would go straight into the logits.

    Returns:
        How many layers were packed: 0 for a model on another device, and where torch lacks oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    packer, packed = _Packer(), Counter[str]()
    places, heads = _places(module), _heads(module)
    with warnings.catch_warnings():  # the operators announce their end; when it comes, layers stay as they are
        warnings.simplefilter("ignore", UserWarning)
        for parent, name in places:
            plain = cast(nn.Linear, getattr(parent, name))
            layer = packer.pack(
                plain, _layouts("half" if kind == "int8" and id(plain) in heads else kind, plain.weight)
            )
            if layer is not None:
                setattr(parent, name, layer)
                packed[type(layer).__name__] += 1
    if packed:
        _log.info("%d of %d linear layers are packed: %s", packed.total(), len(places), dict(packed))
    return packed.total()


def _places(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where linear layers stand: by name, since a list of the layers would keep every weight alive to the end."""
    if isinstance(module, MixingHead):
        return []
    places = [(module, name) for name, child in module.named_children() if type(child) is nn.Linear]
    return places + [place for child in module.children() for place in _places(child)]


def _heads(module: nn.Module) -> set[int]:
    """The output layers of language models."""
    return {id(m.get_output_embeddings()) for m in module.modules() if isinstance(m, PreTrainedModel)}


def _layouts(kind: Kind, weight: Tensor) -> tuple[type[PackedLinear], ...]:
    """Ways to hold a weight, the best first."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return ()
    if kind == "int8":
        return Int8Linear, RoundedLinear
    half = HalfLinear if kind == "float" else RoundedLinear
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return BlockedLinear, half  # many rows gain more by bfloat16 arithmetic than by anything else
    return half, BlockedLinear


class _Packer:
    """Packs layers, and remembers which layouts compute what they should: the first layer of a shape answers for the others."""

    def __init__(self) -> None:
        self._agrees: dict[Any, bool] = {}

    @torch.no_grad()
    def pack(self, plain: nn.Linear, layouts: tuple[type[PackedLinear], ...]) -> PackedLinear | None:
        """The layer in the first layout that will do; None where there is none."""
        for layout in layouts:
            if not layout.suits(plain.weight):
                continue
            key = layout, plain.weight.shape, plain.weight.dtype, plain.bias is None
            try:
                packed = layout(plain)
                if key not in self._agrees:
                    self._agrees[key] = _agrees(packed, plain)
            except Exception as error:  # an operator that is not there, or not for this CPU, fails in its own way
                _log.debug("%s is not to be had for %s: %s", layout.__name__, plain, error)
                continue
            if self._agrees[key]:
                return packed
        return None


def _agrees(packed: PackedLinear, plain: nn.Linear) -> bool:
    """Compare products of random rows, of few and of many at once, with the plain layer's."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(max(_CHECKED_ROWS), plain.in_features, generator=generator).to(plain.weight.dtype)
    bias = None if plain.bias is None else plain.bias.float()
    expected = linear(rows.float(), plain.weight.float(), bias)
    bound = max(packed.max_error, 0 if rows.dtype == torch.float32 else float(torch.finfo(rows.dtype).eps))
    return all(_within(packed(rows[:count]).float(), expected[:count], bound) for count in _CHECKED_ROWS)


def _within(products: Tensor, expected: Tensor, bound: float) -> bool:
    return bool((products - expected).norm() <= bound * expected.norm())  # false for what is not a number


def _half_error(weight: Tensor) -> float:
    """How far float16 would round a weight, as a share of its size; infinite or not a number where it cannot hold it."""
    weight = weight.detach().float()
    return float((weight.half().float() - weight).norm() / weight.norm())


def _int8_panels(weight: Tensor) -> Any:
    """FBGEMM's packed weight, one scale an output."""
    scales = weight.abs().amax(1).clamp_min_(_SMALLEST_SCALE) / _WEIGHT_TOP
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with _fbgemm():
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, axis=0, dtype=torch.qint8)
        return torch.ops.quantized.linear_prepack(quantised, None)


@contextmanager
def _fbgemm() -> Iterator[None]:
    """The engine whose packed weights take float32 inputs; which one is the default depends on the CPU."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
