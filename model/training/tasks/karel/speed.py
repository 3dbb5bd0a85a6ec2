"""Measure how fast Karel's programs are run and judged: prompts a second, a prompt being a program with all its worlds.

`run` executes the program on them; `solves` executes it and compares what it came to with what is wanted.
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import numpy as np

from ....bench import outcome
from .interpreter import run
from .synthesis import FAMILIES, Synthesis, draw


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all is measured, 2 where what was found could not be written."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        outcome.check_flags(args)
    except ValueError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 2
    found = {
        **outcome.describe(parser, argv, args),
        "prompts_per_second": {name: measure(family, args) for name, family in FAMILIES.items()},
    }
    speeds = {
        f"{name}: {way}": cell for name, ways in found["prompts_per_second"].items() for way, cell in ways.items()
    }
    spans = {name: (cell["least"], cell["median"], cell["most"]) for name, cell in speeds.items()}
    outcome.write(found, spans, "prompts a second", args)
    return 0


def measure(family: Synthesis, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """The median round of a task, with the slowest and the fastest; the first warms up and does not count."""
    tasks = draw(np.random.default_rng(0), args.programs, family.size, family.pairs, family.steps)
    ops_NL = tasks.ops_NL.repeat(tasks.pairs, 0)
    ways = {"run": lambda: run(tasks.before, ops_NL), "solves": lambda: tasks.solves(tasks.ops_NL)}
    speeds: dict[str, list[int]] = {way: [] for way in ways}
    for _ in range(args.rounds + 1):
        for way, work in ways.items():
            begin = perf_counter()
            work()
            speeds[way].append(round(args.programs / (perf_counter() - begin)))
    counted = {way: found[1:] for way, found in speeds.items()}
    return {way: {"median": round(median(s)), "least": min(s), "most": max(s)} for way, s in counted.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quietserve.model.training.tasks.karel.speed", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--programs", type=int, default=4000, help="at once (%(default)s)")
    add("--rounds", type=int, default=15, help="repetitions that count (%(default)s)")
    outcome.add_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
