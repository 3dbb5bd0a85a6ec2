"""The comparison of NAT and NCE with their arms in one command: samples for every seed, every arm from them, the same fresh problems.

Measured is the share of problems whose greedy chain of thought comes to the right answer; of `fine-tune`, which learns none, that of
greedy answers. Not trained: `base`, `negative-only` (`nat` with its negative adapter alone) and `second-positive` (the first adapter
of `two-positives` alone, another seed of `kd`). What is finished is not done again, and what was interrupted goes on; several may
share the work by taking different seeds or rows, once `nat` is there.
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
from ..checkpoint_folder import CONFIG
from . import negative, negative_plot, sample
from .arguments import check_study, claim, drop_flags, handed_on, require_distinct, run
from .evaluation import generated, majority
from .evaluation.evaluate import library_versions
from .evaluation.evaluation import Evaluation
from .evaluation.family_items import draw_items
from .evaluation.intervals import wilson
from .evaluation.pairs import ahead, mcnemar, overlap, relative
from .integration import SETTINGS, in_mode, load_integrated
from .loop import LOG_FILE, write_aside
from .negative_table import markdown
from .samples import NEGATIVE
from .study_table import reports_by_row
from .tasks import FAMILIES

HALVES = {"negative-only": "nat", "second-positive": "two-positives"}  # rows, and whose frozen adapter they are
ROWS = ("base", *negative.ARMS, *HALVES)
RIVALS = {
    "nat": [row for row in ROWS if row not in ("nat", *negative.STUDENTS)],
    "nce": ["kd", "nce-constant", "nce-shuffled"],
}
OVERLAPS = (("kd", "negative-only"), ("kd", "second-positive"))
REPORTS = "reports"
AT_ONCE = 256  # answers
HISTORY = ("step", "loss", "alpha_negative", "beta")
SETTINGS_OF_ALL = ("base", "teacher", "families", "sample", "negative")


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train negative-study`; 0 when the table is printed, otherwise what the failing piece returned."""
    return run(_parser(), lambda args: study(args, sys.argv[1:] if argv is None else argv), argv)


def study(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train and measure whatever is missing, and print the table."""
    check_study(args)
    require_distinct(args, "families")
    args.teacher = args.teacher or args.base
    claim(args.out, {name: getattr(args, name) for name in SETTINGS_OF_ALL})
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        _draw(args, seed)
        for row in sorted(args.rows, key=ROWS.index):  # students come behind their teacher
            _run_row(args, row, seed)
    summary = summarise(args, argv)
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        negative_plot.plot(summary, args.results.with_suffix(".png"))
    print(markdown(summary))


def summarise(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The reports of all seeds by row, what they come to in pairs, and how they were made."""
    files = [_report_file(args, row, seed) for row in args.rows for seed in args.seeds]
    summary = {
        "command": ["quietserve", "train", "negative-study", *argv],
        **{name: getattr(args, name) for name in ("seeds", "n", "problem_seed", *SETTINGS_OF_ALL)},
        "versions": library_versions(),
        "rows": [json.loads(file.read_text()) for file in files],
    }
    by_row = {row: [_right(report) for report in found] for row, found in reports_by_row(summary).items()}
    pairs = [(row, rival) for row, rivals in RIVALS.items() for rival in rivals if {row, rival} <= by_row.keys()]
    return summary | {
        "compared": [_compare(args, by_row, *pair) for pair in pairs],
        "overlaps": [_overlap(args, by_row, *pair) for pair in OVERLAPS if by_row.keys() >= set(pair)],
    }


def _compare(args: argparse.Namespace, by_row: dict[str, list[list[bool]]], row: str, rival: str) -> dict[str, Any]:
    value, ci95 = ahead(by_row[row], by_row[rival], args.problem_seed)
    chances = [mcnemar(*pair) for pair in zip(by_row[row], by_row[rival], strict=True)]
    told = {"row": row, "rival": rival, "value": value, "ci95": ci95, "mcnemar": chances}
    share = relative(by_row[row], by_row[rival], args.problem_seed)
    return told | ({"relative": {"value": share[0], "ci95": share[1]}} if share else {})


def _overlap(args: argparse.Namespace, by_row: dict[str, list[list[bool]]], row: str, other: str) -> dict[str, Any]:
    found = zip(args.seeds, by_row[row], by_row[other], strict=True)
    return {"row": row, "other": other, "seeds": [{"seed": seed, **overlap(one, two)} for seed, one, two in found]}


def _draw(args: argparse.Namespace, seed: int) -> None:
    """The samples of a seed."""
    folder = _data(args, seed)
    if (folder / NEGATIVE).exists():
        return
    flags = ["--model", _of_seed(args.teacher, seed), "--out", str(folder), "--seed", str(seed), *handed_on(args)]
    _do(sample.main([*flags, "--tasks", *args.families, *args.sample.split()]))


def _run_row(args: argparse.Namespace, row: str, seed: int) -> None:
    file = _report_file(args, row, seed)
    report: dict[str, Any] = {"row": row, "training_seed": seed, "n": args.n, "seed": args.problem_seed}
    if file.exists() and report.items() <= json.loads(file.read_text()).items():
        return
    arm = HALVES.get(row, row)
    if arm in negative.ARMS:
        _train(args, arm, seed)
    report |= {
        "history": _history(_folder(args, row, seed)) if row == arm != "base" else [],
        **_measure(args, row, seed),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, lambda aside: aside.write_text(json.dumps(report) + "\n"))
    print(f"{row}, seed {seed}: done", file=sys.stderr)


def _train(args: argparse.Namespace, arm: str, seed: int) -> None:
    folder = _folder(args, arm, seed)
    if (folder / (SETTINGS if arm in negative.INTEGRATED else CONFIG)).exists():
        return
    flags = ["--base", _of_seed(args.base, seed), "--data", str(_data(args, seed)), "--out", str(folder), "--arm", arm]
    if arm in negative.STUDENTS:
        _train(args, "nat", seed)
        flags += ["--teacher", str(_folder(args, "nat", seed))]
    _do(negative.main([*flags, "--seed", str(seed), *handed_on(args), *flags_of(arm, args.negative)]))


def flags_of(arm: str, written: str) -> list[str]:
    """Flags for every arm, without the knobs that this one does not read."""
    return drop_flags(written, {knob for knobs in negative.ARMS.values() for knob in knobs} - set(negative.ARMS[arm]))


def _measure(args: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """`value`, `ci95`, what it is by family, and of every problem whether it was solved: "0110"."""
    if row in HALVES:
        loaded = load_integrated(_folder(args, HALVES[row], seed))
        with in_mode(loaded.model, "negative"):
            by_family = _solve(args, loaded, row)
    elif row in negative.INTEGRATED:
        by_family = _solve(args, load_integrated(_folder(args, row, seed)), row)
    else:
        path = _of_seed(args.base, seed) if row == "base" else _folder(args, row, seed)
        by_family = _solve(args, checkpoint.load(path), row)
    right = [one for every in by_family.values() for one in every]
    return {
        "value": sum(right) / len(right),
        "ci95": wilson(sum(right), len(right)),
        "by_family": {name: sum(every) / len(every) for name, every in by_family.items()},
        "right": "".join(str(int(one)) for one in right),
    }


def _solve(args: argparse.Namespace, loaded: Loaded, row: str) -> dict[str, list[bool]]:
    """Whether each problem of each family is solved."""
    metric = generated if row == "fine-tune" else majority
    evaluation = Evaluation(loaded, args.problem_seed, samples=1, temperature=0.0, batch=AT_ONCE)
    found = {}
    for name in args.families:
        measured = next(metric.measure(evaluation, draw_items(name, args.n, args.problem_seed), [0]))
        found[name] = [bool(value) for value in measured.values]
    return found


def _right(report: dict[str, Any]) -> list[bool]:
    return [letter == "1" for letter in report["right"]]


def _history(folder: Path) -> list[dict[str, float]]:
    """What was logged while it trained."""
    lines = map(json.loads, (folder / LOG_FILE).read_text().splitlines())
    return [{name: line[name] for name in HISTORY if name in line} for line in lines]


def _do(code: int) -> None:
    """Leave with the code of a command that failed."""
    if code:
        raise SystemExit(code)


def _of_seed(model: str, seed: int) -> str:
    return model.replace("{seed}", str(seed))


def _data(args: argparse.Namespace, seed: int) -> Path:
    return args.out / f"samples-{seed}"


def _folder(args: argparse.Namespace, arm: str, seed: int) -> Path:
    return args.out / f"{arm}-{seed}"


def _report_file(args: argparse.Namespace, row: str, seed: int) -> Path:
    return args.out / REPORTS / f"{row}-{seed}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train negative-study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--base", required=True, metavar="MODEL", help="what is trained; {seed} in it stands for the training seed")
    add("--teacher", metavar="MODEL", help="what the samples are drawn from, written the same way (the base)")
    add("--out", type=Path, required=True, help="folder for all samples, checkpoints and reports")
    add("--families", nargs="+", default=["chains"], choices=FAMILIES, metavar="NAME", help="of problems (chains)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    add("--n", type=int, default=2000, help="held-out problems of each family (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file, and draw it beside")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--sample", default="", metavar="FLAGS", help='further flags of `train sample`, as --sample="..."')
    add(
        "--negative",
        default="",
        metavar="FLAGS",
        help='further flags of `train negative`, as --negative="..."; a knob goes to the arms that read it',
    )
    return parser
