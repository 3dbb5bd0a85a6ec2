"""Karel programs: from one cell and heading to another. The verifier runs the program.

The world is that of `karel`, eight by eight cells of it. An answer is a program with its trace: each deed and where it leads; it
is right where every deed leads where it says, and the last to the goal. Shorter programs than the one the goal was drawn by are
right, too.
"""

import random
from collections.abc import Sequence

from ..problem import Problem
from .walks import HEADINGS, OFTEN, act

name = "routes"
steps = range(5, 8)

LINES = "abcdefgh"
WORDS = {"move": "move", "turn left": "left", "turn right": "right"}
DEEDS = {word: deed for deed, word in WORDS.items()}
ASK = "Karel is at {start}. Go to {goal} in {most} steps."

State = tuple[int, int, int]  # column, row, heading


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a goal that `num_steps` deeds lead to, and that is not the start."""
    while True:
        start = (rng.randrange(len(LINES)), rng.randrange(len(LINES)), rng.randrange(4))
        deeds = rng.choices(OFTEN, k=num_steps)
        goal = _run(start, deeds)[-1]
        if goal != start:
            break
    question = ASK.format(start=_show(start), goal=_show(goal), most=num_steps)
    return Problem(name, question, _write(start, deeds), "", num_steps, facts=(*start, *goal, num_steps))


def verify(problem: Problem, text: str) -> bool:
    """Whether `text` is a program of deeds and true states, not too long, that ends at the goal."""
    start, goal, most = problem.facts[:3], problem.facts[3:6], problem.facts[6]
    words = text.split()[::2]
    if not 1 <= len(words) <= most or not set(words) <= set(DEEDS):
        return False
    deeds = [DEEDS[word] for word in words]
    state = (start[0], start[1], start[2])
    return text.split() == _write(state, deeds).split() and _run(state, deeds)[-1] == goal


def attempt(rng: random.Random, problem: Problem) -> str:
    """Draw a program at random."""
    column, row, heading = problem.facts[:3]
    return _write((column, row, heading), rng.choices(OFTEN, k=problem.facts[6]))


def _run(start: State, deeds: Sequence[str]) -> list[State]:
    states, state = [], start
    for deed in deeds:
        state = act(deed, *state, len(LINES))
        states.append(state)
    return states


def _write(start: State, deeds: Sequence[str]) -> str:
    trace = zip(deeds, _run(start, deeds), strict=True)
    return " ".join(f"{WORDS[deed]} {_show(state)}" for deed, state in trace)


def _show(state: State) -> str:
    column, row, heading = state
    return f"{LINES[column]}{LINES[row]}{HEADINGS[heading][0].upper()}"
