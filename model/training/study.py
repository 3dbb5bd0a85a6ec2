"""The whole comparison in one command: a base, Quiet-STaR and its controls for every seed, evaluated on the same fresh problems.

Rows: `quiet-star`; `untrained` (the base's own thoughts: markers from the dash, mixing weight 1, nothing trained);
`no-reinforce`; `pause`; `continued`. Thoughts are sampled at temperature 1, as they are in training, and the answer's one
token is judged: untrained thoughts, each of which ends in an answer, would go on answering.

What is finished is not done again, and what was interrupted goes on, so the command can be killed and repeated; several may
share the work by taking different seeds.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .. import checkpoint
from ..checkpoint import Loaded
from ..mixing import MixingHead
from ..tokens import Tokens
from . import pretrain, quiet_star
from .evaluate import evaluate

ROWS = ("quiet-star", "untrained", "no-reinforce", "pause", "continued")
REPORTS = "reports"
FINISHED = "config.json"  # what a checkpoint is saved with last


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train study`; 0 when the table is printed, otherwise what the failing piece returned."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        base = args.out / f"base-{seed}"
        if code := _once(base, pretrain.main, ["--out", str(base), "--seed", str(seed), "--resume"]):
            return code
        for row in ROWS:
            if code := _run_row(args, row, seed, base):
                return code
    summary = summarise(args)
    if args.results:
        args.results.write_text(json.dumps(summary, indent=1) + "\n")
    print(markdown(summary))
    return 0


def summarise(args: argparse.Namespace) -> dict[str, Any]:
    """Every finished report in the folder, and how it was made."""
    files = sorted((args.out / REPORTS).glob("*.json"))
    reports = [json.loads(file.read_text()) for file in files if _is_done(args, file)]
    return {
        "command": "quietserve train study",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": [report for row in ROWS for report in reports if report["row"] == row],
    }


def markdown(summary: dict[str, Any]) -> str:
    """Mean accuracy over families by depth, over seeds: mean and standard deviation."""
    depths = list(summary["rows"][0]["mean"])
    lines = ["| | seeds | " + " | ".join(f"depth {depth}" for depth in depths) + " |", "|---" * (len(depths) + 2) + "|"]
    for row in ROWS:
        reports = [report for report in summary["rows"] if report["row"] == row]
        if reports:
            cells = [_spread([report["mean"][depth] for report in reports]) for depth in depths]
            lines.append(f"| {row} | {len(reports)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Always(MixingHead):
    """A mixing head that gives every thought the same weight."""

    def __init__(self, weight: float) -> None:
        nn.Module.__init__(self)
        self.weight = weight

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:  # noqa: ARG002
        """The weight, in the shape of the hidden states [..., H] less their last."""
        return torch.full_like(base[..., 0], self.weight)


def _run_row(args: argparse.Namespace, row: str, seed: int, base: Path) -> int:
    report_file = args.out / REPORTS / f"{row}-{seed}.json"
    if _is_done(args, report_file):
        return 0
    folder = args.out / f"{row}-{seed}"
    if row != "untrained":
        flags = ["--base", str(base), "--out", str(folder), "--arm", row, "--seed", str(seed), "--resume"]
        if code := _once(folder, quiet_star.main, [*flags, *args.quiet_star]):
            return code
    loaded = _untrained(base, max(args.depths)) if row == "untrained" else checkpoint.load(folder)
    choose = quiet_star.pause if row == "pause" else None
    report = evaluate(
        loaded, args.depths, args.n, args.problem_seed, thought_temperature=1.0, choose=choose, max_tokens=1
    )
    _write(report_file, {"row": row, "training_seed": seed, **report})
    print(f"{row}, seed {seed}: " + "  ".join(f"{d}: {a:.3f}" for d, a in report["mean"].items()), file=sys.stderr)
    return 0


def _is_done(args: argparse.Namespace, report_file: Path) -> bool:
    """There is a report, and of the same measurement."""
    if not report_file.exists():
        return False
    report = json.loads(report_file.read_text())
    wanted = [args.n, args.problem_seed, [str(depth) for depth in args.depths]]
    return [report["n"], report["seed"], list(report["mean"])] == wanted


def _once(folder: Path, run: Any, argv: list[str]) -> int:
    return 0 if (folder / FINISHED).exists() else run(argv)


def _untrained(base: Path, depth: int) -> Loaded:
    model, tokenizer = quiet_star.open_base(base, depth)
    model.mixing_head = Always(1.0)
    tokens = Tokens(tokenizer, (), (quiet_star.START, quiet_star.END), model.backbone.vocab_size)
    return Loaded(model.eval().requires_grad_(False), tokens, base.name)


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps(values) + "\n")
    os.replace(aside, file)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve train study", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for all bases, checkpoints and reports")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    add("--depths", type=int, nargs="+", default=[0, 4, 8, 12], help="thought depths to evaluate (0 4 8 12)")
    add("--n", type=int, default=2000, help="held-out problems a family (%(default)s)")
    add("--problem-seed", type=int, default=1, help="draws other problems (%(default)s)")
    add("--results", type=Path, help="write every report here as one JSON file")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--quiet-star", nargs=argparse.REMAINDER, default=[], help="what follows goes to `train quiet-star`")
    return parser
