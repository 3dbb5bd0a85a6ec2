"""The arms of SCoRe as tables for people."""

from collections.abc import Callable, Sequence
from typing import Any

from .study_table import reports_by_row, spread

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
    """A row an arm, and a row each way of voting: means over seeds with their standard deviation."""
    by_row = reports_by_row(summary)
    lines = [_line("arm (seeds)", [title for title, _ in _COLUMNS]), _rule(len(_COLUMNS))]
    for row, found in by_row.items():
        values = [spread([number(report["corrected"]) for report in found]) for _, number in _COLUMNS]
        lines.append(_line(f"{row} ({len(found)})", values))
    return "\n".join([*lines, *_votes(by_row)])


def _votes(by_row: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Accuracies of votes by the number of attempts they take; nothing where nobody voted."""
    voting = vote_curves(by_row)
    if not voting:
        return []
    attempts = [f"{2 * point['k']} attempts" for point in next(iter(voting.values()))[0]]
    lines = ["", _line("vote of (seeds)", attempts), _rule(len(attempts))]
    for row, found in voting.items():
        for how, name in (("parallel", "first answers"), ("corrected", "corrected ones")):
            shares = [spread([point[how]["value"] for point in points]) for points in zip(*found, strict=True)]
            lines.append(_line(f"{row}, {name} ({len(found)})", shares))
    return lines


def vote_curves(by_row: dict[str, list[dict[str, Any]]]) -> dict[str, list[list[dict[str, Any]]]]:
    """Of every row that voted the curves of its seeds."""
    curves = {row: [r["budget"]["curve"] for r in found if "budget" in r] for row, found in by_row.items()}
    return {row: found for row, found in curves.items() if found}


def _line(first: str, rest: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(rest)} |"


def _rule(columns: int) -> str:
    return "|---" * (columns + 1) + "|"
