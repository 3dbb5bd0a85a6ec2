"""The study's rows as a picture; needs the optional package `matplotlib`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..drawing import open_pyplot
from .study_table import family_means, reports_by_row

TENTHS = 10


def plot(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracy by depth of every row, of the trained model by family, and its gain by how hard a token is."""
    pyplot = open_pyplot()
    figure, (rows, families, tenths) = pyplot.subplots(1, 3, figsize=(17, 5), layout="constrained")
    depths, by_row = summary["depths"], reports_by_row(summary)
    for row, reports in by_row.items():
        curves = [family_means(report) for report in reports]
        known = [depth for depth in depths if str(depth) in curves[0]]
        values = [[curve[str(depth)] for curve in curves] for depth in known]
        _draw(rows, known, values, row, "o-" if row == "quiet-star" else "s--")
    trained = by_row.get("quiet-star", [])
    for name in trained[0]["tasks"] if trained else ():
        cells = [[r["tasks"][name]["generated"][str(depth)]["value"] for r in trained] for depth in depths]
        _draw(families, depths, cells, name, "o-")
    if trained:
        _draw(tenths, range(1, TENTHS + 1), _gains(trained, max(depths)), "quiet-star", "o-")
    rows.set(
        title="mean over families, standard deviation over seeds",
        xlabel="thought depth",
        ylabel="accuracy",
        ylim=(0, 1),
    )
    families.set(title="quiet-star by family", xlabel="thought depth", ylim=(0, 1))
    tenths.set(
        title=f"gain at depth {max(depths)}", xlabel="tenth of the base's loss, hardest last", ylabel="nats a token"
    )
    for axes in (rows, families, tenths):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=130, format="png")
    pyplot.close(figure)


def _gains(reports: Sequence[dict[str, Any]], depth: int) -> list[list[float]]:
    """By tenth, for each seed the mean over families."""
    found = []
    for tenth in range(TENTHS):
        cells = [[m["perplexity"][str(depth)]["tenths"][tenth]["gain"] for m in r["tasks"].values()] for r in reports]
        found.append([mean(gains) for gains in cells])
    return found


def _draw(axes: Any, across: Sequence[int], values: Sequence[Sequence[float]], label: str, style: str) -> None:
    """Means over seeds, with their standard deviation where there are several."""
    spread = [stdev(each) if len(each) > 1 else 0.0 for each in values]
    axes.errorbar(list(across), [mean(each) for each in values], yerr=spread, fmt=style, label=label, capsize=2)
