"""The unit against its formulas, what of it learns, and the folder that it is kept in."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config

import tiny
from quietserve.model import checkpoint
from quietserve.model.backbone import causal
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import CheckpointError
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.quiet_model import QuietModel
from quietserve.model.tokens import Tokens
from quietserve.model.training.integration import (
    SETTINGS,
    TENSORS,
    Integration,
    Part,
    choose_part,
    in_mode,
    integrate,
    layer_shapes,
    load_integrated,
    num_trained,
    save_integrated,
    shuffle_negative,
    units,
)
from quietserve.model.training.lora import Lora

LORA = Lora(2, 4.0, ("q_proj", "v_proj"), 0.05)
IDS = torch.arange(3, 12)[None]


class Lone(nn.Module):
    """As much of a model as adapters need."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(d_in, d_out, bias=bias)

    def get_output_embeddings(self) -> None:
        return None


def lone_unit(d_in: int, d_out: int, rank: int, inner: int, bias: bool = False, dropout: float = 0.0) -> Any:
    lone: Any = Lone(d_in, d_out, bias)
    integrate(lone, Lora(rank, 3.0, ("proj",), dropout), inner)
    return stir(lone).proj


def stir(model: nn.Module, std: float = 0.3) -> Any:
    """As if it had learnt something."""
    for unit in units(model):
        for name, parameter in unit.named_parameters():
            if "base_layer" not in name:
                nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture
def model() -> QuietModel:
    """Four heads of queries, two of keys and values: q_proj is 32 to 32, v_proj 32 to 16."""
    model = tiny.quiet_model()
    torch.manual_seed(0)
    integrate(model.backbone.lm, LORA, 5)
    return model.eval()


@torch.no_grad()
def logits(model: QuietModel, ids: Tensor = IDS) -> Tensor:
    return model.logits(model(ids, torch.arange(ids.shape[1])[None], causal))[0, :, 3:]


# --- the layer -------------------------------------------------------------------------------------------------------


def times(weight: Tensor, vector: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in weight.tolist()]


def by_the_formulas(unit: Any, x: list[float]) -> tuple[list[float], float]:
    """One token's output and its negative share, number by number."""
    layer = unit.adapted
    bias = layer.base_layer.bias.tolist() if layer.base_layer.bias is not None else [0.0] * unit.out_features
    h = [a + b for a, b in zip(times(layer.base_layer.weight, x), bias, strict=True)]

    def moved(name: str) -> list[float]:
        scale = 3.0 / layer.r[name]
        added = times(layer.lora_B[name].weight, times(layer.lora_A[name].weight, x))
        return [a + scale * b for a, b in zip(h, added, strict=True)]

    def value(u: list[float]) -> list[float]:
        inner = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in times(unit.narrow.weight, u)]
        return times(unit.widen.weight, inner)

    positive, negative = moved("positive"), moved("negative")
    query = times(unit.query.weight, x)
    scores = [sum(a * b for a, b in zip(query, times(unit.key.weight, k), strict=True)) for k in (positive, negative)]
    weights = [math.exp(score - max(scores)) for score in scores]
    share = weights[1] / sum(weights) - 0.5
    parts = zip(h, value(positive), value(negative), strict=True)
    return [a + (1 - share) * p + share * n for a, p, n in parts], share


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
def test_a_layer_computes_what_the_formulas_say(
    d_in: int, d_out: int, rank: int, inner: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    unit = lone_unit(d_in, d_out, rank, inner, bias)
    x_BTI = torch.randn(2, 3, d_in)
    with torch.no_grad():
        out = unit(x_BTI)
    assert out.shape == (2, 3, d_out)
    for b in range(2):
        for t in range(3):
            wanted, share = by_the_formulas(unit, x_BTI[b, t].tolist())
            torch.testing.assert_close(out[b, t], torch.tensor(wanted), atol=1e-4, rtol=1e-4)
            assert unit.share[b, t].item() == pytest.approx(share, abs=1e-4)
            assert -0.5 <= share <= 0.5


def test_modes_are_those_of_the_adapters_alone() -> None:
    unit = lone_unit(4, 6, 2, 3)
    x = torch.randn(5, 4)
    layer = unit.adapted
    with torch.no_grad():
        with in_mode(unit, "base"):
            assert torch.equal(unit(x), layer.base_layer(x))
        with in_mode(unit, "negative"):
            layer.set_adapter("negative")
            torch.testing.assert_close(unit(x), layer(x))
    assert unit.mode == "integrated"
    with pytest.raises(RuntimeError, match="ends it"), in_mode(unit, "base"):
        raise RuntimeError("ends it")
    assert unit.mode == "integrated"


def test_inputs_of_adapters_drop_out_in_training_alone() -> None:
    unit = lone_unit(8, 8, 2, 3, dropout=0.5)
    x = torch.randn(5, 8)
    assert torch.equal(unit(x), unit(x))
    unit.train()
    assert not torch.equal(unit(x), unit(x))


def test_half_precision_stays_what_it_is() -> None:
    unit = lone_unit(4, 6, 2, 3)
    x = torch.randn(5, 4)
    wanted = unit(x)
    unit.adapted.base_layer.bfloat16()
    out = unit(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(unit(x).float(), wanted, atol=0.1, rtol=0.1)


# --- a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("o_proj", "gate_proj", "down_proj"), ("k_proj",)])
def test_at_the_start_it_is_the_base_bit_for_bit(targets: tuple[str, ...]) -> None:
    model = tiny.quiet_model()
    before = logits(model)
    integrate(model.backbone.lm, Lora(2, 4.0, targets, 0.05), 5)
    assert len(units(model)) == 2 * len(targets)  # layers
    model.eval()
    for mode in ("integrated", "negative", "base"):
        with in_mode(model, mode):
            assert torch.equal(logits(model), before), mode


def test_layers_of_transposed_weights_have_units_too() -> None:
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = tiny.quiet_model(GPT2Config(**sizes, bos_token_id=None, eos_token_id=0), quiet=None)
    before = logits(model)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # peft's: it sets it by itself
        integrate(model.backbone.lm, Lora(2, 4.0, ("c_attn",)), 5)
    assert [(unit.in_features, unit.out_features) for unit in units(model)] == [(32, 96)]
    assert torch.equal(logits(model.eval()), before)


def test_fresh_adapters_change_nothing(model: QuietModel) -> None:
    """The released code began the negative stage with a random B."""
    for unit in units(model):
        for name in ("positive", "negative"):
            assert not unit.adapted.lora_B[name].weight.any()
            assert unit.adapted.lora_A[name].weight.any()
        assert not unit.widen.weight.any()
        assert unit.key.weight.shape == unit.narrow.weight.shape == (5, unit.out_features), "not as wide as the input"


@pytest.mark.parametrize("part", ["negative", "rest"])
def test_gradients_reach_exactly_what_is_to_learn(model: QuietModel, part: Part) -> None:
    stir(model)
    choose_part(model, part)
    with in_mode(model, "negative" if part == "negative" else "integrated"):
        model.logits(model(IDS, torch.arange(IDS.shape[1])[None], causal))[..., 3:].square().sum().backward()
    wanted = {
        "negative": {"lora_A.negative", "lora_B.negative"},
        "rest": {"lora_A.positive", "lora_B.positive", "query", "key", "narrow", "widen"},
    }[part]
    for name, parameter in model.named_parameters():
        learns = any(f"{one}.weight" in name for one in wanted)
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


def test_parameters_are_counted(model: QuietModel) -> None:
    choose_part(model, "rest")
    own = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shapes = layer_shapes(tiny.quiet_model().backbone.lm, LORA)
    assert shapes == [(32, 32), (32, 16)] * 2
    assert own == sum(num_trained(*shape, LORA.rank, 5) for shape in shapes)


def test_shuffled_adapters_keep_their_entries(model: QuietModel) -> None:
    stir(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shuffle_negative(model, 3)
    for name, value in model.state_dict().items():
        if ".negative." in name:
            assert not torch.equal(value, before[name])
            assert torch.equal(value.flatten().sort()[0], before[name].flatten().sort()[0])
        else:
            assert torch.equal(value, before[name]), name


def test_what_is_decoded_is_what_a_plain_forward_says(model: QuietModel) -> None:
    stir(model)
    tokens = Tokens(tiny.tokenizer())
    prompt = tokens.encode("Question:")
    [found] = generate(
        Decoder(model, tokens, Cache(model.backbone, 1, 32, 0)),
        [prompt],
        SamplingParams(6, temperature=0.0, ignore_eos=True),
    )
    ids = list(prompt)
    for token in found.tokens:
        assert token.id == int(logits(model, torch.tensor([ids]))[-1].argmax()) + 3
        ids.append(token.id)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_only_linear_layers_between_the_embeddings_have_units(target: str) -> None:
    with pytest.raises(ValueError, match=f"--lora-targets: .*{target} is no linear layer between the embeddings"):
        integrate(tiny.quiet_model().backbone.lm, Lora(2, 4.0, (target,)), 5)


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_a_rounded_layer_is_called_and_left_alone(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save(tmp_path / "base", quiet=None)
    model = checkpoint.load(folder, quantization=quantization).model
    before = logits(model)
    integrate(model.backbone.lm, LORA, 5)
    model.eval()
    assert torch.equal(logits(model), before)
    stir(model)
    choose_part(model, "rest")
    model.logits(model(IDS, torch.arange(IDS.shape[1])[None], causal)).sum().backward()
    assert all(unit.adapted.lora_B["positive"].weight.grad.any() for unit in units(model))


# --- its folder ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    base = tiny.save(folder / "base")
    model = checkpoint.load(base).model
    integrate(model.backbone.lm, LORA, 5)
    stir(model)
    settings = Integration(str(base), "nat", 5, LORA.rank, LORA.alpha, LORA.targets, LORA.dropout)
    save_integrated(model, settings, folder / "nat")
    torch.save(logits(model), folder / "logits.pt")
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(made / "nat", tmp_path / "nat"))


def test_what_is_kept_is_what_is_read(made: Path, kept: Path) -> None:
    loaded = load_integrated(kept)
    assert torch.equal(logits(loaded.model), torch.load(made / "logits.pt"))
    assert loaded.name == "nat"
    assert loaded.model.can_think
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(unit.training for unit in units(loaded.model)), "nothing drops out"


def test_it_is_no_checkpoint_that_could_be_half_loaded(kept: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nat: holds two adapters .* --arm nce"):
        checkpoint.load(kept)


def edit(folder: Path, name: str, shape: list[int] | None) -> None:
    found = load_file(folder / TENSORS)
    found.pop(name, None)
    save_file(found | ({name: torch.zeros(shape)} if shape else {}), folder / TENSORS)


KEY = "model.layers.0.self_attn.v_proj.key.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (KEY, None, f"tensor '{KEY}' is missing"),
        ("model.layers.7.key.weight", [1], "tensor 'model.layers.7.key.weight' is not expected"),
        (KEY, [5, 32], rf"tensor '{KEY}' has shape \[5, 32\], not \[5, 16\]"),
    ],
)
def test_every_tensor_must_be_there_and_fit(kept: Path, name: str, shape: list[int] | None, message: str) -> None:
    edit(kept, name, shape)
    with pytest.raises(CheckpointError, match=message):
        load_integrated(kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "/none"}, r"integration\.json: its base: /none: no such checkpoint folder"),
        ({"rank": 3}, "has shape"),
        ({"extra": 1}, r"integration\.json: key 'extra' is not expected"),
        ({"targets": ["none_proj"]}, "none_proj"),
    ],
)
def test_settings_that_do_not_fit_are_errors(kept: Path, changes: dict[str, Any], message: str) -> None:
    values = json.loads((kept / SETTINGS).read_text())
    (kept / SETTINGS).write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=message):
        load_integrated(kept)


def test_files_that_are_missing_or_damaged_are_named(kept: Path) -> None:
    whole = (kept / TENSORS).read_bytes()
    (kept / TENSORS).write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="nat"):
        load_integrated(kept)
    (kept / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=TENSORS):
        load_integrated(kept)
    values = json.loads((kept / SETTINGS).read_text())
    del values["inner"]
    (kept / SETTINGS).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="key 'inner' is missing"):
        load_integrated(kept)
    with pytest.raises(CheckpointError, match=rf"{SETTINGS}: missing"):
        load_integrated(kept.parent)
