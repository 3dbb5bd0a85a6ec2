"""Numbers are given, and a total: plus or minus before each number, so that together they come to the total, modulo 11.

An answer writes each sign and what is then left of the total; it is right where all of that is true and nothing is left. It shows
its own failure, and is far easier to check than to find: a problem with room for a second thought.
"""

import random
from dataclasses import dataclass

from .problem import Problem, listed

MODULUS = 11
NUMBERS = range(1, MODULUS)
COMPACT = ("{numbers} make {total}.",)
WORDED = (
    "Put plus or minus before {listed} so that they come to {total} modulo 11.",
    "With plus or minus before each, make {total} out of {listed}, modulo 11.",
    "Modulo 11, which signs before {listed} make {total}?",
    "Someone adds or takes away {listed}, in this order, and ends at {total} modulo 11. Which was which?",
)


@dataclass(frozen=True)
class SignedSum:
    """The problems in one way of asking."""

    name: str
    wordings: tuple[str, ...]
    steps: range = range(5, 6)

    def sample(self, rng: random.Random, num_steps: int) -> Problem:
        """Draw `num_steps` numbers, and a total that some signs make."""
        numbers = rng.choices(NUMBERS, k=num_steps)
        signs = rng.choices("+-", k=num_steps)
        total = sum(n if sign == "+" else -n for n, sign in zip(numbers, signs, strict=True)) % MODULUS
        question = rng.choice(self.wordings).format(
            numbers=" ".join(map(str, numbers)), listed=listed([str(n) for n in numbers]), total=total
        )
        facts = (*numbers, total)
        return Problem(self.name, question, _write(facts, signs), "", num_steps, facts=facts)

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether `text` is a sign and a true remainder for every number, and the last remainder 0."""
        signs = text.split()[::2]
        known = set(signs) <= {"+", "-"} and len(signs) == len(problem.facts) - 1
        return known and text.split() == (wanted := _write(problem.facts, signs).split()) and wanted[-1] == "0"

    def attempt(self, rng: random.Random, problem: Problem) -> str:
        """Draw signs evenly."""
        return _write(problem.facts, [rng.choice("+-") for _ in problem.facts[:-1]])


def _write(facts: tuple[int, ...], signs: list[str]) -> str:
    """The answer with these signs."""
    *numbers, left = facts
    told = []
    for sign, number in zip(signs, numbers, strict=True):
        left = (left - (number if sign == "+" else -number)) % MODULUS
        told.append(f"{sign} {left}")
    return " ".join(told)


compact = SignedSum("signed-sum", COMPACT)
worded = SignedSum("signed-sum-worded", WORDED)
