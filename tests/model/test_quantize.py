"""Quantised checkpoints: what is rounded, what is not, and that they decode as any other model does."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig

import tiny
from quietserve.model import checkpoint
from quietserve.model.backbone import causal
from quietserve.model.bench import quantization as bench
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import CheckpointError
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.quantize import ByteLinear
from quietserve.model.quiet_model import QuietModel
from reference import Reference

pytest.importorskip("bitsandbytes")
from bitsandbytes.nn.modules import Linear4bit

BOTH = pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
ROUNDED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# Of the size of a layer's product. The largest of a row of normal weights is some 3 deviations, a step of int8 3 / 127 of one,
# and the error of rounding 12 ** -.5 of a step: .007. NF4's 16 levels leave some .09 of normal weights in blocks of 64.
LAYER_BOUNDS = {"bnb-8bit": 0.01, "bnb-4bit": 0.11}
WEIGHTS = {"vocab_size": 259, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("full") / "tiny-quiet")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear layers are most of it."""
    return tiny.save(tmp_path_factory.mktemp("wide") / "wide", base=tiny.config(**WEIGHTS))


@torch.no_grad()
def logits(model: QuietModel, count: int = 24) -> Tensor:
    ids = torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(1))
    return model.backbone.logits(model(ids[None], torch.arange(count)[None], causal))[0]


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# --- what is rounded -------------------------------------------------------------------------------------------------


@BOTH
def test_linear_layers_are_rounded_and_nothing_else(quantization: str, wide: Path) -> None:
    full, model = checkpoint.load(wide).model, checkpoint.load(wide, quantization=quantization).model
    kind = {"bnb-8bit": ByteLinear, "bnb-4bit": Linear4bit}[quantization]
    held = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert {name.rpartition(".")[2] for name in held} == ROUNDED
    assert len(held) == 7 * 2
    state = model.state_dict()
    for name, value in full.state_dict().items():
        if name.removesuffix(".weight") not in held:
            assert state[name].dtype == value.dtype
            assert torch.equal(state[name], value), name
    kept = {"backbone.lm.model.embed_tokens.weight", "backbone.lm.lm_head.weight", "start_embedding", "end_embedding"}
    assert kept | {f"mixing_head.layers.{i}.weight" for i in (0, 2, 4)} <= state.keys()


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layers_products_are_close(quantization: str, dtype: str, wide: Path) -> None:
    full = dict(checkpoint.load(wide).model.named_modules())
    model = checkpoint.load(wide, dtype, quantization=quantization).model
    checked = 0
    for name, layer in model.backbone.lm.base_model.named_modules():
        if isinstance(layer, nn.Linear):
            inputs = torch.randn(50, layer.in_features, generator=torch.Generator().manual_seed(checked))
            products = layer(inputs.to(model.backbone.dtype))
            expected = full[f"backbone.lm.model.{name}"](inputs)
            assert products.dtype == model.backbone.dtype
            assert 0 < (products.float() - expected).norm() < LAYER_BOUNDS[quantization] * expected.norm(), name
            checked += 1
    assert checked == 14


def test_more_bits_are_closer(wide: Path) -> None:
    full = logits(checkpoint.load(wide).model)
    eight, four = (logits(checkpoint.load(wide, quantization=q).model) for q in ("bnb-8bit", "bnb-4bit"))
    assert (eight - full).norm() < 0.03 * full.norm()
    assert (four - full).norm() < 0.4 * full.norm()
    assert (eight - full).norm() < 0.25 * (four - full).norm()


@pytest.mark.parametrize(("quantization", "bits"), [("bnb-8bit", 8), ("bnb-4bit", 4)])
def test_memory_is_what_the_bits_say(quantization: str, bits: int, tmp_path: Path) -> None:
    base = tiny.config(hidden_size=256, intermediate_size=1024)
    full = checkpoint.load(tiny.save(tmp_path / "large", base=base)).model
    model = checkpoint.load(tmp_path / "large", quantization=quantization).model
    rounded = sum(m.weight.numel() for n, m in full.named_modules() if n.rpartition(".")[2] in ROUNDED)
    assert full.num_bytes == sum(tensor.nbytes for tensor in (*full.parameters(), *full.buffers()))
    saved = full.num_bytes - model.num_bytes
    scales = (
        0.01 if bits == 8 else 0.04
    )  # of a float an output; of a byte a block of 64 weights, and the levels' tables
    assert (1 - scales) * rounded * (4 - bits / 8) < saved < rounded * (4 - bits / 8)


def test_biases_and_transposed_layers(tmp_path: Path) -> None:
    """GPT-2's are no `nn.Linear`, and hold their weights the other way round."""
    sizes = {"vocab_size": 259, "n_embd": 64, "n_layer": 1, "n_head": 2, "bos_token_id": None, "eos_token_id": 0}
    folder = tiny.save(tmp_path / "gpt2", base=GPT2Config(**sizes))
    full = logits(checkpoint.load(folder).model)
    for quantization, bound in (("bnb-8bit", 0.02), ("bnb-4bit", 0.3)):
        other = logits(checkpoint.load(folder, quantization=quantization).model)
        assert 0 < (other - full).norm() < bound * full.norm()


# --- how it decodes --------------------------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7], [9] * 20, [30]]


@BOTH
def test_rows_do_not_depend_on_their_neighbours(quantization: str, wide: Path) -> None:
    model = checkpoint.load(wide, quantization=quantization).model
    layer = model.backbone.lm.base_model.layers[1].mlp.down_proj
    inputs = torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(0))
    inputs[3, 7] = 1000  # LLM.int8() would multiply the column 7 of every row in another precision
    together = layer(inputs)
    for i in range(9):
        torch.testing.assert_close(layer(inputs[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)


@BOTH
def test_the_decoder_says_what_the_slow_loop_says(quantization: str, folder: Path) -> None:
    loaded = checkpoint.load(folder, quantization=quantization)
    params = [SamplingParams(max_tokens=5, thought_depth=2, ignore_eos=True, seed=seed) for seed in range(len(PROMPTS))]
    slow = Reference(loaded.model)
    expected = [slow.generate(p, each, loaded.tokens.eos_ids)[0] for p, each in zip(PROMPTS, params, strict=True)]
    loaded.model.speed_up()
    engine = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 2, max_len=40, max_depth=2))
    results = generate(engine, PROMPTS, params)
    assert [[token.id for token in result.tokens] for result in results] == expected


@BOTH
def test_speeding_up_packs_what_is_left(quantization: str, tmp_path: Path) -> None:
    base = tiny.config(LlamaConfig, hidden_size=128, vocab_size=1024)
    model = checkpoint.load(tiny.save(tmp_path / "large", base=base), quantization=quantization).model
    before = logits(model)
    model.speed_up()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


@BOTH
def test_tied_embeddings_are_held_once(quantization: str, tmp_path: Path) -> None:
    base = tiny.config(LlamaConfig, hidden_size=128, vocab_size=1024, tie_word_embeddings=True)
    model = checkpoint.load(tiny.save(tmp_path / "tied", base=base), quantization=quantization).model
    before = model.num_bytes
    model.speed_up()
    assert model.num_bytes == before


# --- files that are quantised ----------------------------------------------------------------------------------------


@BOTH
def test_what_is_saved_loads(quantization: str, folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(folder, quantization=quantization)
    checkpoint.save(loaded.model, loaded.tokens.tokenizer, tmp_path / "saved")
    expected = logits(loaded.model)
    assert load_file(tmp_path / "saved" / "model.safetensors")["lm_head.weight"].dtype == torch.float32
    for wanted in ("none", quantization):
        again = checkpoint.load(tmp_path / "saved", quantization=wanted).model
        assert torch.equal(logits(again), expected)
        assert again.num_bytes == loaded.model.num_bytes


def test_a_file_may_ask_for_another_arithmetic(folder: Path, tmp_path: Path) -> None:
    """As models of QLoRA do; what is computed in is ours to say."""
    loaded = checkpoint.load(folder, quantization="bnb-4bit")
    checkpoint.save(loaded.model, loaded.tokens.tokenizer, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    edit_config(tmp_path / "saved", quantization_config=config | {"bnb_4bit_compute_dtype": "bfloat16"})
    assert torch.equal(logits(checkpoint.load(tmp_path / "saved").model), logits(loaded.model))


# --- what it refuses -------------------------------------------------------------------------------------------------


def refusal(folder: Path, quantization: str = "none") -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, quantization=quantization)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["half", "4bit", ""])
def test_an_unknown_name(name: str, folder: Path) -> None:
    assert f"quantization is {name!r}; it must be one of none, bnb-8bit, bnb-4bit" in refusal(folder, name)


@pytest.mark.parametrize("quantization", ["none", "bnb-4bit"])
@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"quant_method": "gptq", "bits": 4}, "its weights are quantised by 'gptq'; only bitsandbytes is supported"),
        ({"quant_method": "bitsandbytes"}, "quantization_config says neither load_in_8bit nor load_in_4bit"),
        ("gptq", "its weights are quantised by 'gptq'; only bitsandbytes is supported"),
    ],
)
def test_weights_quantised_otherwise(stored: Any, reason: str, quantization: str, tmp_path: Path) -> None:
    edit_config(tiny.save(tmp_path / "stored"), quantization_config=stored)
    assert reason in refusal(tmp_path / "stored", quantization)


def test_weights_stored_in_other_bits(folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(folder, quantization="bnb-4bit")
    checkpoint.save(loaded.model, loaded.tokens.tokenizer, tmp_path / "saved")
    assert "its weights are stored in 4 bits; bnb-8bit is not to be had of them" in refusal(
        tmp_path / "saved", "bnb-8bit"
    )


def test_a_model_without_linear_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.replace_with_bnb_linear", lambda model, **_: model)
    assert "LlamaForCausalLM: it has no linear layer that bitsandbytes can quantise" in refusal(folder, "bnb-8bit")


@BOTH
@pytest.mark.parametrize("kind", ["half", "int8"])
def test_rounding_twice(kind: Any, quantization: str, folder: Path) -> None:
    model = checkpoint.load(folder, quantization=quantization).model
    with pytest.raises(ValueError, match=f"quantised by bitsandbytes already; '{kind}' is for a model that is not"):
        model.speed_up(kind)


@pytest.mark.parametrize("library", ["bitsandbytes", "accelerate"])
def test_a_missing_library_is_named(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return there(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refusal(folder, "bnb-4bit").endswith(f"No module named {library!r}: pip install 'quietserve[bnb]'")
    assert checkpoint.load(folder).model.can_think  # in full precision nothing asks for it


# --- the measurement -------------------------------------------------------------------------------------------------


def test_the_command_measures_every_kind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "weigh_apart", bench.weigh)  # a process each would take half a minute
    monkeypatch.setattr(bench, "_TEXTS", 1)
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out.json"
    problems.write_text("\n".join(json.dumps({"prompt": text, "answer": "x"}) for text in "abc"))
    command = ["--model", str(folder), "--problems", str(problems), "--depths", "2", "--batches", "1", "--tokens", "3"]
    out.write_text('["the run before"]')
    assert bench.main([*command, "--kinds", "bnb-4bit", "--rounds", "1", "--json", str(out)]) == 0
    before, run = json.loads(out.read_text())
    assert before == "the run before"
    assert run == json.loads(capsys.readouterr().out)
    rows = run["rows"]
    assert rows["none"]["kl_nats"] == 0
    assert rows["none"]["same_top"] == rows["none"]["speed_batch_1"]["ratio"] == 1
    assert rows["bnb-4bit"]["kl_nats"] > 0
    assert rows["bnb-4bit"]["weight_bytes"] < rows["none"]["weight_bytes"]
    assert rows["bnb-4bit"]["accuracy_depth_2"]["n"] == 3
    assert bench.main(["--model", str(tmp_path / "nowhere")]) == 2


def test_intervals() -> None:
    row = bench.compare([True] * 80 + [False] * 20, [True] * 85 + [False] * 15)
    assert (row["accuracy"], row["won"], row["lost"], row["difference"]) == (0.8, 0, 5, -0.05)
    assert row["ci95"] == [pytest.approx(0.711, abs=1e-3), pytest.approx(0.867, abs=1e-3)]
    assert row["difference_ci95"] == [pytest.approx(-0.0927, abs=1e-3), pytest.approx(-0.0073, abs=1e-3)]
