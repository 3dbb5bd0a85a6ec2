"""What a problem is, and how the steps of its story are told."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WOMEN: tuple[str, ...] = ("Alice", "Anna", "Clara", "Dora", "Emma", "Mary")
MEN: tuple[str, ...] = ("Ben", "Bob", "Carl", "David", "Jack", "Tom")
DIGITS = tuple("0123456789")
MAX_STEPS = len(DAYS)
STEPS = range(1, MAX_STEPS + 1)


@dataclass(frozen=True)
class Problem:
    """One question with its answer, and the notes that lead there."""

    family: str
    question: str  # one paragraph of plain English
    answer: str  # one word or number: "7", "Anna"
    working: str  # " Monday 6 Tuesday 0": for every step its key and the state after it, one token each
    num_steps: int
    answers: tuple[str, ...] = ()  # every answer that the question admits, the right one among them
    facts: tuple[int, ...] = ()  # what the question says, where many answers are right: a verifier works from it


class Family(Protocol):
    """A kind of problem: a module, or an object, with these names."""

    @property
    def name(self) -> str:
        """What it is called by."""
        ...

    @property
    def steps(self) -> Sequence[int]:
        """The numbers of steps that its problems have."""
        ...

    def sample(self, rng: random.Random, num_steps: int) -> Problem:
        """Draw a problem of `num_steps` steps."""
        ...

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether `text`, the whole of what was said after "Answer:", is the right answer."""
        ...


class Search(Family, Protocol):
    """A kind of problem that is easier to check than to solve: an answer shows its steps, and where it fails."""

    def attempt(self, rng: random.Random, problem: Problem) -> str:
        """Draw an answer whose every step is true, whether or not it gets there."""
        ...


def is_answer(problem: Problem, text: str) -> bool:
    """Exact match up to white space at the ends: every family's answer has one spelling."""
    return text.strip() == problem.answer


def name_steps(num_steps: int, keys: Sequence[str] = DAYS) -> tuple[str, ...]:
    """The keys from the first on; a key names a step in the question and in the notes."""
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be between 1 and {MAX_STEPS}")
    return tuple(keys[:num_steps])


def narrate(rng: random.Random, subject: str, deeds: Sequence[str], keys: Sequence[str], join: str = "on") -> str:
    """Tell the deeds in sentences of their own or in one; `subject` is "" where every deed names its own.

    The key comes after its deed: a causal model has then read the whole step where it meets the key.
    """
    told = [f"{deed} {join} {key}" for deed, key in zip(deeds, keys, strict=True)]
    lead = f"{subject} " if subject else ""
    if rng.random() < 0.5:
        return f"{lead}{listed(told)}."
    return " ".join(f"{lead}{step}." for step in told)


def listed(parts: Sequence[str]) -> str:
    """Join as English does: "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def write_notes(keys: Sequence[str], states: Sequence[object]) -> str:
    """The working: every step's key and the state after it."""
    return "".join(f" {key} {state}" for key, state in zip(keys, states, strict=True))
