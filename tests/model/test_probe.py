"""Probes: what they read of a text, files that come back as they went, files that cannot be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Qwen3Config

import tiny
from quietserve.model import checkpoint
from quietserve.model.checkpoint import CheckpointError, Loaded
from quietserve.model.probe import (
    Probe,
    ProbeConfig,
    ProbeNet,
    Readout,
    fingerprint,
    layer_states,
    load_probe,
    probe_config,
    read_text,
    save_probe,
)
from quietserve.model.tokens import Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
LOADED = Loaded(tiny.quiet_model(), TOKENS, "tiny")
TEXT = [5, 60, 70, 6, 80, 60, 9, 33]


def asked_of_the_library(loaded: Loaded, ids: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    out = loaded.model.backbone.lm(input_ids=torch.tensor([ids]), output_hidden_states=True, attend=causal)
    return torch.stack([out.hidden_states[layer] for layer in layers]).mean(0)


def causal(layer: int, query: Any, key: Any, value: Any, scale: float) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("lean", [False, True])
def test_states_are_the_librarys(layers: tuple[int, ...], lean: bool) -> None:
    """The mean over all of its `hidden_states`, or some of them; the last behind the final norm."""
    loaded = Loaded(tiny.quiet_model(), TOKENS, "tiny")
    expected = asked_of_the_library(loaded, TEXT, layers)
    if lean:
        loaded.model.speed_up()
    states = layer_states(loaded.model, torch.tensor([TEXT]), layers)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    assert not states.requires_grad


@pytest.mark.parametrize("kind", [Qwen3Config, Olmo2Config])
def test_of_any_kind_of_model(kind: type) -> None:
    model = tiny.quiet_model(tiny.config(kind), quiet=None)
    loaded = Loaded(model, TOKENS, "other")
    layers = tuple(range(model.backbone.num_layers + 1))
    torch.testing.assert_close(
        layer_states(model, torch.tensor([TEXT]), layers),
        asked_of_the_library(loaded, TEXT, layers),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("layers", [(), (3,), (0, 3), (-1,)])
def test_layers_that_are_not(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not have all of the layers"):
        layer_states(LOADED.model, torch.tensor([TEXT]), layers)


def test_a_text_is_padded_on_the_right() -> None:
    alone = layer_states(LOADED.model, torch.tensor([TEXT[:4]]), (0, 1, 2))
    beside = layer_states(LOADED.model, torch.tensor([[*TEXT[:4], 0, 0, 0, 0], TEXT]), (0, 1, 2))
    torch.testing.assert_close(beside[:1, :4], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("widths", [(), (8,), (8, 16)])
def test_a_network_reads_states_in_standard_form(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = ProbeNet(probe_config(LOADED, property="way", classes=("north", "south", "east"), widths=widths))
    states = torch.randn(5, 7, 32)
    plain = net(states)
    assert plain.shape == (5, 7, 3)
    net.mean.fill_(2.0)
    net.std.fill_(3.0)
    torch.testing.assert_close(net(states * 3 + 2), plain, atol=1e-5, rtol=1e-4)
    assert len(net.layers) == 2 * len(widths) + 1


def test_a_text_is_read_token_by_token_by_the_state_before(tmp_path: Path) -> None:
    probe = load_probe(tiny.save_probe(tmp_path, LOADED, tokens=("A", "B")), LOADED)
    ids = TOKENS.encode("xAyBBz")
    states = layer_states(LOADED.model, torch.tensor([ids]), probe.config.layers)[0]
    found = read_text(LOADED, probe, ids)
    assert [readout is not None for readout in found] == [True, False, True, True, False]
    assert found[0] == probe.read(states[:1])[0]
    assert found[3] == probe.read(states[3:4])[0]
    assert read_text(LOADED, probe, ids, first=3) == found[2:]
    assert isinstance(found[0], Readout)
    assert 1 / 3 <= found[0].probability <= 1
    for bad in (0, 7):
        with pytest.raises(ValueError, match=f"read from number {bad}"):
            read_text(LOADED, probe, ids, first=bad)
    assert probe.read(states[:0]) == []


def test_a_saved_probe_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = probe_config(
        LOADED,
        property="direction",
        classes=("N", "E", "S", "W"),
        layers=(1, 2),
        widths=(8, 4),
        offset=-2,
        tokens=("A",),
        measured={"accuracy": 0.5},
    )
    net = ProbeNet(config)
    net.std.uniform_(0.5, 2.0)
    save_probe(tmp_path / "new", config, net)
    back = load_probe(tmp_path / "new", LOADED)
    states = torch.randn(9, 32)
    assert back.config == config
    assert back.read(states) == Probe(config, net).read(states)
    save_probe(tmp_path / "new", config, net.half())
    torch.testing.assert_close(load_probe(tmp_path / "new", LOADED)._net(states), net.float()(states))
    assert (back.reads(TOKENS.encode("A")[0]), back.reads(TOKENS.encode("B")[0])) == (True, False)


def test_a_models_fingerprint_is_its_own_however_it_is_served(tmp_path: Path) -> None:
    own = fingerprint(tiny.quiet_model())
    assert len(own) == 16
    assert own != fingerprint(tiny.quiet_model(seed=1))
    folder = tiny.save(tmp_path)
    for dtype in ("float32", "bfloat16", "float16"):
        model = checkpoint.load(folder, dtype=dtype).model
        assert fingerprint(model) == own
        model.speed_up()
        assert fingerprint(model) == own
    for kind in ("half", "int8"):
        model = checkpoint.load(folder).model
        model.speed_up(kind)
        assert fingerprint(model) == own
    tied = tiny.quiet_model(tiny.config(tie_word_embeddings=True))
    before = fingerprint(tied)
    tied.speed_up()
    assert fingerprint(tied) == before


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_a_rounded_models_fingerprint_too(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save(tmp_path, base=tiny.config(hidden_size=64, intermediate_size=64))
    plain, rounded = checkpoint.load(folder), checkpoint.load(folder, quantization=quantization)
    assert fingerprint(rounded.model) == fingerprint(plain.model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "field 'colour' is unknown"),
        ({"property": None}, "field 'property' is missing"),
        ({"layers": None}, "field 'layers' is missing"),
        ({"property": ""}, "property is ''; it must be a word"),
        ({"classes": ["N"]}, r"classes is \('N',\); it must be a list of 2 or more different strings"),
        ({"classes": ["N", "N"]}, "2 or more different strings"),
        ({"classes": "NS"}, "2 or more different strings"),
        ({"layers": []}, "layers is .*; it must be a list of ascending numbers between 0 and num_layers, 2"),
        ({"layers": [0, 3]}, "between 0 and num_layers, 2"),
        ({"layers": [1, 0]}, "ascending"),
        ({"layers": [0, 0]}, "ascending"),
        ({"layers": [-1]}, "ascending"),
        ({"layers": [0.5]}, "ascending"),
        ({"widths": [0]}, "widths is"),
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number, 1 or more"),
        ({"offset": 0.5}, "offset is 0.5; it must be a whole number"),
        ({"tokens": [5]}, "tokens is"),
        ({"measured": []}, "measured is"),
        ({"hidden_size": 48}, "is of a model with states so wide: 48; tiny has 32"),
        ({"vocab_size": 100}, "is of a model with a vocabulary of: 100; tiny has 259"),
        ({"num_layers": 4}, "is of a model with layers: 4; tiny has 2"),
        ({"fingerprint": "0123"}, "is of a model with the fingerprint: 0123; tiny has [0-9a-f]{16}"),
        ({"tokens": ["A", "move"]}, "tokens: the tokenizer of tiny has no 'move'"),
    ],
)
def test_a_description_that_cannot_be(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tiny.save_probe(tmp_path, LOADED) / "probe.json"
    values = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"probe\.json: .*" + words):
        load_probe(tmp_path, LOADED)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    file, tensors = tiny.save_probe(tmp_path, LOADED) / "probe.json", tmp_path / "probe.safetensors"

    def complaint() -> str:
        with pytest.raises(CheckpointError) as caught:
            load_probe(tmp_path, LOADED)
        return str(caught.value)

    whole, config = tensors.read_bytes(), ProbeConfig.from_dict(json.loads(file.read_text()))
    tensors.write_bytes(whole[:100])
    assert "probe.safetensors: " in complaint()
    save_probe(tmp_path, replace(config, widths=(4,)), ProbeNet(config))
    assert "layers.0.weight" in complaint(), "once only that there is an error, and not which tensor has it"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"widths": [10**15]})
    )  # it used to be built before a look
    assert "probe.safetensors: " in complaint()
    for name, value in (("mean", torch.nan), ("std", 0.0)):
        net = ProbeNet(config)
        net.get_buffer(name)[3] = value
        save_probe(tmp_path, config, net)
        assert "probe.safetensors: holds what is no number, or a deviation that is not above 0" in complaint()
    tensors.unlink()
    assert "probe.safetensors: " in complaint()
    file.write_text("{")
    assert "probe.json: " in complaint()
    file.unlink()
    assert "probe.json: missing" in complaint()
