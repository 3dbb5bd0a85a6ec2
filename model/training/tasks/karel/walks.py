"""Karel the robot moves and turns on four by four cells with a wall around them. Where does it stand, or which way does it face?

A cell is two letters, its column from the west and its row from the south. A note holds both the cell and the heading:
"bdN" is column b, row d, facing north. A move into the wall does nothing.
"""

import random

from ..problem import STEPS, Problem, is_answer, name_steps, narrate, write_notes

name = "karel"
steps = STEPS
verify = is_answer

LINES = "abcd"
CELLS = tuple(column + row for column in LINES for row in LINES)
HEADINGS = ("north", "east", "south", "west")  # each a right turn from the one before
AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))  # columns and rows that a move goes in each heading
STARTS = (
    "Karel stands on {cell} facing {heading}.",
    "Karel stands on {cell} and faces {heading}.",
    "Karel is on {cell} facing {heading}.",
    "Karel is on {cell} and faces {heading}.",
)
DEEDS = {"move": "moves", "turn left": "turns left", "turn right": "turns right"}  # and how they are told
OFTEN = ("move", "move", "turn left", "turn right")
WHERE = ("Where does Karel stand now?", "Where is Karel now?", "Where is Karel at the end?")
WHICH_WAY = ("Which way does Karel face now?", "Which way does Karel face at the end?")


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a walk of `num_steps` steps."""
    days = name_steps(num_steps)
    column, row, heading = rng.randrange(len(LINES)), rng.randrange(len(LINES)), rng.randrange(4)
    parts = [rng.choice(STARTS).format(cell=_cell(column, row), heading=HEADINGS[heading])]
    deeds, states = [], []
    for _ in days:
        deed = rng.choice(OFTEN)
        column, row, heading = act(deed, column, row, heading)
        deeds.append(DEEDS[deed])
        states.append(f"{_cell(column, row)}{HEADINGS[heading][0].upper()}")
    asks_where = rng.random() < 0.75
    parts += [narrate(rng, rng.choice(("It", "Karel")), deeds, days), rng.choice(WHERE if asks_where else WHICH_WAY)]
    answer, answers = (_cell(column, row), CELLS) if asks_where else (HEADINGS[heading], HEADINGS)
    return Problem(name, " ".join(parts), answer, write_notes(days, states), num_steps, answers)


def act(deed: str, column: int, row: int, heading: int, size: int = len(LINES)) -> tuple[int, int, int]:
    """Column, row and heading after a deed, on so many columns and rows."""
    if deed == "turn left":
        return column, row, (heading - 1) % 4
    if deed == "turn right":
        return column, row, (heading + 1) % 4
    right, up = AHEAD[heading]
    return min(max(column + right, 0), size - 1), min(max(row + up, 0), size - 1), heading


def _cell(column: int, row: int) -> str:
    return LINES[column] + LINES[row]
