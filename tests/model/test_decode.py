"""Decoding many attempts at once against decoding each alone, the slow way: the same tokens, whatever shares the batch."""

import math
from random import Random
from typing import Any

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


def decoder(stops: str = "", slots: int = 4, lanes: int | None = None, **settings: Any) -> Decoder:
    model = MODELS[stops]
    return Decoder(model, TOKENS, Cache(model.backbone, slots, max_len=64, max_depth=6, lanes=lanes), **settings)


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    warmth = draw(st.sampled_from([0.0, 1.0]))
    return SamplingParams(
        max_tokens=draw(st.integers(1, 8)),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        top_k=draw(st.sampled_from([0, 20])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        seed=draw(st.integers(0, 2**63)),
        thought_depth=draw(st.integers(0, 6)),
        thought_temperature=warmth,
        num_thoughts=draw(st.integers(1, 3)),
        thought_threshold=draw(st.sampled_from([None, None, 2.0])),
        logprobs=draw(st.sampled_from([None, 3])),
    )


@st.composite
def attempts(draw: st.DrawFn) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of all lengths, several of which begin alike."""
    shared = draw(st.lists(st.integers(3, 258), min_size=0, max_size=30))
    prompts = st.lists(st.integers(3, 258), min_size=1, max_size=10)
    begun_alike = st.builds(lambda kept, rest: shared[:kept] + rest, st.integers(0, 30), prompts)
    return draw(st.lists(st.tuples(begun_alike, params()), min_size=1, max_size=8))


@st.composite
def decoders(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "slots": draw(st.integers(1, 5)),
        "lanes": draw(st.sampled_from([3, 5, 7, 9])),
        "prefill_chunk": draw(st.integers(1, 40)),
        "pipeline_depth": draw(st.sampled_from([None, 1, 2, 3, 5, 7])),
        "reuse_prefixes": draw(st.booleans()),
    }


def check(result: Generation, prompt: list[int], wanted: SamplingParams, stops: str) -> None:
    """A result is what the slow loop gives."""
    output, steps = REFERENCES[stops].generate(prompt, wanted, TOKENS.eos_ids)
    assert [token.id for token in result.tokens] == output
    assert result.text == TOKENS.decode(output)
    assert result.finish_reason == ("stop" if output[-1] in TOKENS.eos_ids else "length")
    assert result.num_thought_tokens == sum(len(thought) for step in steps for thought in step.thoughts)
    for token, step in zip(result.tokens, steps, strict=True):
        assert [list(thought.token_ids) for thought in token.thoughts] == step.thoughts
        assert [thought.mixing_weight for thought in token.thoughts] == pytest.approx(step.weights, abs=1e-3)
        if wanted.logprobs is not None:
            assert token.logprob == pytest.approx(float(step.logits.log_softmax(-1)[token.id]), abs=1e-3)


@settings(max_examples=60)
@given(attempts(), st.sampled_from(["", "aeiou"]), decoders())
def test_a_batch_decodes_each_attempt_as_if_it_were_alone(
    batch: list[tuple[list[int], SamplingParams]], stops: str, setup: dict[str, Any]
) -> None:
    prompts, wanted = [prompt for prompt, _ in batch], [params for _, params in batch]
    for result, prompt, params in zip(generate(decoder(stops, **setup), prompts, wanted), prompts, wanted, strict=True):
        check(result, prompt, params, stops)


@settings(max_examples=40)
@given(attempts(), st.sampled_from(["", "aeiou"]), decoders(), st.integers(0, 2**32))
def test_whatever_the_schedule_does_an_attempt_decides_the_same(
    batch: list[tuple[list[int], SamplingParams]], stops: str, setup: dict[str, Any], seed: int
) -> None:
    """Attempts come late, are held back, lose their slots, are cancelled, and share forwards with whom it may be."""
    engine, random = decoder(stops, **setup), Random(seed)
    waiting = [(prompt, params, Generation(), None) for prompt, params in batch]
    running: dict[int, tuple[Any, ...]] = {}
    ended = []
    while waiting or running:
        free = [slot for slot in range(engine.cache.slots) if slot not in running]
        if waiting and free and random.random() < 0.6:
            prompt, params, result, decoding = waiting.pop(0)
            slot = engine.prefixes.choose_slot(prompt if decoding is None else decoding.tokens, free)
            if decoding is None:
                decoding = engine.start(slot, prompt, params)
            else:
                engine.resume(decoding, slot)
            running[slot] = prompt, params, result, decoding
        if running and random.random() < 0.15:
            waiting.append(running.pop(random.choice(list(running))))
        if running and random.random() < 0.03:
            del running[random.choice(list(running))]
        some = [entry for entry in running.values() if random.random() < 0.8]
        for decoding, news in engine.step([entry[3] for entry in some]):
            entry = running[decoding.slot]
            entry[2].add(news)
            if news.finish_reason:
                ended.append(running.pop(decoding.slot))
    for prompt, params, result, _ in ended:
        check(result, prompt, params, stops)


@settings(max_examples=20)
@given(
    st.lists(st.integers(3, 258), min_size=1, max_size=14),
    st.integers(0, 4),
    st.integers(1, 2),
    st.sampled_from([None, 3.0]),
    st.integers(2, 9),
    st.integers(1, 20),
)
def test_scoring_thinks_at_every_position(
    text: list[int], depth: int, num_thoughts: int, threshold: float | None, lanes: int, chunk: int
) -> None:
    params = SamplingParams(
        max_tokens=0, prompt_logprobs=2, thought_depth=depth, num_thoughts=num_thoughts, thought_threshold=threshold
    )
    result = generate(decoder("aeiou", 1, lanes, prefill_chunk=chunk), [text], params)[0]
    assert [token.id for token in result.prompt] == text
    assert result.prompt[0].logprob is None
    assert result.tokens == []
    assert result.finish_reason == "length"
    for i, token in enumerate(result.prompt[1:]):
        expected = REFERENCES["aeiou"].step(text[: i + 1], params).logits.log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-3)
        assert len(token.top_logprobs) == 2


def test_a_thought_costs_one_forward_more_than_its_tokens() -> None:
    engine = decoder(pipeline_depth=1)
    decoding = engine.start(0, [5, 6, 7], SamplingParams(max_tokens=3, thought_depth=4, temperature=0))
    forwards = 0
    while decoding.finish_reason is None:
        engine.step([decoding])
        forwards += 1
    assert forwards == 3 * (4 + 1)


def test_a_thought_that_ends_itself_costs_one_forward_more_than_its_tokens_too() -> None:
    engine = decoder("aeiou", pipeline_depth=1)
    decoding = engine.start(0, [5, 6, 7], SamplingParams(max_tokens=12, thought_depth=6, ignore_eos=True, seed=1))
    result, forwards = Generation(), 0
    while decoding.finish_reason is None:
        forwards += 1
        for _, news in engine.step([decoding]):
            result.add(news)
    lengths = [len(thought.token_ids) for token in result.tokens for thought in token.thoughts]
    assert min(lengths) < 6, "the case is pointless if no thought ended itself"
    assert forwards == sum(length + 1 for length in lengths)


def test_markers_are_never_chosen_and_never_thought() -> None:
    params = SamplingParams(max_tokens=30, thought_depth=3, ignore_eos=True, logit_bias={1: 100.0, 2: 100.0})
    result = generate(decoder(), [[5, 6]], params)[0]
    chosen = [token.id for token in result.tokens] + [
        i for t in result.tokens for thought in t.thoughts for i in thought.token_ids
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
        ([5] * 60, SamplingParams(max_tokens=9), "60 prompt tokens and max_tokens 9 exceed the 64"),
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
