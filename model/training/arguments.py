"""What the training commands share: arguments are checked in one way, and a failure is one line and an exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence

from .loop import DivergedError
from .tasks import FAMILIES


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Run a command; 0 when it is done, 2 for arguments that cannot be, 1 if training failed."""
    args = parser.parse_args(argv)
    try:
        work(args)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"{parser.prog}: {error}; the last saved state, from before it, is in {args.out}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def require(args: argparse.Namespace, name: str, holds: bool, allowed: str) -> None:
    """Raise ValueError naming the flag, its value and what is allowed, unless it `holds`."""
    if not holds:
        value = getattr(args, name)
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        raise ValueError(f"--{name.replace('_', '-')} is {shown}; it must be {allowed}")


def require_least(args: argparse.Namespace, least: float, *names: str) -> None:
    """The same for numbers that may not be below `least`."""
    for name in names:
        require(args, name, getattr(args, name) >= least, f"{least} or more")


def require_families(args: argparse.Namespace, *names: str) -> None:
    """The same for lists of problem families."""
    for name in names:
        require(args, name, set(getattr(args, name)) <= set(FAMILIES), "among " + ", ".join(FAMILIES))


def add_adapters(group: argparse._ArgumentGroup) -> None:
    """The flags of adapters, and of the weights below them."""
    add = group.add_argument
    add("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank and freeze the rest (0: no)")
    add("--lora-alpha", type=float, default=16.0, help="their scale, over the rank (%(default)s)")
    add("--lora-targets", nargs="+", default=[], metavar="LAYER", help="layers that have one (every linear one)")
    add("--lora-dropout", type=float, default=0.0, help="of their inputs (%(default)s)")
    add(
        "--quantization",
        default="none",
        choices=["none", "bnb-8bit", "bnb-4bit"],
        help="of frozen weights (%(default)s)",
    )
