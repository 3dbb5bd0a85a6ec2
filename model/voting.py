"""Votes among several answers to one question. Self-consistency (Wang et al., arXiv 2203.11171) is the vote of equal weights.

Who has no answer abstains. The answer of the greatest weight wins; of equal ones that whose candidates are likelier, then the
one that was given first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Strategy = Literal["majority", "likelihood", "ranker"]

_DIGITS = 4  # what is left of a log-probability does not depend on what else was in its batch


def steady(logprob: float) -> float:
    """A log-probability to compare answers by: those of the same tokens, drawn in other company, differ by a millionth."""
    return round(logprob, _DIGITS)


# Rankers that need no training: a candidate's score from the log-probabilities of its tokens.
SELF_RANKERS: dict[str, Callable[[Sequence[float]], float]] = {
    "min_logprob": lambda logprobs: math.exp(steady(min(logprobs))),
    "logprob": lambda logprobs: math.exp(steady(math.fsum(logprobs) / len(logprobs))),
}


class Entry(NamedTuple):
    """A question and one answer to it, as a ranker reads them."""

    prompt: tuple[int, ...]  # ids, as the language model was given them
    text: str  # what was written behind it


@dataclass(frozen=True)
class Candidate:
    """One of several answers."""

    index: int  # among all that were drawn
    answer: str | None  # in its normal spelling (`answers.normalise`); None abstains
    logprob: float = 0.0  # of all its tokens
    mean_logprob: float = -math.inf  # of one of them
    score: float = 0.0  # a ranker's: how likely it is to be right, 0 to 1


def judge(index: int, answer: str | None, logprobs: Sequence[float], ranker: str | None = None) -> Candidate:
    """A candidate of such tokens, scored by one of `SELF_RANKERS` where one is named. Without any token it is the worst."""
    if not logprobs:
        return Candidate(index, answer, logprob=-math.inf)
    total = math.fsum(logprobs)
    score = SELF_RANKERS[ranker](logprobs) if ranker else 0.0
    return Candidate(index, answer, steady(total), steady(total / len(logprobs)), score)


@dataclass(frozen=True)
class Group:
    """Candidates of one answer."""

    answer: str
    weight: float  # share of all weight that was cast
    members: tuple[Candidate, ...]  # the one that speaks for them first

    @property
    def mean_logprob(self) -> float:
        """Of its candidates."""
        return math.fsum(member.mean_logprob for member in self.members) / len(self.members)


@dataclass(frozen=True)
class Verdict:
    """What a vote came to."""

    groups: tuple[Group, ...]  # the winner first; none where all abstained
    abstained: tuple[Candidate, ...]  # the likeliest first
    tie: bool = False  # another answer has as much weight as the winner

    @property
    def num_valid(self) -> int:
        """Candidates that have an answer."""
        return sum(len(group.members) for group in self.groups)

    @property
    def agreement(self) -> float:
        """The share of those that give the winning one."""
        return len(self.groups[0].members) / self.num_valid if self.groups else 0.0

    def ranking(self) -> list[tuple[Candidate, Group | None]]:
        """All candidates with their groups, in the order to return them in: who speaks for each answer, then the rest."""
        speakers = [(group.members[0], group) for group in self.groups]
        rest = [(member, group) for group in self.groups for member in group.members[1:]]
        return [*speakers, *rest, *((candidate, None) for candidate in self.abstained)]


def vote(candidates: Sequence[Candidate], strategy: Strategy) -> Verdict:
    """Count the votes.

    `majority`: every candidate weighs the same, and the first of a group speaks for it, so that who spoke does not depend on
    those who come later. `likelihood`: its own probability, that of all its tokens. `ranker`: its score. There the heaviest speaks.
    """
    weights = dict(zip((c.index for c in candidates), _weights(candidates, strategy), strict=True))
    by_answer: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.index):
        if candidate.answer is not None:
            by_answer.setdefault(candidate.answer, []).append(candidate)
    total = math.fsum(weights[c.index] for members in by_answer.values() for c in members) or 1.0
    groups = [
        Group(
            answer,
            math.fsum(weights[member.index] for member in members) / total,
            tuple(sorted(members, key=lambda member: -weights[member.index])),  # stable: of equals the first
        )
        for answer, members in by_answer.items()
    ]
    groups.sort(key=lambda group: (-_rounded(group), -group.mean_logprob))
    abstained = sorted((c for c in candidates if c.answer is None), key=lambda c: (-c.mean_logprob, c.index))
    tie = len(groups) > 1 and _rounded(groups[0]) == _rounded(groups[1])
    return Verdict(tuple(groups), tuple(abstained), tie)


def is_decided(candidates: Iterable[Candidate], num_all: int) -> bool:
    """Whether a majority vote of `num_all` candidates ends as that of these, whatever the others say, and the same one speaks."""
    ended = list(candidates)
    groups = vote(ended, "majority").groups
    if not groups:
        return False
    sizes, speaker = [len(group.members) for group in groups] + [0], groups[0].members[0].index
    before = sum(candidate.index < speaker for candidate in ended)
    return sizes[0] > sizes[1] + num_all - len(ended) and before == speaker


def _rounded(group: Group) -> float:
    """Its weight, in which sums of floats that should be equal are."""
    return round(group.weight, 9)


def _weights(candidates: Sequence[Candidate], strategy: Strategy) -> list[float]:
    if strategy == "majority":
        return [1.0] * len(candidates)
    if strategy == "ranker":
        return [candidate.score for candidate in candidates]
    largest = max((c.logprob for c in candidates if c.answer is not None), default=0.0)
    # As shares of the likeliest, or long answers would all weigh nothing.
    return [math.exp(min(0.0, c.logprob - largest)) if c.logprob > -math.inf else 0.0 for c in candidates]
