"""The whole comparison in one command: a base, Quiet-STaR and its controls for every seed, on the same fresh problems.

Trained, at equal numbers of updates: `quiet-star`; `no-reinforce`; `pause` (one token again and again in place of a thought);
`continued` (no thoughts, more of the same text). Not trained: `untrained` (the base's own thoughts: markers from the dash, mixing
weight 1). Of the trained model: `swapped` (each problem gets the thought of another one) and `random` (as many tokens as its own
thought, drawn evenly).

Thoughts are sampled at temperature 1, as in training, and the answer's one token is judged: untrained thoughts, each of which
ends in an answer, would go on answering. What is finished is not done again, and what was interrupted goes on, so the command
can be killed and repeated; several may share the work by taking different seeds, or rows of one
whose base is there.
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
from ..thoughts import Choose
from . import pretrain, quiet_star, study_plot
from .arguments import check_study, claim, handed_on, once, require, run
from .controls import Always, Recorder, Thoughts, forced, is_right, ordinary_tokens, reasons, scrambled, swapped
from .evaluation.evaluate import evaluate, library_versions
from .evaluation.family_items import draw_items
from .loop import write_aside
from .study_table import markdown
from .tasks import FAMILIES, MAX_STEPS
from .thinker import ThinkerConfig, open_thinker
from .trainer import pause_token

TRAINED = ("quiet-star", "no-reinforce", "pause", "continued")
ROWS_OF = {  # by what is measured: a model, and with it what is made of its own thoughts
    "quiet-star": ("quiet-star", "swapped", "random"),
    **{name: (name,) for name in ("untrained", "no-reinforce", "pause", "continued")},
}
ROWS = [row for rows in ROWS_OF.values() for row in rows]
THINKING = ("quiet-star", "untrained", "no-reinforce")  # whose own thoughts are read
REPORTS = "reports"


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train study`; 0 when the table is printed, otherwise what the failing piece returned."""
    return run(_parser(), lambda args: study(args, sys.argv[1:] if argv is None else argv), argv)


def study(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train and measure whatever is missing, and print the table."""
    check_study(args)
    require(args, "depths", min(args.depths) >= 0, "0 or more each")
    claim(args.out, {name: getattr(args, name) for name in ("pretrain", "quiet_star")})
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        base = args.out / f"base-{seed}"
        once(base, pretrain.main, ["--out", str(base), "--seed", str(seed), *handed_on(args), *args.pretrain.split()])
        for name in args.rows:
            _run_one(args, name, seed, base)
    summary = summarise(args, argv)
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        study_plot.plot(summary, args.results.with_suffix(".png"))
    print(markdown(summary))


def summarise(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The reports of all seeds by row, and how they were made."""
    reports = [_report(args, name, seed) for seed in args.seeds for name in args.rows]
    return {
        "command": ["quietserve", "train", "study", *argv],
        "n": args.n,
        "depths": args.depths,
        "versions": library_versions(),
        "rows": [
            {"row": row, "training_seed": report["training_seed"], "tasks": report["rows"][row]}
            for row in ROWS
            for report in reports
            if row in report["rows"]
        ],
    }


def _run_one(args: argparse.Namespace, name: str, seed: int, base: Path) -> None:
    """Train what is to be trained, then measure it family by family, each of which is kept when it is done."""
    report = _report(args, name, seed)
    missing = [family for family in FAMILIES if family not in report["rows"][name]]
    if not missing:
        return
    folder = args.out / f"{name}-{seed}"
    if name in TRAINED:
        flags = ["--base", str(base), "--out", str(folder), "--arm", name, "--seed", str(seed), *handed_on(args)]
        once(folder, quiet_star.main, [*flags, *args.quiet_star.split()])
    loaded = checkpoint.load(folder) if name in TRAINED else _untrained(base, max(args.depths))
    file = _report_file(args, name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    for family in missing:
        for row, metrics in _measure(args, name, loaded, family).items():
            report["rows"][row][family] = metrics
        text = json.dumps(report) + "\n"
        write_aside(file, lambda aside, text=text: aside.write_text(text))
    print(f"{name}, seed {seed}: done", file=sys.stderr)


def _report_file(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.out / REPORTS / f"{name}-{seed}.json"


def _report(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """What is measured so far, by row and family; a report of another measurement counts for nothing."""
    settings = {"training_seed": seed, "n": args.n, "seed": args.problem_seed, "depths": args.depths}
    file = _report_file(args, name, seed)
    report = json.loads(file.read_text()) if file.exists() else {}
    if {key: report.get(key) for key in settings} == settings:
        return report
    return settings | {"rows": {row: {} for row in ROWS_OF[name]}}


def _measure(args: argparse.Namespace, name: str, loaded: Loaded, family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Row, metric, depth, to a cell."""
    rows: dict[str, dict[str, dict[str, Any]]] = {row: {"generated": {}} for row in ROWS_OF[name]}
    for depth in _depths(args, name):
        recorder = Recorder()
        own = _accuracy(args, loaded, family, depth, _pause(loaded) if name == "pause" else recorder)
        if depth and name in THINKING:
            own |= _reasoning(args, loaded, family, recorder.thoughts, depth)
        for row in rows:
            if row == name or not depth:  # without thoughts there is nothing to exchange
                rows[row]["generated"][str(depth)] = own
            else:
                choose = _spoil(args, row, loaded, recorder.thoughts)
                rows[row]["generated"][str(depth)] = _accuracy(args, loaded, family, depth, choose)
    if name == "quiet-star":
        rows[name] |= _further(args, loaded, family)
    return rows


def _depths(args: argparse.Namespace, name: str) -> list[int]:
    """Where a row is measured: pauses are all alike, and without thoughts there is no depth."""
    return {"continued": [0], "pause": [0, max(args.depths)]}.get(name, args.depths)


def _further(args: argparse.Namespace, loaded: Loaded, family: str) -> dict[str, Any]:
    """Metric, depth, to a cell, of what is measured of the trained model alone."""
    report = evaluate(
        loaded,
        args.depths,
        args.n,
        args.problem_seed,
        [family],
        thought_temperature=1.0,
        metrics=("scored", "perplexity"),
        positions=args.positions,
    )
    return report["tasks"][family]


def _accuracy(args: argparse.Namespace, loaded: Loaded, name: str, depth: int, choose: Choose) -> dict[str, Any]:
    report = evaluate(
        loaded, [depth], args.n, args.problem_seed, [name], thought_temperature=1.0, choose=choose, max_tokens=1
    )
    return report["tasks"][name]["generated"][str(depth)]


def _reasoning(args: argparse.Namespace, loaded: Loaded, name: str, own: Thoughts, depth: int) -> dict[str, float]:
    """The share of thoughts that work the problem, and of those that do so rightly."""
    texts = {seed: loaded.tokens.decode(tokens) for (seed, _), tokens in own.items()}
    told = [
        (item.problem, texts[args.problem_seed + i])
        for i, item in enumerate(draw_items(name, args.n, args.problem_seed))
    ]
    return {
        "reasons": sum(reasons(*each) for each in told) / len(told),
        "right": sum(is_right(*each, depth) for each in told) / len(told),
    }


def _spoil(args: argparse.Namespace, row: str, loaded: Loaded, own: Thoughts) -> Choose:
    stop = min(loaded.model.stop_ids)
    if row == "random":
        return forced(scrambled(own, ordinary_tokens(loaded)), stop)
    seeds = range(args.problem_seed, args.problem_seed + args.n)
    # Numbers of steps come in turn: the problem so many places on has as many steps.
    return forced(swapped(own, seeds, lambda number: (number + MAX_STEPS) % args.n), stop)


def _pause(loaded: Loaded) -> Choose:
    token = pause_token(loaded)
    return lambda thoughts, _: [token] * len(thoughts)


def _untrained(base: Path, depth: int) -> Loaded:
    loaded = open_thinker(base, ThinkerConfig(depth))
    loaded.model.mixing_head = Always(1.0)
    return loaded


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all bases, checkpoints and reports")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add(
        "--rows",
        nargs="+",
        default=list(ROWS_OF),
        choices=ROWS_OF,
        metavar="ROW",
        help=f"of {', '.join(ROWS_OF)} (all)",
    )
    add("--depths", type=int, nargs="+", default=[0, 4, 8, 12, 16], help="thought depths to evaluate (0 4 8 12 16)")
    add("--n", type=int, default=2000, help="held-out problems a family (%(default)s)")
    add("--positions", type=int, default=4, help="tokens of a text whose perplexity is measured (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file, and draw it beside")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--pretrain", default="", metavar="FLAGS", help='further flags of `train pretrain`, as --pretrain="..."')
    add("--quiet-star", default="", metavar="FLAGS", help='further flags of `train quiet-star`, as --quiet-star="..."')
    return parser
