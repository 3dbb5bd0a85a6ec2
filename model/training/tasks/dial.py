"""A dial from 0 to 9 is turned, flipped over, doubled and tripled; past 9 comes 0."""

import random

from .problem import DIGITS, STEPS, Problem, is_answer, name_steps, narrate, write_notes

name = "dial"
steps = STEPS
verify = is_answer

STARTS = ("A dial is at {state}.", "The dial is at {state}.", "A dial starts at {state}.")
UP = ("goes up {n}", "moves up {n}")
DOWN = ("goes down {n}", "moves down {n}")
FLIP = ("flips over", "flips")  # end to end: 0 becomes 9, 3 becomes 6
DOUBLE = ("doubles",)
TRIPLE = ("triples",)
ASKS = (
    "Where is the dial now?",
    "Where is the dial at the end?",
    "Where does the dial end up?",
    "What does the dial show now?",
    "What does the dial show at the end?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a dial problem of `num_steps` steps."""
    days = name_steps(num_steps)
    state = rng.randrange(10)
    parts = [rng.choice(STARTS).format(state=state)]
    deeds, states = [], []
    for _ in days:
        deed, state = _turn(rng, state)
        deeds.append(deed)
        states.append(state)
    parts += [narrate(rng, rng.choice(("It", "It", "The dial")), deeds, days), rng.choice(ASKS)]
    return Problem(name, " ".join(parts), str(state), write_notes(days, states), num_steps, DIGITS)


def _turn(rng: random.Random, state: int) -> tuple[str, int]:
    n = rng.randint(1, 5)
    wordings, after = rng.choice(
        (
            (UP, state + n),
            (UP, state + n),
            (DOWN, state - n),
            (DOWN, state - n),
            (FLIP, 9 - state),
            (FLIP, 9 - state),
            (DOUBLE, 2 * state),
            (TRIPLE, 3 * state),
        )
    )
    return rng.choice(wordings).format(n=n), after % 10
