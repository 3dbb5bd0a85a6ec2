"""What rankers are worth, in one command: for every seed a model's answers, rankers trained on them, and votes on fresh problems.

Rankers: `states` (the default), `pooled` (states without an encoder), `classifier` (a copy of the language model, all of it trained),
`cubic` (the paper's loss of pairs), and `states` after fewer updates, for what a vote gains by how good its ranker is. What is
finished is not done again; several may share the work by taking different seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..checkpoint import Loaded
from ..ranker import CONFIG, Ranker, load_ranker
from . import rank, rank_plot, sample
from .arguments import check_study, claim, drop_flags, handed_on, require, require_distinct, require_least, run
from .evaluation.evaluate import library_versions
from .loop import progress_bar, write_aside
from .rank_table import markdown
from .rank_votes import Scores, measure_votes
from .ranking import calibration_error, pairwise
from .samples import NEGATIVE, Asked, num_questions, read_samples

ROWS: dict[str, list[str]] = {
    "states": [],
    "cubic": ["--loss", "cubic"],
    "pooled": ["--layers", "0"],
    "classifier": ["--kind", "classifier"],
    "states-25": ["--steps", "25"],
    "states-100": ["--steps", "100"],
    "states-400": ["--steps", "400"],
}
AT_ONCE = 64  # questions scored between two signs of life
SIZES = (4, 8, 16, 32)
REPORTS = "reports"
SETTINGS = ("tasks", "questions", "learned_samples", "sample", "ranker", "models")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train ranker-study`; 0 when the table is printed, otherwise what the failing piece returned."""
    return run(_parser(), lambda args: study(args, sys.argv[1:] if argv is None else argv), argv)


def study(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train and measure whatever is missing, and print the table."""
    _check(args)
    claim(args.out, {name: _plain(getattr(args, name)) for name in SETTINGS})
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        model = args.models[seed % len(args.models)]
        flags = ["--model", str(model), "--tasks", *args.tasks, *handed_on(args), *args.sample.split()]
        learned = [*flags, "--samples", str(args.learned_samples)]
        _draw(args.out / f"learned-{seed}", args.questions, learned, seed)
        fresh = [*flags, "--samples", str(SIZES[-1]), "--held-out"]
        _draw(_fresh(args, seed), args.n, fresh, args.problem_seed)
        for row in args.rows:
            _run_row(args, row, seed, model)
    summary = summarise(args, argv)
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        rank_plot.plot(summary, args.results.with_suffix(".png"))
    print(markdown(summary))


def summarise(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The reports of all seeds by row, and how they were made."""
    files = [_report_file(args, row, seed) for row in args.rows for seed in args.seeds]
    return {
        "command": ["quietserve", "train", "ranker-study", *argv],
        "n": args.n,
        **{name: _plain(getattr(args, name)) for name in SETTINGS if name != "models"},
        "versions": library_versions(),
        "rows": [json.loads(file.read_text()) for file in files],
    }


def _draw(folder: Path, number: int, flags: list[str], seed: int) -> None:
    """Answers to so many questions or more, unless they are there; where there are fewer, those stay the first ones."""
    if (folder / NEGATIVE).exists() and num_questions(folder) >= number:
        return
    if code := sample.main(["--out", str(folder), "--seed", str(seed), *flags, "--n", str(number)]):
        raise SystemExit(code)


def _run_row(args: argparse.Namespace, row: str, seed: int, model: Path) -> None:
    folder, file = args.out / f"{row}-{seed}", _report_file(args, row, seed)
    report: dict[str, Any] = {"row": row, "training_seed": seed, "n": args.n, "seed": args.problem_seed}
    if file.exists() and report.items() <= json.loads(file.read_text()).items():
        return
    if not (folder / CONFIG).exists():
        flags = ["--model", str(model), "--data", str(args.out / f"learned-{seed}"), "--out", str(folder)]
        given = drop_flags(args.ranker, rank.KNOBS if "classifier" in ROWS[row] else ())  # it has no encoder
        flags += ["--seed", str(seed), *handed_on(args), *given, *ROWS[row]]
        if code := rank.main(flags):
            raise SystemExit(code)
    loaded = checkpoint.load(model, "float32")
    report |= _measure(loaded, folder, read_samples(_fresh(args, seed), args.n), args.problem_seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, lambda aside: aside.write_text(json.dumps(report) + "\n"))
    print(f"{row}, seed {seed}: done", file=sys.stderr)


def _measure(loaded: Loaded, folder: Path, asked: Sequence[Asked], seed: int) -> dict[str, Any]:
    """How good the scores are, and what votes are worth with them."""
    ranker = load_ranker(folder, loaded)
    scores = _score(ranker, loaded, asked)
    answered = [
        [(score, told.right) for score, told in zip(own, one.samples, strict=True) if told.answer is not None]
        for one, own in zip(asked, scores, strict=True)
    ]
    told = [sample for one in asked for sample in one.samples]
    return {
        "single": sum(one.right for one in told) / len(told),
        "answered": sum(one.answer is not None for one in told) / len(told),
        "values": sum(len({s.answer for s in one.samples} - {None}) for one in asked) / len(asked),
        "pairwise": pairwise(answered, seed),
        "ece": calibration_error(answered),
        "votes": measure_votes(asked, scores, SIZES, seed),
    }


def _score(ranker: Ranker, loaded: Loaded, asked: Sequence[Asked]) -> Scores:
    """Of every answer; that takes minutes, and is told."""
    scores: list[list[float]] = []
    with progress_bar(total=len(asked), unit="question", desc="scoring") as bar:
        for first in range(0, len(asked), AT_ONCE):
            part = asked[first : first + AT_ONCE]
            flat = iter(ranker.score([rank.entry(loaded, one, told) for one in part for told in one.samples]))
            scores += [[next(flat) for _ in one.samples] for one in part]
            bar.update(len(part))
    return scores


def _fresh(args: argparse.Namespace, seed: int) -> Path:
    """The answers that vote: with one model for all seeds the same for all rankers."""
    return args.out / f"fresh-{args.problem_seed}-{seed % len(args.models)}"


def _report_file(args: argparse.Namespace, row: str, seed: int) -> Path:
    return args.out / REPORTS / f"{row}-{seed}.json"


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list) else value


def _check(args: argparse.Namespace) -> None:
    check_study(args)
    require_least(args, 1, "questions", "learned_samples")
    require_distinct(args, "tasks")
    enough = len(args.models) == 1 or len(args.models) > max(args.seeds)
    require(args, "models", enough, "one for all seeds, or one for each from 0 on")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train ranker-study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all answers, rankers and reports")
    add(
        "--models",
        type=Path,
        nargs="+",
        required=True,
        metavar="MODEL",
        help="whose answers: one for all seeds, or one each",
    )
    add("--tasks", nargs="+", required=True, metavar="TASK", help="families of problems")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    add("--questions", type=int, default=2000, help="that rankers learn from (%(default)s)")
    add("--learned-samples", type=int, default=8, help="answers to each of those (%(default)s)")
    add("--n", type=int, default=2000, help="held-out problems (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file, and draw it beside")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--sample", default="", metavar="FLAGS", help='further flags of `train sample`, as --sample="..."')
    add(
        "--ranker",
        default="",
        metavar="FLAGS",
        help='further flags of `train ranker`, as --ranker="..."; those of the encoder go to rows that have one',
    )
    return parser
