"""What the states of Karel models know of what programs mean, over training and under other meanings, in one command.

For every checkpoint of every run (`quietserve train karel`): its own programs, and linear probes of all properties that
`quietserve train karel-traces` labels, on the states that chose each operation. For the last one besides: probes with hidden layers,
offsets of -2 to 2 operations, the programs that the worlds were made with, and the same programs under every other meaning of the
words, a new probe for each on the same states, with how far they are apart on the same programs. All beside controls
(`quietserve train probes`). What is finished is not done again, so the command can be killed and repeated; several may share the
work by taking different runs.

Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169).
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..checkpoint import Loaded
from ..probe import probe_config
from . import karel_plot
from .arguments import claim, require, require_least, require_matplotlib, require_output, run
from .evaluation.evaluate import library_versions
from .karel import CHECKPOINTS, EVALUATIONS
from .karel_table import markdown
from .karel_texts import held_out, parse_stage
from .karel_traces import CONTENTS, PROPERTIES, label, own, reference
from .loop import digest, write_aside
from .probes import TooFewLabelsError, fit_part, probe, with_random_weights
from .probing import Fit, Fitted, States, classes_of, leaves_something, skill_gap
from .tasks.karel.programs import MEANINGS
from .tasks.karel.synthesis import Tasks
from .traces import Trace

LINEAR: tuple[int, ...] = ()
HIDDEN = (256,)
SHAPES = {"linear": LINEAR, "1 hidden": HIDDEN, "2 hidden": (*HIDDEN, 1024)}  # as in the paper
MEANT = ("obstacle", "moved")  # what other meanings change most
COMPARED = ("original", "flip", "adversarial")  # of which the first should be known best
ALONE = "operations alone"
OFFSETS = (-2, -1, 0, 1, 2)
REPORTS, TENSORS = "reports", "model.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train karel-study`."""
    return run(_parser(), lambda args: study(args, sys.argv[1:] if argv is None else argv), argv)


def study(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure whatever is missing, and print the tables."""
    args.last_n = args.n if args.last_n is None else args.last_n
    _check(args)
    claim(args.out, {name: getattr(args, name) for name in ("n", "last_n", "problem_seed", "seed", "steps", "held")})
    torch.set_num_threads(args.threads)
    reports = [_run(args, folder) for folder in args.runs]
    summary = {
        "command": ["quietserve", "train", "karel-study", *argv],
        "n": args.n,
        "last_n": args.last_n,
        "problem_seed": args.problem_seed,
        "seed": args.seed,
        "versions": library_versions(),
        "runs": reports,
    }
    print(markdown(summary))
    if args.results:
        write_aside(args.results, lambda file: file.write_text(json.dumps(summary, indent=1) + "\n"))
        karel_plot.plot(summary, args.results.with_suffix(".png"))


def _run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one run."""
    evaluations = [json.loads(line) for line in (folder / EVALUATIONS).read_text().splitlines()]
    last = evaluations[-1]
    chosen = [line for line in evaluations[:: args.every] if line["stage"] == last["stage"]]
    if last not in chosen:
        chosen.append(last)
    stage = parse_stage(last["stage"])
    tasks, more = (held_out(stage, n, args.problem_seed).shown(stage.pairs) for n in (args.n, args.last_n))
    over_training = []
    for line in chosen:
        path = folder / CHECKPOINTS / f"{line['step']:06d}"
        found = _once(args, path, "linear", lambda path=path: _linear(args, path, tasks))
        over_training.append({"step": line["step"], "probes": found})
    path = folder / CHECKPOINTS / f"{last['step']:06d}"
    return {
        "run": folder.name,
        "stage": last["stage"],
        "evaluations": evaluations,
        "over_training": over_training,
        **_once(args, path, "final", lambda: _final(args, path, more)),
    }


def _once(args: argparse.Namespace, path: Path, what: str, measure: Any) -> Any:
    """What was measured of a checkpoint, known by its tensors: a run that was trained anew may be called as before."""
    tensors = digest(path / TENSORS)[:8]
    name = f"{path.parent.parent.name}-{int(path.name)}-{what}"
    file = args.out / REPORTS / f"{name}-{tensors}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = measure()
        write_aside(file, lambda aside: aside.write_text(json.dumps(found) + "\n"))
        print(f"{name}: done", file=sys.stderr)
    return json.loads(file.read_text())


def _linear(args: argparse.Namespace, path: Path, tasks: Tasks) -> dict[str, Any]:
    """Probes of a checkpoint on its own programs."""
    loaded = checkpoint.load(path, "float32")
    traces = label(loaded, tasks, own(loaded, tasks))
    return _probes(args, loaded, traces, States(loaded, traces, _layers(loaded)), None)


def _final(args: argparse.Namespace, path: Path, tasks: Tasks) -> dict[str, Any]:
    """All that is asked of the last checkpoint."""
    loaded = checkpoint.load(path, "float32")
    written, blank = own(loaded, tasks), with_random_weights(loaded, args.seed)
    given = label(loaded, tasks, reference(tasks))
    meant = {name: label(loaded, tasks, written, name) for name in MEANINGS}
    traces = meant[COMPARED[0]]
    states, blanks = (States(one, traces, _layers(loaded)) for one in (loaded, blank))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "shapes": lambda: {
            name: _probes(args, loaded, traces, states, blanks, widths=widths) for name, widths in SHAPES.items()
        },
        "offsets": lambda: {
            str(offset): _probes(args, loaded, traces, states, blanks, offset=offset) for offset in OFFSETS
        },
        "ahead": lambda: _probes(args, loaded, traces, states, blanks, widths=HIDDEN, offset=1),
        "meanings": lambda: {  # beside controls of their own: other labels are easier or harder by themselves
            name: _probes(args, loaded, other, states.with_labels(other), blanks.with_labels(other))
            for name, other in meant.items()
        },
        "gaps": lambda: _gaps(args, loaded, {name: states.with_labels(other) for name, other in meant.items()}),
        "reference": lambda: _probes(
            args,
            loaded,
            given,
            States(loaded, given, _layers(loaded)),
            States(blank, given, _layers(loaded)),
        ),
    }
    found = {}
    for name, measure in parts.items():
        found[name] = measure()
        print(f"{path.parent.parent.name}-{int(path.name)}-{name}: measured", file=sys.stderr)
    return found


def _gaps(args: argparse.Namespace, loaded: Loaded, meant: Mapping[str, States]) -> dict[str, Any]:
    """How far skills are apart on the same texts: under one meaning and another, and of the state and the operations alone."""
    gaps = {}
    for name in MEANT:
        told = {meaning: each for meaning, each in meant.items() if len(classes_of(each.traces, name)) > 1}
        fitted = {meaning: _fit(args, loaded, each, name) for meaning, each in told.items()}
        fitted = {meaning: each for meaning, each in fitted.items() if leaves_something(each)}
        for one, other in pairwise(meaning for meaning in COMPARED if meaning in fitted):
            gaps[f"{name}, {one} over {other}"] = skill_gap(fitted[one], fitted[other])
        for meaning, each in fitted.items():
            alone = _fit(args, loaded, told[meaning], name, tokens_alone=True)
            gaps[f"{name}, {meaning} over {ALONE}"] = skill_gap(each, alone)
    return gaps


def _fit(args: argparse.Namespace, loaded: Loaded, states: States, name: str, tokens_alone: bool = False) -> Fitted:
    """A linear probe of a property, of the states or of the operations in their place."""
    classes = classes_of(states.traces, name)
    examples = states.tokens_alone(name, classes) if tokens_alone else states.examples(name, classes)
    config = probe_config(loaded, property=name, classes=classes, layers=_layers(loaded))
    shape = replace(config, hidden_size=examples.features_NF.shape[1])
    return fit_part(shape, examples, len(states.traces), args.held, Fit(steps=args.steps, seed=args.seed))


def _probes(
    args: argparse.Namespace,
    loaded: Loaded,
    traces: Sequence[Trace],
    states: States,
    blank: States | None,
    widths: tuple[int, ...] = LINEAR,
    offset: int = 0,
) -> dict[str, Any]:
    """A probe of each property, and of three the content: the geometric mean of their accuracies.

    {} where labels do not differ, or no program is long enough for the offset.
    """
    how, found = Fit(widths, args.steps, seed=args.seed), {}
    for name in PROPERTIES:
        classes = classes_of(traces, name)
        if len(classes) < 2:
            return {}
        config = probe_config(loaded, property=name, classes=classes, layers=_layers(loaded), widths=widths)
        try:
            found[name] = probe(states, blank, replace(config, offset=offset), args.held, how)
        except TooFewLabelsError:
            return {}
    return found | {
        content: prod(found[name]["accuracy"] for name in of) ** (1 / len(of)) for content, of in CONTENTS.items()
    }


def _layers(loaded: Loaded) -> tuple[int, ...]:
    """All, as in the paper."""
    return tuple(range(loaded.model.backbone.num_layers + 1))


def _check(args: argparse.Namespace) -> None:
    require_least(args, 1, "n", "last_n", "steps", "threads", "every")
    require_least(args, 0, "seed", "problem_seed")
    require(args, "held", 0 < args.held < 1, "above 0 and below 1")
    for folder in args.runs:
        if not (folder / EVALUATIONS).exists() or not (folder / EVALUATIONS).stat().st_size:
            raise ValueError(f"--runs: {folder} is no run of `quietserve train karel`, or nothing was measured yet")
    names = {folder.name for folder in args.runs}  # which reports are called by
    require(args, "runs", len(names) == len(args.runs), "folders that are called differently")
    require_output("--results", args.results)
    if args.results:
        require_matplotlib("--results")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train karel-study",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="RUN", help="folders of `train karel`, one a seed")
    add("--out", type=Path, required=True, help="folder for what is measured")
    add("--n", type=int, default=5000, help="held-out tasks, a program each (%(default)s)")
    add("--last-n", type=int, metavar="N", help="as many for the last checkpoint, of which more is asked (--n)")
    add("--every", type=int, default=1, metavar="N", help="look at each Nth checkpoint of the last stage (%(default)s)")
    add("--steps", type=int, default=1500, help="updates of a probe (%(default)s)")
    add("--held", type=float, default=0.2, help="share of programs to measure probes with (%(default)s)")
    add("--problem-seed", type=int, default=3, help="draws other tasks (%(default)s)")
    add("--seed", type=int, default=0, help="of probes, and of what they are measured with (%(default)s)")
    add("--results", type=Path, help="write everything here as one JSON file, and draw it beside")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
