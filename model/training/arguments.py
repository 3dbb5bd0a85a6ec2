"""What the training commands share: arguments are checked in one way, and a failure is one line and an exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoint_folder import CONFIG
from .loop import DivergedError
from .lora import Lora
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


def once(folder: Path, main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command that writes a checkpoint, unless it is there; 0 or what the command returned."""
    return 0 if (folder / CONFIG).exists() else main(argv)


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


def require_even(args: argparse.Namespace, name: str, processes: int) -> None:
    """Raise ValueError unless every process can take as many."""
    require(args, name, getattr(args, name) % processes == 0, f"a multiple of {processes}: each process takes as many")


def require_families(args: argparse.Namespace, *names: str) -> None:
    """The same for lists of problem families."""
    for name in names:
        require(args, name, set(getattr(args, name)) <= set(FAMILIES), "among " + ", ".join(FAMILIES))


def read_adapters(args: argparse.Namespace) -> Lora | None:
    """What the flags of `add_adapters` say."""
    if not args.lora:
        return None
    return Lora(args.lora, args.lora_alpha, tuple(args.lora_targets), args.lora_dropout)


def check_adapters(args: argparse.Namespace) -> None:
    """Raise ValueError where they say what cannot be."""
    require_least(args, 0, "lora", "lora_dropout")
    needs_lora = args.quantization != "none" and not args.lora
    require(args, "quantization", not needs_lora, "none, or there must be --lora: rounded weights cannot be trained")
    require(args, "shard", not (args.shard and args.quantization != "none"), "left out where weights are quantised")


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
