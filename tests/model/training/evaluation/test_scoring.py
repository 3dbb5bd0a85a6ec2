"""Distributions with thoughts, held against the slow reference and against the server's own scoring of prompts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.quiet_model import QuietModel
from quietserve.model.thoughts import Thought
from quietserve.model.tokens import Tokens
from quietserve.model.training.evaluation.scoring import Scored, Scores, score
from reference import Reference

IDS = Tokens(tiny.tokenizer()).encode("Count the hidden steps of a quiet mind, and then some more.")


@pytest.fixture(scope="module", params=["", "etaoin shrdlu"], ids=["full length", "may end"])
def model(request: pytest.FixtureRequest) -> QuietModel:
    return tiny.quiet_model(stops=request.param.replace(" ", ""))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_it_is_what_thinking_slowly_gives(model: QuietModel, depth: int, temperature: float) -> None:
    slow = Reference(model)
    texts = [Scored(IDS[:12], [0, 5, 11], seed=3), Scored(IDS[20:29], [2], seed=-4)]
    for text, scores in zip(texts, score(model, texts, depth, temperature), strict=True):
        thoughts = 0
        for j, position in enumerate(text.positions):
            params = SamplingParams(seed=text.seed, thought_depth=depth, thought_temperature=temperature)
            step = slow.step(list(text.ids[: position + 1]), params)
            thoughts += len(step.thought)
            torch.testing.assert_close(scores.logprobs_JV[j], step.logits.log_softmax(-1), atol=2e-4, rtol=1e-4)
            assert scores.weights_J[j] == pytest.approx(step.weights[0] if depth else 0.0, abs=1e-4)
        assert scores.num_thought_tokens == thoughts


def test_it_is_what_the_server_says_of_a_prompt(model: QuietModel) -> None:
    """`echo` with `logprobs` at a depth above 0, the same seed."""
    tokens = Tokens(tiny.tokenizer())
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, seed=9, thought_depth=3, thought_temperature=1.0)
    decoder = Decoder(model, tokens, Cache(model.backbone, 1, 32, 3))
    told = [token.logprob for token in generate(decoder, [IDS[:20]], params)[0].prompt]
    (scores,) = score(model, [Scored(IDS[:20], range(19), seed=9)], 3, 1.0)
    ours = scores.logprobs_JV.gather(1, torch.tensor(IDS[1:20])[:, None]).squeeze(1)
    assert told[0] is None
    assert ours.tolist() == pytest.approx(told[1:], abs=1e-4)


TEXTS = st.lists(
    st.builds(
        lambda begin, length, places, seed: Scored(
            IDS[begin : begin + length], sorted({p % length for p in places}), seed
        ),
        st.integers(0, 30),
        st.integers(1, 20),
        st.lists(st.integers(0, 50), min_size=1, max_size=12),
        st.integers(0, 2**62),
    ),
    min_size=1,
    max_size=4,
)


@given(TEXTS, st.integers(1, 20), st.integers(0, 3))
@settings(max_examples=10)
def test_who_shares_the_batch_changes_nothing(texts: list[Scored], at_once: int, depth: int) -> None:
    model = tiny.quiet_model(stops="etaoin")
    together = list(score(model, texts, depth, 1.0, at_once=at_once))
    for text, scores in zip(texts, together, strict=True):
        (alone,) = score(model, [text], depth, 1.0)
        torch.testing.assert_close(alone.logprobs_JV, scores.logprobs_JV, atol=2e-4, rtol=1e-4)
        assert alone.num_thought_tokens == scores.num_thought_tokens


def test_somebody_else_may_choose(model: QuietModel) -> None:
    def same(thoughts: list[Thought], logits_MV: torch.Tensor) -> list[int]:
        return [50] * len(thoughts)

    def run(**settings: object) -> Scores:
        return next(score(model, [Scored(IDS[:8], [7])], 3, **settings))  # pyright: ignore[reportArgumentType]

    assert run(choose=same).num_thought_tokens == 3
    assert not torch.equal(run(choose=same).logprobs_JV, run().logprobs_JV)


def test_a_seed_is_of_a_text_and_a_position() -> None:
    model, text = tiny.quiet_model(), Scored(IDS[:9], [8], seed=1)
    first, again, other = score(model, [text, text, replace(text, seed=2)], 4, 1.0)
    assert torch.allclose(first.logprobs_JV, again.logprobs_JV, atol=1e-5)
    assert not torch.allclose(first.logprobs_JV, other.logprobs_JV, atol=1e-3)


def test_broken_models_are_told_of() -> None:
    model = tiny.quiet_model()
    next(model.mixing_head.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the model's logits are not numbers"):
        list(score(model, [Scored(IDS[:5], [4])], 2))
    assert list(score(model, [], 2)) == []
