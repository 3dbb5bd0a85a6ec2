"""What Karel models know, as tables for people; and what is worked out from their checkpoints."""

from collections.abc import Callable, Sequence
from math import isnan
from statistics import mean
from typing import Any

from .karel_traces import CONTENTS, PROPERTIES
from .study_table import spread

CONTROLS = ("tokens_alone", "random_weights")
OWN, SKILL = "own content", "mean skill"
BABBLES = 0.5  # share of the commonest program
MEANS = 0.3  # share of the highest accuracy


def markdown(summary: dict[str, Any]) -> str:
    """Means over seeds with their standard deviation: generation, shapes and controls, offsets, meanings, the fit of content."""
    runs = summary["runs"]
    ends = [run["evaluations"][-1] for run in runs]
    names = ("accuracy", "held_back", "perplexity", "unique", "top")
    generated = _table(
        "programs (seeds)", names, {f"own ({len(runs)})": [[end[name] for end in ends] for name in names]}
    )
    columns = [*PROPERTIES, *CONTENTS]
    rows = {
        f"{shape}, accuracy": _cells(runs, lambda r, s=shape: r["shapes"][s], _accuracy) for shape in runs[0]["shapes"]
    }
    rows |= {f"{shape}, skill": _cells(runs, lambda r, s=shape: r["shapes"][s], _skill) for shape in runs[0]["shapes"]}
    for control in CONTROLS:
        rows[f"{control.replace('_', ' ')}, skill"] = _cells(
            runs, lambda r: r["shapes"]["linear"], lambda cell, c=control: cell[c]["skill"]
        )
    rows["reference programs, skill"] = _cells(runs, lambda r: r["reference"], _skill)
    for meaning in runs[0]["meanings"]:
        rows[f"{meaning}, skill"] = _cells(runs, lambda r, m=meaning: r["meanings"][m], _skill)
        rows[f"tokens alone, {meaning}, skill"] = _cells(runs, lambda r, m=meaning: r["meanings"][m], _alone)
    for offset in runs[0]["offsets"]:
        rows[f"offset {int(offset):+d}, skill"] = _cells(runs, lambda r, o=offset: r["offsets"][o], _skill)
    rows["1 hidden, offset +1, skill"] = _cells(runs, lambda r: r["ahead"], _skill)
    rows["tokens alone, 1 hidden, offset +1, skill"] = _cells(runs, lambda r: r["ahead"], _alone)
    fits = []
    for what in (*CONTENTS, SKILL):
        known = [found for run in runs if not isnan(found := r_squared(run, what))]
        fits += [f"R^2 of {what} on accuracy: {spread(known)}"] if known else []
    for gap in runs[0]["gaps"]:
        told = (run["gaps"][gap] for run in runs if gap in run["gaps"])
        fits.append(f"{gap}: " + ", ".join("{:.3f} [{:.3f} {:.3f}]".format(g["value"], *g["ci95"]) for g in told))
    return "\n\n".join([generated, _table("probes", columns, rows), *fits])


def content_and_accuracy(run: dict[str, Any], content: str) -> list[tuple[float, float]]:
    """Of every checkpoint of a run whose programs could be probed."""
    accuracy = {line["step"]: line["accuracy"] for line in run["evaluations"]}
    return [
        (_worth(found["probes"], content), accuracy[found["step"]]) for found in run["over_training"] if found["probes"]
    ]


def _worth(probes: dict[str, Any], content: str) -> float:
    """Accuracies of checkpoints that write other programs have other majorities; skills are what can be compared."""
    return mean(probes[name]["skill"] for name in CONTENTS[OWN]) if content == SKILL else probes[content]


def r_squared(run: dict[str, Any], content: str) -> float:
    """How much of the accuracy of a run's checkpoints a line through their semantic content explains."""
    pairs = content_and_accuracy(run, content)
    if len(pairs) < 3:
        return float("nan")
    x, y = (mean(column) for column in zip(*pairs, strict=True))
    across = sum((a - x) * (b - y) for a, b in pairs)
    spread_x, spread_y = sum((a - x) ** 2 for a, _ in pairs), sum((b - y) ** 2 for _, b in pairs)
    return across**2 / (spread_x * spread_y) if spread_x and spread_y else float("nan")


def phases(evaluations: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """The steps at which babbling ends, and syntax.

    A model babbles until one program makes up `BABBLES` of all that it writes for the last time; what it writes has meaning
    once it does not babble and `MEANS` of its highest accuracy is reached; in between it has learned what programs look like.
    """
    enough = MEANS * max(line["accuracy"] for line in evaluations)
    steps, last = [line["step"] for line in evaluations], evaluations[-1]["step"]
    babbled = max((line["step"] for line in evaluations if line["top"] >= BABBLES), default=0)
    varied = next((step for step in steps if step > babbled), last)
    right = next(line["step"] for line in evaluations if line["accuracy"] >= enough)
    return varied, max(varied, right)


def _accuracy(cell: dict[str, Any]) -> float:
    return cell["accuracy"]


def _skill(cell: dict[str, Any]) -> float:
    return cell["skill"]


def _alone(cell: dict[str, Any]) -> float:
    return cell["tokens_alone"]["skill"]


def _cells(
    runs: Sequence[dict[str, Any]],
    of: Callable[[dict[str, Any]], dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
) -> list[list[float]]:
    """A column for each property, and where accuracies are told one for each content."""
    found = [of(run) for run in runs if of(run)]
    columns = [[value(cells[name]) for cells in found] for name in PROPERTIES]
    return [*columns, *([cells[content] for cells in found] if value is _accuracy else [] for content in CONTENTS)]


def _table(corner: str, columns: Sequence[str], rows: dict[str, list[list[float]]]) -> str:
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(map(spread, cells))} |" for name, cells in rows.items())])
