"""Held-out problems of the built-in families, as items of an evaluation."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..documents import DASH, write_prompt
from ..tasks import EVERY, Problem, problems

NUM_DISTRACTORS = 4  # with the right answer five choices, as many as CommonsenseQA gives


@dataclass(frozen=True)
class FamilyItem:
    """A held-out problem; its chain of thought is the aside between dashes that bases are taught to write."""

    problem: Problem
    choices: Sequence[str]

    reasoning_stop = ("\n",)

    @property
    def source(self) -> str:
        """The family and its question."""
        return f"{self.problem.family}, {self.problem.question!r}"

    @property
    def question(self) -> str:
        """The problem's own."""
        return self.problem.question

    @property
    def prompt(self) -> str:
        """The question, to be answered at once."""
        return write_prompt(self.problem)

    @property
    def reasoning_prompt(self) -> str:
        """The question and the dash that opens an aside."""
        return self.prompt + DASH

    @property
    def reasoning(self) -> str:
        """Notes, the dash that ends them, and the answer."""
        return f"{self.problem.working}{DASH} {self.answer}"

    @property
    def answer(self) -> str:
        """The problem's own."""
        return self.problem.answer

    @property
    def document(self) -> str:
        """Question and answer, without an aside."""
        return f"{self.prompt} {self.answer}"

    @property
    def num_steps(self) -> int:
        """Steps of its story."""
        return self.problem.num_steps

    def verify(self, text: str) -> bool:
        """As the family judges it."""
        return EVERY[self.problem.family].verify(self.problem, text)

    def extract(self, text: str) -> str | None:
        """What stands behind the dash that ends the aside."""
        _, dash, behind = text.rpartition(DASH)
        return behind.strip() or None if dash else None


@lru_cache(maxsize=16)
def draw_items(family: str, n: int, seed: int) -> tuple[FamilyItem, ...]:
    """`n` held-out problems, the numbers of steps in equal shares; the same for the same arguments."""
    drawn = itertools.islice(problems("held_out", (family,), seed), n)
    return tuple(FamilyItem(problem, _choices(problem, seed)) for problem in drawn)


def _choices(problem: Problem, seed: int) -> tuple[str, ...]:
    """The right answer and others that the question admits, in no telling order."""
    rng = random.Random(f"choices/{seed}/{problem.question}")
    wrong = [answer for answer in problem.answers if answer != problem.answer]
    chosen = [problem.answer, *rng.sample(wrong, min(NUM_DISTRACTORS, len(wrong)))]
    return tuple(rng.sample(chosen, len(chosen)))
