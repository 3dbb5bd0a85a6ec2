"""Thoughts that are not the model's own: whose they are, and that they are read instead of its own."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.tokens import Tokens
from quietserve.model.training.controls import (
    Always,
    Recorder,
    forced,
    is_right,
    ordinary_tokens,
    reasons,
    scrambled,
    swapped,
)
from quietserve.model.training.tasks import FAMILIES
from reference import Reference

PROMPTS = [[10, 20, 30], [40, 50], [60, 70, 80, 90], [11, 12]]
STOP = tiny.tokenizer().get_vocab()["a"]
OWN = {(5, 2): (7, 8), (6, 1): (9,), (7, 3): (), (8, 1): (4, 3, 2)}
SEEDS = [5, 6, 7, 8]


def tiny_loaded() -> Loaded:
    model = tiny.quiet_model(stops="a")
    return Loaded(model, Tokens(tiny.tokenizer(), (), ("<|startthought|>", "<|endthought|>"), 259), "tiny")


def answers(loaded: Loaded, choose=None) -> list:
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 4, 64, 5), choose=choose)
    params = [SamplingParams(max_tokens=1, temperature=0, seed=seed, thought_depth=5, logprobs=0) for seed in SEEDS]
    return generate(decoder, PROMPTS, params)


def ids(found: list) -> list[list[int]]:
    return [[token.id for token in one.tokens] for one in found]


def test_a_recorder_changes_nothing_and_remembers_every_thought() -> None:
    loaded, recorder = tiny_loaded(), Recorder()
    own, recorded = answers(loaded), answers(loaded, recorder)
    assert ids(own) == ids(recorded)
    assert {key[0] for key in recorder.thoughts} == set(SEEDS)
    again = answers(loaded, forced(recorder.thoughts, STOP))
    assert ids(again) == ids(own)
    assert [a.num_thought_tokens for a in again] == [a.num_thought_tokens for a in own]


def test_swapped_thoughts_are_read_in_place_of_the_own() -> None:
    """The answer is what the reference gives after the other problem's thought."""
    loaded, recorder = tiny_loaded(), Recorder()
    answers(loaded, recorder)
    table = swapped(recorder.thoughts, SEEDS, lambda number: (number + 1) % 4)
    got = answers(loaded, forced(table, STOP))
    slow = Reference(loaded.model)
    embed = slow.lm.get_input_embeddings()
    for number, prompt in enumerate(PROMPTS):
        thought = recorder.thoughts[SEEDS[(number + 1) % 4], len(PROMPTS[(number + 1) % 4]) - 1]
        parts = [embed(torch.tensor(prompt)), slow.model.start_embedding[None]]
        parts += [embed(torch.tensor(thought))] if thought else []
        after = slow.hidden(torch.cat([*parts, slow.model.end_embedding[None]]))
        mixed, _ = slow.model.mix(slow.hidden(parts[0]), after)
        assert [token.id for token in got[number].tokens] == [int(slow.model.logits(mixed).argmax())]


def test_swapping_keeps_keys_and_gives_the_partners_tokens() -> None:
    found = swapped(OWN, SEEDS, lambda number: (number + 2) % 4)
    assert found == {(5, 2): (), (6, 1): (4, 3, 2), (7, 3): (7, 8), (8, 1): (9,)}


@given(st.integers(0, 2**32))
def test_random_thoughts_are_as_long_and_of_ordinary_tokens(salt: int) -> None:
    own = {(seed + salt, position): tokens for (seed, position), tokens in OWN.items()}
    found = scrambled(own, [100, 101, 102])
    assert {key: len(tokens) for key, tokens in found.items()} == {key: len(tokens) for key, tokens in own.items()}
    assert {token for tokens in found.values() for token in tokens} <= {100, 101, 102}
    assert scrambled(own, [100, 101, 102]) == found


def test_no_ordinary_token_is_a_marker_or_ends_a_thought() -> None:
    assert set(range(259)) - set(ordinary_tokens(tiny_loaded())) == {0, 1, 2, STOP}


def test_what_counts_as_reasoning() -> None:
    problem = FAMILIES["dial"].sample(random.Random(0), 3)
    notes = problem.working.split()
    assert reasons(problem, problem.working)
    assert reasons(problem, f" {notes[0]} wrong")
    assert not reasons(problem, " well so")
    assert not reasons(problem, "")
    assert is_right(problem, problem.working, depth=16)
    assert is_right(problem, " ".join(notes[:4]), depth=4)
    assert not is_right(problem, " ".join(notes[:4]), depth=16), "it broke off"
    assert not is_right(problem, "", depth=4)


def test_untrained_thoughts_may_have_all_the_weight() -> None:
    loaded = tiny_loaded()
    loaded.model.mixing_head = Always(1.0)
    hidden = loaded.model.start_embedding.expand(3, -1)
    mixed, weight = loaded.model.mix(hidden, 2 * hidden)
    assert weight.eq(1).all()
    assert mixed.equal(2 * hidden)
