"""A running total is added to, taken from and changes its sign; all of it modulo 11, so that past 10 comes 0."""

import random

from .problem import STEPS, Problem, is_answer, listed, name_steps, write_notes

name = "signed"
steps = STEPS
verify = is_answer

MODULUS = 11
TOTALS = tuple(str(total) for total in range(MODULUS))
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
STARTS = (
    "Modulo 11, start from {state}",
    "Modulo 11, start with {state}",
    "Counting modulo 11, start from {state}",
    "Counting modulo 11, start with {state}",
    "Start from {state}, modulo 11",
)
PLUS = ("plus {n}", "add {n}")
MINUS = ("minus {n}", "take {n}")
CHANGE = ("change the sign",)  # 0 stays 0, 3 becomes 8
ASKS = (
    "What is the total?",
    "What is the total now?",
    "What is the total at the end?",
    "What is the sum?",
    "What is the sum now?",
    "What is the sum at the end?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a running total of `num_steps` steps."""
    ordinals = name_steps(num_steps, ORDINALS)
    state = rng.randrange(MODULUS)
    start = rng.choice(STARTS).format(state=state)
    told, states = [], []
    for ordinal in ordinals:
        deed, state = _count(rng, state)
        told.append(f"{deed} {ordinal}")
        states.append(state)
    question = f"{start}: {listed(told)}. {rng.choice(ASKS)}"
    return Problem(name, question, str(state), write_notes(ordinals, states), num_steps, TOTALS)


def _count(rng: random.Random, state: int) -> tuple[str, int]:
    n = rng.randint(1, 5)
    wordings, after = rng.choice(
        (
            (PLUS, state + n),
            (PLUS, state + n),
            (MINUS, state - n),
            (MINUS, state - n),
            (CHANGE, -state),
        )
    )
    return rng.choice(wordings).format(n=n), after % MODULUS
