"""Rankers and votes as tables for people."""

from typing import Any

from .rank_votes import WAYS
from .study_table import reports_by_row, spread

VOTED = "states"  # the row whose votes are told in every way


def markdown(summary: dict[str, Any]) -> str:
    """A row a ranker, and a row each way of voting: means over seeds with their standard deviation."""
    by_row = reports_by_row(summary)
    lines = ["| ranker (seeds) | pairs | calibration error | gain at 16 | best of 16 |", "|---|---|---|---|---|"]
    for row, found in by_row.items():
        cells = [
            [report["pairwise"]["value"] for report in found],
            [report["ece"] for report in found],
            [report["votes"]["16"]["ranker"]["gain"]["value"] for report in found],
            [report["votes"]["16"]["best-of-n"]["gain"]["value"] for report in found],
        ]
        lines.append(f"| {row} ({len(found)}) | {' | '.join(map(spread, cells))} |")
    found = by_row.get(VOTED) or next(iter(by_row.values()))
    sizes = list(found[0]["votes"])
    lines += ["", f"| vote of (seeds) | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for way in WAYS:
        shares = [spread([report["votes"][size][way]["value"] for report in found]) for size in sizes]
        lines.append(f"| {way} ({len(found)}) | {' | '.join(shares)} |")
    single = spread([report["single"] for report in found])
    return "\n".join([*lines, "", f"A single answer is right with {single}."])
