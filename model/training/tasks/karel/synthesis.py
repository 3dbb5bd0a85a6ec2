"""A program is wanted that turns each of some worlds into another. The verifier runs it on all of them.

Any program that does is right, not only the one that the worlds were made with. Emergent Representations of Program Semantics in
Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "Training a Synthetic Language Model": five pairs are
shown, and as many are held back to see whether a program does in general what it does for those.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..problem import Problem
from . import compact, programs, worlds
from .interpreter import run
from .programs import Ops
from .worlds import Ints, Worlds

SLIPS = 0.2  # share of an attempt's operations that are drawn anew


@dataclass(frozen=True)
class Tasks:
    """Programs, and the worlds before and after: `pairs` of each program, one program's after the other."""

    ops_NL: Ops
    before: Worlds
    after: Worlds

    def __len__(self) -> int:
        return len(self.ops_NL)

    @property
    def pairs(self) -> int:
        """Worlds of each program."""
        return len(self.before) // max(1, len(self))

    def __iter__(self) -> Iterator["Tasks"]:
        """Each by itself."""
        return (self.take(np.array([number])) for number in range(len(self)))

    def take(self, numbers: Ints) -> "Tasks":
        """Some of them."""
        places = (numbers[:, None] * self.pairs + np.arange(self.pairs)).ravel()
        return Tasks(self.ops_NL[numbers], self.before[places], self.after[places])

    def shown(self, pairs: int) -> "Tasks":
        """With the first pairs of each alone."""
        places = (np.arange(len(self))[:, None] * self.pairs + np.arange(pairs)).ravel()
        return Tasks(self.ops_NL, self.before[places], self.after[places])

    def texts(self) -> list[str]:
        """The pairs of each program."""
        return compact.write_each(self.before, self.after, self.pairs)

    def solves(self, ops_NL: Ops) -> NDArray[np.bool_]:
        """Which programs [N] do on all worlds of their tasks what is wanted; an empty one does not."""
        came_to = run(self.before, ops_NL.repeat(self.pairs, 0))
        same_N = came_to.equals(self.after).reshape(len(self), self.pairs).all(1)
        return same_N & (ops_NL != programs.NOTHING).any(1)


def join(parts: Sequence[Tasks]) -> Tasks:
    """One behind the other; all of one size, with as many pairs and programs as long."""
    ops_NL = np.concatenate([part.ops_NL for part in parts])
    return Tasks(ops_NL, worlds.join([part.before for part in parts]), worlds.join([part.after for part in parts]))


def draw(rng: np.random.Generator, count: int, size: int, pairs: int, lengths: Sequence[int]) -> Tasks:
    """Draw programs, and worlds for each."""
    ops_NL = programs.draw(rng, lengths, count)
    before = worlds.draw(rng, count * pairs, size)
    return Tasks(ops_NL, before, run(before, ops_NL.repeat(pairs, 0)))


@dataclass(frozen=True)
class Synthesis:
    """The problems of one size."""

    name: str
    size: int
    pairs: int
    steps: range

    def sample(self, rng: random.Random, num_steps: int) -> Problem:
        """Draw a program of `num_steps` operations, and worlds."""
        drawn = draw(np.random.default_rng(rng.getrandbits(64)), 1, self.size, self.pairs, (num_steps,))
        return Problem(self.name, drawn.texts()[0], programs.write(drawn.ops_NL[0]), "", num_steps)

    def verify(self, problem: Problem, text: str) -> bool:  # noqa: D102  Family has it
        try:
            return solves(problem.question, text)
        except ValueError:
            return False

    def attempt(self, rng: random.Random, problem: Problem) -> str:
        """Draw a program near the one that the worlds were made with: one drawn evenly would hardly ever be right."""
        any_op = range(len(programs.OPS))
        ops = [rng.choice(any_op) if rng.random() < SLIPS else op for op in programs.read(problem.answer)]
        return programs.write(ops)


def solves(question: str, program: str) -> bool:
    """Whether a program in words does on all worlds what pairs in the compact text want. Raises ValueError for what is neither."""
    before, after = _read(question)
    ops_NL = programs.collect([programs.read(program)]).repeat(len(before), 0)
    return bool(run(before, ops_NL).equals(after).all())


_read = lru_cache(maxsize=256)(compact.read)  # of one question many answers are judged

FAMILIES = {
    family.name: family
    for family in (
        Synthesis("karel-4x4", 4, 3, range(3, 7)),
        Synthesis("karel-5x5", 5, 4, range(4, 9)),
        Synthesis("karel-6x6", 6, 5, range(6, 11)),
    )
}
