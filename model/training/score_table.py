"""The arms of SCoRe as a table for people."""

from collections.abc import Callable
from typing import Any

from .study_table import spread

Cell = dict[str, Any]

_COLUMNS: list[tuple[str, Callable[[Cell], float]]] = [
    ("t1", lambda cell: cell["t1"]["value"]),
    ("t2", lambda cell: cell["value"]),
    ("delta", lambda cell: cell["delta"]["value"]),
    ("swap gap", lambda cell: cell["gap"]["value"]),
    ("fix", lambda cell: cell["fix"]),
    ("break", lambda cell: cell["break"]),
    ("changed", lambda cell: cell["changed"]),
]


def markdown(summary: dict[str, Any]) -> str:
    """A row an arm: means over seeds with their standard deviation."""
    lines = [f"| arm (seeds) | {' | '.join(title for title, _ in _COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for row, cells in cells_by_row(summary).items():
        values = [spread([number(cell) for cell in cells]) for _, number in _COLUMNS]
        lines.append(f"| {row} ({len(cells)}) | {' | '.join(values)} |")
    return "\n".join(lines)


def cells_by_row(summary: dict[str, Any]) -> dict[str, list[Cell]]:
    """Measurements of all seeds by the name of their row."""
    found: dict[str, list[Cell]] = {}
    for report in summary["rows"]:
        found.setdefault(report["row"], []).append(report["corrected"])
    return found
