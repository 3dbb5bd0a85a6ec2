"""What a training step of Quiet-STaR costs: with a few thinking positions of a text, with all of them, and the public code's way.

The same random weights and the same texts, one step after the other in every round, each round in another order: time is told by
what one way took over what another took in the same round. A step is thinking, the forward and the backward pass. Its peak of memory
is found in a process of its own, by the length of the texts and by the number of thoughts at a position.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from ..bench import machine
from ..bench.shapes import SHAPES
from . import cost_plot
from .arguments import require, require_least, require_matplotlib, require_output, run
from .cost_table import table
from .loop import write_aside
from .peaks import Place, peak_apart
from .steps import WAYS, Size, Step, Taken, draw_texts, open_model

PAIRS = (("subsampled", "all"), ("all", "public"), ("subsampled", "public"))  # the first over the second
_LEAST_REPEATS = 6  # of fewer values no interval holds the median in 95 % of all cases


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train cost`."""
    return run(_parser(), lambda args: _report(args, sys.argv[1:] if argv is None else argv), argv)


def measure_speed(place: Place, size: Size, repeats: int) -> dict[str, Any]:
    """Take every way's step once a round: rows by way, and ratios of ways within a round."""
    model = open_model(place.sizes, place.dtype, place.device, place.seed)
    steps = {way: Step(way, model, size) for way in WAYS}
    rounds: list[dict[str, Taken]] = []
    for number in tqdm(range(repeats + 1), unit="round", leave=False):  # the first one warms up
        batch = draw_texts(model, size, place.seed + number)
        order = [*WAYS[number % len(WAYS) :], *WAYS[: number % len(WAYS)]]
        rounds.append({way: steps[way].take(batch, place.seed + number) for way in order})
    del rounds[0]
    num_tokens = size.batch * size.length
    return {
        "rows": {way: _speed_row([taken[way] for taken in rounds], num_tokens) for way in WAYS},
        "ratios": {f"{a}/{b}": _ratio([(taken[a], taken[b]) for taken in rounds]) for a, b in PAIRS},
    }


def measure_memory(
    place: Place, sizes: Sequence[Size], weigh: Callable[[Place, Size, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The peak of each size in each way, as `weigh` finds it; what is too much for a size is not tried for a larger one."""
    cells: list[dict[str, Any]] = []
    for way, size in tqdm(list(product(WAYS, sizes)), unit="cell", leave=False):
        smaller = next((cell for cell in cells if "given_up" in cell and _is_no_larger(cell, way, size)), None)
        found = {"given_up": f"not tried: {smaller['given_up']} before"} if smaller else weigh(place, size, way)
        cells.append({"way": way, "length": size.length, "thoughts": size.thoughts, **found})
    return cells


def middle(values: Sequence[float]) -> dict[str, Any]:
    """The median, and the narrowest interval of the values themselves that holds it in 95 % of all cases (sign test)."""
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 0.5**n  # of the median lying below the value with this rank
    while 2 * (tail + comb(n, rank + 1) * 0.5**n) <= 0.05:
        rank += 1
        tail += comb(n, rank) * 0.5**n
    return {"median": median(ordered), "ci95": [ordered[rank], ordered[n - 1 - rank]]}


def _speed_row(taken: Sequence[Taken], num_tokens: int) -> dict[str, Any]:
    return {
        "tokens_per_s": middle([num_tokens / step.seconds for step in taken]),
        "tokens_per_cpu_s": middle([num_tokens / step.cpu_seconds for step in taken]),
        "thoughts_per_s": middle([step.num_thoughts / step.seconds for step in taken]),
        "thoughts": taken[0].num_thoughts,
        "thinking_share": median(step.thinking_seconds / step.seconds for step in taken),
        "seconds": [round(step.seconds, 4) for step in taken],
    }


def _ratio(pairs: Sequence[tuple[Taken, Taken]]) -> dict[str, Any]:
    """How many times as many tokens a second the first way reads; the same by CPU time."""
    return {
        "tokens_per_s": middle([b.seconds / a.seconds for a, b in pairs]),
        "tokens_per_cpu_s": middle([b.cpu_seconds / a.cpu_seconds for a, b in pairs]),
        "n": len(pairs),
    }


def _is_no_larger(cell: dict[str, Any], way: str, size: Size) -> bool:
    return cell["way"] == way and cell["length"] <= size.length and cell["thoughts"] <= size.thoughts


def _report(args: argparse.Namespace, argv: Sequence[str]) -> None:
    _check(args)
    torch.set_num_threads(args.threads)
    size = Size(args.batch, args.length, args.depth, args.thoughts, args.after, args.positions)
    sizes = SHAPES[args.shape]
    place = Place(sizes, args.dtype, args.device, args.threads, args.seed, args.memory_limit, args.time_limit)
    weighed = [
        replace(size, batch=args.memory_batch, length=length, thoughts=thoughts)
        for thoughts, length in product(sorted(args.memory_thoughts), sorted(args.memory_lengths))
    ]
    report: dict[str, Any] = {
        "command": ["quietserve", "train", "cost", *argv],
        "shape": args.shape,
        "dtype": args.dtype,
        "seed": args.seed,
        "n": args.repeats,
        "size": asdict(size),
        "machine": {"python": platform.python_version(), **machine.describe(args.threads, args.device)},
        "speed": measure_speed(place, size, args.repeats),
        "memory_batch": args.memory_batch,
        "memory_limit_gib": args.memory_limit,
        "memory": measure_memory(place, weighed, peak_apart),
    }
    print(table(report))
    if args.out:
        write_aside(args.out, lambda file: file.write_text(json.dumps(report, indent=1) + "\n"))
    if args.png:
        write_aside(args.out.with_suffix(".png"), lambda file: cost_plot.plot(report, file))


def _check(args: argparse.Namespace) -> None:
    require_least(args, 1, "batch", "depth", "after", "positions", "threads", "memory_batch")
    require_least(args, 2, "length", "thoughts")  # each thought is measured against the others
    require_least(args, _LEAST_REPEATS, "repeats")
    require(args, "memory_lengths", min(args.memory_lengths, default=2) >= 2, "2 or more each")
    require(args, "memory_thoughts", min(args.memory_thoughts, default=2) >= 2, "2 or more each")
    for name in ("memory_limit", "time_limit"):
        require(args, name, getattr(args, name) > 0, "above 0")
    if args.png and not args.out:
        raise ValueError("--png draws beside --out, which is missing")
    if args.png:
        require_matplotlib("--png")
    require_output("--out", args.out)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train cost", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="5M", help="a random Llama of about so many parameters (%(default)s)")
    add("--batch", type=int, default=2, help="texts of a step (%(default)s)")
    add("--length", type=int, default=128, help="tokens of a text (%(default)s)")
    add("--depth", type=int, default=8, help="tokens of a thought (%(default)s)")
    add("--thoughts", type=int, default=2, help="thoughts at a position (%(default)s)")
    add("--after", type=int, default=3, help="true tokens foretold after a thought (%(default)s)")
    add("--positions", type=int, default=2, help="of a text that think, where not all of them do (%(default)s)")
    add("--repeats", type=int, default=9, help=f"rounds, {_LEAST_REPEATS} or more (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (%(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--seed", type=int, default=0, help="of weights, texts and thoughts (%(default)s)")
    _add_memory(parser.add_argument_group("memory"))
    add("--out", type=Path, metavar="FILE", help="write everything here as JSON")
    add("--png", action="store_true", help="draw it beside --out; needs matplotlib")
    return parser


def _add_memory(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    lengths, thoughts = [32, 64, 128, 256], [2, 4, 8]
    add("--memory-batch", type=int, default=1, help="texts of a step (%(default)s)")
    add(
        "--memory-lengths",
        type=int,
        nargs="*",
        default=lengths,
        help="tokens of a text (32 64 128 256); none: no memory",
    )
    add("--memory-thoughts", type=int, nargs="*", default=thoughts, help="thoughts at a position (2 4 8)")
    add("--memory-limit", type=float, default=8.0, help="GiB of a step; then it is given up (%(default)s)")
    add("--time-limit", type=float, default=120.0, help="seconds of a step's process (%(default)s)")
