"""An evaluation's report as a table for people: a block for each number, a row for each task, a column for each depth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .pool import interval

Report = dict[str, Any]
Cell = dict[str, Any]

# metric, which number of its cells (None: the cell's own), what it is called
_BLOCKS: list[tuple[str, str | None, str]] = [
    ("generated", None, "generated answers right"),
    ("scored", None, "probability of the right answer"),
    ("scored", "likeliest", "likeliest choice right"),
    ("maj", None, "majority of {samples} chains right"),
    ("maj", "single", "one chain of thought right"),
    ("corrected", "t1", "first answer right"),
    ("corrected", None, "second answer right"),
    ("corrected", "delta", "gained by correction"),
    ("corrected", "gap", "more than behind another's answer"),
    ("budget", "parallel", "vote of {parallel} answers right"),
    ("budget", None, "vote of {corrected} corrected ones"),
    ("budget", "ahead", "which is ahead by"),
    ("budget", "ranked", "vote weighed by the ranker"),
    ("perplexity", None, "perplexity"),
    ("perplexity", "gain", "gain over the base, nats a token"),
]


def table(report: Report) -> str:
    """The report with its 95 % intervals; a mean over the tasks where there are several."""
    depths = [str(depth) for depth in report["depths"]]
    blocks = [lines for block in _BLOCKS if (lines := _block(report, depths, *block))]
    blocks += [lines for lines in (_tenths(report, str(max(report["depths"]))),) if lines]
    several = isinstance(report["model"], list)
    kind = (
        f"means of {len(report['model'])} checkpoints, one standard deviation to each side"
        if several
        else "with 95 % intervals"
    )
    foot = f"{kind}; {report['n']} items a task or fewer, seed {report['seed']}"
    return "\n\n".join(["\n".join(lines) for lines in blocks] + [foot])


def _block(report: Report, depths: list[str], metric: str, part: str | None, title: str) -> list[str]:
    rows = {name: cells[metric] for name, cells in report["tasks"].items() if metric in cells}
    found = {
        name: {depth: cell if part is None else cell[part] for depth, cell in by_depth.items()}
        for name, by_depth in rows.items()
        if part is None or all(part in cell for cell in by_depth.values())
    }
    if not found:
        return []
    lines = [
        _line(
            title.format(samples=report.get("samples"), **_voters(rows)),
            [f"depth {depth}" for depth in depths],
        )
    ]
    lines += [
        _line(Path(name).name, [_with_interval(by_depth[depth]) for depth in depths])
        for name, by_depth in found.items()
    ]
    if len(found) > 1:
        lines.append(_mean_line("mean", found, depths, lambda cell: cell["value"]))
    if metric == "generated":
        lines.append(_forwards(rows, depths))
    if metric == "perplexity" and part:
        lines.append(_mean_line("mixing weight", rows, depths, lambda cell: cell["weight"]))
    return lines


def _voters(rows: dict[str, Any]) -> dict[str, int]:
    """How many answers of each kind the largest votes had."""
    curve = next(iter(next(iter(rows.values())).values())).get("curve")
    return {"parallel": 2 * curve[-1]["k"], "corrected": curve[-1]["k"]} if curve else {}


def _mean_line(title: str, rows: dict[str, Any], depths: list[str], number: Callable[[Cell], float]) -> str:
    means = [sum(number(by_depth[depth]) for by_depth in rows.values()) / len(rows) for depth in depths]
    return _line(title, [f"{mean:.3f}" for mean in means])


def _forwards(rows: dict[str, Any], depths: list[str]) -> str:
    """Forwards a visible token, over all tasks."""
    totals = [[sum(rows[name][d][what] for name in rows) for what in ("forwards", "tokens")] for d in depths]
    return _line("forwards a token", [f"{forwards / tokens:.2f}" if tokens else "" for forwards, tokens in totals])


def _tenths(report: Report, depth: str) -> list[str]:
    """Gain by tenth of the base's loss at the deepest depth, easiest tokens first."""
    rows = {
        name: cells["perplexity"][depth]["tenths"] for name, cells in report["tasks"].items() if "perplexity" in cells
    }
    rows = {name: row for name, row in rows.items() if row}
    if not rows or depth == "0":
        return []
    lines = [f"{'gain by tenth of the base loss, depth ' + depth:<42}" + "".join(f"{i:>7}" for i in range(1, 11))]
    return lines + [
        f"{Path(name).name:<42}" + "".join(f"{tenth['gain']:>7.3f}" for tenth in row) for name, row in rows.items()
    ]


def _with_interval(cell: Cell) -> str:
    value, low, high = (f"{x:.3f}" if abs(x) < 1000 else f"{x:.3g}" for x in (cell["value"], *interval(cell)))
    return f"{value} [{low} {high}]"


def _line(title: str, cells: list[str]) -> str:
    return f"{title:<34}" + "".join(f"{cell:>24}" for cell in cells)
