"""`quietserve convert`: any checkpoint that we load, written in our layout, the public one, or as a plain language model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from . import checkpoint, public_layout
from .checkpoint import CheckpointError, Layout


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quietserve convert`; 0 when it is done, 2 with one line on stderr when it cannot be."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        convert(args)
    except CheckpointError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def convert(args: argparse.Namespace) -> None:
    """Load and write as the arguments say. Raises CheckpointError; `args.out` is then as it was."""
    _check_out(args.out, args.overwrite)
    loaded = checkpoint.load(args.source, args.dtype or "stored")
    quiet = loaded.model.quiet
    lost = public_layout.losses(quiet) if quiet and args.layout == "public" else []
    if lost and not args.allow_loss:
        raise CheckpointError(
            f"{args.source}: the public layout has no place for {', '.join(lost)}; --allow-loss leaves that out"
        )
    checkpoint.save(
        loaded.model,
        loaded.tokens.tokenizer,
        args.out,
        layout=args.layout,
        allow_loss=args.allow_loss,
        max_shard_size=args.max_shard_size,
        correction=loaded.correction,
    )
    for loss in lost:
        print(f"lost: {loss}", file=sys.stderr)
    dtype = str(loaded.model.backbone.dtype).removeprefix("torch.")
    print(f"{args.out}: {args.layout} layout, {dtype}")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: not a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise CheckpointError(f"{out}: not empty; --overwrite replaces a checkpoint in it and leaves the rest")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve convert", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="checkpoint folder, or a model of the Hugging Face hub by its name")
    add("out", metavar="OUT", type=Path, help="folder to write; new or empty, unless --overwrite")
    add(
        "--layout",
        choices=get_args(Layout),
        required=True,
        help="plain: the language model alone, without its thoughts",
    )
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the tensors written (as they are)")
    add("--overwrite", action="store_true", help="replace a checkpoint in OUT; other files there stay")
    add("--allow-loss", action="store_true", help="public: leave out what it has no place for, and say what that was")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of tensors (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
