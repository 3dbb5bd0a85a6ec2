"""What the training commands share: arguments are checked in one way, and a failure is one line and an exit code."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from .. import drawing
from ..checkpoint_folder import CONFIG
from .loop import STATE_FILE, DivergedError, write_aside
from .lora import Lora
from .tasks import FAMILIES

# What may differ between a run and the one that goes on with it.
INCIDENTAL = {
    *("out", "resume", "threads", "tensorboard", "save_every", "log_every"),
    *("micro_batch", "at_once", "shard", "cpu"),
}


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Run a command; 0 when it is done, 2 for arguments that cannot be, 1 if training failed."""
    args = parser.parse_args(argv)
    try:
        work(args)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except DivergedError as error:
        saved = max(args.out.rglob(STATE_FILE), key=lambda file: file.stat().st_mtime, default=None)
        kept = f"; the last saved state is {saved}" if saved else "; no state was saved before it"
        print(f"{parser.prog}: {error}{kept}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def handed_on(args: argparse.Namespace) -> list[str]:
    """Flags that a study gives to each of its commands: they go on where they were killed, and take as many threads as it may."""
    return ["--resume", "--threads", str(args.threads)]


def once(folder: Path, main: Callable[[list[str]], int], argv: list[str]) -> None:
    """Run a command that writes a checkpoint, unless it is there; leave with its code where it fails."""
    if not (folder / CONFIG).exists() and (code := main(argv)):
        raise SystemExit(code)


def claim(folder: Path, settings: dict[str, Any], name: str = "study.json") -> None:
    """Note what a folder is made with. Raises ValueError where it was made with something else."""
    file = folder / name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(file, lambda aside: aside.write_text(json.dumps(settings) + "\n"))
    before = json.loads(file.read_text())
    for key, value in settings.items():
        if before.get(key) != value:
            flag = key.replace("_", "-")
            raise ValueError(f"--{flag} is {value!r}; what is in {folder} was made with {before.get(key)!r}")


def check_study(args: argparse.Namespace) -> None:
    """What every study's arguments must be. Raises ValueError."""
    require_least(args, 1, "n", "threads")
    require_distinct(args, "seeds", "rows")
    require_output("--results", args.results)
    if args.results:
        require_matplotlib("--results")


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


def require_output(flag: str, file: Path | None) -> None:
    """Raise ValueError unless the file can be written: better now than after hours."""
    if file and not file.parent.is_dir():
        raise ValueError(f"{flag} {file}: there is no such folder")
    if file and file.is_dir():
        raise ValueError(f"{flag} {file}: is a folder, not a file")
    if file and not os.access(file.parent, os.W_OK):
        raise ValueError(f"{flag} {file}: its folder may not be written to")


def require_matplotlib(flag: str) -> None:
    """Raise ValueError unless what draws is installed."""
    if not drawing.available():
        raise ValueError(f"{flag} needs matplotlib: pip install 'quietserve[train]'")


def require_distinct(args: argparse.Namespace, *names: str) -> None:
    """Raise ValueError where a list names something twice."""
    for name in names:
        require(args, name, len(set(getattr(args, name))) == len(getattr(args, name)), "each of them once")


def read_stops(args: argparse.Namespace) -> tuple[str, ...]:
    """The texts of `--stop`, in which \\n is a newline. Raises ValueError for an empty one."""
    require(args, "stop", all(args.stop), "texts that are not empty")
    return tuple(text.replace("\\n", "\n") for text in args.stop)


def require_families(args: argparse.Namespace, *names: str) -> None:
    """The same for lists of problem families."""
    for name in names:
        require(args, name, set(getattr(args, name)) <= set(FAMILIES), "among " + ", ".join(FAMILIES))


def read_adapters(args: argparse.Namespace) -> Lora | None:
    """What the flags of adapters say."""
    if not args.lora:
        return None
    return Lora(args.lora, args.lora_alpha, tuple(args.lora_targets), args.lora_dropout)


def check_adapters(args: argparse.Namespace) -> None:
    """Raise ValueError where they say what cannot be."""
    require_least(args, 0, "lora", "lora_dropout")
    fits = args.lora or args.quantization == "none"
    require(args, "quantization", fits, "none, or there must be --lora: rounded weights cannot be trained")
    require(args, "shard", not (args.shard and args.quantization != "none"), "left out where weights are quantised")


def drop_flags(written: str, knobs: Collection[str]) -> list[str]:
    """Flags as they are written on a command line, without some knobs and their values."""
    flags, words = [], iter(written.split())
    for word in words:
        name, given, _ = word.partition("=")
        if name.startswith("--") and name.removeprefix("--").replace("-", "_") in knobs:
            if not given:
                next(words, None)  # its value
            continue
        flags.append(word)
    return flags


def add_machine(group: argparse._ArgumentGroup) -> None:
    """The flags of what is trained, where, and how often that is told."""
    add = group.add_argument
    _add_adapters(group)
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of weights (%(default)s)")
    add("--precision", default="no", choices=["no", "bf16"], help="of activations (%(default)s: as the weights)")
    add("--gradient-checkpointing", action="store_true", help="compute activations twice rather than keep them")
    add("--shard", action="store_true", help="split weights and optimizer among processes (FSDP2), not copies (DDP)")
    add("--cpu", action="store_true", help="stay on the CPU")
    add("--save-every", type=int, default=50, help="updates between saved states (%(default)s)")
    add("--log-every", type=int, default=10, help="updates between lines of the log (%(default)s)")
    add("--tensorboard", action="store_true", help="log for TensorBoard, too")
    add("--threads", type=int, default=1, help="CPU threads; a run repeats bit for bit on one (%(default)s)")


def recipe(args: argparse.Namespace) -> dict[str, object]:
    """Whatever must be equal for a saved state to be continued."""
    values: dict[str, object] = {name: value for name, value in vars(args).items() if name not in INCIDENTAL}
    return values | {"base": str(args.base.resolve()) if args.base.exists() else str(args.base)}


def _add_adapters(group: argparse._ArgumentGroup) -> None:
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
