"""Votes and rankers as a picture; needs the optional package `matplotlib`."""

from pathlib import Path
from statistics import mean
from typing import Any

from ..drawing import open_pyplot
from .rank_table import VOTED
from .rank_votes import WAYS
from .study_table import reports_by_row

SIZE = "16"  # answers of the votes on the right
# Gains that a simulation of independent answers has (single .35, majority .51 at 16), by pairwise accuracy.
SIMULATED = {
    "ranker": {0.6: 0.023, 0.7: 0.061, 0.8: 0.124, 0.9: 0.208},
    "best-of-n": {0.6: -0.05, 0.7: 0.0, 0.8: 0.1, 0.9: 0.2},
}


def plot(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracy by the number of answers for every way of voting, and what a vote gains by how good its ranker is."""
    pyplot = open_pyplot()
    by_row = reports_by_row(summary)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    found = by_row.get(VOTED) or next(iter(by_row.values()))
    sizes = list(found[0]["votes"])
    for way in WAYS:
        shares = [mean(report["votes"][size][way]["value"] for report in found) for size in sizes]
        left.plot(
            list(map(int, sizes)),
            shares,
            marker="o",
            markersize=3,
            label=way,
            linestyle="--" if way == "oracle" else "-",
        )
    left.axhline(mean(report["single"] for report in found), color="grey", linewidth=0.8, label="one answer")
    left.set(
        xscale="log", xticks=list(map(int, sizes)), xticklabels=sizes, xlabel="answers", ylabel="accuracy of the vote"
    )
    left.minorticks_off()
    for way, colour in (("ranker", "tab:blue"), ("one-plus", "tab:green"), ("best-of-n", "tab:orange")):
        points = [
            (r["pairwise"]["value"], r["votes"][SIZE][way]["gain"]["value"]) for row in by_row.values() for r in row
        ]
        right.scatter(*zip(*points, strict=True), s=14, color=colour, label=way)
        if way in SIMULATED:
            right.plot(
                *zip(*SIMULATED[way].items(), strict=True),
                color=colour,
                linewidth=0.8,
                linestyle=":",
                label=f"{way}, simulated",
            )
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(xlabel="pairwise accuracy of the ranker", ylabel=f"gain over the majority of {SIZE}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
