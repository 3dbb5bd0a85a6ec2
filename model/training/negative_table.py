"""NAT, NCE and their arms as tables for people."""

from collections.abc import Sequence
from typing import Any

from .study_table import reports_by_row, spread


def markdown(summary: dict[str, Any]) -> str:
    """A row an arm, how far `nat` and `nce` are ahead of each, and whose right answers are the same."""
    by_row = reports_by_row(summary)
    lines = _head("arm (seeds)", ["accuracy"])
    lines += [_line(f"{row} ({len(found)})", [spread([r["value"] for r in found])]) for row, found in by_row.items()]
    if summary["compared"]:
        lines += [
            "",
            *_head("ahead", ["points", "95 % CI", "relative", "McNemar's p by seed"]),
            *map(_ahead, summary["compared"]),
        ]
    if summary["overlaps"]:
        lines += ["", *_head("right answers of", ["both / each", "IoU"]), *map(_overlap, summary["overlaps"])]
    return "\n".join(lines)


def _ahead(pair: dict[str, Any]) -> str:
    low, high = (100 * end for end in pair["ci95"])
    chances = ", ".join(f"{chance:.2g}" for chance in pair["mcnemar"])
    share = f"{pair['relative']['value']:+.0%}" if "relative" in pair else ""
    cells = [f"{100 * pair['value']:+.1f}", f"{low:+.1f} to {high:+.1f}", share, chances]
    return _line(f"{pair['row']} of {pair['rival']}", cells)


def _overlap(pair: dict[str, Any]) -> str:
    counts = ", ".join(f"{one['both']} / {one['first']}, {one['second']}" for one in pair["seeds"])
    return _line(
        f"{pair['row']} and {pair['other']}",
        [counts, spread([one["iou"] for one in pair["seeds"] if one["iou"] is not None])],
    )


def _head(first: str, rest: Sequence[str]) -> list[str]:
    return [_line(first, rest), "|---" * (len(rest) + 1) + "|"]


def _line(first: str, rest: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(rest)} |"
