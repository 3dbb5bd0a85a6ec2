"""Accuracy by what was generated for it: one answer, a corrected one and votes, at every depth. Needs the package `matplotlib`."""

from pathlib import Path
from typing import Any

from ...drawing import open_pyplot

Point = tuple[float, float]  # generated tokens of a problem, hidden ones included; accuracy
Cells = dict[str, dict[str, Any]]  # of one task, by metric and depth


def plot(report: dict[str, Any], file: Path) -> None:
    """Write a PNG: a picture of each task that voted."""
    pyplot = open_pyplot()
    voted = {name: cells for name, cells in report["tasks"].items() if "budget" in cells}
    figure, axes = pyplot.subplots(1, len(voted), figsize=(9.5 * len(voted), 5), squeeze=False, layout="constrained")
    for (name, cells), own in zip(voted.items(), axes[0], strict=True):
        for number, depth in enumerate(map(str, report["depths"])):
            _draw_votes(own, cells["budget"][depth]["curve"], depth, f"C{number}")
        steps = ladder(cells, [str(depth) for depth in report["depths"]])
        for number, (title, point) in enumerate(steps, 1):
            own.plot(*point, "k*", markersize=11, label=f"{number}: {title}, {point[1]:.3f}")
            own.annotate(str(number), point, xytext=(4, -12), textcoords="offset points", fontsize=9)
        own.plot(*zip(*(point for _, point in steps), strict=True), color="black", linewidth=0.8)
        own.set(xscale="log", xlabel="generated tokens a problem, hidden ones included", ylabel="accuracy")
        own.set(ylim=(0, 1.02), title=Path(name).name)
        own.xaxis.set_major_formatter(pyplot.LogFormatter())  # 20, and not 2 x 10^1
        own.xaxis.set_minor_formatter(pyplot.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        own.grid(alpha=0.3)
        own.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(file, dpi=130, format="png")
    pyplot.close(figure)


def ladder(cells: Cells, depths: list[str]) -> list[tuple[str, Point]]:
    """Greedy answers at the least and the greatest depth, corrected ones, and their vote: whatever of it was measured."""
    first, last = depths[0], depths[-1]
    steps = []
    if "generated" in cells:
        kinds = dict.fromkeys((first, last))
        steps += [
            (f"depth {depth}" if depth == "0" else f"thoughts of {depth}", _greedy(cells["generated"][depth]))
            for depth in kinds
        ]
    if "corrected" in cells:
        steps.append(("+ correction", _at(cells["corrected"][last], cells["corrected"][last])))
    best = cells["budget"][last]["curve"][-1]["corrected"]
    how = "+ votes weighed by a ranker" if "ranked" in best else "+ votes"
    return [*steps, (how, _at(best, best.get("ranked", best)))]


def _draw_votes(axes: Any, curve: list[dict[str, Any]], depth: str, colour: str) -> None:
    """Votes of first answers, dashed, and of corrected ones; where a ranker weighed them besides, even votes are thinner."""
    ranked = "ranked" in curve[0]["parallel"]
    for how, style, what in (("parallel", "--", "answers"), ("corrected", "-", "corrected answers")):
        sides = [point[how] for point in curve]
        even = [_at(side, side) for side in sides]
        label = f"depth {depth}: vote of {what}"
        axes.plot(*zip(*even, strict=True), style, color=colour, linewidth=0.8 if ranked else 1.6, label=label)
        if ranked:
            weighed = [_at(side, side["ranked"]) for side in sides]
            axes.plot(*zip(*weighed, strict=True), style, color=colour, linewidth=1.8, label=f"{label}, weighed")


def _at(costs: dict[str, Any], share: dict[str, Any]) -> Point:
    return costs["tokens"] + costs["thought_tokens"], share["value"]


def _greedy(cell: dict[str, Any]) -> Point:
    return cell["tokens"] / cell["n"] + cell["thought_tokens"], cell["value"]
