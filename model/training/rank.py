"""Train a ranker: how likely an answer is to be right, learned from a model's own right and wrong answers.

It reads what the language model makes of question and answer (`--kind states`: a small encoder on the model's embeddings and
last hidden states), or is a Hugging Face model for sequence classification of its own (`--kind classifier`), which begins as
the language model itself unless `--classifier` names another. Questions are split: most are learned from, of the others half
set temperature and bias, and half measure. "Turning Dust into Gold" (arXiv 2312.12832), "Adaptive Self-Consistency".
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import checkpoint
from ..checkpoint import Loaded
from ..checkpoint_folder import find
from ..ranker import (
    ClassifierJudge,
    Kind,
    Ranker,
    RankerConfig,
    StatesEncoder,
    StatesJudge,
    load_classifier,
    save_ranker,
    states_config,
)
from ..voting import Entry
from .arguments import require, require_least, run
from .loop import Loop, LoopConfig, decay_linearly, digest, make_optimizer, step_rng
from .processes import Processes
from .ranking import calibration_error, fit_calibration, pairwise
from .samples import SAMPLES, Asked, Sample, read_samples

LOSSES = ("bce", "cubic")
KNOBS = {"width": 64, "layers": 2, "heads": 4}  # of the encoder on the states; what they are if not given
RATES = {"states": 1e-3, "classifier": 5e-5}  # --lr if not given: all weights of a trained model move less
SETTINGS = ("kind", "classifier", "loss", "steps", "batch", "lr", "warmup", "weight_decay", "held", "seed")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train ranker`."""
    return run(_parser(), train, argv)


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write the ranker into `args.out`."""
    _check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    loaded = checkpoint.load(args.model, "float32", args.device)
    learned, fitted, measured = split(
        [one for folder in args.data for one in read_samples(folder)], args.held, args.seed
    )
    judge, config = _judge(args, loaded)
    recipe = {name: str(getattr(args, name)) for name in (*SETTINGS, "model", *KNOBS)}
    recipe["data"] = " ".join(digest(folder / SAMPLES) for folder in args.data)
    loop = Loop(
        judge.train(),
        make_optimizer(judge, args.weight_decay),
        lambda step: decay_linearly(step, args.steps, args.lr, args.warmup),
        LoopConfig(args.steps, seed=args.seed, save_every=args.save_every),
        args.out,
        recipe,
        Processes(cpu=args.device == "cpu"),
    )
    if not (args.resume and loop.resume()):
        loop.start_afresh()
    loop.run(Lessons(judge, loaded, learned, args).take)
    config = calibrate(judge.eval(), config, loaded, fitted, measured)
    save_ranker(args.out, config, judge)
    print(_told(config.measured))


def _told(measured: dict[str, Any]) -> str:
    pairwise, error = measured["pairwise"], f"calibration error {measured['ece']:.3f}"
    if pairwise["value"] is None:
        return f"no measured question has both a right and a wrong answer, so there are no pairs to judge by; {error}"
    return f"pairwise accuracy {pairwise['value']:.3f} {pairwise['ci95']}, {error}"


def split(asked: Sequence[Asked], held: float, seed: int) -> tuple[list[Asked], list[Asked], list[Asked]]:
    """Questions to learn from, to calibrate with and to measure with; equal questions are never on two sides.

    Raises ValueError where one of them has no right or no wrong answers.
    """
    names = sorted({one.question for one in asked})
    random.Random(f"split/{seed}").shuffle(names)
    half = max(1, round(held * len(names) / 2))
    sides = {name: 0 if number < half else 1 if number < 2 * half else 2 for number, name in enumerate(names)}
    fitted, measured, learned = ([one for one in asked if sides[one.question] == side] for side in range(3))
    for what, part in (("to learn from", learned), ("to calibrate with", fitted), ("to measure with", measured)):
        if not (any(one.right for one in part) and any(one.wrong for one in part)):
            raise ValueError(
                f"the {len(part)} questions {what} have no right answer, or no wrong one; draw more samples"
            )
    return learned, fitted, measured


def entry(loaded: Loaded, asked: Asked, sample: Sample) -> Entry:
    """A sample as rankers read it."""
    return Entry(tuple(loaded.tokens.encode(asked.prompt)), sample.text)


class Lessons:
    """What is learned in a step.

    `bce`: answers as they come, so that the score is a probability. `cubic`: pairs of one question, (1 - s)^3 of the right
    one and s^3 of the wrong one; its scores are no probabilities before they are calibrated.
    """

    def __init__(
        self, judge: StatesJudge | ClassifierJudge, loaded: Loaded, asked: Sequence[Asked], args: argparse.Namespace
    ) -> None:
        self._judge, self._loaded, self._args = judge, loaded, args
        self._answers = [(one, sample) for one in asked for sample in [*one.right, *one.wrong]]
        self._pairs = [one for one in asked if one.right and one.wrong]
        if args.loss == "cubic" and not self._pairs:
            raise ValueError(
                "--loss cubic learns from pairs, and no question has both a right and a wrong answer: draw more samples, or use bce"
            )

    def take(self, step: int) -> dict[str, float]:
        """Leave a step's gradients."""
        args, rng = self._args, step_rng(self._args.seed, step)
        if args.loss == "bce":
            drawn = rng.choices(self._answers, k=args.batch)
        else:
            questions = rng.choices(self._pairs, k=max(1, args.batch // 2))
            drawn = [(one, rng.choice(half)) for one in questions for half in (one.right, one.wrong)]
        logits_B = self._judge([entry(self._loaded, one, sample) for one, sample in drawn])
        right_B = torch.tensor([float(sample.right) for _, sample in drawn], device=logits_B.device)
        loss = ranking_loss(logits_B, right_B, args.loss)
        loss.backward()
        return {"loss": loss.item(), "accuracy": ((logits_B > 0) == (right_B > 0)).float().mean().item()}


def ranking_loss(logits_B: Tensor, right_B: Tensor, kind: str) -> Tensor:
    """The mean loss of answers."""
    if kind == "bce":
        return binary_cross_entropy_with_logits(logits_B, right_B)
    return torch.where(right_B > 0, (-logits_B).sigmoid(), logits_B.sigmoid()).pow(3).mean()


def calibrate(
    judge: StatesJudge | ClassifierJudge,
    config: RankerConfig,
    loaded: Loaded,
    fitted: Sequence[Asked],
    measured: Sequence[Asked],
) -> RankerConfig:
    """The same with temperature and bias, and what it is worth on other questions."""
    raw = Ranker(config, judge)
    told = [(one, sample) for one in fitted for sample in [*one.right, *one.wrong]]
    logits = raw.logits([entry(loaded, one, sample) for one, sample in told])
    temperature, bias = fit_calibration(logits, [sample.right for _, sample in told])
    config = replace(config, temperature=temperature, bias=bias)
    return replace(config, measured=measure(Ranker(config, judge), loaded, measured))


def measure(ranker: Ranker, loaded: Loaded, asked: Sequence[Asked]) -> dict[str, Any]:
    """How good its scores are for questions that it has not seen."""
    answered = [[*one.right, *one.wrong] for one in asked]
    entries = [entry(loaded, one, sample) for one, own in zip(asked, answered, strict=True) for sample in own]
    scores = iter(ranker.score(entries))
    scored = [[(next(scores), sample.right) for sample in own] for own in answered]
    return {
        "pairwise": pairwise(scored),
        "ece": calibration_error(scored),
        "questions": len(asked),
        "answers": len(entries),
    }


def _judge(args: argparse.Namespace, loaded: Loaded) -> tuple[StatesJudge | ClassifierJudge, RankerConfig]:
    if args.kind == "states":
        config = states_config(loaded, width=args.width, layers=args.layers, heads=args.heads)
        return StatesJudge(StatesEncoder(config), loaded).to(args.device), config
    source = args.classifier or find(args.model)
    return load_classifier(source, loaded.tokens, num_labels=1).to(args.device), RankerConfig("classifier")


def _check(args: argparse.Namespace) -> None:
    for name, usual in KNOBS.items():
        value = getattr(args, name)
        require(args, name, value is None or args.kind == "states", f"left out: the kind is {args.kind}")
        if value is None:
            setattr(args, name, usual)
    if args.lr is None:
        args.lr = RATES[args.kind]
    require_least(args, 1, "steps", "batch", "threads", "save_every", "width", "heads")
    require_least(args, 0, "layers", "warmup", "weight_decay")
    require(args, "lr", args.lr > 0, "above 0")
    require(args, "held", 0 < args.held < 1, "above 0 and below 1")
    require(args, "width", args.width % args.heads == 0, f"a multiple of --heads, {args.heads}")
    require(args, "classifier", args.classifier is None or args.kind == "classifier", "left out: the kind is states")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train ranker", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="whose answers are ranked: a folder, a hub name, or a bundled one")
    add("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="of `train sample`")
    add("--out", type=Path, required=True, help="folder for the ranker, the log and the state to resume from")
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    add("--kind", default="states", choices=get_args(Kind), help="what it is (%(default)s)")
    add("--classifier", metavar="MODEL", help="a folder or hub name to begin with (the language model)")
    add("--loss", default="bce", choices=LOSSES, help="of answers, or the paper's of pairs (%(default)s)")
    add("--width", type=int, help=f"of the encoder on the states ({KNOBS['width']})")
    add("--layers", type=int, help=f"of it; 0 only pools ({KNOBS['layers']})")
    add("--heads", type=int, help=f"of it ({KNOBS['heads']})")
    add("--steps", type=int, default=1000, help="updates (%(default)s)")
    add("--batch", type=int, default=64, help="answers an update (%(default)s)")
    add(
        "--lr", type=float, help=f"highest learning rate ({RATES['states']:g}; of a classifier {RATES['classifier']:g})"
    )
    add("--warmup", type=int, default=50, help="updates of warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="of matrices (%(default)s)")
    add("--held", type=float, default=0.1, help="share of questions to calibrate and to measure with (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same ranker (%(default)s)")
    add("--device", default="cpu", help="where it is trained (%(default)s)")
    add("--save-every", type=int, default=200, help="updates between saved states (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
