"""One of six people holds a thing, the others nothing; they swap what they hold, in pairs. Who has the thing at the end?

One thing only: with two or three, which small models must tell apart at the first lookup, learning stalled (docs/log.md).
"""

import random

from .problem import STEPS, Problem, is_answer, listed, name_steps, narrate, write_notes

name = "swaps"
steps = STEPS
verify = is_answer

PEOPLE: tuple[str, ...] = ("Anna", "Ben", "Carl", "Dora", "Emma", "Fred")
THINGS: tuple[str, ...] = ("ball", "book", "coin", "hat", "key", "ring")
STARTS = (
    "{holder} has the {thing}. {others} have nothing.",
    "{holder} holds the {thing}. {others} hold nothing.",
    "{holder} has the {thing}, {others} have nothing.",
)
SWAP = ("{a} and {b} swap", "{a} swaps with {b}")
ASKS = (
    "Who has the {thing} now?",
    "Who has the {thing} at the end?",
    "Who holds the {thing} now?",
    "Who holds the {thing} at the end?",
    "Who ends up with the {thing}?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a problem of `num_steps` swaps."""
    days = name_steps(num_steps)
    people = rng.sample(PEOPLE, len(PEOPLE))
    holder, thing = people[0], rng.choice(THINGS)
    parts = [rng.choice(STARTS).format(holder=holder, thing=thing, others=listed(people[1:]))]
    deeds, states = [], []
    for _ in days:
        pair = _pair(rng, people, holder)
        holder = pair[1 - pair.index(holder)] if holder in pair else holder
        deeds.append(rng.choice(SWAP).format(a=pair[0], b=pair[1]))
        states.append(holder)
    parts += [narrate(rng, "", deeds, days), rng.choice(ASKS).format(thing=thing)]
    return Problem(name, " ".join(parts), holder, write_notes(days, states), num_steps, tuple(people))


def _pair(rng: random.Random, people: list[str], holder: str) -> list[str]:
    """Two people; more often than by chance one of them has the thing, or most swaps would not matter."""
    if rng.random() < 0.5:
        return rng.sample(people, 2)
    pair = [holder, rng.choice([person for person in people if person != holder])]
    rng.shuffle(pair)
    return pair
