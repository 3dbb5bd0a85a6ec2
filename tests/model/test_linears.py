"""Packed linear layers against the plain ones."""

import copy
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

import tiny
from quietserve.model import linears
from quietserve.model.backbone import Backbone, causal
from quietserve.model.linears import BlockedLinear, HalfLinear, Int8Linear, PackedLinear, RoundedLinear, pack

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="not an x86 CPU")

ROWS = (1, 2, 3, 7, 11, 32, 150)
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 256**-0.5,
}


def plain(outputs: int = 512, inputs: int = 320, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(outputs + inputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def large(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return plain(2048, 320, bias, dtype)


def as_if_from_bfloat16(linear: nn.Linear) -> nn.Linear:
    return linear.bfloat16().float()


def packed(linear: nn.Linear, kind: linears.Kind = "float") -> nn.Module:
    model = nn.Sequential(linear)
    pack(model, kind)
    return model[0]


def rows(count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)).to(dtype)


def error(products: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest expected value."""
    return float((products.float() - expected.float()).abs().max() / expected.float().abs().max())


def language_model(kind: type[PreTrainedConfig] = LlamaConfig, **changes: object) -> Backbone:
    return tiny.quiet_model(tiny.config(kind, **(SIZES | changes)), quiet=None).backbone


@torch.no_grad()
def logits(backbone: Backbone, count: int = 40) -> Tensor:
    ids = torch.randint(3, 200, (count,), generator=torch.Generator().manual_seed(5))
    return backbone.logits(backbone(backbone.embed(ids)[None], torch.arange(count)[None], causal))[0]


# --- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(512, 320), (1408, 512), (512, 1408), (1031, 257)])
@pytest.mark.parametrize(
    ("prepare", "layout"), [(lambda linear: linear, BlockedLinear), (as_if_from_bfloat16, HalfLinear)]
)
def test_float_is_equal_to_rounding(
    prepare: Callable[[nn.Linear], nn.Linear], layout: type[PackedLinear], shape: tuple[int, int], bias: bool
) -> None:
    linear = prepare(plain(*shape, bias=bias))
    layer = packed(linear)
    assert type(layer) is layout
    for count in ROWS:
        assert error(layer(rows(count, shape[1])), linear(rows(count, shape[1]))) < 1e-5


@pytest.mark.parametrize("kind", ["float", "half", "int8"])
@pytest.mark.parametrize("prepare", [lambda linear: linear, as_if_from_bfloat16])
def test_inputs_of_any_layout(kind: linears.Kind, prepare: Callable[[nn.Linear], nn.Linear]) -> None:
    linear = prepare(large())
    layer, bound = packed(linear, kind), {"float": 1e-5, "half": 1e-3, "int8": 5e-2}[kind]
    assert isinstance(layer, PackedLinear)
    for inputs in (
        rows(6, 320).view(2, 3, 320),
        rows(5, 640)[:, ::2],
        rows(5, 320)[None, -1:],
        rows(1, 320)[0],
    ):
        outputs = layer(inputs)
        assert outputs.shape == (*inputs.shape[:-1], 2048)
        assert outputs.is_contiguous()
        assert error(outputs, linear(inputs)) < bound
    assert layer(rows(0, 320)).shape == (0, 2048)


def test_several_threads_use_another_operator() -> None:
    linear = as_if_from_bfloat16(plain())
    alone = packed(linear)
    torch.set_num_threads(2)
    try:
        together = packed(linear)
        assert type(together) is HalfLinear
        for count in ROWS:
            assert torch.equal(together(rows(count, 320)), alone(rows(count, 320)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["float", "half", "int8"])
def test_bfloat16_comes_and_goes(kind: linears.Kind) -> None:
    linear = large(dtype=torch.bfloat16)
    exact = copy.deepcopy(linear).float()
    layer = packed(linear, kind)
    assert isinstance(layer, PackedLinear)
    for count in ROWS:
        inputs = rows(count, 320, torch.bfloat16)
        outputs = layer(inputs)
        assert outputs.dtype == torch.bfloat16
        assert error(outputs, exact(inputs.float())) < (5e-2 if kind == "int8" else 5e-3)


def test_half_rounds_what_float_does_not() -> None:
    linear = plain()
    layer = packed(linear, "half")
    assert type(layer) is RoundedLinear
    assert 1e-5 < error(layer(rows(11, 320)), linear(rows(11, 320))) < 1e-3


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_half_leaves_alone_what_float16_cannot_hold(value: float) -> None:
    linear = plain()
    linear.weight[3, 4] = value
    assert type(packed(linear, "half")) is BlockedLinear
    assert linear.weight[3, 4] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["float", "half", "int8"])
def test_a_damaged_weight_stays_where_it_is(kind: linears.Kind, value: float) -> None:
    linear = large()
    linear.weight[3, 4] = value
    assert packed(linear, kind) is linear


@pytest.mark.parametrize("kind", ["float", "half", "int8"])
def test_a_weight_of_zeros(kind: linears.Kind) -> None:
    linear = large()
    linear.weight.zero_()
    assert torch.equal(packed(linear, kind)(rows(7, 320)), linear(rows(7, 320)))


# --- int8 ------------------------------------------------------------------------------------------------------------


def test_int8_error_is_bounded_and_argmax_rarely_changes() -> None:
    linear = plain(2048, 512, bias=False)
    layer = packed(linear, "int8")
    assert type(layer) is Int8Linear
    inputs = rows(400, 512)
    inputs[:, 7] *= 20  # language models have such columns
    outputs, expected = layer(inputs), linear(inputs)
    assert (outputs - expected).norm() < 0.05 * expected.norm()
    assert (outputs.argmax(-1) == expected.argmax(-1)).float().mean() > 0.8


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_int8_does_not_saturate(sign: float) -> None:
    """Regression: with weights of 8 bits, rows of equal values came out at half their size on a CPU without VNNI."""
    linear = large(bias=False)
    linear.weight.fill_(sign)
    inputs = torch.ones(5, 320)
    assert error(packed(linear, "int8")(inputs), linear(inputs)) < 1e-3


def test_int8_rows_do_not_depend_on_their_neighbours() -> None:
    layer, inputs = packed(large(), "int8"), rows(40, 320)
    inputs[3] *= 1000
    inputs[4] = 0
    inputs[5, 6] = float("nan")
    together = layer(inputs)
    for begin, end in ((0, 1), (1, 3), (3, 5), (6, 17), (17, 40)):
        assert torch.equal(layer(inputs[begin:end]), together[begin:end])
    assert together[5].isnan().all()


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config])  # Qwen2's have biases
def test_a_models_logits_stay(config: type[PreTrainedConfig], tied: bool) -> None:
    expected = logits(language_model(config, tie_word_embeddings=tied))
    bounds: dict[linears.Kind, float] = {"float": 1e-5, "half": 5e-3, "int8": 0.15}
    for kind, bound in bounds.items():
        backbone = language_model(config, tie_word_embeddings=tied)
        embedding = backbone.embed(torch.arange(1024))
        assert pack(backbone, kind) > 0
        assert error(logits(backbone), expected) < bound
        assert torch.equal(backbone.embed(torch.arange(1024)), embedding)
        assert (backbone.vocab_size, backbone.hidden_size, backbone.dtype) == (1024, 256, torch.float32)


def test_int8_is_for_large_layers_and_never_for_the_output() -> None:
    backbone = language_model(tie_word_embeddings=True, vocab_size=4096)
    assert pack(backbone, "int8") == 11  # k and v are too small for anything
    assert isinstance(backbone.lm.get_output_embeddings(), RoundedLinear)
    layouts = Counter(type(module) for module in backbone.modules() if isinstance(module, PackedLinear))
    assert layouts == {Int8Linear: 6, RoundedLinear: 5}


def test_packing_twice_is_packing_once() -> None:
    backbone = language_model()
    assert pack(backbone) > 0
    before = logits(backbone)
    assert pack(backbone) == 0
    assert torch.equal(logits(backbone), before)


def test_plain_weights_are_freed_and_packed_ones_counted() -> None:
    backbone = language_model()
    weights = [
        weakref.ref(m.weight) for m in backbone.modules() if type(m) is nn.Linear and m.weight.numel() >= 1 << 16
    ]
    before = num_bytes(backbone)
    pack(backbone, "half")
    assert all(weight() is None for weight in weights)
    packed_size = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, PackedLinear))
    assert num_bytes(backbone) == before - 2 * packed_size


def test_a_tied_embedding_is_counted_beside_the_packed_head() -> None:
    backbone = language_model(tie_word_embeddings=True)
    before = num_bytes(backbone)
    pack(backbone)
    assert num_bytes(backbone) == before + 4 * 1024 * 256


def num_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def test_mixing_heads_and_small_layers_stay() -> None:
    model = tiny.quiet_model(tiny.config(**SIZES))
    assert pack(model) > 0
    assert {type(layer) for layer in model.mixing_head.layers} == {nn.Linear, nn.ReLU}
    small = tiny.quiet_model()
    assert pack(small) == pack(small, "half") == pack(small, "int8") == 0


def test_models_elsewhere_stay() -> None:
    model = nn.Sequential(nn.Linear(512, 512, device="meta"), nn.Linear(512, 512, dtype=torch.float64))
    assert pack(model) == pack(model, "half") == pack(model, "int8") == 0


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "half", "int8"])
def test_no_gradients_no_copies_no_files(kind: linears.Kind) -> None:
    layer = packed(large(), kind)
    with pytest.raises(RuntimeError, match="no gradient"):
        layer(rows(2, 320).requires_grad_())
    with torch.no_grad():
        layer(rows(2, 320).requires_grad_())
    with pytest.raises(RuntimeError, match="neither copied nor saved"):
        layer.state_dict()
    with pytest.raises(RuntimeError, match="neither copied nor saved"):
        copy.deepcopy(layer)


# --- where an operator is missing or wrong ---------------------------------------------------------------------------


def broken(*_: object, **__: object) -> Tensor:
    raise RuntimeError("no kernel for this CPU")


@pytest.fixture
def without_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", broken)
    return


@pytest.mark.usefixtures("without_blocks")
def test_without_the_operator_layers_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(plain(), as_if_from_bfloat16(plain()))
    expected = model[0](rows(3, 320))
    with caplog.at_level(logging.INFO, "quietserve.model.linears"):
        assert pack(model) == 1
    assert "1 of 2 linear layers are packed" in caplog.text
    assert torch.equal(model[0](rows(3, 320)), expected)


def test_without_float16_panels_blocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "fbgemm_linear_fp16_weight_fp32_activation", broken)
    assert type(packed(as_if_from_bfloat16(plain()))) is BlockedLinear


@pytest.mark.parametrize("wrong", [lambda y: y * 1.01, lambda y: y + torch.nan, lambda y: y.roll(1, -1)])
@pytest.mark.parametrize("kind", ["float", "half"])
def test_an_operator_that_miscalculates_is_not_used(
    monkeypatch: pytest.MonkeyPatch, kind: linears.Kind, wrong: Callable[[Tensor], Tensor]
) -> None:
    for layout in (BlockedLinear, HalfLinear):
        right = layout._product
        monkeypatch.setattr(layout, "_product", lambda self, x, right=right: wrong(right(self, x)))
    linear = plain()
    assert packed(linear, kind) is linear


def test_an_operator_that_fails_for_many_rows_only_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Int8Linear._product
    monkeypatch.setattr(Int8Linear, "_product", lambda self, x: right(self, x) if len(x) < 150 else broken())
    assert type(packed(large(), "int8")) is RoundedLinear


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear = plain()
    assert packed(linear) is linear


def test_the_quantised_engine_is_left_as_it_was() -> None:
    before = torch.backends.quantized.engine
    packed(large(), "int8")
    assert torch.backends.quantized.engine == before
