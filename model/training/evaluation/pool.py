"""The same evaluation of several checkpoints, such as the training seeds of one method, as one report of the same shape."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALIKE = (
    "depths",
    "n",
    "seed",
    "thought_temperature",
    "samples",
    "pairs",
    "temperature",
)  # or they measured different things


def read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Reports that `quietserve evaluate --out` wrote. Raises ValueError for a file that is none."""
    reports = []
    for file in files:
        try:
            reports.append(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: cannot be read: {error}") from error
        if (
            not isinstance(reports[-1], dict)
            or not {"model", "tasks", "mean", "command", "versions", *ALIKE} <= reports[-1].keys()
        ):
            raise ValueError(f"{file}: is no report of `quietserve evaluate --out`")
    return reports


def pool(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of every number.

    One with an interval has in its place the standard deviation, `sd`, and what it was in `each` report, `each_ci95` beside it.

    Raises ValueError for reports that measured different things.
    """
    first = reports[0]
    for name in ALIKE:
        for one in reports[1:]:
            if one[name] != first[name]:
                raise ValueError(
                    f"--pool has reports of {name} {first[name]} and {one[name]}; it must be the same in all"
                )
    return {
        "model": [one["model"] for one in reports],
        **{name: first[name] for name in ALIKE},
        "tasks": _mean([one["tasks"] for one in reports], "tasks"),
        "mean": _mean([one["mean"] for one in reports], "mean"),
        "commands": [one["command"] for one in reports],
        "versions": first["versions"],
    }


def interval(cell: dict[str, Any], key: str = "value") -> tuple[float, float]:
    """Where a measured number lies: its confidence interval, or of a mean over checkpoints one standard deviation to each side."""
    low, high = cell["ci95"] if "ci95" in cell else (cell[key] - cell["sd"], cell[key] + cell["sd"])
    return low, high


def _mean(found: Sequence[Any], place: str) -> Any:
    first = found[0]
    if isinstance(first, dict):
        if any(one.keys() != first.keys() for one in found):
            raise ValueError(f"--pool has reports whose {place} differ; all must have measured the same")
        means = {name: _mean([one[name] for one in found], f"{place}.{name}") for name in first if name != "ci95"}
        return means | (_spread(found) if "ci95" in first else {})
    if isinstance(first, list):
        if any(len(one) != len(first) for one in found):
            raise ValueError(f"--pool has reports whose {place} differ in length; all must have measured the same")
        return [_mean(each, place) for each in zip(*found, strict=True)]
    if all(one == first for one in found):
        return first
    return None if None in found else statistics.fmean(found)


def _spread(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the number that a cell has its interval for."""
    values = [cell["value"] if "value" in cell else cell["gain"] for cell in cells]
    return {"sd": statistics.stdev(values), "each": values, "each_ci95": [cell["ci95"] for cell in cells]}
