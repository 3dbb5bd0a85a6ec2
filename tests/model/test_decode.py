"""Decoding many attempts at once against decoding each alone, the slow way: the same tokens, whatever shares the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, Generation, generate
from quietserve.model.tokens import Tokens
from reference import Reference

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
MODELS = {stops: tiny.quiet_model(stops=stops) for stops in ("", "aeiou")}
REFERENCES = {stops: Reference(model) for stops, model in MODELS.items()}


def decoder(stops: str = "", slots: int = 4, lanes: int = 2, prefill_chunk: int = 256) -> Decoder:
    model = MODELS[stops]
    return Decoder(model, TOKENS, Cache(model.backbone, slots, max_len=48, max_depth=6, lanes=lanes), prefill_chunk)


@st.composite
def attempts(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    prompt = draw(st.lists(st.integers(3, 258), min_size=1, max_size=10))
    params = SamplingParams(
        max_tokens=draw(st.integers(1, 6)),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        top_k=draw(st.sampled_from([0, 20])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        seed=draw(st.integers(0, 2**63)),
        thought_depth=draw(st.integers(0, 6)),
        thought_temperature=draw(st.sampled_from([0.0, 1.0])),
        logprobs=draw(st.sampled_from([None, 3])),
    )
    return prompt, params


@settings(max_examples=40)
@given(
    st.lists(attempts(), min_size=1, max_size=6),
    st.sampled_from(["", "aeiou"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_a_batch_decodes_each_attempt_as_if_it_were_alone(
    batch: list[tuple[list[int], SamplingParams]], stops: str, slots: int, lanes: int, chunk: int
) -> None:
    prompts, params = [prompt for prompt, _ in batch], [wanted for _, wanted in batch]
    for result, prompt, wanted in zip(
        generate(decoder(stops, slots, lanes, chunk), prompts, params), prompts, params, strict=True
    ):
        output, steps = REFERENCES[stops].generate(prompt, wanted, TOKENS.eos_ids)
        assert [token.id for token in result.tokens] == output
        assert result.num_thought_tokens == sum(len(step.thought) for step in steps)
        assert result.text == TOKENS.decode(output)
        assert result.finish_reason == ("stop" if output[-1] in TOKENS.eos_ids else "length")
        for token, step in zip(result.tokens, steps, strict=True):
            assert (list(token.thought.token_ids) if token.thought else []) == step.thought
            if wanted.logprobs is not None:
                expected = float(step.logits.log_softmax(-1)[token.id])
                assert token.logprob == pytest.approx(expected, abs=1e-3)


@settings(max_examples=15)
@given(st.lists(st.integers(3, 258), min_size=1, max_size=14), st.integers(0, 4), st.integers(1, 3), st.integers(1, 20))
def test_scoring_thinks_at_every_position(text: list[int], depth: int, lanes: int, chunk: int) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=2, thought_depth=depth, thought_temperature=0)
    result = generate(decoder("aeiou", 1, lanes, chunk), [text], params)[0]
    assert [token.id for token in result.prompt] == text
    assert result.prompt[0].logprob is None
    assert result.tokens == []
    assert result.finish_reason == "length"
    for i, token in enumerate(result.prompt[1:]):
        expected = REFERENCES["aeiou"].step(text[: i + 1], params).logits.log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-3)
        assert len(token.top_logprobs) == 2


def test_a_thought_costs_one_forward_more_than_its_tokens() -> None:
    engine = decoder()
    decoding = engine.start(0, [5, 6, 7], SamplingParams(max_tokens=3, thought_depth=4, temperature=0))
    forwards = 0
    while decoding.finish_reason is None:
        engine.step([decoding])
        forwards += 1
    assert forwards == 3 * (4 + 1)


def test_a_thought_that_ends_itself_costs_one_forward_more_than_its_tokens_too() -> None:
    engine = decoder("aeiou")
    decoding = engine.start(0, [5, 6, 7], SamplingParams(max_tokens=12, thought_depth=6, ignore_eos=True, seed=1))
    result, forwards = Generation(), 0
    while decoding.finish_reason is None:
        forwards += 1
        for _, news in engine.step([decoding]):
            result.add(news)
    lengths = [len(token.thought.token_ids) for token in result.tokens if token.thought]
    assert min(lengths) < 6, "the case is pointless if no thought ended itself"
    assert forwards == sum(length + 1 for length in lengths)


def test_markers_are_never_chosen_and_never_thought() -> None:
    params = SamplingParams(max_tokens=30, thought_depth=3, ignore_eos=True, logit_bias={1: 100.0, 2: 100.0})
    result = generate(decoder(), [[5, 6]], params)[0]
    chosen = [token.id for token in result.tokens] + [
        i for t in result.tokens if t.thought for i in t.thought.token_ids
    ]
    assert not {1, 2} & set(chosen)


def test_a_stop_string_ends_the_text_before_it() -> None:
    free = generate(decoder(), [[5, 6]], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
    stop = free.text[6:9]
    cut = free.text.index(stop)
    result = generate(decoder(), [[5, 6]], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, stop=(stop,)))[
        0
    ]
    assert (result.text, result.finish_reason) == (free.text[:cut], "stop")


def test_min_tokens_holds_back_the_end_of_the_text() -> None:
    bias = {0: 50.0}
    ended = generate(decoder(), [[5]], SamplingParams(max_tokens=8, logit_bias=bias))[0]
    held = generate(decoder(), [[5]], SamplingParams(max_tokens=8, min_tokens=4, logit_bias=bias))[0]
    assert (len(ended.tokens), ended.finish_reason) == (1, "stop")
    assert (len(held.tokens), held.finish_reason) == (5, "stop")


@pytest.mark.parametrize(
    ("prompt", "params", "reason"),
    [
        ([], SamplingParams(), "the prompt is empty"),
        ([5] * 40, SamplingParams(max_tokens=9), "40 prompt tokens and max_tokens 9 exceed the 48"),
        ([5], SamplingParams(thought_depth=7), "thought_depth is 7; it must be at most 6"),
    ],
)
def test_an_attempt_that_cannot_be_served_says_why(prompt: list[int], params: SamplingParams, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decoder().start(0, prompt, params)


def test_a_plain_model_refuses_to_think() -> None:
    model = tiny.quiet_model(quiet=None)
    engine = Decoder(model, TOKENS, Cache(model.backbone, 1, 16, 4))
    with pytest.raises(ValueError, match="no mixing head"):
        engine.start(0, [5], SamplingParams(max_tokens=3, thought_depth=1))
    assert len(generate(engine, [[5]], SamplingParams(max_tokens=3, ignore_eos=True))[0].tokens) == 3


def test_bfloat16_decodes() -> None:
    model = tiny.quiet_model().bfloat16()
    engine = Decoder(model, TOKENS, Cache(model.backbone, 2, 32, 4))
    result = generate(engine, [[5, 6, 7]], SamplingParams(max_tokens=4, thought_depth=3, ignore_eos=True, logprobs=0))[
        0
    ]
    assert len(result.tokens) == 4
    assert all(math.isfinite(token.logprob or 0.0) for token in result.tokens)
    assert torch.bfloat16 == model.backbone.dtype


def test_a_scored_prompt_of_one_token_keeps_its_token() -> None:
    """It has nothing to score, and was once left out where a token was generated behind it."""
    result = generate(decoder(), [[70]], SamplingParams(max_tokens=1, prompt_logprobs=1))[0]
    assert [(token.id, token.logprob) for token in result.prompt] == [(70, None)]
    assert len(result.tokens) == 1


def test_an_attempt_with_nothing_to_decide_ends_beside_others() -> None:
    params = [SamplingParams(max_tokens=0, prompt_logprobs=0), SamplingParams(max_tokens=2, ignore_eos=True)]
    scored, generated = generate(decoder(), [[70], [70]], params)
    assert (scored.finish_reason, len(scored.prompt), len(scored.tokens)) == ("length", 1, 0)
    assert len(generated.tokens) == 2
