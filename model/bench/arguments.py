"""The command line of `quietserve bench`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from .shapes import SHAPES
from .systems import SYSTEMS

_GRID: dict[str, Any] = {
    "shapes": ["5M", "50M", "200M"],
    "batches": [1, 4, 8, 16],
    "prompts": [64, 256, 1024],
    "depths": [0, 4, 8, 16],
    "tokens": 64,
    "max_seconds": 60.0,
}
_QUICK: dict[str, Any] = {
    "shapes": ["5M"],
    "batches": [1, 8],
    "prompts": [64],
    "depths": [0, 8],
    "tokens": 32,
    "max_seconds": 10.0,
}


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line, checked, with the grid filled in. Raises ValueError."""
    args = _parser(description).parse_args(argv)
    for name, value in (_QUICK if args.quick else _GRID).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, least in (("batches", 1), ("prompts", 1), ("depths", 0)):
        if any(value < least for value in getattr(args, name)):
            raise ValueError(f"--{name} is {' '.join(map(str, getattr(args, name)))}; it must be {least} or more")
    for name, least in (("tokens", 2), ("rounds", 1), ("num_threads", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be {least} or more")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    if not args.shapes and not args.model:
        raise ValueError("there is nothing to measure: name --shapes or a --model")
    if not 0 < args.acceptance < 1:
        raise ValueError(f"--acceptance is {args.acceptance}; it must be between 0 and 1")
    if not args.max_seconds > 0:
        raise ValueError(f"--max-seconds is {args.max_seconds}; it must be above 0")
    return args


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="quietserve bench", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--shapes", nargs="*", choices=list(SHAPES), help="random Llamas of about so many parameters (5M 50M 200M)")
    add("--model", metavar="PATH", help="a checkpoint to measure as well, with its own mixing head; or `bundled`")
    add("--batches", type=int, nargs="+", help="requests at once (1 4 8 16)")
    add("--prompts", type=int, nargs="+", help="prompt tokens (64 256 1024)")
    add("--depths", type=int, nargs="+", help="thought depths; 0 compares with other engines (0 4 8 16)")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="what to measure (all)")
    add("--tokens", type=int, help="visible tokens of a request to measure (64)")
    add("--rounds", type=int, default=3, help="repetitions, each in another order (%(default)s)")
    add("--max-seconds", type=float, help="longest decoding of one run; then fewer tokens count (60)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and caches (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (%(default)s)")
    add("--num-threads", type=int, default=1, help="of every system (%(default)s)")
    add("--acceptance", type=float, default=0.9, help="share of drafts to be accepted, of random shapes (%(default)s)")
    add(
        "--quick",
        action="store_true",
        help="two minutes: the smallest shape, batches 1 and 8, prompt 64, depths 0 and 8, 32 tokens, 10 seconds a run",
    )
    add("--out", type=Path, metavar="FILE", help="keep each finished cell here, and skip those that are in it")
    add("--json", metavar="FILE", help="write all rows and ratios here; - for standard output")
    add("--plot", type=Path, metavar="FILE", help="draw throughput as a PNG; needs matplotlib")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
