"""NAT, NCE and their arms as a picture; needs the optional package `matplotlib`."""

from pathlib import Path
from statistics import mean
from typing import Any

from ..drawing import open_pyplot
from .study_table import reports_by_row


def plot(summary: dict[str, Any], file: Path) -> None:
    """Write a PNG: accuracy by arm, how far `nat` and `nce` are ahead, and the negative share while `nat` learns."""
    pyplot = open_pyplot()
    figure, (shares, leads, learning) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    by_row = reports_by_row(summary)
    for place, found in enumerate(by_row.values()):
        shares.barh(place, mean(report["value"] for report in found), color="tab:blue", alpha=0.4)
        for report in found:
            low, high = (abs(end - report["value"]) for end in report["ci95"])
            shares.errorbar(report["value"], place, xerr=[[low], [high]], fmt=".", color="tab:blue", alpha=0.7)
    _name(shares, list(by_row))
    shares.set(xlabel="accuracy, each seed with its 95 % interval", xlim=(0, 1))
    for place, pair in enumerate(summary["compared"]):
        low, high = (100 * abs(end - pair["value"]) for end in pair["ci95"])
        leads.errorbar(100 * pair["value"], place, xerr=[[low], [high]], fmt="o", color="tab:orange", capsize=2)
    _name(leads, [f"{pair['row']} - {pair['rival']}" for pair in summary["compared"]])
    leads.axvline(0, color="black", linewidth=0.8)
    leads.set(xlabel="points ahead, 95 % interval")
    for row, found in by_row.items():
        for report in found:
            lines = [line for line in report["history"] if "alpha_negative" in line]
            if lines:
                values = [line["alpha_negative"] for line in lines]
                learning.plot([line["step"] for line in lines], values, label=f"{row}, {report['training_seed']}")
    learning.set(xlabel="update of the second stage", ylabel="mean share of the negative adapter")
    if learning.lines:
        learning.legend(frameon=False, fontsize="small")
    for axes in (shares, leads, learning):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _name(axes: Any, names: list[str]) -> None:
    """The rows' names, the first one above."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
