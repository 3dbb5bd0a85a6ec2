"""An evaluation's report as a picture; needs the optional package `matplotlib`."""

from pathlib import Path
from typing import Any

from ...drawing import open_pyplot
from . import budget_plot
from .pool import interval

_STYLES = {"generated": "o-", "scored": "s--", "maj": "^:", "corrected": "D-."}


def plot(report: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracy by depth with its intervals, beside it the gain by tenth of the base's loss.

    Where answers voted it is accuracy by what was generated (`budget_plot`).
    """
    if any("budget" in cells for cells in report["tasks"].values()):
        budget_plot.plot(report, file)
        return
    pyplot = open_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    draw_accuracy(left, report)
    draw_tenths(right, report)
    models = report["model"]
    figure.suptitle(f"{models if isinstance(models, str) else ', '.join(models)}, seed {report['seed']}")
    figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)


def draw_accuracy(axes: Any, report: dict[str, Any]) -> None:
    """Accuracy by depth of every task and metric, with its intervals."""
    depths = report["depths"]
    for number, (name, cells) in enumerate(report["tasks"].items()):
        for metric, style in _STYLES.items():
            if metric in cells:
                by_depth = [cells[metric][str(depth)] for depth in depths]
                _draw_line(axes, depths, by_depth, "value", style, f"C{number}", f"{Path(name).name}, {metric}")
    axes.set(
        title="accuracy by thought depth", xlabel="thought depth", ylabel="share, or mean probability", ylim=(0, 1.02)
    )
    axes.set_xticks(depths)
    _finish(axes)


def draw_tenths(axes: Any, report: dict[str, Any]) -> None:
    """The gain at the greatest depth by tenth of the base's loss."""
    depth = str(max(report["depths"]))
    for number, (name, cells) in enumerate(report["tasks"].items()):
        if row := cells.get("perplexity", {}).get(depth, {}).get("tenths"):
            _draw_line(axes, range(1, len(row) + 1), row, "gain", "o-", f"C{number}", Path(name).name)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(title=f"gain at depth {depth}", xlabel="tenth of the base's loss, hardest last", ylabel="nats a token")
    _finish(axes)


def _draw_line(axes: Any, across: Any, cells: Any, key: str, style: str, colour: str, label: str) -> None:
    values = [cell[key] for cell in cells]
    # An interval of a bootstrap need not hold the value when there are few units.
    intervals = [interval(cell, key) for cell in cells]
    ends = [(max(0.0, v - low), max(0.0, high - v)) for v, (low, high) in zip(values, intervals, strict=True)]
    below, above = zip(*ends, strict=True)
    axes.errorbar(list(across), values, yerr=[below, above], fmt=style, color=colour, label=label, capsize=2)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
