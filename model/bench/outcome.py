"""What a small benchmark found: printed, written as JSON, and drawn as medians between the least and the most."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..drawing import available, open_pyplot
from . import machine

Span = tuple[float, float, float]
"""The least, the median and the most of a figure's rounds."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where the outcome is to be written, besides the terminal."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as a PNG; needs matplotlib")


def check_flags(args: argparse.Namespace) -> None:
    """Better now than after the measurement. Raises ValueError."""
    if args.plot and not available():
        raise ValueError("--plot needs matplotlib: pip install 'quietserve[bench]'")
    for flag, file in (("--json", args.json), ("--plot", args.plot)):
        if file and not file.parent.is_dir():
            raise ValueError(f"{flag} {file}: there is no such folder")


def write(found: Mapping[str, Any], spans: Mapping[str, Span], unit: str, args: argparse.Namespace) -> None:
    """Print the JSON values `found`, and write what `add_flags` was given: the same, and a picture of `spans` in `unit`."""
    told = json.dumps(found, indent=1)
    print(told)
    if args.json:
        args.json.write_text(told + "\n")
    if args.plot:
        plot(spans, unit, args.plot)


def describe(parser: argparse.ArgumentParser, argv: Sequence[str] | None, args: argparse.Namespace) -> dict[str, Any]:
    """The head of a result: the command as it was given, every setting that it came to, and what it ran on (one thread)."""
    flags = [str(arg) for arg in (sys.argv[1:] if argv is None else argv)]
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot", "model")}
    return {"command": " ".join([parser.prog, *flags]), "settings": settings, "machine": machine.describe(1)}


def plot(spans: Mapping[str, Span], unit: str, file: Path) -> None:
    """Write a PNG: a row a name, its median as a dot on the line from its least to its most, from zero on."""
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.35 * len(spans)), layout="constrained")
    for row, (least, middle, most) in enumerate(spans.values()):
        axes.plot([least, most], [row, row], color="#6aa9dd", linewidth=3, solid_capstyle="round")
        axes.plot(middle, row, "o", color="#0b5fa5")
        axes.annotate(
            f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}",
            (middle, row),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(spans)), list(spans))
    axes.set(xlabel=f"{unit} (median, least and most)", xlim=(0, None), ylim=(len(spans) - 0.5, -0.7))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.9g}")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
