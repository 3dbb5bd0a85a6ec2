"""The study's rows as a table for people."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any


def markdown(summary: dict[str, Any]) -> str:
    """Accuracy by depth: the mean over families, then mean and standard deviation over seeds; and by family at its best."""
    depths = [str(depth) for depth in summary["depths"]]
    lines = [f"| | seeds | {' | '.join(f'depth {depth}' for depth in depths)} |", "|---" * (len(depths) + 2) + "|"]
    for row, reports in _by_row(summary).items():
        cells = [_spread([_mean(report, depth) for report in reports]) for depth in depths]
        lines.append(f"| {row} | {len(reports)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_family(summary: dict[str, Any], row: str = "quiet-star") -> str:
    """One row's accuracy by family and depth."""
    depths = [str(depth) for depth in summary["depths"]]
    reports = _by_row(summary)[row]
    lines = [f"| | {' | '.join(f'depth {depth}' for depth in depths)} |", "|---" * (len(depths) + 1) + "|"]
    for name in reports[0]["tasks"]:
        cells = [_spread([r["tasks"][name]["generated"][depth]["value"] for r in reports]) for depth in depths]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_row(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for report in summary["rows"]:
        found.setdefault(report["row"], []).append(report)
    return found


def _mean(report: dict[str, Any], depth: str) -> float:
    return mean(metrics["generated"][depth]["value"] for metrics in report["tasks"].values())


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
