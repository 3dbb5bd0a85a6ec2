"""The flags of `quietserve evaluate`, and what can be known of them before anything is measured."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from ...bundled import DEFAULT
from ...checkpoint import Loaded
from ...quantize import Quantization
from ..arguments import read_stops, require, require_distinct, require_least, require_matplotlib, require_output
from ..tasks import EVERY, FAMILIES
from ..tasks.files import EXAMPLES
from ..tasks.item import Wording
from .evaluation import METRICS, PERPLEXITY

DTYPES = ("auto", "float32", "bfloat16", "float16")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="quietserve evaluate",
        description=description,
        epilog=f"Small example files of both shapes are in {EXAMPLES}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_what(parser)
    _add_how(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=DEFAULT, help="checkpoint: a folder, or a bundled one (quiet-small)")
    add("--tasks", nargs="+", metavar="TASK", help=f"of {', '.join(EVERY)}, and JSONL files (the first six)")
    metrics = ", ".join(METRICS)
    add("--metrics", nargs="+", default=["generated"], metavar="METRIC", help=f"of {metrics} (generated)")
    add("--depths", type=_depths, default=[0, 4, 8, 12], help="thought depths, with commas between (0,4,8,12)")
    add("--n", type=int, default=2000, help="items a task: fresh problems, or the first of a file (%(default)s)")
    add("--seed", type=int, default=1, help="draws other problems, and is the seed of all noise (%(default)s)")
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="plain text files, for their perplexity")
    add("--length", type=int, default=256, help="tokens of a window of such a text (%(default)s)")
    add("--positions", type=int, default=0, help="tokens of a text whose loss is measured, drawn at random (0: all)")
    add(
        "--pool",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing; the mean of what --out wrote for several checkpoints, such as one method's training seeds",
    )
    add("--json", action="store_true", help="print the whole report as JSON")
    add("--out", type=Path, metavar="FILE", help="write the report here as JSON, with command and versions")
    add(
        "--png",
        type=Path,
        metavar="FILE",
        help="draw accuracy by depth and gain by difficulty, or with budget accuracy by tokens; needs matplotlib",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    add, wording = parser.add_argument, Wording()
    shown = (text.replace("\n", "\\n") for text in (wording.direct, wording.reasoning))
    add("--template", default=next(shown), help="prompt for an item of a file; \\n is a newline (%(default)s)")
    add("--reasoning-template", default=next(shown), help="the same for its chain of thought (%(default)s)")
    add("--max-tokens", type=int, help="of a generated answer (what a family's answers need; for files, 16 or more)")
    add(
        "--stop",
        nargs="*",
        default=["\\n"],
        metavar="TEXT",
        help="ends a generated answer; \\n is a newline, the default",
    )
    add("--samples", type=int, default=8, help="chains of thought that vote (%(default)s)")
    add("--temperature", type=float, default=0.7, help="of those chains (%(default)s)")
    add("--reasoning-tokens", type=int, help="most tokens of such a chain (what a family's need; for files, 256)")
    add("--pairs", type=int, default=16, metavar="K", help="most corrected answers that vote in `budget` (%(default)s)")
    add("--ranker", type=Path, metavar="RANKER", help="weighs the votes of `budget`: a folder, or a bundled one")
    add("--thought-temperature", type=float, help="of hidden thoughts; 0 is greedy (the checkpoint's own)")
    add(
        "--batch",
        type=int,
        default=64,
        help="answers decoded at once, and a quarter of the thoughts when scoring (%(default)s)",
    )
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (%(default)s)")
    add("--quantization", default="none", help="none, bnb-8bit or bnb-4bit (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = [-1]
    if min(depths) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of depths such as 0,4,8,12")
    return sorted(set(depths))


def read_wording(args: argparse.Namespace) -> Wording:
    """The prompts' templates. Raises ValueError for one that cannot be."""
    return Wording(*(text.replace("\\n", "\n") for text in (args.template, args.reasoning_template)))


def check(args: argparse.Namespace) -> None:
    """What can be known before a model is loaded. Raises ValueError."""
    require_least(args, 1, "n", "threads", "samples", "pairs", "batch")
    require_least(args, 2, "length")
    require_least(args, 0, "positions")
    for name in ("max_tokens", "reasoning_tokens"):
        require(args, name, getattr(args, name) is None or getattr(args, name) >= 1, "1 or more")
    for name in ("temperature", "thought_temperature"):
        require(args, name, getattr(args, name) is None or 0 <= getattr(args, name) <= 2, "between 0 and 2")
    require(args, "metrics", set(args.metrics) <= set(METRICS), "among " + ", ".join(METRICS))
    require(args, "dtype", args.dtype in DTYPES, "one of " + ", ".join(DTYPES))
    kinds = get_args(Quantization)
    require(args, "quantization", args.quantization in kinds, "one of " + ", ".join(kinds))
    require(args, "device", _is_usable(args.device), "cpu, or a device that torch can use here")
    if args.tasks is None:
        args.tasks = [] if args.text else list(FAMILIES)
    if args.text:
        alone = "perplexity alone: a plain text (--text) has no other metric"
        allowed = "perplexity, maybe among others: it is what --text is for" if args.tasks else alone
        require(args, "metrics", PERPLEXITY in args.metrics and bool(args.tasks or len(args.metrics) == 1), allowed)
    read_wording(args)
    args.stop = read_stops(args)
    cold = "budget" in args.metrics and args.temperature == 0
    require(args, "temperature", not cold, "above 0 where --metrics has budget: equal answers have one vote")
    require(args, "ranker", not args.ranker or "budget" in args.metrics, "left out where --metrics has no budget")
    require_distinct(args, "metrics", "tasks")
    require(args, "pool", args.pool is None or len(args.pool) > 1, "two files or more")
    _check_outputs(args)


def _check_outputs(args: argparse.Namespace) -> None:
    if args.png:
        require_matplotlib("--png")
    require_output("--out", args.out)
    require_output("--png", args.png)


def _is_usable(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter from a torch that was built without it
        return False
    return True


def check_depths(args: argparse.Namespace, loaded: Loaded) -> None:
    """What can be known once the model is loaded. Raises ValueError."""
    limit = loaded.model.backbone.max_positions
    if not loaded.model.can_think:
        require(args, "depths", max(args.depths) == 0, "0: this model has no mixing head")
    most = limit - 3  # a token of text and both markers
    require(args, "depths", max(args.depths) <= most, f"{most} or less each: the model's context is {limit} tokens")
