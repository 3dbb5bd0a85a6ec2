"""Throughput against batch and against prompt length, a line a system; needs the optional package `matplotlib`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..drawing import open_pyplot

Row = dict[str, Any]

# Fixed, so that a system looks the same in every picture: ours in one family, the others apart.
STYLES: dict[str, tuple[str, str]] = {
    "plain": ("#4c4c4c", "o-"),
    "pipeline": ("#0b5fa5", "s-"),
    "sequential": ("#6aa9dd", "^-"),
    "recompute": ("#b9d4ea", "v-"),
    "transformers": ("#d98c21", "o--"),
    "transformers-cb": ("#b3541e", "s--"),
    "llama.cpp": ("#3d8b4f", "D--"),
}
_DEPTH = 8  # the thought depth that is drawn, or the nearest that was measured


def plot(rows: Sequence[Row], file: Path) -> None:
    """Write a PNG: a column a shape; above against the batch, below against the prompt."""
    pyplot = open_pyplot()
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = pyplot.subplots(2, len(shapes), figsize=(5 * len(shapes), 8), squeeze=False, layout="constrained")
    depth = _nearest([row["depth"] for row in rows if row["depth"]], _DEPTH)
    for column, shape in enumerate(shapes):
        own = [row for row in rows if row["shape"] == shape and _is_drawn(row, depth)]
        _draw(axes[0][column], own, "batch", "prompt", f"{shape}, prompt of {{}} tokens")
        _draw(axes[1][column], own, "prompt", "batch", f"{shape}, batch of {{}}")
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [name for name in STYLES if name in handles]
    wide = min(len(names), 3 * len(shapes))
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=wide, frameon=False)
    figure.suptitle(f"Visible tokens a second; thoughts of {depth} tokens" if depth else "Visible tokens a second")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _is_drawn(row: Row, depth: int) -> bool:
    """Thinking systems at one depth; the others where they are compared with each other, or else beside them."""
    return row["depth"] == (depth if row["system"] in ("recompute", "sequential", "pipeline") else 0)


def _draw(ax: Any, rows: Sequence[Row], across: str, fixed: str, title: str) -> None:
    if not rows:
        ax.set_visible(False)
        return
    values = sorted({row[fixed] for row in rows})
    at = values[len(values) // 2] if fixed == "prompt" else values[0]
    for name, (colour, style) in STYLES.items():
        line = sorted((row for row in rows if row["system"] == name and row[fixed] == at), key=lambda row: row[across])
        if not line:
            continue
        speeds = [row["tokens_per_s"] for row in line]
        ends = [row["spread"]["tokens_per_s"] for row in line]
        below, above = ([abs(end[i] - speed) for end, speed in zip(ends, speeds, strict=True)] for i in (0, 1))
        ax.errorbar(
            [row[across] for row in line], speeds, yerr=[below, above], fmt=style, color=colour, label=name, capsize=2
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = sorted({row[across] for row in rows})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.set(title=title.format(at), xlabel=across + (" size" if across == "batch" else " length"), ylabel="tokens/s")


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(value - wanted), default=0)
