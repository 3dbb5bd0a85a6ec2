"""Linear layers in 8 or 4 bits, as bitsandbytes rounds and holds them: less memory, and on a CPU more time.

Weights alone are rounded, so that a row's result does not depend on the rows beside it: what is promised of batches and
pipelines holds for a quantised model too. Embeddings, the output layer, norms, markers and the mixing head stay as they are.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["none", "bnb-8bit", "bnb-4bit"]

_BITS = {"bnb-8bit": 8, "bnb-4bit": 4}
_TOP = 127  # of int8
_SHRINK = 2.0**-7  # of inputs, exact: products with weights of up to 127 stay in float16's range


class ByteLinear(nn.Linear):
    """A linear layer of int8 weights with one scale an output; inputs and sums keep their precision.

    bitsandbytes' own product, LLM.int8(), rounds the inputs too, apart from columns in which some row of the batch is large:
    a row's result would depend on its neighbours, and be no better for it.

    Args:
        layer: bitsandbytes' `Linear8bitLt`, which is taken over.
    """

    SCB: Tensor  # the largest weight of each output, under its name in files

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight = nn.Parameter(layer.weight.data, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("SCB", layer.weight.SCB)

    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Products [..., out_features] of inputs [..., in_features], in their dtype."""
        dtype = _compute_dtype(inputs.device, inputs.dtype)
        products = linear((inputs * _SHRINK).to(dtype), self.weight.to(dtype))
        products = products * (self.SCB / (_TOP * _SHRINK)).to(dtype)
        return (products if self.bias is None else products + self.bias).to(inputs.dtype)


def loading_options(quantization: str, stored: Any, device: str) -> dict[str, Any]:
    """What `from_pretrained` must be told; nothing for a model in full precision.

    Args:
        quantization: one of `Quantization`; `none` leaves weights as the file has them, which may be quantised.
        stored: `quantization_config` of the checkpoint, None where it has none.
        device: where the layers go, each as it is read.

    Raises:
        ValueError: it cannot be had: the name is unknown, the file is quantised otherwise, or a library is missing.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(f"quantization is {quantization!r}; it must be one of {', '.join(get_args(Quantization))}")
    if stored is None and quantization == "none":
        return {}
    wanted = _BITS.get(quantization)
    if stored is not None:
        held = _stored_bits(stored)
        if wanted not in (None, held):
            raise ValueError(f"its weights are stored in {held} bits; {quantization} is not to be had of them")
    _require_libraries()
    options: dict[str, Any] = {"device_map": {"": device}}
    if stored is None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=wanted == 8,
            load_in_4bit=wanted == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )
    return options


def settle(lm: PreTrainedModel) -> None:
    """Make the layers of a freshly loaded quantised model compute alike on every machine, whatever its file asks for.

    Raises ValueError where no layer is quantised.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    held = [(name, m) for name, m in lm.named_modules() if isinstance(m, Linear8bitLt | Linear4bit)]
    if not held:
        raise ValueError("it has no linear layer that bitsandbytes can quantise")
    for name, layer in held:
        if isinstance(layer, Linear8bitLt):
            lm.set_submodule(name, ByteLinear(layer))
        else:
            layer.compute_dtype = _compute_dtype(lm.device, lm.dtype)
            # What some CPUs have for this rounds inputs to bfloat16, and fails where outputs are no multiple of 32.
            layer.support_avx512bf16_for_cpu = False


def is_quantized(lm: PreTrainedModel) -> bool:
    """Whether bitsandbytes holds its linear layers."""
    return getattr(lm, "hf_quantizer", None) is not None


def num_bytes(module: nn.Module) -> int:
    """Memory of parameters and buffers, and of the tables of scales that 4-bit weights have beside them."""
    tensors = [*module.parameters(), *module.buffers()]
    states: list[Any] = [getattr(parameter, "quant_state", None) for parameter in tensors]
    tables = [value for state in states if state for value in state.as_dict().values() if isinstance(value, Tensor)]
    return sum({id(tensor): tensor.nbytes for tensor in (*tensors, *tables)}.values())  # layers share tables


def _compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """A CPU sums in float32: one without arithmetic for less does so several times sooner."""
    return torch.float32 if device.type == "cpu" else dtype


def _stored_bits(stored: Any) -> int:
    method = stored.get("quant_method", "bitsandbytes") if isinstance(stored, dict) else stored
    if method != "bitsandbytes":
        raise ValueError(f"its weights are quantised by {method!r}; only bitsandbytes is supported")
    for bits in (8, 4):
        if stored.get(f"load_in_{bits}bit"):
            return bits
    raise ValueError("quantization_config says neither load_in_8bit nor load_in_4bit")


def _require_libraries() -> None:
    try:
        import accelerate  # noqa: F401  the loader's
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'quietserve[bnb]'") from error
