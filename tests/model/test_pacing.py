"""The cost model against a simulation of the pipeline, and the choice of D against what forwards cost."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from quietserve.model.config import SamplingParams
from quietserve.model.decoding import Decoding
from quietserve.model.pacing import ForwardTimes, Pace, forwards_per_token, rows_in_flight
from quietserve.model.tokens import Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])


def simulate(depth: int, in_flight: int, acceptance: float, num_tokens: int) -> tuple[float, float]:
    """Forwards a token and thinking positions a forward, counted one forward at a time."""
    chance = random.Random(0)
    ages: list[int] = []
    tokens = forwards = thinking = 0
    while tokens < num_tokens:
        if len(ages) < in_flight:
            ages.append(0)
        forwards, thinking = forwards + 1, thinking + len(ages)
        ages = [age + 1 for age in ages]
        if ages[0] > depth:
            tokens += 1
            ages = ages[1:] if chance.random() < acceptance else []
    return forwards / tokens, thinking / forwards


@pytest.mark.parametrize("depth", [1, 4, 8])
@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.9, 0.98])
def test_the_cost_model_is_what_a_simulation_counts(depth: int, acceptance: float) -> None:
    for in_flight in range(1, depth + 2):
        forwards, thinking = simulate(depth, in_flight, acceptance, 5_000)
        assert forwards_per_token(depth, in_flight, acceptance) == pytest.approx(forwards, rel=0.06)
        assert rows_in_flight(depth, in_flight, acceptance) == pytest.approx(thinking, rel=0.25, abs=0.2)


@given(st.integers(1, 32), st.floats(0, 1))
def test_its_two_ends_have_closed_forms(depth: int, acceptance: float) -> None:
    assert forwards_per_token(depth, 1, acceptance) == pytest.approx(depth + 1)
    full = 1 + (1 - acceptance) * depth
    assert forwards_per_token(depth, depth + 1, acceptance) == pytest.approx(full, rel=0.04)


def thinkers(count: int, depth: int = 8) -> list[Decoding]:
    return [Decoding(i, [5], SamplingParams(thought_depth=depth), TOKENS, num_lanes=9) for i in range(count)]


def paced(seconds_of: dict[int, float]) -> Pace:
    pace = Pace()
    for rows, seconds in seconds_of.items():
        pace.times.add(rows, seconds)
    return pace


def test_where_rows_are_free_the_pipeline_is_full() -> None:
    assert paced({1: 0.01, 256: 0.01}).choose(thinkers(4)) == 9


def test_where_a_row_costs_as_much_as_a_forward_there_is_no_pipeline() -> None:
    """Each row twice the price of the last: guesses cost what they may save."""
    pace = paced({1: 0.01, 256: 2.56})
    pace.acceptance = 0.2
    assert pace.choose(thinkers(4)) == 1


def test_more_attempts_make_a_shallower_pipeline() -> None:
    costs = {1: 1.0, 16: 1.1, 64: 2.0, 256: 8.0}
    depths = [paced(costs).choose(thinkers(count)) for count in (1, 8, 32)]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1]


def test_a_pipeline_that_was_given_up_is_tried_again() -> None:
    """At D = 1 nothing is drafted, so that a bad spell once switched the pipeline off for good."""
    pace, batch = paced({1: 0.01, 64: 0.03, 256: 0.12}), thinkers(4)
    pace.acceptance = 0.01
    chosen = [pace.choose(batch) for _ in range(4000)]
    assert chosen[0] == 1
    assert chosen[-1] > 1


def test_lanes_limit_how_many_may_think() -> None:
    pace = paced({1: 0.01, 256: 0.01})
    wide = Decoding(0, [5], SamplingParams(thought_depth=8, num_thoughts=3), TOKENS, num_lanes=9)
    assert pace.choose([wide]) == 3


def test_a_fixed_depth_is_kept_and_an_unmeasured_one_is_full() -> None:
    assert Pace(fixed=3).choose(thinkers(2)) == 3
    assert Pace().choose(thinkers(2, depth=4)) == 5
    assert Pace().choose(thinkers(1, depth=0)) == 1


def test_thoughts_that_end_early_count_as_long_as_they_are() -> None:
    pace = paced({1: 0.01, 256: 0.2})
    for _ in range(2000):
        pace.thought(1, 8)
    assert pace.thought_share == pytest.approx(1 / 8, abs=0.01)
    assert pace.choose(thinkers(8)) <= 3


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(1e-4, 1.0)), min_size=2, max_size=50))
def test_more_rows_are_never_faster_in_one_step_of_the_table(forwards: list[tuple[int, float]]) -> None:
    times = ForwardTimes()
    for rows, seconds in forwards:
        times.add(rows, seconds)
    if len(times) > 1:
        assert all(times(rows) > 0 for rows in (1, 7, 100.5, 3000))
        assert times(4000) >= times(3000)


def test_one_hiccup_is_not_what_a_forward_costs_and_a_new_cost_is_learnt() -> None:
    times = ForwardTimes()
    for rows in (1, 64):
        times.add(rows, 3.0)  # recorded
        for _ in range(10):
            times.add(rows, 0.01)
    times.add(64, 10.0)
    assert times(64) == pytest.approx(0.01, rel=0.03)
    for _ in range(2000):
        times.add(64, 0.1)
    assert times(64) == pytest.approx(0.1, rel=0.03)
