"""Karel's worlds: a robot on n by n cells with a wall around them, some inner walls, and markers.

Many worlds of one size are held side by side, so that programs run on all of them at once. Emergent Representations of Program
Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "The Karel Grid World Domain".

Shape letters: N worlds, C cells, the wall around them included: (n + 2)^2, row by row from the north-west.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZES = range(2, 9)
HEADINGS = "NESW"  # each a right turn from the one before
MOST_MARKERS = 9  # on one cell
WALL_SHARE = MARKER_SHARE = 0.1  # of the cells of a drawn world

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Worlds:
    """N worlds of n by n cells."""

    size: int
    walls_NC: NDArray[np.bool_]
    markers_NC: NDArray[np.uint8]  # how many lie on each cell; none on a wall
    cells_N: Ints  # where the robot stands
    headings_N: Ints  # 0 to 3, as in `HEADINGS`

    def __len__(self) -> int:
        return len(self.cells_N)

    def __getitem__(self, index: slice | Ints) -> "Worlds":
        return Worlds(
            self.size, self.walls_NC[index], self.markers_NC[index], self.cells_N[index], self.headings_N[index]
        )

    def __iter__(self) -> Iterator["Worlds"]:
        """Each by itself."""
        return (self[number : number + 1] for number in range(len(self)))

    def copy(self) -> "Worlds":
        """The same, whose robots and markers may be changed; walls are shared, as nothing changes them."""
        return Worlds(self.size, self.walls_NC, self.markers_NC.copy(), self.cells_N.copy(), self.headings_N.copy())

    def repeat(self, times: int) -> "Worlds":
        """Each so many times in a row."""
        return self[np.arange(len(self)).repeat(times)]

    def equals(self, other: "Worlds") -> NDArray[np.bool_]:
        """Which worlds [N] are the same in every respect, markers under the robot included."""
        robots = (self.cells_N == other.cells_N) & (self.headings_N == other.headings_N)
        grids = (self.walls_NC == other.walls_NC) & (self.markers_NC == other.markers_NC)
        return robots & grids.all(1)


def width(size: int) -> int:
    """Cells of a row, the wall at both ends included."""
    return size + 2


def steps(size: int) -> Ints:
    """By how much the cell changes that the robot stands on, by heading."""
    return np.array([-width(size), 1, width(size), -1])


def place(size: int, row: int, column: int) -> int:
    """A cell by its row from the north and its column from the west, both from 0."""
    return (row + 1) * width(size) + column + 1


def row_and_column(size: int, cell: int) -> tuple[int, int]:
    """The inverse of `place`."""
    row, column = divmod(cell, width(size))
    return row - 1, column - 1


def inner_cells(size: int) -> Ints:
    """All but the wall around them, row by row."""
    return np.array([place(size, row, column) for row in range(size) for column in range(size)])


def empty(count: int, size: int) -> Worlds:
    """Worlds with nothing in them; the robot stands in the north-west and faces north."""
    num_cells, inner = width(size) ** 2, inner_cells(size)
    walls_NC = np.ones((count, num_cells), dtype=np.bool_)
    walls_NC[:, inner] = False
    zeros_N = np.zeros(count, dtype=np.int64)
    return Worlds(size, walls_NC, np.zeros((count, num_cells), dtype=np.uint8), zeros_N + inner[0], zeros_N.copy())


def join(parts: Sequence[Worlds]) -> Worlds:
    """Worlds of one size, side by side."""
    fields = ("walls_NC", "markers_NC", "cells_N", "headings_N")
    return Worlds(parts[0].size, *(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def draw(rng: np.random.Generator, count: int, size: int) -> Worlds:
    """Draw worlds: the robot anywhere, walls and markers on a tenth of the other cells each, no marker on a wall."""
    inner, lots = inner_cells(size), 2**16  # 16 bits decide on a cell, which is a fifth of the work of a double
    drawn_NC = rng.integers(0, lots, (2, count, len(inner)), dtype=np.uint16)
    worlds, rows = empty(count, size), np.arange(count)
    starts_N = rng.integers(0, len(inner), count)
    walls_NC, markers_NC = drawn_NC[0] < round(lots * WALL_SHARE), drawn_NC[1] < round(lots * MARKER_SHARE)
    walls_NC[rows, starts_N] = markers_NC[rows, starts_N] = False
    worlds.walls_NC[:, inner] = walls_NC
    worlds.markers_NC[:, inner] = markers_NC & ~walls_NC
    return Worlds(size, worlds.walls_NC, worlds.markers_NC, inner[starts_N], rng.integers(0, 4, count))
