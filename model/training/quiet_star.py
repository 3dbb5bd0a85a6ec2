"""Teach a language model to think before it speaks: REINFORCE on thoughts that make the next tokens likelier.

For some positions of each text, or all, several thoughts are sampled by the serving kernel; one forward with gradients then reads
the texts and all thoughts, and the true tokens after them. Mixed predictions are trained on the true tokens, thoughts on how
much better they made them. Quiet-STaR (arXiv 2403.09629), "Quiet-STaR".

Arms for comparison at equal numbers of updates: `no-reinforce` (the thoughts get no reward), `pause` (a thought is a fixed
token, repeated) and `continued` (no thoughts; the base goes on with the same texts).

Several processes: torchrun --standalone --nproc-per-node N .venv/bin/quietserve train quiet-star ...
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from .arguments import (
    add_machine,
    check_adapters,
    read_adapters,
    recipe,
    require,
    require_even,
    require_least,
    run,
)
from .loop import LoopConfig
from .objective import Arm, ThinkingConfig
from .problem_texts import ProblemTexts
from .processes import Processes
from .tasks import EVERY, FAMILIES
from .thinker import ThinkerConfig
from .trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    from .corpus import Corpus

ARMS = get_args(Arm)
PROBLEMS = "problems"  # --data: the generated ones


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train quiet-star`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the checkpoint into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # the mixing head's first layers are random, adapters too
    processes = Processes(args.precision, args.shard, args.cpu)
    require_even(args, "batch", processes.size)
    looping = LoopConfig(args.steps, args.seed, args.clip, args.log_every, args.save_every, args.tensorboard)
    thinking = _thinking(args)
    trainer = Trainer(_learning(args), _opening(args), thinking, looping, processes, args.out, recipe(args))
    trainer.run(_open_data(args, trainer), args.resume)
    processes.leave()


def _open_data(args: argparse.Namespace, trainer: Trainer) -> "Corpus | ProblemTexts":
    tokenizer = trainer.loaded.tokens.tokenizer
    size = args.batch * (args.continued_batch if args.arm == "continued" else 1)
    if args.data == PROBLEMS:
        return ProblemTexts(tokenizer, args.seed, size, args.families)
    from .corpus import Corpus, open_documents  # what they need is an extra

    longest = trainer.loaded.model.backbone.max_positions - max(args.depths) - 2 - args.after
    require(
        args, "length", 2 <= args.length <= longest, f"between 2 and {longest}: with a thought the model's longest text"
    )
    documents = open_documents(args.data, args.split, args.streaming)
    return Corpus(documents, args.text_column, tokenizer, args.length, size, args.packing, args.seed)


def _opening(args: argparse.Namespace) -> ThinkerConfig:
    stops = None if args.stops is None else tuple(args.stops)
    return ThinkerConfig(
        max(args.depths),
        args.thought_temperature,
        args.marker,
        stops,
        args.dtype,
        args.quantization,
        args.gradient_checkpointing,
    )


def _thinking(args: argparse.Namespace) -> ThinkingConfig:
    return ThinkingConfig(
        arm=args.arm,
        positions=None if args.positions == "all" else int(args.positions),
        thoughts=args.thoughts,
        after=args.after,
        beta=args.beta,
        keep_negative=args.keep_negative,
        temperature=args.temperature,
        reinforce_temperature=args.reinforce_temperature,
    )


def _learning(args: argparse.Namespace) -> TrainerConfig:
    return TrainerConfig(
        args.base,
        args.depths,
        args.lr,
        args.warmup,
        args.weight_decay,
        args.marker_lr_scale,
        args.head_lr_scale,
        args.micro_batch,
        read_adapters(args),
    )


def _check(args: argparse.Namespace) -> None:
    require(args, "arm", args.arm in ARMS, "one of " + ", ".join(ARMS))
    require_least(args, 1, "steps", "batch", "after", "threads", "save_every", "log_every", "continued_batch")
    require(args, "positions", args.positions == "all" or _is_count(args.positions), "a whole number from 1, or all")
    require(args, "thoughts", args.thoughts >= 2, "2 or more: each is measured against the others")
    require(args, "depths", min(args.depths) >= 1, "1 or more")
    require(args, "micro_batch", args.micro_batch is None or args.micro_batch >= 1, "1 or more")
    for name in ("lr", "marker_lr_scale", "head_lr_scale", "clip", "temperature", "reinforce_temperature"):
        require(args, name, getattr(args, name) > 0, "above 0")
    require_least(args, 0, "beta", "warmup", "weight_decay")
    require(args, "thought_temperature", 0 <= args.thought_temperature <= 2, "between 0 and 2")
    check_adapters(args)
    require(args, "families", set(args.families) <= set(EVERY), "among " + ", ".join(EVERY))


def _is_count(text: str) -> bool:
    return text.isdigit() and int(text) >= 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train quiet-star",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--base",
        type=Path,
        required=True,
        metavar="MODEL",
        help="folder or hub name of the causal language model to start from",
    )
    add("--data", default=PROBLEMS, help="file, folder or hub name of a data set; or problems, generated (%(default)s)")
    add("--out", type=Path, required=True, help="folder for the checkpoint, the log and the state to resume from")
    add("--arm", default=ARMS[0], help=f"what to train: {', '.join(ARMS)} (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same checkpoint (%(default)s)")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    _add_data(parser.add_argument_group("data"))
    _add_thinking(parser.add_argument_group("thoughts"))
    _add_learning(parser.add_argument_group("learning"))
    add_machine(parser.add_argument_group("model and machine"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--text-column", default="text", metavar="NAME", help="the column that holds the texts (%(default)s)")
    add("--split", default="train", help="of a data set of the hub (%(default)s)")
    add("--streaming", action="store_true", help="read as it comes; shuffled ten thousand documents at a time")
    add("--length", type=int, default=256, help="tokens of a window (%(default)s)")
    add("--packing", action=switch, default=True, help="cut windows from documents laid end to end (yes)")
    add("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="families of generated problems (all)")


def _add_thinking(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--positions", default="2", help="positions of a text that think, drawn by their loss; or all (%(default)s)")
    add("--thoughts", type=int, default=4, help="thoughts at a position (%(default)s)")
    add(
        "--depths",
        type=int,
        nargs="+",
        default=[2, 4, 6, 8, 10, 12, 14, 16],
        metavar="N",
        help="one drawn for each update (2 4 6 8 10 12 14 16)",
    )
    add("--after", type=int, default=3, help="true tokens foretold after a thought (%(default)s)")
    add("--beta", type=float, default=10.0, help="weight of REINFORCE (%(default)s)")
    add(
        "--keep-negative",
        action=switch,
        default=True,
        help="learn from thoughts that are worse than the others, too (yes)",
    )
    add("--temperature", type=float, default=1.0, help="at which thoughts are sampled (%(default)s)")
    add(
        "--reinforce-temperature",
        type=float,
        default=1.0,
        help="at which their probabilities are reinforced (%(default)s)",
    )
    add("--thought-temperature", type=float, default=0.0, help="of the checkpoint's users (%(default)s)")
    add("--marker", default=" ---", help="the text that both markers begin as (%(default)r)")
    add(
        "--stops",
        nargs="*",
        metavar="TOKEN",
        help="at which a thought ends itself (the marker, if one token; end of text)",
    )


def _add_learning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--steps", type=int, default=200, help="updates (%(default)s)")
    add("--batch", type=int, default=32, help="texts an update, over all processes (%(default)s)")
    add("--micro-batch", type=int, metavar="N", help="texts of a process in memory at once (all)")
    add("--continued-batch", type=int, default=4, help="times as many texts where no thoughts are read (%(default)s)")
    add("--lr", type=float, default=5e-4, help="highest learning rate of the language model (%(default)s)")
    add(
        "--marker-lr-scale",
        type=float,
        default=6.0,
        help="times as high for START and END; 100 in the paper (%(default)s)",
    )
    add(
        "--head-lr-scale",
        type=float,
        default=6.0,
        help="times as high for the mixing head; 1 in the paper (%(default)s)",
    )
    add("--warmup", type=int, default=10, help="updates of warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.001, help="of matrices (%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient (%(default)s)")
