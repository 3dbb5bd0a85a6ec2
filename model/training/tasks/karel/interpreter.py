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
    now, rows, ahead = worlds.copy(), np.arange(len(worlds)), steps(worlds.size)
    for ops_N in ops_NL.T:
        now.headings_N[:] = (now.headings_N + _TURNS[ops_N]) % 4
        goals_N = now.cells_N + ahead[now.headings_N]
        now.cells_N[:] = np.where((ops_N == MOVE) & ~now.walls_NC[rows, goals_N], goals_N, now.cells_N)
        lying_N = now.markers_NC[rows, now.cells_N]
        lying_N += (ops_N == PUT) & (lying_N < MOST_MARKERS)
        lying_N -= (ops_N == PICK) & (lying_N > 0)
        now.markers_NC[rows, now.cells_N] = lying_N
        yield now


def is_blocked(worlds: Worlds) -> Ints:
    """Whether [N] the robot faces a wall: 0 or 1."""
    goals_N = worlds.cells_N + steps(worlds.size)[worlds.headings_N]
    return worlds.walls_NC[np.arange(len(worlds)), goals_N].astype(np.int64)
