"""The whole comparison in one command: a base, Quiet-STaR and its controls for every seed, on the same fresh problems.

Trained, at equal numbers of updates: `quiet-star`; `no-reinforce`; `pause` (one token again and again in place of a thought);
`continued` (no thoughts, more of the same text). Not trained: `untrained` (the base's own thoughts: markers from the dash, mixing
weight 1). Of the trained model: `swapped` (each problem gets the thought of another one) and `random` (as many tokens as its own
thought, drawn evenly).

Thoughts are sampled at temperature 1, as in training, and the answer's one token is judged: untrained thoughts, each of which
ends in an answer, would go on answering. What is finished is not done again, and what was interrupted goes on, so the command
can be killed and repeated; several may share the work by taking different seeds.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import checkpoint
from ..checkpoint import Loaded
from ..thoughts import Choose
from . import pretrain, quiet_star, study_plot
from .controls import Always, Recorder, Thoughts, forced, is_right, ordinary_tokens, reasons, scrambled, swapped
from .evaluation.evaluate import evaluate
from .loop import write_aside
from .study_table import markdown
from .tasks import FAMILIES, MAX_STEPS, Problem, problems
from .thinker import ThinkerConfig, open_thinker
from .trainer import pause_token

TRAINED = ("quiet-star", "no-reinforce", "pause", "continued")
ROWS = ("quiet-star", "untrained", "no-reinforce", "pause", "continued", "swapped", "random")
THINKING = ("quiet-star", "untrained", "no-reinforce")  # rows whose own thoughts are read
REPORTS = "reports"
FINISHED = "config.json"  # what a checkpoint is saved with last


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train study`; 0 when the table is printed, otherwise what the failing piece returned."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        base = args.out / f"base-{seed}"
        if code := _once(
            base, pretrain.main, ["--out", str(base), "--seed", str(seed), "--resume", *args.pretrain.split()]
        ):
            return code
        for row in ROWS:
            if code := _run_row(args, row, seed, base):
                return code
    summary = summarise(args, sys.argv[1:] if argv is None else argv)
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        study_plot.plot(summary, args.results.with_suffix(".png"))
    print(markdown(summary))
    return 0


def summarise(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Every finished report in the folder, and how it was made."""
    files = sorted((args.out / REPORTS).glob("*.json"))
    reports = [json.loads(file.read_text()) for file in files if _is_done(args, file)]
    return {
        "command": ["quietserve", "train", "study", *argv],
        "n": args.n,
        "depths": args.depths,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": [report for row in ROWS for report in reports if report["row"] == row],
    }


def _run_row(args: argparse.Namespace, row: str, seed: int, base: Path) -> int:
    report_file = args.out / REPORTS / f"{row}-{seed}.json"
    if _is_done(args, report_file):
        return 0
    folder = args.out / f"{row if row in TRAINED else 'quiet-star'}-{seed}"
    if row in TRAINED:
        flags = ["--base", str(base), "--out", str(folder), "--arm", row, "--seed", str(seed), "--resume"]
        if code := _once(folder, quiet_star.main, [*flags, *args.quiet_star.split()]):
            return code
    loaded = _untrained(base, max(args.depths)) if row == "untrained" else checkpoint.load(folder)
    report = {"row": row, "training_seed": seed, "n": args.n, "seed": args.problem_seed, "depths": args.depths}
    report["tasks"] = {name: _measure(args, row, loaded, name) for name in FAMILIES}
    report_file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(report_file, lambda file: file.write_text(json.dumps(report) + "\n"))
    print(f"{row}, seed {seed}: done", file=sys.stderr)
    return 0


def _measure(args: argparse.Namespace, row: str, loaded: Loaded, name: str) -> dict[str, dict[str, Any]]:
    """Metric, depth, to a cell."""
    found: dict[str, dict[str, Any]] = {"generated": {}}
    for depth in args.depths:
        recorder = Recorder()
        choose = _pause(loaded) if row == "pause" else recorder
        cell = _accuracy(args, loaded, name, depth, choose)
        if depth and row in ("swapped", "random"):
            choose = _spoil(args, row, loaded, recorder.thoughts)
            cell = _accuracy(args, loaded, name, depth, choose)
        found["generated"][str(depth)] = cell
        if depth and row in THINKING:
            cell |= _reasoning(args, loaded, name, recorder.thoughts, depth)
    if row in ("quiet-star", "untrained"):
        measured = evaluate(
            loaded,
            args.depths,
            args.n,
            args.problem_seed,
            [name],
            thought_temperature=1.0,
            metrics=("scored", "perplexity"),
            positions=args.positions,
        )
        found |= measured["tasks"][name]
    return found


def _accuracy(args: argparse.Namespace, loaded: Loaded, name: str, depth: int, choose: Choose) -> dict[str, Any]:
    report = evaluate(
        loaded, [depth], args.n, args.problem_seed, [name], thought_temperature=1.0, choose=choose, max_tokens=1
    )
    return report["tasks"][name]["generated"][str(depth)]


def _reasoning(args: argparse.Namespace, loaded: Loaded, name: str, own: Thoughts, depth: int) -> dict[str, float]:
    """The share of thoughts that work the problem, and of those that do so rightly."""
    texts = {seed: loaded.tokens.decode(tokens) for (seed, _), tokens in own.items()}
    told = [(problem, texts[args.problem_seed + i]) for i, problem in enumerate(_drawn(args, name))]
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


def _drawn(args: argparse.Namespace, name: str) -> list[Problem]:
    source = problems("held_out", (name,), args.problem_seed)
    return [next(source) for _ in range(args.n)]


def _is_done(args: argparse.Namespace, report_file: Path) -> bool:
    """There is a report, and of the same measurement."""
    if not report_file.exists():
        return False
    report = json.loads(report_file.read_text())
    return [report["n"], report["seed"], report["depths"]] == [args.n, args.problem_seed, args.depths]


def _once(folder: Path, run: Any, argv: list[str]) -> int:
    return 0 if (folder / FINISHED).exists() else run(argv)


def _untrained(base: Path, depth: int) -> Loaded:
    loaded = open_thinker(base, ThinkerConfig(depth))
    loaded.model.mixing_head = Always(1.0)
    return loaded


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all bases, checkpoints and reports")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add("--depths", type=int, nargs="+", default=[0, 4, 8, 12, 16], help="thought depths to evaluate (0 4 8 12 16)")
    add("--n", type=int, default=2000, help="held-out problems a family (%(default)s)")
    add("--positions", type=int, default=12, help="tokens of a text whose perplexity is measured (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file, and draw it beside")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--pretrain", default="", metavar="FLAGS", help="in quotes: further flags of `train pretrain`")
    add("--quiet-star", default="", metavar="FLAGS", help="in quotes: further flags of `train quiet-star`")
    return parser
