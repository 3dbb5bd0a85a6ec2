"""The comparison of SCoRe with its arms in one command: a base for every seed, every arm from it, the same fresh problems.

Trained, at equal numbers of updates: the arms of `train score`. Not trained: `base`, and `self-refine`, the base told in words it
never saw in training that there might be an error. What is finished is not done again, and what was interrupted goes on, so
the command can be killed and repeated; several may share the work by taking different seeds or rows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..checkpoint import Loaded
from ..correction import INSTRUCTION, CorrectionConfig
from . import attempts, score, score_plot
from .arguments import check_study, claim, handed_on, once, run
from .evaluation.evaluate import evaluate, library_versions
from .loop import LOG_FILE, write_aside
from .score_table import markdown

ROWS = ("base", "self-refine", *score.ARMS)
LEARNING = [arm for arm, knobs in score.ARMS.items() if knobs]  # from attempts of its own, not its base's
VOTING = ("base", "single-turn", "score")  # rows whose votes are measured unless others are named
REPORTS = "reports"
AT_ONCE = 256  # answers
HISTORY = ("step", "t1", "t2", "repaired", "broken", "changed", "kl1", "kl2")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train score-study`; 0 when the table is printed, otherwise what the failing piece returned."""
    return run(_parser(), lambda args: study(args, sys.argv[1:] if argv is None else argv), argv)


def study(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train and measure whatever is missing, and print the table."""
    check_study(args)
    claim(args.out, {name: getattr(args, name) for name in ("task", "attempts", "score")})
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        base = args.out / f"base-{seed}"
        flags = ["--out", str(base), "--seed", str(seed), "--families", args.task, *handed_on(args)]
        once(base, attempts.main, [*flags, *args.attempts.split()])
        for row in args.rows:
            _run_row(args, row, seed, base)
    summary = summarise(args, argv)
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        score_plot.plot(summary, args.results.with_suffix(".png"))
        if any("budget" in row for row in summary["rows"]):
            score_plot.plot_budget(summary, args.results.with_name(f"{args.results.stem}_budget.png"))
    print(markdown(summary))


def summarise(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The reports of all seeds by row, and how they were made."""
    files = [_report_file(args, row, seed) for row in args.rows for seed in args.seeds]
    return {
        "command": ["quietserve", "train", "score-study", *argv],
        "task": args.task,
        "n": args.n,
        "attempts": args.attempts,
        "score": args.score,
        "versions": library_versions(),
        "rows": [json.loads(file.read_text()) for file in files],
    }


def _run_row(args: argparse.Namespace, row: str, seed: int, base: Path) -> None:
    folder, file = args.out / f"{row}-{seed}", _report_file(args, row, seed)
    report: dict[str, Any] = {"row": row, "training_seed": seed, "n": args.n, "seed": args.problem_seed}
    if file.exists() and _answers(json.loads(file.read_text()), report, row in args.voting):
        return
    if row in score.ARMS:
        flags = ["--base", str(base), "--out", str(folder), "--arm", row, "--seed", str(seed), "--tasks", args.task]
        once(folder, score.main, [*flags, "--log-every", "5", *handed_on(args), *args.score.split()])
    loaded = checkpoint.load(folder if row in score.ARMS else base)
    report |= {"history": _history(folder) if row in LEARNING else [], **_measure(args, loaded, row)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, lambda aside: aside.write_text(json.dumps(report) + "\n"))
    print(f"{row}, seed {seed}: done", file=sys.stderr)


def _answers(report: dict[str, Any], asked: dict[str, Any], votes: bool) -> bool:
    """Whether a report is of what is asked for."""
    return asked.items() <= report.items() and (not votes or "budget" in report)


def _measure(args: argparse.Namespace, loaded: Loaded, row: str) -> dict[str, Any]:
    """A cell of each metric."""
    if row == "self-refine":
        loaded = replace(loaded, correction=CorrectionConfig(INSTRUCTION))
    metrics = ["corrected", "budget"] if row in args.voting else ["corrected"]
    report = evaluate(loaded, [0], args.n, args.problem_seed, [args.task], metrics=metrics, batch=AT_ONCE)
    return {metric: cells["0"] for metric, cells in report["tasks"][args.task].items()}


def _history(folder: Path) -> list[dict[str, float]]:
    """What was measured while it trained, at temperature 1, on problems of the training split."""
    lines = map(json.loads, (folder / LOG_FILE).read_text().splitlines())
    return [{name: line[name] for name in HISTORY if name in line} for line in lines]


def _report_file(args: argparse.Namespace, row: str, seed: int) -> Path:
    return args.out / REPORTS / f"{row}-{seed}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train score-study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all bases, checkpoints and reports")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    add(
        "--voting",
        nargs="*",
        default=VOTING,
        choices=ROWS,
        metavar="ROW",
        help=f"rows that vote, too ({', '.join(VOTING)})",
    )
    add("--task", default="signed-sum", help="family of problems (%(default)s)")
    add("--n", type=int, default=2000, help="held-out problems (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file, and draw it beside: two pictures")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--attempts", default="", metavar="FLAGS", help='further flags of `train attempts`, as --attempts="..."')
    add("--score", default="", metavar="FLAGS", help='further flags of `train score`, as --score="..."')
    return parser
