"""Measure thinking and plain decoding against other ways of doing the same, in one interleaved run.

In cells with thoughts: `recompute` (everything read again for every token, as the public Quiet-STaR code does),
`sequential` and `pipeline` (ours), and `plain`, ours without thoughts, all at temperature 1. In cells of depth 0, greedy:
`plain`, `transformers`, `transformers-cb` (its continuous batching) and `llama.cpp`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .. import drawing
from . import machine, plot, report
from .acceptance import calibrate
from .arguments import parse
from .cell import Cell, Setup
from .measure import measure
from .results import Key, Results
from .shapes import SHAPES, Subject, build, load
from .systems import PLAIN, SYSTEMS, THINKING


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quietserve bench`: 0 when all is measured, 1 when a system failed, 2 for arguments that cannot be."""
    try:
        args = parse(argv, __doc__)
        torch.set_num_threads(args.num_threads)
        results = Results(args.out)
        loaded = load(args.model, args.dtype, args.device) if args.model else None
        _check_files(args)
    except ValueError as error:
        print(f"quietserve bench: {error}", file=sys.stderr)
        return 2
    openers: dict[str, Callable[[], Subject]] = {name: _builder(args, name) for name in args.shapes}
    if loaded:
        openers[loaded.name] = lambda: loaded
    bench = _Bench(args, results)
    for name, opener in openers.items():
        bench.measure_shape(name, opener)
    bench.report()
    return int(bench.failed)


class _Bench:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, results: Results) -> None:
        self._args, self._results = args, results
        self._machine = machine.describe(args.num_threads, args.device)
        self._entries: list[dict[str, Any]] = []  # of this grid, measured now or before
        self.failed = False

    def measure_shape(self, name: str, opener: Callable[[], Subject]) -> None:
        """Measure what is not yet finished; the model is made only if something is not."""
        subject = None
        for depth, batch, prompt in product(self._args.depths, self._args.batches, self._args.prompts):
            cell = Cell(name, batch, prompt, depth)
            if not (names := self._names(cell)):
                continue
            key = self._key(cell, names)
            entry = self._results.find(key)
            if entry is None:
                subject = subject or opener()
                entry = self._measure(subject, cell, key, names)
            if entry is not None:
                self._entries.append(entry)

    def report(self) -> None:
        """Print the tables, write the files that were asked for."""
        args = self._args
        rows = [row for entry in self._entries for row in entry["rows"]]
        ratios = [row for entry in self._entries for row in entry["ratios"]]
        print(report.table(rows, ratios), file=sys.stderr if args.json == "-" else sys.stdout)
        skipped = {name: reason for entry in self._entries for name, reason in entry["skipped"].items()}
        for name, reason in skipped.items():
            _say(f"{name} was not measured: {reason}")
        if args.json:
            values = {"rows": rows, "ratios": ratios, "machine": self._machine, "skipped": skipped}
            text = json.dumps(values, indent=1) + "\n"
            sys.stdout.write(text) if args.json == "-" else Path(args.json).write_text(text)
        if args.plot and rows:
            plot.plot(rows, args.plot)

    def _measure(self, subject: Subject, cell: Cell, key: Key, names: Sequence[str]) -> dict[str, Any] | None:
        args = self._args
        setup = Setup(subject, cell, args.tokens, args.max_seconds, args.num_threads)
        if reason := _reason_against(setup):
            _say(f"{_title(cell)} is left out: {reason}")
            return None
        if cell.depth and subject.forced:
            calibrate(subject, cell.depth, args.acceptance)
        measured = measure(setup, {name: SYSTEMS[name] for name in names}, args.rounds)
        self.failed |= measured.failed
        rows, ratios = report.system_rows(measured), report.ratio_rows(measured)
        _say(f"{_title(cell)}: " + ", ".join(f"{row['system']} {row['tokens_per_s']:.1f}/s" for row in rows))
        return self._results.add(key, rows, ratios, measured.skipped)

    def _names(self, cell: Cell) -> list[str]:
        return [name for name in (THINKING if cell.depth else PLAIN) if name in self._args.systems]

    def _key(self, cell: Cell, names: Sequence[str]) -> Key:
        kept = ("dtype", "acceptance", "tokens", "rounds", "max_seconds")
        return {
            **asdict(cell),
            **{name: getattr(self._args, name) for name in kept},
            "systems": list(names),
            "machine": self._machine,
        }


def _builder(args: argparse.Namespace, name: str) -> Callable[[], Subject]:
    def opener() -> Subject:
        return build(name, SHAPES[name], getattr(torch, args.dtype), device=args.device)

    return opener


def _reason_against(setup: Setup) -> str | None:
    cell, model = setup.cell, setup.subject.model
    if cell.depth and not model.can_think:
        return "this model has no mixing head"
    if (needed := setup.max_len + cell.depth + 2) > model.backbone.max_positions:
        return f"it needs {needed} positions, and the model has {model.backbone.max_positions}"
    return None


def _title(cell: Cell) -> str:
    return f"{cell.shape}, batch {cell.batch}, prompt {cell.prompt}, depth {cell.depth}"


def _say(text: str) -> None:
    print(f"quietserve bench: {text}", file=sys.stderr)


def _check_files(args: argparse.Namespace) -> None:
    """Better now than after hours. Raises ValueError."""
    if args.plot and not drawing.available():
        _say("--plot needs matplotlib, and is left out: pip install 'quietserve[bench]'")
        args.plot = None
    for flag, file in (("--json", args.json), ("--plot", args.plot)):
        if file and str(file) != "-" and not Path(file).parent.is_dir():
            raise ValueError(f"{flag} {file}: there is no such folder")


if __name__ == "__main__":
    sys.exit(main())
