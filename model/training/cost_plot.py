"""What `quietserve train cost` measured as a picture; needs the optional package `matplotlib`."""

from pathlib import Path
from typing import Any

from ..drawing import open_pyplot
from .steps import WAYS

_COLOURS = dict(zip(WAYS, ("#0b5fa5", "#6aa9dd", "#d98c21"), strict=True))
_STYLES = ("o-", "s--", "^:", "D-.")


def plot(report: dict[str, Any], file: Path) -> None:
    """Write a PNG: tokens and thoughts a second of each way, and the peak of memory by the length of the texts."""
    pyplot = open_pyplot()
    figure, (tokens, thoughts, memory) = pyplot.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    rows, size = report["speed"]["rows"], report["size"]
    _draw_bars(tokens, rows, "tokens_per_s", "training tokens a second")
    _draw_bars(thoughts, rows, "thoughts_per_s", "thoughts a second")
    _draw_memory(memory, report)
    told = ", ".join(f"{name} {value}" for name, value in size.items())
    figure.suptitle(
        f"One training step, {report['shape']} parameters: {told}; medians of {report['n']}, 95 % intervals"
    )
    figure.savefig(file, dpi=130, format="png")
    pyplot.close(figure)


def _draw_bars(axes: Any, rows: dict[str, Any], key: str, title: str) -> None:
    values = [rows[way][key]["median"] for way in WAYS]
    ends = [rows[way][key]["ci95"] for way in WAYS]
    below, above = ([abs(end[i] - value) for end, value in zip(ends, values, strict=True)] for i in (0, 1))
    axes.bar(WAYS, values, yerr=[below, above], color=[_COLOURS[way] for way in WAYS], capsize=4)
    axes.set(title=title)
    axes.grid(alpha=0.3, axis="y")


def _draw_memory(axes: Any, report: dict[str, Any]) -> None:
    cells = [cell for cell in report["memory"] if "peak_bytes" in cell]
    counts = sorted({cell["thoughts"] for cell in cells})
    for way in WAYS:
        for number, thoughts in enumerate(counts):
            line = sorted(
                (cell["length"], cell["peak_bytes"] / 2**20)
                for cell in cells
                if (cell["way"], cell["thoughts"]) == (way, thoughts)
            )
            if line:
                style = _STYLES[number % len(_STYLES)]
                axes.plot(*zip(*line, strict=True), style, color=_COLOURS[way], label=f"{way}, {thoughts} thoughts")
    if not cells:
        axes.set_axis_off()
        return
    lengths = sorted({cell["length"] for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set(title=f"peak of memory, batch {report['memory_batch']}, MiB", xlabel="tokens of a text")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
