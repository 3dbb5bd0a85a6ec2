"""Lean layers against the library's: the same hidden states, for every kind of model that has them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.lean import make_lean
from quietserve.model.tokens import Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
KINDS: dict[type[Any], dict[str, Any]] = {
    LlamaConfig: {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    MistralConfig: {"sliding_window": None, "head_dim": 16},
    Qwen2Config: {},
    Qwen3Config: {"head_dim": 8},
}
PARAMS = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True)


def decode(model: Any) -> list[str]:
    engine = Decoder(model, TOKENS, Cache(model.backbone, 3, max_len=40, max_depth=3))
    return [result.text for result in generate(engine, [[5, 6, 7], [9] * 20, [30]], PARAMS)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_lean_layers_decide_the_same(kind: type[Any]) -> None:
    plain, lean = (tiny.quiet_model(tiny.config(kind, **KINDS[kind]), seed=3) for _ in range(2))
    with torch.no_grad():
        for model in (plain, lean):
            torch.manual_seed(0)
            for name, parameter in model.backbone.named_parameters():
                if "norm" in name or "bias" in name:
                    parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    assert make_lean(lean.backbone)
    assert decode(lean) == decode(plain)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 400))
def test_hidden_states_agree(texts: int, length: int, begin: int) -> None:
    tokens = torch.randint(3, 259, (texts, length), generator=torch.Generator().manual_seed(begin))
    positions = torch.arange(begin, begin + length).expand(texts, -1)
    with torch.no_grad():
        plain, lean = (b(b.embed(tokens), positions, attend) for b in (PLAIN.backbone, LEAN.backbone))
    torch.testing.assert_close(lean, plain, atol=2e-5, rtol=1e-4)


def attend(layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
    share = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(share, 1) for x in (key, value))
    return ((query @ key.transpose(-1, -2)) * scale).softmax(-1) @ value


PLAIN, LEAN = tiny.quiet_model(), tiny.quiet_model()
make_lean(LEAN.backbone)


def test_the_weights_are_held_once() -> None:
    count = sum(parameter.numel() for parameter in PLAIN.parameters())
    assert sum(parameter.numel() for parameter in LEAN.parameters()) == count


def test_another_kind_of_model_keeps_its_own_layers() -> None:
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": None, "eos_token_id": 0}
    model = tiny.quiet_model(GPT2Config(**sizes))
    assert not make_lean(model.backbone)
    assert len(decode(model)) == 3
