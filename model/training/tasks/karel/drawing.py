"""Worlds and pairs of worlds as the paper writes them: every cell of every world a word, row by row.

Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "Training a
Synthetic Language Model". Markers under the robot cannot be seen in it; the verifier compares them nevertheless.
"""

from .worlds import HEADINGS, Worlds, width

_ROBOT = dict(zip(HEADINGS, ("__up__", "__right__", "__down__", "__left__"), strict=True))
_WALL, _SPACE = "__wall__", "__space__"


def write(before: Worlds, after: Worlds) -> str:
    """Pairs, one behind the other."""
    pairs = zip(before, after, strict=True)
    return "\n".join(
        f"{what}{number}\n{draw(world)}"
        for number, pair in enumerate(pairs)
        for what, world in zip(("Input", "Output"), pair, strict=True)
    )


def draw(world: Worlds) -> str:
    """One world; the wall around it is not drawn."""
    wide = width(world.size)
    words = [
        _WALL if wall else f"__{count}_Marker__" if count else _SPACE
        for wall, count in zip(world.walls_NC[0].tolist(), world.markers_NC[0].tolist(), strict=True)
    ]
    words[int(world.cells_N[0])] = _ROBOT[HEADINGS[int(world.headings_N[0])]]
    rows = [words[begin + 1 : begin + wide - 1] for begin in range(wide, wide * (wide - 1), wide)]
    return "\n".join(" ".join(row) for row in rows)


def vocabulary() -> list[str]:
    """Every word."""
    numbered = [f"{what}{number}" for what in ("Input", "Output") for number in range(10)]
    return [_WALL, _SPACE, *_ROBOT.values(), *(f"__{count}_Marker__" for count in range(1, 10)), *numbered]
