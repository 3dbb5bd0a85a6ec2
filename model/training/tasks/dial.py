"""A dial from 0 to 9 is turned, flipped over, doubled and tripled; past 9 comes 0."""

import random

from .problem import Problem, draw_days, is_answer, narrate, write_notes

name = "dial"
verify = is_answer

STARTS = (
    "A dial is at {state}.",
    "The dial is at {state}.",
    "A dial starts at {state}.",
    "A dial points to {state}.",
    "A dial from 0 to 9 is at {state}.",
    "A dial with the numbers 0 to 9 starts at {state}.",
)
UP = ("goes up {n}", "goes up by {n}", "moves up {n}", "moves up by {n}", "is turned up by {n}")
DOWN = ("goes down {n}", "goes down by {n}", "moves down {n}", "moves down by {n}", "is turned down by {n}")
FLIP = ("flips over", "flips", "is flipped over")  # end to end: 0 becomes 9, 3 becomes 6
DOUBLE = ("doubles", "is doubled")
TRIPLE = ("triples", "is tripled")
ASKS = (
    "Where is the dial now?",
    "Where is the dial at the end?",
    "Where does the dial end up?",
    "What does the dial show now?",
    "What does the dial show at the end?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a dial problem of `num_steps` steps."""
    days = draw_days(rng, num_steps)
    state = rng.randrange(10)
    parts = [rng.choice(STARTS).format(state=state)]
    deeds, states = [], []
    for _ in days:
        deed, state = _turn(rng, state)
        deeds.append(deed)
        states.append(state)
    parts += [narrate(rng, rng.choice(("It", "It", "The dial")), deeds, days), rng.choice(ASKS)]
    return Problem(name, " ".join(parts), str(state), write_notes(days, states), num_steps)


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
