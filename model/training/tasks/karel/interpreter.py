"""Runs programs on worlds, each on its own, all of them at once.

A move into a wall does nothing, nor does picking where no marker lies; putting always works, up to `MOST_MARKERS` on a cell.

Shape letters as in `worlds` and `programs`.
"""

from collections.abc import Iterator

import numpy as np

from .programs import LEFT, MOVE, NOTHING, PICK, PUT, RIGHT, Ops
from .worlds import MOST_MARKERS, Ints, Worlds, steps

_TURNS = np.zeros(NOTHING + 1, dtype=np.int64)
_TURNS[[LEFT, RIGHT]] = -1, 1


def run(worlds: Worlds, ops_NL: Ops) -> Worlds:
    """The worlds behind the last operation."""
    after = worlds
    for now in trace(worlds, ops_NL):
        after = now
    return after


def trace(worlds: Worlds, ops_NL: Ops) -> Iterator[Worlds]:
    """The worlds behind each operation. They are changed by the next one: whoever keeps them copies them."""
    now, ahead = worlds.copy(), steps(worlds.size)
    cells_N, headings_N = now.cells_N, now.headings_N
    walls, markers = now.walls_NC.reshape(-1), now.markers_NC.reshape(-1)  # one index finds a cell sooner than two
    firsts_N = np.arange(len(worlds)) * now.walls_NC.shape[1]
    for ops_N in ops_NL.T:
        headings_N += _TURNS[ops_N]
        headings_N &= 3
        ahead_N = ahead[headings_N]
        cells_N += ahead_N * ((ops_N == MOVE) & ~walls[firsts_N + cells_N + ahead_N])
        here_N = firsts_N + cells_N
        lying_N = markers[here_N]
        lying_N += (ops_N == PUT) & (lying_N < MOST_MARKERS)
        lying_N -= (ops_N == PICK) & (lying_N > 0)
        markers[here_N] = lying_N
        yield now


def is_blocked(worlds: Worlds) -> Ints:
    """Whether [N] the robot faces a wall: 0 or 1."""
    goals_N = worlds.cells_N + steps(worlds.size)[worlds.headings_N]
    return worlds.walls_NC[np.arange(len(worlds)), goals_N].astype(np.int64)
