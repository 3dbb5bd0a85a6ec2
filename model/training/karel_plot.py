"""What Karel models learn as a picture, the paper's figures side by side; needs the optional package `matplotlib`."""

from pathlib import Path
from statistics import mean
from typing import Any

from ..drawing import open_pyplot
from .karel_table import CONTROLS, content_and_accuracy, phases, r_squared
from .karel_traces import CONTENTS, PROPERTIES

_STYLES = dict(zip(CONTENTS, ("o--", "s-"), strict=True))


def plot(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracy, perplexity and variety, content over training and against accuracy, offsets, meanings."""
    pyplot, runs = open_pyplot(), summary["runs"]
    figure, axes = pyplot.subplots(2, 3, figsize=(16, 8.5), layout="constrained")
    for run in runs:
        _draw_training(axes[0, 0], axes[0, 1], run["evaluations"], run["run"])
    _mark(axes[0, 0], [run["evaluations"] for run in runs])
    _over_training(axes[0, 2], runs)
    _against(axes[1, 0], runs)
    _offsets(axes[1, 1], runs)
    _meanings(axes[1, 2], runs)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize="x-small")
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def plot_runs(runs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Write a PNG of what was measured of runs on their way: accuracy and variety with the phases marked, and perplexity."""
    pyplot = open_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, evaluations in runs.items():
        _draw_training(left, right, evaluations, name)
    _mark(left, list(runs.values()))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _draw_training(left: Any, right: Any, evaluations: list[dict[str, Any]], name: str) -> None:
    """Accuracy and variety on one panel, perplexity on another."""
    steps = [line["step"] for line in evaluations]
    (line,) = left.plot(steps, [each["accuracy"] for each in evaluations], label=f"accuracy, {name}")
    for key, style in (("unique", ":"), ("top", "--")):
        told = {"unique": "different programs", "top": "commonest program"}[key]
        label = None if told in left.get_legend_handles_labels()[1] else told  # once, not for every run
        left.plot(steps, [each[key] for each in evaluations], style, color=line.get_color(), alpha=0.6, label=label)
    left.set(xlabel="step", ylabel="share", ylim=(0, 1))
    right.plot(steps, [each["perplexity"] for each in evaluations], label=name)
    right.set(xlabel="step", ylabel="perplexity of the worlds' programs", yscale="log")


def _mark(axes: Any, runs: list[list[dict[str, Any]]]) -> None:
    """Where the phases begin, on average."""
    begins = zip(*map(phases, runs), strict=True)
    for steps, name, height in zip(begins, ("syntax", "semantics"), (0.06, 0.02), strict=True):
        axes.axvline(mean(steps), color="grey", linewidth=0.8)
        axes.text(mean(steps), height, f" {name}", fontsize="x-small", color="grey")


def _over_training(axes: Any, runs: list[dict[str, Any]]) -> None:
    for number, run in enumerate(runs):
        found = [each for each in run["over_training"] if each["probes"]]
        if not found:
            continue
        for content, style in _STYLES.items():
            points = [(each["step"], each["probes"][content]) for each in found]
            axes.plot(
                *zip(*points, strict=True),
                style,
                color=f"C{number}",
                markersize=3,
                label=f"{run['run']}, {content}",
            )
    axes.set(xlabel="step", ylabel="semantic content, linear probe")


def _against(axes: Any, runs: list[dict[str, Any]]) -> None:
    for number, run in enumerate(runs):
        if not any(each["probes"] for each in run["over_training"]):
            continue
        for content, style in _STYLES.items():
            label = f"{run['run']}, {content}, R² {r_squared(run, content):.2f}"
            points = zip(*content_and_accuracy(run, content), strict=True)
            axes.plot(*points, style[0], color=f"C{number}", markersize=4, label=label)
    axes.set(xlabel="semantic content, linear probe", ylabel="accuracy of programs")


def _offsets(axes: Any, runs: list[dict[str, Any]]) -> None:
    offsets = sorted(int(offset) for offset in runs[0]["offsets"] if all(run["offsets"][offset] for run in runs))
    for number, name in enumerate(PROPERTIES):
        cells = [[run["offsets"][str(offset)][name] for run in runs] for offset in offsets]
        (line,) = axes.plot(
            offsets, [mean(c["skill"] for c in each) for each in cells], marker="o", markersize=3, label=name
        )
        for control, style in zip(CONTROLS, (":", "--"), strict=True):
            shares = [mean(c[control]["skill"] for c in each) for each in cells]
            label = None if number else control.replace("_", " ")  # once, not for every property
            axes.plot(offsets, shares, style, color=line.get_color(), alpha=0.6, label=label)
    axes.set(xlabel="operations from the one that the state chose", ylabel="skill of a linear probe", xticks=offsets)


def _meanings(axes: Any, runs: list[dict[str, Any]]) -> None:
    meanings = [name for name in runs[0]["meanings"] if all(run["meanings"][name] for run in runs)]
    wide = 0.8 / len(PROPERTIES)
    for number, name in enumerate(PROPERTIES):
        cells = [[run["meanings"][meaning][name] for run in runs] for meaning in meanings]
        heights = [mean(cell["skill"] for cell in each) for each in cells]
        ends = [[mean(cell["skill_ci95"][end] for cell in each) for each in cells] for end in (0, 1)]
        below = [max(0.0, height - low) for height, low in zip(heights, ends[0], strict=True)]
        above = [max(0.0, high - height) for height, high in zip(heights, ends[1], strict=True)]
        places = [place + (number - (len(PROPERTIES) - 1) / 2) * wide for place in range(len(meanings))]
        axes.bar(places, heights, wide, yerr=(below, above), capsize=2, label=name)
        alone = [mean(cell["tokens_alone"]["skill"] for cell in each) for each in cells]
        axes.scatter(places, alone, marker="_", color="black", zorder=3, label=None if number else "tokens alone")
    axes.set(xticks=range(len(meanings)), xticklabels=meanings, ylabel="skill of a new linear probe")
