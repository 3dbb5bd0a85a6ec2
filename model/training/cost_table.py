"""What `quietserve train cost` measured as tables for people."""

from typing import Any

from .steps import WAYS


def table(report: dict[str, Any]) -> str:
    """Speed, ratios of speed and peaks of memory, in Markdown."""
    size = report["size"]
    told = ", ".join(f"{name} {value}" for name, value in size.items())
    parts = [f"{report['shape']}, {report['dtype']}, {told}; n = {report['n']} rounds", _speed(report), _ratios(report)]
    if report["memory"]:
        parts += [f"Peak of memory of a step of batch {report['memory_batch']}, MiB:", _memory(report["memory"])]
    return "\n\n".join(parts)


def _speed(report: dict[str, Any]) -> str:
    lines = [
        [way, *(_interval(row[key]) for key in ("tokens_per_s", "thoughts_per_s")), f"{row['thinking_share']:.0%}"]
        for way, row in report["speed"]["rows"].items()
    ]
    return _markdown([["way", "training tokens/s", "thoughts/s", "of the time thinking"], *lines])


def _ratios(report: dict[str, Any]) -> str:
    lines = [
        [name, *(_interval(row[key], 2) for key in ("tokens_per_s", "tokens_per_cpu_s"))]
        for name, row in report["speed"]["ratios"].items()
    ]
    return _markdown([["ratio", "tokens/s", "by CPU time"], *lines])


def _memory(cells: list[dict[str, Any]]) -> str:
    lengths = sorted({cell["length"] for cell in cells})
    found = {(cell["way"], cell["thoughts"], cell["length"]): cell for cell in cells}
    lines = [
        [way, str(thoughts), *(_peak(found[way, thoughts, length]) for length in lengths)]
        for way in WAYS
        for thoughts in sorted({cell["thoughts"] for cell in cells})
    ]
    return _markdown([["way", "thoughts", *(f"length {length}" for length in lengths)], *lines])


def _peak(cell: dict[str, Any]) -> str:
    return cell["given_up"] if "given_up" in cell else f"{cell['peak_bytes'] / 2**20:.0f}"


def _interval(cell: dict[str, Any], digits: int = 1) -> str:
    value, low, high = (f"{x:.{digits}f}" for x in (cell["median"], *cell["ci95"]))
    return f"{value} [{low} {high}]"


def _markdown(cells: list[list[str]]) -> str:
    """The first line holds the titles."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
