"""The kernel against thinking the slow, obvious way; in parallel, row by row, through the cache and without it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.quiet_model import QuietModel
from quietserve.model.sampling import sample_thoughts
from quietserve.model.thoughts import Rows, Thought, replay, think, visible, whole_rows
from reference import Reference

MODEL = tiny.quiet_model(stops="aeiou")
REFERENCE = Reference(MODEL)
texts = st.lists(st.integers(3, 258), min_size=1, max_size=12)


def choose(thoughts: list[Thought], logits: torch.Tensor) -> list[int]:
    keys = [(t.seed, t.position, len(t.tokens) + 1) for t in thoughts]
    return sample_thoughts(logits, keys, [t.temperature for t in thoughts])


def read(model: QuietModel, cache: Cache, texts: list[list[int]]) -> list[torch.Tensor]:
    """Put texts into the slots 0, 1, ...; returns their hidden states."""
    rows = Rows()
    spans = [rows.add_base(slot, text, 0) for slot, text in enumerate(texts)]
    with torch.no_grad():
        hidden = model.run(rows, cache)
    return [hidden[span.start : span.stop] for span in spans]


def thoughts_everywhere(
    model: QuietModel, cache: Cache, texts: list[list[int]], depth: int, seed: int
) -> list[Thought]:
    return [
        Thought(slot, i, cache.lane(i, depth), depth, model.stop_ids, seed)
        for slot, text in enumerate(texts)
        for i in range(len(text))
    ]


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 2**40))
def test_thinking_everywhere_at_once_is_thinking_one_by_one(texts: list[list[int]], depth: int, seed: int) -> None:
    cache = Cache(MODEL.backbone, slots=4, max_len=12, max_depth=5, lanes=12)
    hidden = read(MODEL, cache, texts)
    thoughts = thoughts_everywhere(MODEL, cache, texts, depth, seed)
    think(MODEL, cache, thoughts, choose)
    for thought in thoughts:
        text = texts[thought.slot][: thought.position + 1]
        if depth:
            slow = REFERENCE.step(text, SamplingParams(thought_depth=depth, seed=seed))
            assert thought.tokens == slow.thought
            mixed, weight = MODEL.mix(hidden[thought.slot][thought.position], thought.hidden)
            torch.testing.assert_close(MODEL.logits(mixed), slow.logits, atol=2e-4, rtol=1e-4)
            assert float(weight) == pytest.approx(slow.weights[0], abs=1e-4)


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 2**40))
def test_replay_reads_what_the_thoughts_read(texts: list[list[int]], depth: int, seed: int) -> None:
    cache = Cache(MODEL.backbone, slots=3, max_len=12, max_depth=5, lanes=12)
    hidden = read(MODEL, cache, texts)
    thoughts = thoughts_everywhere(MODEL, cache, texts, depth, seed)
    think(MODEL, cache, thoughts, choose)
    longest = max(map(len, texts))
    tokens = torch.tensor([text + [3] * (longest - len(text)) for text in texts])
    positions, own = torch.zeros(len(texts), longest, dtype=torch.long), torch.full((len(texts), longest, depth + 2), 3)
    for t in thoughts:
        whole = whole_rows(t.tokens)
        positions[t.slot, t.position] = t.position
        own[t.slot, t.position, : len(whole)] = torch.tensor(whole)
    base, rows = replay(MODEL, tokens, positions, own)
    for t in thoughts:
        torch.testing.assert_close(rows[t.slot, t.position, len(t.tokens) + 1], t.hidden, atol=2e-4, rtol=1e-4)
    for slot, text in enumerate(texts):
        torch.testing.assert_close(base[slot, : len(text)], hidden[slot], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_every_architecture_thinks_as_the_reference(kind: type) -> None:
    extra = {"sliding_window": None, "head_dim": 8} if kind in (MistralConfig, Qwen3Config) else {}
    model = tiny.quiet_model(tiny.config(kind, **extra))
    cache = Cache(model.backbone, slots=1, max_len=6, max_depth=3, lanes=6)
    text = [10, 40, 5, 9, 200, 31]
    hidden = read(model, cache, [text])[0]
    thoughts = thoughts_everywhere(model, cache, [text], 3, seed=5)
    think(model, cache, thoughts, choose)
    reference = Reference(model)
    for t in thoughts:
        slow = reference.step(text[: t.position + 1], SamplingParams(thought_depth=3, seed=5))
        assert t.tokens == slow.thought
        mixed, _ = model.mix(hidden[t.position], t.hidden)
        torch.testing.assert_close(model.logits(mixed), slow.logits, atol=5e-4, rtol=1e-4)


def test_a_thought_sees_its_past_and_itself_only() -> None:
    columns = torch.arange(-8, 6)
    seen = columns[visible(columns, torch.tensor([3]), torch.tensor([-8]), torch.tensor([2]))]
    assert seen.tolist() == [-8, -7, 0, 1, 2]


def test_gradients_reach_markers_head_and_thought_tokens() -> None:
    model = tiny.quiet_model().requires_grad_(True)
    own = torch.tensor([[whole_rows([7, 8], [9])]])
    base, rows = replay(model, torch.tensor([[4, 5, 6]]), torch.tensor([[1]]), own)
    mixed, _ = model.mix(base[0, 1], rows[0, 0, 3])
    model.logits(mixed).log_softmax(-1)[6].backward()
    embeddings = model.backbone.lm.get_input_embeddings().weight.grad
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.thinking_parameters(model))
    touched = embeddings.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [
        4,
        5,
        7,
        8,
    ]  # x_0, x_1 and the thought; neither x_2, which comes later, nor what is read after END


def test_a_shared_cache_keeps_slots_apart() -> None:
    cache = Cache(MODEL.backbone, slots=3, max_len=12, max_depth=4, lanes=2)
    alone = read(MODEL, Cache(MODEL.backbone, slots=1, max_len=12, max_depth=4), [[9, 8, 7]])[0]
    for other in ([3] * 12, [200] * 7):
        together = read(MODEL, cache, [other, [9, 8, 7], other])[1]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
