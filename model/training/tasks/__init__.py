"""Problem families, each with a generator, a verifier and a text form, and the split between training and test."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal

from . import chains, dial, signed, signed_sum, sums, swaps
from .karel import routes, synthesis, walks
from .problem import MAX_STEPS, Family, Problem, Search

__all__ = [
    "EVERY",
    "FAMILIES",
    "MAX_STEPS",
    "SEARCHES",
    "Family",
    "Problem",
    "Search",
    "Split",
    "draw",
    "is_held_out",
    "problems",
]

Split = Literal["train", "held_out"]
FAMILIES: dict[str, Family] = {
    "dial": dial,
    "swaps": swaps,
    "sums": sums,
    "chains": chains,
    "signed": signed,
    "karel": walks,
}
SEARCHES: dict[str, Search] = {
    "signed-sum": signed_sum.compact,
    "signed-sum-worded": signed_sum.worded,
    "routes": routes,
    **synthesis.FAMILIES,
}
EVERY: dict[str, Family] = {**FAMILIES, **SEARCHES}
NUM_BUCKETS = 16
MAX_TRIES = 2000


def is_held_out(question: str) -> bool:
    """Whether a question is kept for evaluation: one in 16, by a hash of its text alone."""
    return hashlib.sha256(question.encode()).digest()[0] % NUM_BUCKETS == 0


def draw(rng: random.Random, split: Split, family: Family, num_steps: int) -> Problem:
    """Draw one problem of the split."""
    while True:
        problem = family.sample(rng, num_steps)
        if is_held_out(problem.question) == (split == "held_out"):
            return problem


def problems(
    split: Split,
    families: Sequence[str] = tuple(FAMILIES),
    seed: int = 0,
    steps: Sequence[int] | None = None,
) -> Iterator[Problem]:
    """Endless distinct problems, families and numbers of steps in turn, the same for the same arguments.

    `steps`: None is for every family those that its problems have.

    Raises ValueError for an unknown family, and when no new problem is left (about 450 held-out dials of one step).
    """
    if unknown := [name for name in families if name not in EVERY]:
        raise ValueError(f"unknown family {unknown[0]!r}; the families are {', '.join(EVERY)}")
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    for turn in itertools.count():
        for name in families:
            own = steps or EVERY[name].steps
            problem = _draw_new(rng, split, EVERY[name], own[turn % len(own)], seen)
            seen.add(problem.question)
            yield problem


def _draw_new(rng: random.Random, split: Split, family: Family, num_steps: int, seen: set[str]) -> Problem:
    for _ in range(MAX_TRIES):
        problem = draw(rng, split, family, num_steps)
        if problem.question not in seen:
            return problem
    raise ValueError(f"the {split} {family.name} problems of {num_steps} steps are used up after {len(seen)} problems")
