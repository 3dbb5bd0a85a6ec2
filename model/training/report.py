"""`quietserve report`: a training run as one picture, or several of one kind. Needs the optional package `matplotlib`."""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..drawing import open_pyplot
from . import karel_plot
from .arguments import require, require_matplotlib, require_output, run
from .evaluation import plot as evaluation_plot
from .evaluation.evaluate import library_versions
from .karel import EVALUATIONS as KAREL_EVALUATIONS
from .loop import LOG_FILE, write_aside
from .trainer import THOUGHTS_FILE

EVALUATION = "evaluation.json"  # looked for in the run's folder
WIDTH = 46  # letters of a line of a thought


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve report`."""
    return run(_parser(), lambda args: report(args, sys.argv[1:] if argv is None else argv), argv)


def report(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Draw what the runs' folders hold. Raises ValueError for a folder that is no run's."""
    require_matplotlib("this")
    require(args, "results", args.kind == "karel" or not args.results, "left out where the kind is not karel")
    require_output("--results", args.results)
    out = args.out or args.run[0] / "report.png"
    if args.kind == "karel":
        _report_karel(args, argv, out)
    else:
        _report_quiet_star(args, out)
    print(out)


def _report_quiet_star(args: argparse.Namespace, out: Path) -> None:
    require(args, "run", len(args.run) == 1, "one folder where the kind is quiet-star")
    run = args.run[0]
    log = _filled(run / LOG_FILE)
    thoughts = _lines(run / THOUGHTS_FILE) if (run / THOUGHTS_FILE).exists() else []
    draw(run.name, log, thoughts, _evaluation(args, {"tasks", "depths"}, "quietserve evaluate"), out)


def _report_karel(args: argparse.Namespace, argv: Sequence[str], out: Path) -> None:
    """What `train karel` measured on its way, or with `--evaluation` all that `train karel-study` did."""
    if args.evaluation:
        require(args, "results", not args.results, "left out beside --evaluation, which is such a file")
        study = _evaluation(args, {"runs", "versions"}, "quietserve train karel-study --results") or {}
        known = [run["run"] for run in study["runs"]]
        chosen = [run for name in args.run for run in study["runs"] if run["run"] == name.name]
        require(args, "run", len(chosen) == len(args.run), f"among those of --evaluation: {', '.join(known)}")
        karel_plot.plot(study | {"runs": chosen}, out)
        return
    runs = {run.name: _filled(run / KAREL_EVALUATIONS) for run in args.run}
    require(args, "run", len(runs) == len(args.run), "folders that are called differently")
    karel_plot.plot_runs(runs, out)
    if args.results:
        found = {"command": ["quietserve", "report", *argv], "versions": library_versions(), "runs": runs}
        write_aside(args.results, lambda file: file.write_text(json.dumps(found, indent=1) + "\n"))


def draw(
    name: str,
    log: Sequence[dict[str, float]],
    thoughts: Sequence[dict[str, Any]],
    evaluation: dict[str, Any] | None,
    file: Path,
) -> None:
    """Write a PNG: losses, reward, entropy, mixing weight and thoughts over time; accuracy and gains where they were measured."""
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(2, 4, figsize=(19, 8), layout="constrained")
    _curves(axes[0, 0], log, {"base_nll": "without thoughts", "mixed_nll": "behind thoughts"}, "loss, nats a token")
    _curves(axes[0, 1], log, {"reward": "reward"}, "nats that a thought gains")
    _curves(axes[0, 2], log, {"weight": "mixing weight", "ended": "thoughts that end themselves"}, "mean, share")
    _curves(
        axes[0, 3], log, {"entropy": "of a thought's tokens, nats", "length": "tokens of a thought"}, "entropy, length"
    )
    if evaluation:
        evaluation_plot.draw_accuracy(axes[1, 0], evaluation)
        evaluation_plot.draw_tenths(axes[1, 1], evaluation)
    shown = [("first thoughts", thoughts[:3]), ("last thoughts", thoughts[-3:])]
    for panel, (title, some) in zip(axes[1, 2:], shown, strict=True):
        _write_thoughts(panel, title, some)
    for panel in axes.flat:
        if not panel.has_data():
            panel.set_axis_off()
    figure.suptitle(name)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _curves(axes: Any, log: Sequence[dict[str, float]], names: dict[str, str], label: str) -> None:
    for key, told in names.items():
        points = [(line["step"], line[key]) for line in log if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=told)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def _write_thoughts(axes: Any, title: str, thoughts: Sequence[dict[str, Any]]) -> None:
    parts = [
        f"step {each['step']}, reward {each['reward']:+.2f}\n"
        + textwrap.fill(f"...{each['text'][-90:]!r}", WIDTH)
        + "\n"
        + textwrap.fill(f"thinks {each['thought']!r} before {each['next']!r}", WIDTH)
        for each in thoughts
    ]
    text = "\n\n".join(parts).replace("$", r"\$")  # a formula, to matplotlib
    axes.text(0, 1, text, va="top", family="monospace", fontsize="small", transform=axes.transAxes)
    axes.set_title(title if thoughts else "")


def _evaluation(args: argparse.Namespace, fields: set[str], source: str) -> dict[str, Any] | None:
    file = args.evaluation or args.run[0] / EVALUATION
    if not args.evaluation and not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    if not fields <= found.keys():
        raise ValueError(f"{file}: is no report of `{source}`")
    return found


def _filled(file: Path) -> list[dict[str, Any]]:
    if lines := _lines(file):
        return lines
    raise ValueError(f"{file}: has no line yet")


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as lines of JSON: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quietserve report", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("kind", choices=["quiet-star", "karel"], help="what was trained")
    add("run", type=Path, nargs="+", help="the folder of a run; of karel several, such as its seeds")
    add(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help=f"what `quietserve evaluate --out` wrote (RUN/{EVALUATION}); of karel, `train karel-study --results` (none)",
    )
    add("--out", type=Path, metavar="FILE", help="the picture (RUN/report.png, of the first)")
    add("--results", type=Path, metavar="FILE", help="of karel: what was measured of the runs, as one JSON file")
    return parser
