"""A person's things grow, shrink, double, triple and halve; how many are there at the end?

Counts stay between 0 and 12. Doubling and halving make the order matter: no step can be taken without those before it.
"""

import random

from .problem import MEN, STEPS, WOMEN, Problem, is_answer, name_steps, narrate, write_notes

name = "sums"
steps = STEPS
verify = is_answer

MOST = 12
COUNTS = tuple(str(count) for count in range(MOST + 1))
ITEMS = (
    "apples", "balls", "beads", "books", "cards", "coins", "eggs", "flowers", "marbles", "nuts",
    "pears", "pencils", "shells", "stamps", "stones", "sweets",
)  # fmt: skip
STARTS = ("{who} has {state} {items}.", "{who} starts with {state} {items}.")
ADD = ("buys {n}", "buys {n} more", "finds {n}", "gets {n} more")
TAKE = ("loses {n}", "sells {n}", "gives away {n}")
DOUBLE = ("doubles them",)
TRIPLE = ("triples them",)
HALVE = ("loses half", "sells half", "gives away half")
ASKS = (
    "How many {items} does {who} have now?",
    "How many {items} does {who} have at the end?",
    "How many {items} are there now?",
    "How many {items} are left?",
    "How many does {who} have now?",
)


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a worded sum of `num_steps` steps."""
    days = name_steps(num_steps)
    who, pronoun = rng.choice([(who, "She") for who in WOMEN] + [(who, "He") for who in MEN])
    items = rng.choice(ITEMS)
    state = rng.randint(1, MOST)
    parts = [rng.choice(STARTS).format(who=who, state=state, items=items)]
    deeds, states = [], []
    for _ in days:
        deed, state = _change(rng, state)
        deeds.append(deed)
        states.append(state)
    parts.append(narrate(rng, rng.choice((pronoun, pronoun, who)), deeds, days))
    parts.append(rng.choice(ASKS).format(who=who, items=items))
    return Problem(name, " ".join(parts), str(state), write_notes(days, states), num_steps, COUNTS)


def _change(rng: random.Random, state: int) -> tuple[str, int]:
    """A deed that leaves a whole number of things in range, and the count after it."""
    n = rng.randint(1, 5)
    choices = ((ADD, state + n), (ADD, state + n), (TAKE, state - n), (TAKE, state - n))
    if state:
        choices += ((DOUBLE, 2 * state), (DOUBLE, 2 * state), (TRIPLE, 3 * state), (TRIPLE, 3 * state))
        choices += ((HALVE, state // 2),) * 3 if state % 2 == 0 else ()
    allowed = [choice for choice in choices if 0 <= choice[1] <= MOST]
    if not allowed:
        return _change(rng, state)
    wordings, after = rng.choice(allowed)
    return rng.choice(wordings).format(n=n), after
