"""Karel's programs: straight lines of five operations, and other meanings that the same words could have.

Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "The Karel
Grid World Domain" and "Semantic Interventions".

Shape letters: N programs, L operations of the longest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OPS = ("move", "left", "right", "pick", "put")
MOVE, LEFT, RIGHT, PICK, PUT = range(len(OPS))
NOTHING = len(OPS)  # behind the end of a program
OFTEN = (5, 3, 3, 2, 2)  # how often each is drawn

Ops = NDArray[np.int64]

# What each operation means in place of itself, in the order of `OPS`. Flip and adversarial are the paper's; random and cycle
# are two more that move all five.
MEANINGS: dict[str, tuple[int, int, int, int, int]] = {
    "original": (MOVE, LEFT, RIGHT, PICK, PUT),
    "flip": (MOVE, RIGHT, LEFT, PUT, PICK),
    "adversarial": (LEFT, RIGHT, MOVE, PUT, PICK),
    "random": (RIGHT, PUT, PICK, LEFT, MOVE),
    "cycle": (PICK, MOVE, LEFT, PUT, RIGHT),
}


def draw(rng: np.random.Generator, lengths: Sequence[int], count: int) -> Ops:
    """Draw programs [N, L] whose lengths are even among `lengths`; what is behind an end is `NOTHING`."""
    chances = np.array(OFTEN) / sum(OFTEN)
    ops_NL = rng.choice(len(OPS), p=chances, size=(count, max(lengths)))
    ends_N = rng.choice(np.array(lengths), count)
    ops_NL[np.arange(max(lengths)) >= ends_N[:, None]] = NOTHING
    return ops_NL


def write(ops: Sequence[int] | Ops) -> str:
    """A program as words."""
    return " ".join(OPS[op] for op in ops if op != NOTHING)


def read(text: str) -> list[int]:
    """The operations of a program in words. Raises ValueError where a word is none, or there is no word."""
    words = text.split()
    if not words:
        raise ValueError("the program is empty; it must hold at least one operation")
    for word in words:
        if word not in OPS:
            raise ValueError(f"{word[:40]!r} is no operation; they are {', '.join(OPS)}")
    return [OPS.index(word) for word in words]


def collect(programs: Sequence[Sequence[int]]) -> Ops:
    """Programs of any lengths side by side [N, L]."""
    longest = max(map(len, programs), default=0)
    return np.array(
        [[*program, *[NOTHING] * (longest - len(program))] for program in programs], dtype=np.int64
    ).reshape(len(programs), longest)


def rename(ops: Ops, meaning: str) -> Ops:
    """What the same words say under another meaning."""
    return np.array([*MEANINGS[meaning], NOTHING])[ops]
