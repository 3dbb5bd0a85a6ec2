"""Votes: against counting by hand, and what no vote may depend on."""

import itertools
import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.voting import SELF_RANKERS, Candidate, Strategy, is_decided, judge, vote

answers = st.sampled_from(["a", "b", "c", None])
ballots = st.lists(st.tuples(answers, st.floats(-20, 0), st.floats(0, 1)), min_size=1, max_size=12).map(
    lambda rows: [Candidate(i, said, logprob, logprob / 3, score) for i, (said, logprob, score) in enumerate(rows)]
)


def said(*answers: str | None) -> list[Candidate]:
    return [Candidate(i, answer) for i, answer in enumerate(answers)]


def test_the_commonest_answer_wins_and_who_has_none_abstains() -> None:
    verdict = vote(said(None, "b", None, "a", "b", None), "majority")
    assert [(g.answer, g.weight, [m.index for m in g.members]) for g in verdict.groups] == [
        ("b", 2 / 3, [1, 4]),
        ("a", 1 / 3, [3]),
    ]
    assert (verdict.num_valid, verdict.agreement, verdict.tie) == (3, 2 / 3, False)
    assert [candidate.index for candidate, _ in verdict.ranking()] == [1, 3, 4, 0, 2, 5]


def test_where_all_abstain_nothing_wins_and_the_likeliest_comes_first() -> None:
    verdict = vote([judge(0, None, [-2.0]), judge(1, None, [-1.0]), judge(2, None, [])], "majority")
    assert (verdict.groups, verdict.agreement, verdict.tie) == ((), 0.0, False)
    assert [candidate.index for candidate, _ in verdict.ranking()] == [1, 0, 2]


def test_a_tie_goes_to_the_likelier() -> None:
    verdict = vote([judge(0, "a", [-2.0]), judge(1, "b", [-1.0])], "majority")
    assert verdict.tie
    assert verdict.groups[0].answer == "b"
    assert vote(said("b", "a"), "majority").groups[0].answer == "b", "of equal ones the first"


def test_sums_that_should_be_equal_are_a_tie() -> None:
    """.1 + .2 and .3 are not, as floats: the vote was a tie, and the less likely answer won it."""
    scores = [("a", -2.0, 0.1), ("a", -2.0, 0.2), ("b", -1.0, 0.3)]
    verdict = vote([Candidate(i, *row[:1], row[1], row[1], row[2]) for i, row in enumerate(scores)], "ranker")
    assert verdict.tie
    assert verdict.groups[0].answer == "b"


@pytest.mark.parametrize("noise", list(itertools.product((0.0, 3e-7, -8e-7), repeat=3)))
@pytest.mark.parametrize(
    ("strategy", "ranker"),
    [("majority", None), ("likelihood", None), ("ranker", "min_logprob"), ("ranker", "logprob")],
)
def test_what_else_was_in_the_batch_does_not_decide_a_vote(
    strategy: Strategy, ranker: str | None, noise: tuple[float, ...]
) -> None:
    """Of chains with the same tokens, another one spoke at every repetition of a seeded vote: their sums differ by a millionth."""
    drawn = [judge(i, "a", [-0.2, -1.3 + own], ranker) for i, own in enumerate(noise)]
    again = [judge(3, "b", [-1.3 + noise[0], -0.2], ranker), judge(4, None, [-2 + noise[1]])]
    again.append(judge(5, None, [-2 + noise[2]]))
    assert [c.index for c, _ in vote(drawn + again, strategy).ranking()] == [0, 3, 1, 2, 4, 5]
    tied = [judge(0, "a", [-0.2, -1.3 + noise[0]], ranker), judge(1, "b", [-1.3 + noise[1], -0.2], ranker)]
    assert [group.answer for group in vote(tied, strategy).groups] == ["a", "b"], "of equal ones the first"


def test_likelihoods_are_of_whole_answers_and_none_is_too_long() -> None:
    """Probabilities of a thousand tokens are no floats; their shares are."""
    long = [judge(0, "a", [-1.0] * 2000), judge(1, "b", [-1.0] * 2001), judge(2, "b", [-1.0] * 2001)]
    groups = vote(long, "likelihood").groups
    assert [group.answer for group in groups] == ["a", "b"]
    assert groups[1].weight == pytest.approx(2 / math.e / (1 + 2 / math.e))


def test_rankers_without_training() -> None:
    assert SELF_RANKERS["logprob"]([-1.0, -3.0]) == pytest.approx(math.exp(-2))
    assert SELF_RANKERS["min_logprob"]([-1.0, -3.0]) == pytest.approx(math.exp(-3))
    sure, unsure = judge(0, "a", [-0.1] * 3, "min_logprob"), judge(1, "b", [-0.01, -3.0], "min_logprob")
    assert vote([sure, unsure], "ranker").groups[0].answer == "a"
    assert judge(0, "a", [], "min_logprob").score == 0


@given(ballots, st.sampled_from(["majority", "likelihood", "ranker"]))
def test_a_vote_is_what_one_counts_by_hand(candidates: list[Candidate], strategy: str) -> None:
    weigh = {"majority": lambda c: 1.0, "likelihood": lambda c: math.exp(c.logprob), "ranker": lambda c: c.score}
    weights: Counter[str] = Counter()
    for c in candidates:
        if c.answer is not None:
            weights[c.answer] += weigh[strategy](c)  # type: ignore[index]
    verdict = vote(candidates, strategy)  # type: ignore[arg-type]
    assert {g.answer for g in verdict.groups} == weights.keys()
    if weights:
        assert weights[verdict.groups[0].answer] == pytest.approx(
            max(weights.values()), abs=1e-8 * sum(weights.values())
        )
        total = math.fsum(weights.values())
        for group in verdict.groups:
            assert group.weight == pytest.approx(weights[group.answer] / total if total else 0.0)
    assert sorted(c.index for c, _ in verdict.ranking()) == [c.index for c in candidates]


@given(ballots, st.sampled_from(["majority", "likelihood", "ranker"]), st.randoms(use_true_random=False))
def test_the_order_in_which_they_ended_does_not_matter(candidates: list[Candidate], strategy: str, rng: Random) -> None:
    shuffled = rng.sample(candidates, len(candidates))
    assert vote(shuffled, strategy) == vote(candidates, strategy)  # type: ignore[arg-type]


@given(st.lists(answers, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_a_decided_vote_ends_as_it_would_have(every: list[str | None], rng: Random) -> None:
    """Whoever ends first, and wherever it is stopped: the same answer, and the same candidate speaks for it."""
    candidates = said(*every)
    order = rng.sample(candidates, len(candidates))
    whole = vote(candidates, "majority")
    for ended in range(1, len(order) + 1):
        if is_decided(order[:ended], len(every)):
            early = vote(order[:ended], "majority")
            assert early.groups[0].answer == whole.groups[0].answer
            assert early.groups[0].members[0] == whole.groups[0].members[0]
    assert is_decided(candidates, len(every)) == (bool(whole.groups) and not whole.tie)


def test_a_vote_is_decided_as_soon_as_it_can_be() -> None:
    assert is_decided(said("a", "a", "a"), 5)
    assert not is_decided(said("a", "a"), 4), "two others might say the same"
    assert not is_decided(said("a", "a", "b"), 5)
    assert is_decided(said("a", "a", None), 4), "an abstention is no vote for another"
    assert not is_decided(said("a", "a", "a")[1:], 3), "the first may yet say the same, and would speak"
