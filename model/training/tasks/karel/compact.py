"""Worlds and pairs of worlds as text, in as few words as lose nothing.

    4x4 @r2c3N #r1c0 *r0c1 =r1c3N +r2c3 -r0c1 @r0c0E =r0c0S +r0c0

The size; then for every pair the robot's place and heading (@), walls (#) and markers (*), and behind the program its place and
heading again (=) and each marker more (+) or less (-). Rows count from the north, columns from the west. The paper's own text, a
drawing of some 840 tokens for five pairs of 6x6, is in `drawing`.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .worlds import HEADINGS, MOST_MARKERS, SIZES, Worlds, empty, inner_cells, join, place, row_and_column, width

_WORD = re.compile(r"([@=#*+-])r([0-9])c([0-9])([NESW]?)")
_ROBOTS = "@="


def write(before: Worlds, after: Worlds) -> str:
    """Pairs as one line."""
    (text,) = write_each(before, after, len(before))
    return text


def write_each(before: Worlds, after: Worlds, pairs: int) -> list[str]:
    """A line for every so many pairs, of any number of them at once."""
    size, change_NC = before.size, after.markers_NC.astype(np.int64) - before.markers_NC
    inner_C = np.zeros(width(size) ** 2, dtype=np.int64)
    inner_C[inner_cells(size)] = 1
    parts = (
        _robots("@", before),
        _counted("#", before.walls_NC * inner_C, size),
        _counted("*", before.markers_NC, size),
        _robots("=", after),
        _counted("+", change_NC.clip(0), size),
        _counted("-", (-change_NC).clip(0), size),
    )
    told = ["".join(words) for words in zip(*parts, strict=True)]  # every word with a space before it
    return [f"{size}x{size}" + "".join(told[first : first + pairs]) for first in range(0, len(told), pairs)]


def read(text: str) -> tuple[Worlds, Worlds]:
    """The worlds before and after. Raises ValueError naming the word that cannot be."""
    first, *words = text.split() or [""]
    size = _read_size(first)
    before, after = [], []
    for pair in _pairs(words):
        one, other = _read_pair(pair, size)
        before.append(one)
        after.append(other)
    return join(before), join(after)


def vocabulary(sizes: Iterable[int]) -> list[str]:
    """Every word that pairs of these sizes may hold."""
    sizes = list(sizes)
    cells = [f"r{row}c{column}" for row in range(max(sizes)) for column in range(max(sizes))]
    robots = [f"{sign}{cell}{heading}" for sign in _ROBOTS for cell in cells for heading in HEADINGS]
    return [*(f"{size}x{size}" for size in sizes), *robots, *(f"{sign}{cell}" for sign in "#*+-" for cell in cells)]


def _robots(sign: str, worlds: Worlds) -> list[str]:
    names = _names(sign, worlds.size)
    pairs = zip(worlds.cells_N.tolist(), worlds.headings_N.tolist(), strict=True)
    return [f"{names[cell]}{HEADINGS[heading]}" for cell, heading in pairs]


def _counted(sign: str, counts_NC: NDArray[np.integer[Any]], size: int) -> list[str]:
    """Of every world a word for each thing that lies there."""
    names, texts = _names(sign, size), [""] * len(counts_NC)
    rows, cells = np.nonzero(counts_NC)
    counts = counts_NC[rows, cells]
    for row, cell, count in zip(rows.tolist(), cells.tolist(), counts.tolist(), strict=True):
        texts[row] += names[cell] * count
    return texts


@lru_cache
def _names(sign: str, size: int) -> list[str]:
    """What every cell is called behind a sign."""
    return [" {}r{}c{}".format(sign, *row_and_column(size, cell)) for cell in range(width(size) ** 2)]


def _read_size(word: str) -> int:
    found = re.fullmatch(r"([0-9])x\1", word)
    if not found or int(found[1]) not in SIZES:
        sizes = f"{SIZES[0]}x{SIZES[0]} to {SIZES[-1]}x{SIZES[-1]}"
        raise ValueError(f"{word[:40]!r} is no size of a world; it must be first, and one of {sizes}")
    return int(found[1])


def _pairs(words: list[str]) -> Iterator[list[str]]:
    """The words of each pair."""
    if not words:
        raise ValueError("there is no pair of worlds; each begins with the robot's place, like @r0c0N")
    begins = [number for number, word in enumerate(words) if word.startswith("@")]
    if begins[:1] != [0]:
        raise ValueError(f"{words[0][:40]!r} stands before the first robot's place, which is like @r0c0N")
    return (words[begin:end] for begin, end in zip(begins, [*begins[1:], len(words)], strict=True))


def _read_pair(words: list[str], size: int) -> tuple[Worlds, Worlds]:
    end = next((number for number, word in enumerate(words) if word.startswith("=")), None)
    if end is None:
        raise ValueError(f"behind {words[0]!r} there is no place that the robot comes to, like =r0c0N")
    before = empty(1, size)
    for word in words[:end]:
        _put(before, word, "@#*", size)
    walled = before.walls_NC[0] & (before.markers_NC[0] > 0)
    if walled.any() or before.walls_NC[0, before.cells_N[0]]:
        raise ValueError(f"the world of {words[0]!r} has the robot or a marker inside a wall")
    after = before.copy()
    for word in words[end:]:
        _put(after, word, "=+-", size)
    if after.walls_NC[0, after.cells_N[0]] or (after.walls_NC[0] & (after.markers_NC[0] > 0)).any():
        raise ValueError(f"{words[end]!r}: the robot, or a marker, comes to be inside a wall")
    return before, after


def _put(world: Worlds, word: str, signs: str, size: int) -> None:
    """Do what a word says."""
    found = _WORD.fullmatch(word)
    if not found or found[1] not in signs or bool(found[4]) != (found[1] in _ROBOTS):
        told = {"@#*": "@r0c0N, #r0c0 or *r0c0", "=+-": "=r0c0N, +r0c0 or -r0c0"}[signs]
        raise ValueError(f"{word[:40]!r} cannot stand here; a word is like {told}")
    row, column = int(found[2]), int(found[3])
    if max(row, column) >= size:
        raise ValueError(f"{word!r} is outside the world; rows and columns are 0 to {size - 1}")
    cell, sign = place(size, row, column), found[1]
    if sign in _ROBOTS:
        world.cells_N[0], world.headings_N[0] = cell, HEADINGS.index(found[4])
    elif sign == "#":
        world.walls_NC[0, cell] = True
    else:
        lying = int(world.markers_NC[0, cell]) + (-1 if sign == "-" else 1)
        if not 0 <= lying <= MOST_MARKERS:
            raise ValueError(f"{word!r} leaves {lying} markers; there are 0 to {MOST_MARKERS} on a cell")
        world.markers_NC[0, cell] = lying
