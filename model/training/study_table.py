"""The study's rows as a table for people."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any


def markdown(summary: dict[str, Any]) -> str:
    """Accuracy by depth, the mean over families, of every row; below it the trained model by family."""
    depths = [str(depth) for depth in summary["depths"]]
    by_row = reports_by_row(summary)
    every = {f"{row} ({len(found)})": [family_means(r) for r in found] for row, found in by_row.items()}
    trained = by_row.get("quiet-star", [])
    families = trained[0]["tasks"] if trained else ()
    by_family = {
        name: [{d: cell["value"] for d, cell in r["tasks"][name]["generated"].items()} for r in trained]
        for name in families
    }
    return "\n\n".join([_table("row (seeds)", every, depths), _table("quiet-star", by_family, depths)])


def reports_by_row(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Reports of all seeds by the name of their row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for report in summary["rows"]:
        found.setdefault(report["row"], []).append(report)
    return found


def family_means(report: dict[str, Any]) -> dict[str, float]:
    """Depth to accuracy, the mean over families."""
    cells = [metrics["generated"] for metrics in report["tasks"].values()]
    return {depth: mean(cell[depth]["value"] for cell in cells) for depth in cells[0]}


def _table(corner: str, rows: dict[str, list[dict[str, float]]], depths: Sequence[str]) -> str:
    """Means over seeds with their standard deviation."""
    lines = [f"| {corner} | {' | '.join(f'depth {depth}' for depth in depths)} |", "|---" * (len(depths) + 1) + "|"]
    for name, seeds in rows.items():
        lines.append(
            f"| {name} | {' | '.join(spread([seed[depth] for seed in seeds if depth in seed]) for depth in depths)} |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """A mean over seeds with its standard deviation; nothing where there are none."""
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
