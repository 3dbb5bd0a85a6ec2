"""Some people hold one thing each and swap in pairs; who has the asked thing at the end?"""

import random

from .problem import Problem, is_answer, listed, name_days, narrate, write_notes

name = "swaps"
verify = is_answer

PEOPLE = ("Anna", "Ben", "Carl", "Dora", "Emma")  # few: who swaps with whom is a table a small model can learn
THINGS = (
    "ball", "bell", "book", "bottle", "box", "coin", "cup", "hat",
    "key", "kite", "lamp", "letter", "map", "pen", "ring", "watch",
)  # fmt: skip
SWAP = ("{a} and {b} swap", "{a} swaps with {b}")
ASKS = (
    "Who has the {thing} now?",
    "Who has the {thing} at the end?",
    "Who holds the {thing} now?",
    "Who holds the {thing} at the end?",
    "Who ends up with the {thing}?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a swapping problem of `num_steps` swaps among three to five people."""
    days = name_days(num_steps)
    people = rng.sample(PEOPLE, rng.choice((3, 4, 5)))
    things = rng.sample(THINGS, len(people))
    holder, thing = rng.choice(list(zip(people, things, strict=True)))
    has = rng.choice(("has", "has", "holds"))
    parts = [listed([f"{person} {has} the {held}" for person, held in zip(people, things, strict=True)]) + "."]
    deeds, states = [], []
    for _ in days:
        pair = _pair(rng, people, holder)
        holder = pair[1 - pair.index(holder)] if holder in pair else holder
        deeds.append(rng.choice(SWAP).format(a=pair[0], b=pair[1]))
        states.append(holder)
    parts += [narrate(rng, "", deeds, days), rng.choice(ASKS).format(thing=thing)]
    return Problem(name, " ".join(parts), holder, write_notes(days, states), num_steps)


def _pair(rng: random.Random, people: list[str], holder: str) -> list[str]:
    """Two people; more often than by chance one of them has the asked thing, or most swaps would not matter."""
    if rng.random() < 0.5:
        return rng.sample(people, 2)
    pair = [holder, rng.choice([person for person in people if person != holder])]
    rng.shuffle(pair)
    return pair
