"""Learn from wrong rationales as well as from right ones: NAT, its student NCE, and what they are compared with.

A wrong rationale is one that comes to a wrong answer. `nat` trains a low-rank adapter on these and freezes it, then another one on
right ones with a unit that weighs both at every token; `nce` distils such a model (`--teacher`) into a plain adapter, more where
its two halves differ. "Turning Dust into Gold" (arXiv 2312.12832). Samples are those of `quietserve train sample`.

Arms for comparison at equal numbers of updates: `fine-tune` (the answer without a rationale), `kd` (right rationales), `mix` (all
of them), `nt` (negative training: wrong ones are made less likely), `ul` (unlikelihood), `cl` (a margin between a question's right
and wrong ones), `wide` (`kd` with as many parameters as `nat`), `two-positives` and `random-negative` (`nat` whose frozen adapter
was trained on right ones, or has its entries shuffled), `nce-constant` and `nce-shuffled` (the same beta for all, or another's).

Adapters are of rank 8 on q_proj and v_proj with a dropout of 0.05 unless the flags say otherwise. A plain one is merged, and
what is left is served as it is; `nat` and the two like it leave `integration.json` and its tensors, a teacher that is not served.
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from .. import checkpoint
from ..checkpoint import Loaded
from ..quiet_model import QuietModel
from . import rationale_losses as losses
from .arguments import add_machine, check_adapters, recipe, require, require_distinct, require_least, run
from .integration import (
    TENSORS,
    Integration,
    choose_part,
    in_mode,
    integrate,
    layer_shapes,
    load_integrated,
    num_trained,
    save_integrated,
    shuffle_negative,
)
from .lessons import Deck, Draw, Lesson, Text, Texts, by_question, pair
from .loop import STATE_FILE, LoopConfig, digest
from .lora import Lora
from .negative_trainer import NegativeTrainer, Objective, StageConfig
from .processes import Processes
from .rationale_teacher import OwnDraw, own_texts, weighed
from .samples import SAMPLES, Asked, read_samples
from .thinker import checkpoint_gradients
from .trained import choose_what_learns, save, twin

# What they are if not given.
KNOBS = {"weight": 0.1, "floor": 0.01, "margin": 0.2, "inner": 128, "own_samples": 4, "own_temperature": 1.0}
_UNIT = ("inner", "negative_steps")
_STUDENT = ("teacher", "own_samples", "own_temperature")
# The knobs that each arm reads: one that is given and not read is an error.
ARMS: dict[str, tuple[str, ...]] = {
    "fine-tune": (),
    "kd": (),
    "mix": (),
    "nt": ("weight", "floor"),
    "ul": ("weight",),
    "cl": ("weight", "margin"),
    "nat": _UNIT,
    "wide": ("inner",),
    "two-positives": _UNIT,
    "random-negative": _UNIT,
    "nce": _STUDENT,
    "nce-constant": (*_STUDENT, "beta"),
    "nce-shuffled": _STUDENT,
}
INTEGRATED = [arm for arm, knobs in ARMS.items() if knobs is _UNIT]
STUDENTS = [arm for arm, knobs in ARMS.items() if "teacher" in knobs]
FROZEN = "negative"  # folder of the first stage


@dataclass(frozen=True)
class Material:
    """What every arm begins with."""

    args: argparse.Namespace
    loaded: Loaded
    asked: Sequence[Asked]
    texts: Texts
    processes: Processes
    recipe: dict[str, object]

    @property
    def right(self) -> Deck:
        """Right rationales, in the same order for every arm."""
        return self.deck(self.texts.right, "right samples")

    @property
    def wrong(self) -> Deck:
        """The same of wrong ones."""
        return self.deck(self.texts.wrong, "wrong samples")

    def deck(self, texts: Sequence[Text], what: str, order: str = "") -> Deck:
        """Any texts; another `order` is another one."""
        return Deck(texts, f"{self.args.seed}/{what}/{order}", what)

    def imitate(self, deck: Deck) -> Draw:
        """Lessons of one text each."""
        return lambda step: [Lesson(text) for text in deck.take(step, self.args.batch)]

    def train(self, objective: Objective, draw: Draw, folder: Path, steps: int, facts: Mapping[str, float]) -> None:
        """Train whatever of the model needs a gradient; `facts` are logged, too."""
        args = self.args
        config = StageConfig(args.lr, args.warmup, args.weight_decay, args.micro_batch)
        looping = LoopConfig(steps, args.seed, args.clip, args.log_every, args.save_every, args.tensorboard)
        trainer = NegativeTrainer(config, objective, draw, looping, self.processes, folder, self.recipe, facts)
        trainer.run(args.resume)


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train negative`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write what comes of it into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    processes = Processes(args.precision, cpu=args.cpu)
    if processes.size > 1:
        raise ValueError(f"{processes.size} processes were started; this is trained in one")
    asked = read_samples(args.data)
    loaded = checkpoint.load(args.base, args.dtype, str(processes.device), args.quantization)
    texts = Texts(loaded.tokens, asked, loaded.model.backbone.max_positions)
    if args.gradient_checkpointing:
        checkpoint_gradients(loaded.model)
    known = recipe(args) | {"data": digest(args.data / SAMPLES), "teacher": None}
    material = Material(args, loaded, asked, texts, processes, known)
    if args.arm in INTEGRATED:
        _train_integrated(material)
    else:
        _train_plain(material)
    processes.leave()


def _train_integrated(material: Material) -> None:
    """First the adapter that is frozen then, and behind it the other one with the units."""
    args, model, texts = material.args, material.loaded.model, material.texts
    right, objective = material.right, losses.Imitation(model)
    first = material.deck(texts.right, "right samples", "again") if args.arm == "two-positives" else material.wrong
    lora = _lora(args)
    torch.manual_seed(args.seed)  # adapters begin random
    integrate(model.backbone.lm, lora, args.inner)
    choose_part(model, "negative")
    with in_mode(model, "negative"):
        material.train(objective, material.imitate(first), args.out / FROZEN, args.negative_steps, {})
    if args.arm == "random-negative":
        shuffle_negative(model, args.seed)
    choose_part(model, "rest")
    material.train(objective, material.imitate(right), args.out, args.steps, {})
    base = str(args.base.resolve()) if args.base.exists() else str(args.base)
    settings = Integration(base, args.arm, args.inner, lora.rank, lora.alpha, lora.targets, lora.dropout)
    save_integrated(model, settings, args.out)


def _train_plain(material: Material) -> None:
    """One adapter, merged at the end."""
    args, loaded = material.args, material.loaded
    lora, facts = _lora(args), {}
    if args.arm == "wide":
        lora = replace(lora, rank=wide_rank(loaded.model, lora, args.inner))
        facts = {"rank": float(lora.rank)}
        print(f"adapters of rank {lora.rank} have as many parameters as the second stage of nat", file=sys.stderr)
    if args.arm in STUDENTS:
        teacher = _load_teacher(material)
        material = replace(material, recipe=material.recipe | {"teacher": digest(args.teacher / TENSORS)})
        objective, draw = losses.Calibration(loaded.model, teacher.model), _from_teacher(material, teacher)
    else:
        objective, draw = _objective(material), _lessons(material)
    torch.manual_seed(args.seed)  # adapters begin random
    choose_what_learns(loaded.model, lora, thinking=False)
    material.train(objective, draw, args.out, args.steps, facts)
    state, dtype = material.processes.weights(loaded.model), str(loaded.model.backbone.dtype).removeprefix("torch.")
    save(loaded, state, args.out, lora, args.base, lambda: checkpoint.load(args.base, dtype).model)


def wide_rank(model: QuietModel, lora: Lora, inner: int) -> int:
    """The rank at which adapters have as many parameters as what learns in the second stage of `nat`, or nearly so."""
    shapes = layer_shapes(twin(model, lora).backbone.lm, lora)
    wanted = sum(num_trained(*shape, lora.rank, inner) for shape in shapes)
    return round(wanted / sum(map(sum, shapes)))


def _objective(material: Material) -> Objective:
    args, model = material.args, material.loaded.model
    if args.arm in ("fine-tune", "kd", "wide"):
        return losses.Imitation(model)
    against: dict[str, losses.Against] = {
        "mix": losses.mixed,
        "nt": losses.Negated(args.weight, args.floor),
        "ul": losses.Unlikelihood(args.weight),
        "cl": losses.Margin(args.weight, args.margin),
    }
    return losses.Contrast(model, against[args.arm])


def _lessons(material: Material) -> Draw:
    """What an update reads: as many right rationales in every arm, and as many wrong ones where those are read."""
    args, texts = material.args, material.texts
    if args.arm == "fine-tune":
        return material.imitate(material.deck(texts.direct(), "questions"))
    right = material.right
    if args.arm in ("kd", "wide"):
        return material.imitate(right)
    wrong = material.wrong
    if args.arm == "cl":
        others = by_question(texts.wrong)
        if not others.keys() & by_question(texts.right).keys():
            raise ValueError("--data holds no question with a right and a wrong sample")
        return lambda step: pair(right.take(step, args.batch), others, random.Random(f"{args.seed}/{step}"))
    return lambda step: list(map(Lesson, right.take(step, args.batch), wrong.take(step, args.batch)))


def _load_teacher(material: Material) -> Loaded:
    args, device = material.args, str(material.processes.device)
    teacher = load_integrated(args.teacher, args.dtype, device, args.quantization)
    theirs, own = (one.tokens.tokenizer.get_vocab() for one in (teacher, material.loaded))
    if theirs != own:
        raise ValueError(f"--teacher {args.teacher} has another vocabulary than --base {args.base}")
    return teacher


def _from_teacher(material: Material, teacher: Loaded) -> Draw:
    """Right rationales, the teacher's own among them, each with its beta."""
    args, texts = material.args, material.texts
    source = f"{material.recipe['data']}/{material.recipe['teacher']}"
    wanted = OwnDraw(args.own_samples, args.own_temperature, args.seed, source, args.at_once)
    own = own_texts(teacher, material.asked, texts, wanted, args.out, args.resume)
    told = weighed(teacher.model, [*texts.right, *own], args.batch)
    if args.arm == "nce-constant":
        beta = mean(text.beta for text in told) if args.beta is None else args.beta
        told = [replace(text, beta=beta) for text in told]
    deck = material.deck(told, "right samples")
    if args.arm == "nce-shuffled":
        return lambda step: shuffle_betas(deck.take(step, args.batch), random.Random(f"{args.seed}/{step}"))
    return material.imitate(deck)


def shuffle_betas(texts: Sequence[Text], rng: random.Random) -> list[Lesson]:
    """Each text with the beta of any one of them."""
    betas = [text.beta for text in texts]
    rng.shuffle(betas)
    return [Lesson(replace(text, beta=beta)) for text, beta in zip(texts, betas, strict=True)]


def _lora(args: argparse.Namespace) -> Lora:
    return Lora(args.lora, args.lora_alpha, tuple(args.lora_targets), args.lora_dropout)


def _check(args: argparse.Namespace) -> None:
    require(args, "arm", args.arm in ARMS, "one of " + ", ".join(ARMS))
    for name in ("negative_steps", "teacher", "beta", *KNOBS):
        value = getattr(args, name)
        require(args, name, value is None or name in ARMS[args.arm], f"left out: the arm {args.arm} does not read it")
        if value is None:
            setattr(args, name, KNOBS.get(name))
    if args.negative_steps is None:
        args.negative_steps = args.steps
    require_least(args, 1, "steps", "negative_steps", "batch", "inner", "own_samples", "at_once", "lora")
    require_least(args, 1, "threads", "save_every", "log_every")
    require_least(args, 0, "warmup", "weight_decay", "weight", "margin")
    for name in ("lr", "clip", "lora_alpha"):
        require(args, name, getattr(args, name) > 0, "above 0")
    require(args, "own_temperature", 0 < args.own_temperature <= 2, "above 0 and at most 2")
    require(args, "floor", 0 < args.floor < 1, "above 0 and below 1")
    require(args, "beta", args.beta is None or 0 <= args.beta < 1, "at least 0 and below 1")
    require(args, "lora_dropout", 0 <= args.lora_dropout < 1, "at least 0 and below 1")
    require(args, "micro_batch", args.micro_batch is None or args.micro_batch >= 1, "1 or more")
    needs = args.arm in STUDENTS
    require(
        args, "teacher", not needs or args.teacher is not None, f"a folder that an arm of {', '.join(INTEGRATED)} left"
    )
    require(args, "shard", not args.shard, "left out: this is trained in one process")
    require_distinct(args, "lora_targets")
    check_adapters(args)
    if (args.out / STATE_FILE).exists() and not args.resume:  # or it would be known only after the first stage
        raise ValueError(
            f"{args.out / STATE_FILE} is an earlier run's: --resume goes on with it; or use another folder"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train negative",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="MODEL", help="folder or hub name of the model to start from")
    add("--data", type=Path, required=True, metavar="FOLDER", help="samples, as `quietserve train sample` leaves them")
    add("--out", type=Path, required=True, help="folder for what is trained, the log and the state to resume from")
    add("--arm", default="nat", help=f"what to train: {', '.join(ARMS)} (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same result (%(default)s)")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    _add_objective(parser.add_argument_group("objective"))
    _add_learning(parser.add_argument_group("learning"))
    add_machine(parser.add_argument_group("model and machine"))
    parser.set_defaults(lora=8, lora_targets=["q_proj", "v_proj"], lora_dropout=0.05)
    return parser


def _add_objective(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--negative-steps", type=int, metavar="N", help="updates of the adapter that is frozen then (as --steps)")
    add("--inner", type=int, help=f"width of the unit ({KNOBS['inner']})")
    add("--weight", type=float, help=f"of what is said of wrong rationales, in nt, ul and cl ({KNOBS['weight']})")
    add("--floor", type=float, help=f"probability below which nt leaves a token alone ({KNOBS['floor']})")
    add("--margin", type=float, help=f"nats a token by which cl wants right ones likelier ({KNOBS['margin']})")
    add("--teacher", type=Path, metavar="FOLDER", help="what --arm nat left, for nce and the two like it")
    add("--own-samples", type=int, metavar="N", help=f"answers of the teacher to a question ({KNOBS['own_samples']})")
    add("--own-temperature", type=float, metavar="T", help=f"of these ({KNOBS['own_temperature']})")
    add("--beta", type=float, help="that of nce-constant (the mean of nce's over all texts)")
    add("--at-once", type=int, default=128, help="answers of the teacher decoded at once (%(default)s)")


def _add_learning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--steps", type=int, default=400, help="updates (%(default)s)")
    add("--batch", type=int, default=16, help="right rationales an update, and as many wrong ones (%(default)s)")
    add("--micro-batch", type=int, metavar="N", help="lessons in memory at once (all)")
    add("--lr", type=float, default=1e-3, help="highest learning rate; 3e-4 for large models (%(default)s)")
    add("--warmup", type=int, default=20, help="updates of warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.0, help="of matrices (%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient (%(default)s)")
