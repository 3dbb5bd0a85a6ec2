"""Make a model that writes Karel programs: a small Llama, from random weights, trained on the text of programs alone.

A text shows some worlds before and after, and then the program that makes the one of the other. At even steps the model is kept
as it is, and what its greedy programs are worth is measured: by whether they do what is asked, by perplexity and by how
varied they are. Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv
2305.11169).

`--config ci` takes a minute, `small` is meant for an hour on two cores (4x4 cells, then 5x5 and 6x6), `full` has the paper's size
and is for a GPU: 6x6, five pairs, 6 to 10 operations, half a million programs. Every flag that is given counts before the config.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from .. import checkpoint
from ..backbone import Backbone
from ..checkpoint import Loaded
from ..quiet_model import QuietModel
from ..tokens import Tokens
from .arguments import require, require_least, run
from .evaluation import programs
from .karel_texts import Form, KarelTexts, Stage, build_words, held_out, parse_stage, prompt, write
from .loop import Loop, LoopConfig, decay_linearly, make_optimizer
from .muon import Muon
from .pretrain import build_model, document_loss
from .processes import Processes

CONFIGS: dict[str, dict[str, Any]] = {
    "ci": {
        "stages": ["4:2:1-3:200"],
        "width": 64,
        "layers": 3,
        "heads": 2,
        "batch": 128,
        "evaluations": 4,
        "n": 400,
    },
    "small": {
        "stages": ["4:3:3-6:1500", "5:4:4-8:600", "6:5:6-10:500"],
        "width": 128,
        "layers": 4,
        "heads": 4,
        "batch": 256,
        "evaluations": 20,
        "n": 2000,
    },
    "full": {
        "stages": ["6:5:6-10:80000"],
        "width": 512,
        "layers": 8,
        "heads": 8,
        "batch": 464,
        "evaluations": 40,
        "n": 10_000,
        "num_programs": 500_000,
    },
}
DEFAULTS: dict[str, Any] = {"num_programs": 0}
PARTS = 4  # that a batch is read in, by length
EVALUATIONS, CHECKPOINTS = "evaluations.jsonl", "checkpoints"
OPTIMIZERS = {"muon": 5e-3, "adamw": 1e-3}  # and the learning rate if none is given


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train karel`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the model into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_words(args.form, sorted({stage.size for stage in args.stages} | {4, 5, 6}))
    processes = Processes(args.precision, cpu=args.cpu)
    model: Any = build_model(tokenizer, args.width, args.layers, args.heads)
    model.to(processes.device)
    optimizer = Muon(model, args.weight_decay) if args.optimizer == "muon" else make_optimizer(model, args.weight_decay)
    config = LoopConfig(sum(stage.steps for stage in args.stages), args.seed, save_every=args.save_every)
    recipe = {name: str(value) for name, value in vars(args).items() if name not in _INCIDENTAL}
    stages = Stages(args.stages)
    loop = Loop(model, optimizer, lambda step: _lr_at(args, step), config, args.out, recipe, processes, stages)
    if not (args.resume and loop.resume()):
        loop.start_afresh()
        (args.out / EVALUATIONS).unlink(missing_ok=True)
    texts = KarelTexts(tokenizer, args.form, args.everything, args.num_programs, args.seed)
    due = set(_grid(config.steps, args.evaluations))

    def look(step: int) -> None:
        if step in due and step not in _measured(args.out):
            _evaluate(args, model, tokenizer, step)

    def work(step: int) -> dict[str, float]:
        look(step)
        batch = texts.batch(_stage_at(args.stages, step)[0], step, args.batch).to(processes.device)
        with processes.precision():
            loss = document_loss(model, batch, parts=PARTS)
        loss.backward()
        return {"loss": loss.item()}

    loop.run(work)
    look(config.steps)
    checkpoint.save(QuietModel(Backbone(model.eval())), tokenizer, args.out)


class Stages:
    """What a run draws; one that is resumed may have further stages behind those that it had."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = [str(stage) for stage in stages]

    def state(self) -> dict[str, Any]:
        """What a saved state says of them."""
        return {"stages": self._stages}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError where other stages have led there."""
        before = state.get("stages", [])
        if not before or self._stages[: len(before)] != before:
            told, had = " ".join(self._stages), " ".join(before) or "none that it remembers"
            raise ValueError(f"--stages is {told}; the saved run had {had}, behind which further ones may be")


def _evaluate(args: argparse.Namespace, model: Any, tokenizer: Any, step: int) -> None:
    """Keep the model as it is, and write a line of what it is worth on the stage it is in."""
    stage, _ = _stage_at(args.stages, max(0, step - 1))
    quiet = QuietModel(Backbone(copy.deepcopy(model).eval()))  # whose attention is another from then on
    folder = args.out / CHECKPOINTS / f"{step:06d}"
    checkpoint.save(quiet, tokenizer, folder)
    loaded = Loaded(quiet, Tokens(tokenizer, [tokenizer.eos_token_id], (), quiet.backbone.vocab_size), folder.name)
    tasks = held_out(stage, args.n, args.problem_seed)
    prompts = [prompt(text) for text in write(tasks.shown(stage.pairs), args.form)]
    line = {"step": step, "stage": str(stage), **programs.measure(loaded, tasks, stage.pairs, prompts)}
    with (args.out / EVALUATIONS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _measured(folder: Path) -> set[int]:
    """Steps that a run, or the one that it goes on with, has measured: those of an interrupted one would come out the same."""
    file = folder / EVALUATIONS
    return {json.loads(line)["step"] for line in file.read_text().splitlines()} if file.exists() else set()


def _grid(steps: int, count: int) -> list[int]:
    """Even steps from the first to the last."""
    return [round(number * steps / count) for number in range(count + 1)]


def _stage_at(stages: list[Stage], step: int) -> tuple[Stage, int]:
    """The stage of a step, and which of its steps it is."""
    for stage, end in zip(stages, itertools.accumulate(stage.steps for stage in stages), strict=True):
        if step < end:
            return stage, step - (end - stage.steps)
    return stages[-1], stages[-1].steps - 1


def _lr_at(args: argparse.Namespace, step: int) -> float:
    """Each stage warms up and decays on its own."""
    stage, own = _stage_at(args.stages, step)
    return decay_linearly(own, stage.steps, args.lr, args.warmup)


# Stages are remembered by `Stages`; how often a run is looked at changes nothing in it.
_INCIDENTAL = ("out", "resume", "threads", "save_every", "config", "cpu", "stages", "evaluations")


def _check(args: argparse.Namespace) -> None:
    for name, value in {**DEFAULTS, **CONFIGS[args.config]}.items():
        if getattr(args, name) is None:
            setattr(args, name, [parse_stage(text) for text in value] if name == "stages" else value)
    if args.lr is None:
        args.lr = OPTIMIZERS[args.optimizer]
    require_least(args, 1, "batch", "width", "layers", "heads", "evaluations", "n", "threads", "save_every")
    require_least(args, 0, "num_programs", "warmup", "weight_decay", "seed")
    require(args, "width", args.width % args.heads == 0, f"a multiple of --heads, {args.heads}")
    require(args, "lr", args.lr > 0, "above 0")
    enough = not args.num_programs or args.num_programs >= args.batch
    require(args, "num_programs", enough, f"0, or as many as a batch has, {args.batch}")
    require(args, "out", args.out.is_dir() or not args.out.exists(), "a folder")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train karel",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the model, its checkpoints, the log and the state")
    add("--config", default="small", choices=CONFIGS, help="what is meant where a flag is not given (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same model (%(default)s)")
    add(
        "--resume",
        action="store_true",
        help="go on from the state in --out, if there is one; further stages may follow its own",
    )
    add(
        "--stages",
        type=_stage,
        nargs="+",
        metavar="STAGE",
        help="SIZE:PAIRS:SHORTEST-LONGEST:STEPS: cells a side, worlds shown, operations, updates",
    )
    add("--form", default="compact", choices=get_args(Form), help="of the worlds in the text (%(default)s)")
    add("--everything", action="store_true", help="learn every token, as the paper does, not the program's alone")
    add("--num-programs", type=int, metavar="N", help="in all, seen in turn; 0: none twice")
    add("--width", type=int, help="hidden size")
    add("--layers", type=int, help="decoder layers")
    add("--heads", type=int, help="attention heads")
    add("--batch", type=int, help="texts an update")
    add("--optimizer", default="muon", choices=OPTIMIZERS, help="of matrices (%(default)s)")
    add("--lr", type=float, help=f"highest learning rate ({OPTIMIZERS})")
    add("--warmup", type=int, default=50, help="updates of warm-up in each stage (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="of matrices (%(default)s)")
    add("--evaluations", type=int, help="checkpoints besides the first, at even steps")
    add("--n", type=int, help="held-out tasks that each is measured on")
    add("--problem-seed", type=int, default=1, help="draws other held-out tasks (%(default)s)")
    add("--precision", default="no", choices=["no", "bf16"], help="of activations (%(default)s: as the weights)")
    add("--cpu", action="store_true", help="stay on the CPU")
    add("--save-every", type=int, default=200, help="updates between saved states (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads; a run repeats bit for bit on one (%(default)s)")
    return parser


def _stage(text: str) -> Stage:
    try:
        return parse_stage(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
