"""The arms of SCoRe as a picture; needs the optional package `matplotlib`."""

from pathlib import Path
from statistics import mean
from typing import Any

from ..drawing import open_pyplot
from .score_table import vote_curves
from .study_table import reports_by_row

SMOOTHED = 8  # lines of the log in one point


def plot(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: both turns over training for every arm, fix and break rates, and how much of the first answer is kept."""
    pyplot = open_pyplot()
    trained = {row: found for row, found in reports_by_row(summary).items() if found[0]["history"]}
    columns = max(1, len(trained))
    figure, axes = pyplot.subplots(2, columns, figsize=(3 * columns, 6), squeeze=False, layout="constrained")
    for (row, reports), (above, below) in zip(trained.items(), axes.T, strict=False):
        for report in reports:
            steps, first, second = _smooth(report["history"])
            above.plot(steps, first, color="tab:blue", alpha=0.7)
            above.plot(steps, second, color="tab:orange", alpha=0.7)
        above.set(title=row, ylim=(0, 1), xlabel="update")
        above.grid(alpha=0.3)
        _draw_edits(below, [report["corrected"] for report in reports])
    axes[0][0].set_ylabel("accuracy: blue t1, orange t2")
    axes[1][0].set_ylabel("share of second answers")
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def plot_budget(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracies of votes by the number of attempts that they took, for every row that voted."""
    pyplot = open_pyplot()
    voting = vote_curves(reports_by_row(summary))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (row, found) in enumerate(voting.items()):
        attempts = [2 * point["k"] for point in found[0]]
        for how, style in (("parallel", "o--"), ("corrected", "s-")):
            means = [mean(point[how]["value"] for point in points) for points in zip(*found, strict=True)]
            axes.plot(attempts, means, style, color=f"C{number}", label=f"{row}, {how}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(attempts, [str(number) for number in attempts])
    axes.set(xlabel="attempts a problem", ylabel="accuracy of their vote", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if voting:
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _smooth(history: list[dict[str, float]]) -> tuple[list[float], list[float], list[float]]:
    """Steps and both turns' accuracies, means of a few lines."""
    parts = [history[first : first + SMOOTHED] for first in range(0, len(history), SMOOTHED)]
    steps, first, second = ([mean(line[name] for line in part) for part in parts] for name in ("step", "t1", "t2"))
    return steps, first, second


def _draw_edits(axes: Any, cells: list[dict[str, Any]]) -> None:
    totals = [sum(counts) for counts in zip(*(cell["edits"] for cell in cells), strict=True)]
    shares = [total / sum(totals) for total in totals]
    axes.bar([(tenth + 0.5) / len(totals) for tenth in range(len(totals))], shares, width=0.9 / len(totals))
    fix, lost = (mean(cell[name] for cell in cells) for name in ("fix", "break"))
    axes.set(title=f"fix {fix:.2f}, break {lost:.2f}", xlabel="share of the first answer that is kept", ylim=(0, 1))
