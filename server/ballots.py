"""The answers to one prompt, of which some are returned: the likeliest, or those that a vote puts first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from ..model.answers import Finder, normalise
from ..model.voting import Candidate, Group, Strategy, Verdict, is_decided, judge, steady, vote

if TYPE_CHECKING:
    from ..model.progress import Progress, Token

OUTVOTED = "outvoted"  # the finish reason of an answer that could no longer change the vote


@dataclass
class Answer:
    """The progress of one attempt, joined."""

    text: str = ""
    tokens: "list[Token]" = field(default_factory=list)
    prompt: "list[Token]" = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, progress: "Progress | Answer") -> None:
        """Append what one step decided."""
        self.text += progress.text
        self.tokens += progress.tokens
        self.prompt += progress.prompt
        self.finish_reason = progress.finish_reason

    @property
    def logprobs(self) -> list[float]:
        """Of its tokens."""
        return [token.logprob or 0.0 for token in self.tokens]

    @property
    def score(self) -> float:
        """Mean log-probability of its tokens; one that never began is the worst."""
        return steady(fmean(self.logprobs)) if self.tokens else -math.inf


@dataclass(frozen=True)
class Voting:
    """How answers vote."""

    strategy: Strategy
    find: Finder  # what an answer comes to
    ranker: str | None = None
    trained: bool = False  # the ranker scores all of them together when the last has ended
    may_stop: bool = False  # once the winner cannot change, the others need not be drawn to their end


@dataclass(frozen=True)
class Standing:
    """How far a contest has got."""

    num_ended: int
    num_samples: int
    agreement: float | None  # of those who have voted; None where there is no vote

    def __str__(self) -> str:
        return f"{self.num_ended} of {self.num_samples} answers" + (
            "" if self.agreement is None else f", agreement {self.agreement:.2f}"
        )


class Ballot:
    """The answers to one prompt.

    Args:
        num_samples: how many are drawn.
        voting: how they vote; None: they do not, and the likeliest are returned.
    """

    def __init__(self, num_samples: int, voting: Voting | None) -> None:
        self.answers = [Answer() for _ in range(num_samples)]
        self.verdict: Verdict | None = None
        self.candidates: dict[int, Candidate] = {}  # who voted, by the index of the answer
        self._voting, self._num_ended = voting, 0

    @property
    def is_settled(self) -> bool:
        """Nothing that is still to come changes what is returned."""
        may_stop = self._voting is not None and self._voting.may_stop
        return may_stop and is_decided(self.candidates.values(), len(self.answers))

    def cast(self, index: int) -> None:
        """An answer has ended. One that was cancelled abstains, for it is only the beginning of one."""
        answer, self._num_ended = self.answers[index], self._num_ended + 1
        if self._voting and answer.finish_reason != OUTVOTED:
            said = None if answer.finish_reason == "abort" else self._voting.find(answer.text)
            value = None if said is None else normalise(said)
            self_ranker = None if self._voting.trained else self._voting.ranker
            self.candidates[index] = judge(index, value, answer.logprobs, self_ranker)
            # Until a trained ranker has been asked, all weigh the same.
            self._count("majority" if self._voting.trained else self._voting.strategy)

    def rank(self, scores: Mapping[int, float]) -> None:
        """Vote with what a trained ranker gives each candidate, by its index."""
        self.candidates = {
            index: replace(candidate, score=scores[index]) for index, candidate in self.candidates.items()
        }
        self._count("ranker")

    def _count(self, strategy: Strategy) -> None:
        if self.candidates:
            self.verdict = vote(list(self.candidates.values()), strategy)

    def standing(self) -> Standing:
        """How far it has got."""
        return Standing(self._num_ended, len(self.answers), self.verdict.agreement if self.verdict else None)

    def ranking(self) -> list[tuple[int, Group | None]]:
        """Indices of the answers, the best first, each with those that agree with it."""
        if self.verdict:
            return [(candidate.index, group) for candidate, group in self.verdict.ranking()]
        return [(i, None) for i in sorted(range(len(self.answers)), key=lambda i: -self.answers[i].score)]
