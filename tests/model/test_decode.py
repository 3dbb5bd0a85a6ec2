"""Decoding many attempts at once against decoding each alone, the slow way: the same tokens, whatever shares the batch."""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.decoding import Decoding
from quietserve.model.probe import Probe, ProbeNet, probe_config, read_text
from quietserve.model.progress import Counts, Generation
from quietserve.model.thoughts import Rows
from quietserve.model.tokens import Tokens
from reference import Reference

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
KINDS = ["", "aeiou", "steady"]  # thoughts that end at no token, at vowels; thoughts that seldom change what is said
MODELS = {kind: tiny.quiet_model(stops=kind if kind == "aeiou" else "") for kind in [*KINDS, "unmoved"]}
for kind, weight in (("steady", 0.1), ("unmoved", 0.0)):
    MODELS[kind].mixing_head.layers[-1].weight *= weight
REFERENCES = {kind: Reference(model) for kind, model in MODELS.items()}


PROBES = {"all": (0, 1, 2), "last": (2,), "some": (0, 1)}


def make_probes(kind: str) -> dict[str, Probe]:
    """Of several layers; one that has something to say of some tokens alone."""
    loaded, probes = Loaded(MODELS[kind], TOKENS, kind), {}
    for number, (name, layers) in enumerate(PROBES.items()):
        torch.manual_seed(number)
        config = probe_config(loaded, property=name, classes=("a", "b", "c"), layers=layers, widths=(8,) * number)
        net = ProbeNet(config)
        net.std.fill_(0.2)
        probes[name] = Probe(config, net, frozenset(range(140)) if name == "some" else None)
    return probes


def decoder(kind: str = "", slots: int = 4, lanes: int | None = None, **settings: Any) -> Decoder:
    model = MODELS[kind]
    cache = Cache(model.backbone, slots, max_len=64, max_depth=6, lanes=lanes)
    return Decoder(model, TOKENS, cache, **{"probes": make_probes(kind), **settings})


def ends_too(ids: list[int]) -> tuple[int, ...]:
    """These, or the end of the text."""
    return 0, *ids


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
        allowed_token_ids=draw(st.just(()) | st.lists(st.integers(3, 258), min_size=1, max_size=9).map(ends_too)),
        min_tokens=draw(st.integers(0, 1)),
        seed=draw(st.integers(0, 2**63)),
        thought_depth=draw(st.integers(0, 6)),
        thought_temperature=warmth,
        num_thoughts=draw(st.integers(1, 3)),
        thought_threshold=draw(st.sampled_from([None, None, 4.65])),
        thinking_token_budget=draw(st.none() | st.integers(0, 60)),
        logprobs=draw(st.sampled_from([None, 3])),
        probes=draw(st.just(()) | st.permutations(list(PROBES)).map(lambda names: tuple(names[:2]))),
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


def check(result: Generation, prompt: list[int], wanted: SamplingParams, kind: str) -> None:
    """A result is what the slow loop gives."""
    output, steps = REFERENCES[kind].generate(prompt, wanted, TOKENS.eos_ids)
    assert [token.id for token in result.tokens] == output
    assert result.text == TOKENS.decode(output)
    assert result.finish_reason == ("stop" if output[-1] in TOKENS.eos_ids else "length")
    assert result.num_thought_tokens == sum(len(thought) for step in steps for thought in step.thoughts)
    for token, step in zip(result.tokens, steps, strict=True):
        assert [list(thought.token_ids) for thought in token.thoughts] == step.thoughts
        assert [thought.mixing_weight for thought in token.thoughts] == pytest.approx(step.weights, abs=1e-3)
        if wanted.logprobs is not None:
            assert token.logprob == pytest.approx(float(step.logits.log_softmax(-1)[token.id]), abs=1e-3)
    check_readouts(result, prompt, wanted, kind)


def check_readouts(result: Generation, prompt: list[int], wanted: SamplingParams, kind: str) -> None:
    """Every probe has read the text as the library reads it, each token by the state of the one before."""
    assert all([name for name, _ in token.probes] == list(wanted.probes) for token in result.tokens)
    if not wanted.probes:
        return
    states_LTH = REFERENCES[kind].states([*prompt, *(token.id for token in result.tokens)])
    for name, probe in make_probes(kind).items():
        if name not in wanted.probes:
            continue
        for place, token in enumerate(result.tokens, len(prompt) - 1):
            readout = dict(token.probes)[name]
            assert (readout is not None) == (name != "some" or token.id < 140)
            if readout is not None:
                logits = probe._net(states_LTH[list(PROBES[name]), place].mean(0))
                expected = dict(zip("abc", logits.softmax(-1).tolist(), strict=True))
                assert readout.probability == pytest.approx(max(expected.values()), abs=1e-3)
                assert readout.probability == pytest.approx(expected[readout.class_], abs=1e-3)


@settings(max_examples=25)
@given(attempts(), st.sampled_from(KINDS), decoders())
def test_a_batch_decodes_each_attempt_as_if_it_were_alone(
    batch: list[tuple[list[int], SamplingParams]], kind: str, setup: dict[str, Any]
) -> None:
    prompts, wanted = [prompt for prompt, _ in batch], [params for _, params in batch]
    for result, prompt, params in zip(generate(decoder(kind, **setup), prompts, wanted), prompts, wanted, strict=True):
        check(result, prompt, params, kind)


def make_fail(engine: Decoder, random: Random) -> None:
    """Let any part of a forward of several attempts fail now and then."""
    engine.model, right, together = copy.copy(engine.model), engine._forward, [False]
    engine._judge._model = engine.model

    def forward(decodings: Sequence[Decoding]) -> Any:
        together[0] = len(decodings) > 1
        return right(decodings)

    def failing(part: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            if together[0] and random.random() < 0.03:
                raise torch.OutOfMemoryError
            return part(*given)

        return run

    engine._forward = forward
    for name in ("run", "logits", "mix"):
        setattr(engine.model, name, failing(getattr(engine.model, name)))


@pytest.mark.parametrize("threshold", [None, 4.65])
def test_no_number_that_is_none_ever_decides(threshold: float | None) -> None:
    """One row of one product is spoilt, each in its turn. Thoughts used to go on with whatever token that made the largest."""
    params = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True, thought_threshold=threshold)
    prompts = [[5, 6, 7], [8, 9]]
    wanted = [[token.id for token in result.tokens] for result in generate(decoder("aeiou"), prompts, params)]
    call = 0
    while True:
        engine, calls = decoder("aeiou"), itertools.count()
        engine.model = copy.copy(engine.model)
        engine._judge._model = engine.model
        right = engine.model.logits

        def logits(hidden: Any, right: Any = right, calls: Any = calls, spoilt: int = call) -> Any:
            told = right(hidden)
            if next(calls) == spoilt and len(told):
                told[spoilt % len(told)] = torch.nan
            return told

        engine.model.logits = logits
        results = generate(engine, prompts, params)
        assert [[token.id for token in result.tokens] for result in results] == wanted
        call += 1
        if next(calls) <= call:
            return


def test_a_batch_that_memory_does_not_hold_is_not_tried_in_every_forward() -> None:
    engine, tried = decoder(pipeline_depth=1), []
    right = engine.model.run
    engine.model = copy.copy(engine.model)

    def run(rows: Any, cache: Any) -> Any:
        tried.append(len(set(rows.slots)))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError
        return right(rows, cache)

    engine.model.run = run
    params = SamplingParams(max_tokens=24, thought_depth=2, ignore_eos=True)
    prompts = [[5, 6, i] for i in range(3, 7)]
    results = generate(engine, prompts, params)
    for result, prompt in zip(results, prompts, strict=True):
        check(result, prompt, params, "")
    assert sum(count > 2 for count in tried) == 1
    for _ in range(300):  # some time later
        engine.step([])
    generate(engine, prompts, params)
    assert sum(count > 2 for count in tried) == 2


@settings(max_examples=20)
@given(attempts(), st.sampled_from(KINDS), decoders(), st.integers(0, 2**32))
def test_whatever_the_schedule_does_an_attempt_decides_the_same(
    batch: list[tuple[list[int], SamplingParams]], kind: str, setup: dict[str, Any], seed: int
) -> None:
    """Attempts come late, are held back, lose their slots, are cancelled; forwards fail half-way and are repeated."""
    engine, random = decoder(kind, **setup), Random(seed)
    make_fail(engine, random)
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
        check(result, prompt, params, kind)


@settings(max_examples=20)
@given(
    st.lists(st.integers(3, 258), min_size=1, max_size=14),
    st.integers(0, 4),
    st.integers(1, 2),
    st.sampled_from([None, 3.0]),
    st.none() | st.integers(0, 30),
    st.integers(2, 9),
    st.integers(1, 20),
)
def test_scoring_thinks_at_every_position(
    text: list[int],
    depth: int,
    num_thoughts: int,
    threshold: float | None,
    budget: int | None,
    lanes: int,
    chunk: int,
) -> None:
    params = SamplingParams(
        max_tokens=0,
        prompt_logprobs=2,
        thought_depth=depth,
        num_thoughts=num_thoughts,
        thought_threshold=threshold,
        thinking_token_budget=budget,
    )
    num_hidden = 0
    result = generate(decoder("aeiou", 1, lanes, prefill_chunk=chunk), [text], params)[0]
    assert [token.id for token in result.prompt] == text
    assert result.prompt[0].logprob is None
    assert result.tokens == []
    assert result.finish_reason == "length"
    for i, token in enumerate(result.prompt[1:]):
        step = REFERENCES["aeiou"].step(text[: i + 1], params, num_hidden)
        num_hidden += sum(map(len, step.thoughts))
        expected = step.logits.log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-3)
        assert len(token.top_logprobs) == 2


def test_a_budget_is_spent_to_the_last_token_and_then_it_goes_on_without_thoughts() -> None:
    params = SamplingParams(max_tokens=12, thought_depth=4, ignore_eos=True, thinking_token_budget=10)
    result = generate(decoder(), [[5, 6, 7]], params)[0]
    assert [len(t.thoughts[0].token_ids) if t.thoughts else 0 for t in result.tokens] == [4, 4, 2, *[0] * 9]
    assert result.counts.skipped == 0, "nobody was sure of anything"


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


def forwards_of(engine: Decoder, params: SamplingParams) -> tuple[int, Decoding]:
    decoding = engine.start(0, [5, 6, 7], params)
    forwards = 0
    while decoding.finish_reason is None:
        engine.step([decoding])
        forwards += 1
    return forwards, decoding


@pytest.mark.parametrize(("in_flight", "bursts"), [(1, 20), (2, 10), (3, 7), (4, 5), (5, 4)])
def test_right_drafts_fill_the_pipeline(in_flight: int, bursts: int) -> None:
    """Where thoughts change nothing, D positions end in every t + 1 forwards; with all t + 1 in flight, one in each."""
    params = SamplingParams(max_tokens=20, thought_depth=4, temperature=0, ignore_eos=True)
    forwards, decoding = forwards_of(decoder("unmoved", pipeline_depth=in_flight), params)
    last = 20 - (bursts - 1) * in_flight  # positions of the last burst
    assert forwards == decoding.counts.forwards == bursts * (4 + 1) + last - 1
    drafts = 0 if in_flight == 1 else 19
    assert (decoding.counts.accepted, decoding.counts.rejected) == (drafts, 0)


def test_forwards_are_one_a_token_and_a_thought_for_each_wrong_draft() -> None:
    params = SamplingParams(max_tokens=40, thought_depth=4, ignore_eos=True, seed=3)
    forwards, decoding = forwards_of(decoder(), params)
    counts = decoding.counts
    assert min(counts.accepted, counts.rejected) > 0, "the case is pointless unless some are right and some wrong"
    last_was_wrong = counts.accepted + counts.rejected  # the last token is decided and never drafted from
    assert last_was_wrong == 39
    assert forwards == 40 + 4 * (1 + counts.rejected)


def test_depth_does_not_change_a_token() -> None:
    """The promise in one line: sequential, full and everything between decide the same, greedily and by chance."""
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=20, thought_depth=6, temperature=temperature, ignore_eos=True, seed=8)
        texts = {generate(decoder(pipeline_depth=d), [[9, 8]], params)[0].text for d in (1, 2, 3, 4, 5, 6, 7, None)}
        assert len(texts) == 1


def test_an_adaptive_attempt_thinks_where_it_is_unsure() -> None:
    def counts(threshold: float | None) -> Counts:
        params = SamplingParams(max_tokens=12, thought_depth=3, thought_threshold=threshold, ignore_eos=True)
        return forwards_of(decoder(), params)[1].counts

    assert (counts(0.0).thought, counts(0.0).skipped) == (12, 0)
    assert (counts(99.0).thought, counts(99.0).skipped) == (0, 12)
    assert counts(99.0).forwards == 12
    assert 0 < counts(4.65).skipped < 12


def test_a_forward_that_fails_is_repeated_by_halves_and_only_the_guilty_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = decoder("aeiou")
    params = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True, logit_bias={99: -100.0})
    prompts = [[5, 6], [7, 99], [8, 8], [9, 9]]
    expected = [generate(decoder("aeiou"), [prompt], params)[0].text for prompt in prompts]
    right = engine.model.run

    def run(rows: Rows, cache: Cache) -> torch.Tensor:
        if 99 in [token for token, own in zip(rows.tokens, rows.own, strict=True) if not own]:
            raise torch.OutOfMemoryError("this prompt is too much")
        return right(rows, cache)

    monkeypatch.setattr(engine.model, "run", run)
    decodings = [engine.start(slot, prompt, params) for slot, prompt in enumerate(prompts)]
    results = dict.fromkeys(decodings, "")
    while running := [d for d in decodings if d.finish_reason is None]:
        for decoding, news in engine.step(running):
            results[decoding] += news.text
            assert (news.error is not None) == (decoding is decodings[1])
    assert [d.finish_reason for d in decodings] == ["length", "error", "length", "length"]
    assert [text for i, text in enumerate(results.values()) if i != 1] == [expected[0], *expected[2:]]


def test_a_forward_too_large_for_memory_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = decoder("aeiou")
    params = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True)
    prompts = [[5, 6], [7, 7], [8, 8], [9, 9]]
    expected = [result.text for result in generate(decoder("aeiou"), prompts, params)]
    right = engine.model.run

    def run(rows: Rows, cache: Cache) -> torch.Tensor:
        if len(rows) > 9:
            raise torch.OutOfMemoryError("too many rows")
        return right(rows, cache)

    monkeypatch.setattr(engine.model, "run", run)
    assert [result.text for result in generate(engine, prompts, params)] == expected


def test_an_attempt_whose_slot_holds_no_numbers_starts_over() -> None:
    """Who was cancelled before anybody noticed once left them to an innocent, who failed."""
    engine = decoder()
    params = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True, seed=4)
    expected = [generate(decoder(), [prompt], params)[0].text for prompt in ([5, 6], [7, 7])]
    for tensor in engine.cache.keys + engine.cache.values:
        tensor[0] = torch.nan
    assert [result.text for result in generate(engine, [[5, 6], [7, 7]], params)] == expected


def test_numbers_that_are_none_end_their_own_attempt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_tokens=6, thought_depth=3, ignore_eos=True)
    expected = generate(decoder(), [[7, 7]], params)[0].text
    engine = decoder()
    right = engine.model.run

    def run(rows: Rows, cache: Cache) -> torch.Tensor:
        hidden = right(rows, cache)
        hidden[[slot == 0 for slot in rows.slots]] = torch.nan
        return hidden

    monkeypatch.setattr(engine.model, "run", run)
    broken, whole = engine.start(0, [5, 6], params), engine.start(1, [7, 7], params)
    result = Generation()
    while whole.finish_reason is None:
        for decoding, news in engine.step([d for d in (broken, whole) if d.finish_reason is None]):
            if decoding is broken:
                assert isinstance(news.error, FloatingPointError)
            else:
                result.add(news)
    assert (broken.finish_reason, result.text) == ("error", expected)
    monkeypatch.undo()
    assert generate(engine, [[7, 7]], params)[0].text == expected, "the slot is clean again"


def test_offline_a_failed_forward_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = decoder()
    monkeypatch.setattr(engine.model, "run", lambda rows, cache: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(engine, [[5]], SamplingParams(max_tokens=2))


def test_a_long_prompt_is_read_in_pieces_beside_running_answers() -> None:
    engine = decoder(prefill_chunk=8)
    params = SamplingParams(max_tokens=12, thought_depth=0, temperature=0, ignore_eos=True)
    running = engine.start(0, [5], params)
    engine.step([running])
    late = engine.start(1, [6] * 40, params)
    for step in range(1, 6):
        before = len(running.tokens)
        engine.step([running, late])
        assert len(running.tokens) == before + 1
        assert late.cached == 8 * step


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


@pytest.mark.parametrize("pipeline_depth", [1, 4])
def test_readouts_are_those_of_the_same_text(pipeline_depth: int) -> None:
    engine, probes = decoder(pipeline_depth=pipeline_depth), make_probes("")
    params = SamplingParams(max_tokens=12, thought_depth=3, ignore_eos=True, seed=2, probes=("some", "all"))
    for result in generate(engine, [[5, 6, 7], [5, 6, 8, 9]], [params, replace(params, logprobs=1, thought_depth=0)]):
        for name in params.probes:
            ids = [token.id for token in result.tokens]
            prompt = [5, 6, 7] if result.tokens[0].logprob is None else [5, 6, 8, 9]
            read = read_text(Loaded(MODELS[""], TOKENS, "tiny"), probes[name], [*prompt, *ids], len(prompt))
            for token, expected in zip(result.tokens, read, strict=True):
                readout = dict(token.probes)[name]
                assert (readout is None) == (expected is None)
                if readout and expected:
                    assert readout.class_ == expected.class_
                    assert readout.probability == pytest.approx(expected.probability, abs=2e-4)


def test_a_scored_prompt_is_not_read_by_probes() -> None:
    params = SamplingParams(max_tokens=2, prompt_logprobs=1, ignore_eos=True, thought_depth=2, probes=("all",))
    result = generate(decoder(), [[70, 71, 72]], params)[0]
    assert [len(token.probes) for token in result.prompt] == [0, 0, 0]
    check_readouts(result, [70, 71, 72], params, "")


def test_who_asks_for_no_probe_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, watched = decoder(), []
    right = engine.model.run

    def run(rows: Rows, cache: Cache, watch: Any = None) -> torch.Tensor:
        watched.append(watch)
        return right(rows, cache, watch)

    monkeypatch.setattr(engine.model, "run", run)
    params = SamplingParams(max_tokens=4, thought_depth=2, ignore_eos=True)
    generate(engine, [[5]], params)
    assert not any(watched)
    watched.clear()
    generate(engine, [[5]], replace(params, probes=("all",)))
    assert 0 < sum(map(bool, watched)) < len(watched), "only a forward that reads a token is"


def test_a_grammar_of_a_few_words() -> None:
    """One of them, or the end after at least one; what is thought meanwhile is free."""
    params = SamplingParams(max_tokens=12, min_tokens=1, thought_depth=4, allowed_token_ids=(0, 40, 41, 42))
    results = generate(decoder(), [[5, 6]] * 30, [replace(params, seed=seed) for seed in range(30)])
    said = [[token.id for token in result.tokens] for result in results]
    assert {token for ids in said for token in ids} == {0, 40, 41, 42}
    assert all(ids[0] != 0 and ids.count(0) == (len(ids) < 12 or ids[-1] == 0) for ids in said)
    thought = {i for result in results for token in result.tokens for t in token.thoughts for i in t.token_ids}
    assert len(thought) > 50


@pytest.mark.parametrize(
    ("prompt", "params", "reason"),
    [
        ([], SamplingParams(), "the prompt is empty"),
        ([5, -1], SamplingParams(), "token id -1 is out of range"),
        ([5] * 60, SamplingParams(max_tokens=9), "60 prompt tokens and max_tokens 9 exceed the 64"),
        ([5], SamplingParams(thought_depth=7), "thought_depth is 7; it must be at most 6"),
        ([5], SamplingParams(probes=("all", "none")), "probes has 'none'; there are 'all', 'last', 'some'"),
        ([5], SamplingParams(allowed_token_ids=(5, 259)), "allowed_token_ids has id 259; ids are 0 to 258"),
        ([5], SamplingParams(allowed_token_ids=(5, -1)), "allowed_token_ids has id -1; ids are 0 to 258"),
        ([5], SamplingParams(allowed_token_ids=(1, 5)), "allowed_token_ids has id 1; .* without the thought markers"),
        ([5], SamplingParams(allowed_token_ids=(0,), ignore_eos=True), "allowed_token_ids holds only ids"),
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


def test_bfloat16_keeps_the_distribution() -> None:
    """Its sums depend on who shares the batch, so tokens may differ; how often each is said may not.

    Pairs of tokens (the second was drafted) by the pipeline in bfloat16, and one after the other in float32, from other
    noise: a chi-squared test of two samples, five standard deviations wide.
    """
    count, histograms = 1000, []
    for model, depth, first in ((MODELS["steady"], 1, 0), (copy.deepcopy(MODELS["steady"]).bfloat16(), 4, 10**6)):
        engine = Decoder(model, TOKENS, Cache(model.backbone, 16, 16, max_depth=3), pipeline_depth=depth)
        every = [
            SamplingParams(
                max_tokens=2, top_k=4, thought_depth=3, thought_temperature=0, seed=first + i, ignore_eos=True
            )
            for i in range(count)
        ]
        results = generate(engine, [[5, 6, 7]] * count, every)
        histograms.append(Counter(tuple(token.id for token in result.tokens) for result in results))
        drafts = sum(result.counts.accepted + result.counts.rejected for result in results)
        assert drafts == (count if depth > 1 else 0)
    one, other = histograms
    common = [pair for pair in one | other if one[pair] + other[pair] >= 10]
    statistic = sum((one[pair] - other[pair]) ** 2 / (one[pair] + other[pair]) for pair in common)
    assert len(common) >= 8
    assert statistic < len(common) + 5 * math.sqrt(2 * len(common))


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
