"""How good a checkpoint is at each thought depth: generated, scored, voted and by perplexity, with confidence intervals.

A task is a built-in family of problems (fresh ones, none of them in any training set) or a JSONL file in the shape of GSM8K
or CommonsenseQA. Metrics:

generated: the share of greedy answers that are right, by the server's decoder;
scored: the paper's zero-shot metric, the probability of the right answer among those allowed;
maj: cot-maj@k, the vote of several visible chains of thought;
corrected: the second answer, given after the first was put before the model once more;
budget: the vote of 2K first answers beside that of K corrected ones, with `--ranker` weighed by it, too;
perplexity: of the tasks' texts or of a plain text, and the gain by how hard a token is.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ... import checkpoint
from ...checkpoint import Loaded
from ...ranker import load_ranker
from ...thoughts import Choose
from ..arguments import run
from ..loop import progress_bar, write_aside
from ..tasks import EVERY, FAMILIES
from ..tasks.files import read_items
from ..tasks.item import Item, Wording
from . import budget, corrected, generated, majority, perplexity, plot, scored
from .evaluation import PERPLEXITY, Evaluation, Measured
from .family_items import draw_items
from .flags import check, check_depths, make_parser, read_wording
from .intervals import bootstrap
from .pool import pool, read
from .table import table

PLACES = ("model", "ranker", "out", "png", "json", "pool")  # arguments that say where something lies
_OF_ITEMS = {
    "generated": generated.measure,
    "scored": scored.measure,
    "maj": majority.measure,
    "corrected": corrected.measure,
    "budget": budget.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve evaluate`."""
    return run(make_parser(__doc__), lambda args: _report(args, sys.argv[1:] if argv is None else argv), argv)


def evaluate(
    loaded: Loaded,
    depths: Sequence[int],
    n: int,
    seed: int,
    tasks: Sequence[str] = tuple(FAMILIES),
    thought_temperature: float | None = None,
    choose: Choose | None = None,
    max_tokens: int | None = None,
    *,
    metrics: Sequence[str] = ("generated",),
    texts: Sequence[Path] = (),
    length: int = 256,
    wording: Wording | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure each task at each depth, the same items at every depth.

    Args:
        loaded: the checkpoint.
        depths: thought depths; 0 is the plain base.
        n: items a task: fresh problems of a family, with its numbers of steps in equal shares, or the first of a file.
        seed: draws other problems, and is the seed of all noise.
        tasks: families by their names, and JSONL files by their paths.
        thought_temperature: 0 is greedy; None: the checkpoint's own.
        choose: replaces who picks the tokens of thoughts.
        max_tokens: of a generated answer; None: what the task's answers need.
        metrics: any of `METRICS`.
        texts: plain text files, of which only the perplexity is measured.
        length: tokens of a window of such a text.
        wording: of the prompts for the items of files.
        settings: further fields of `Evaluation`.

    Returns:
        `tasks`: name, metric, depth, to a cell with `value` and `ci95`, `gain` over depth 0 where that was measured (paired),
        and what else the metric says; `mean`: depth, to the mean of the first metric's values over the tasks; and what was
        asked for.

    Raises:
        ValueError: a task, a file or a depth that cannot be.
    """
    if thought_temperature is None:
        thought_temperature = loaded.model.quiet.thought_temperature if loaded.model.quiet else 0.0
    evaluation = Evaluation(loaded, seed, thought_temperature, choose, max_tokens, **settings)
    items = _open_tasks(tasks, n, seed, wording or Wording())
    documents = {str(file): perplexity.windows(file, loaded.tokens, length, n) for file in texts}
    report = {
        "model": loaded.name,
        "n": n,
        "seed": seed,
        "depths": list(depths),
        "thought_temperature": thought_temperature,
        "samples": evaluation.samples,
        "pairs": evaluation.pairs,
        "temperature": evaluation.temperature,
        "tasks": _measure(evaluation, items, documents, metrics, sorted(depths)),
    }
    first = [cells[metrics[0]] for cells in report["tasks"].values() if metrics[0] in cells]
    report["mean"] = {str(d): sum(cells[str(d)]["value"] for cells in first) / len(first) for d in depths if first}
    return report


def _open_tasks(names: Sequence[str], n: int, seed: int, wording: Wording) -> dict[str, Sequence[Item]]:
    """Items by the task's name."""
    known = ", ".join(EVERY)
    for name in names:
        if name not in EVERY and not Path(name).exists():
            raise ValueError(f"--tasks is {name}; it must be among {known}, or a JSONL file that exists")
    return {name: draw_items(name, n, seed) if name in EVERY else read_items(Path(name), wording)[:n] for name in names}


def _measure(
    evaluation: Evaluation,
    tasks: dict[str, Sequence[Item]],
    texts: dict[str, list[perplexity.Document]],
    metrics: Sequence[str],
    depths: Sequence[int],
) -> dict[str, dict[str, Any]]:
    encode = evaluation.loaded.tokens.encode
    runs: list[tuple[str, str, Iterator[Measured]]] = []
    for name, items in tasks.items():
        runs += [
            (name, metric, _OF_ITEMS[metric](evaluation, items, depths)) for metric in metrics if metric in _OF_ITEMS
        ]
        if PERPLEXITY in metrics:
            documents = [(item.source, encode(item.document)) for item in items]
            runs.append((name, PERPLEXITY, perplexity.measure(evaluation, documents, depths)))
    runs += [(name, PERPLEXITY, perplexity.measure(evaluation, windows, depths)) for name, windows in texts.items()]
    report: dict[str, dict[str, Any]] = {name: {} for name, _, _ in runs}
    with progress_bar(total=len(runs) * len(depths), unit="cell", leave=False) as bar:
        for name, metric, cells in runs:
            report[name][metric] = _compare(cells, evaluation.seed, bar)
    return report


def _compare(cells: Iterator[Measured], seed: int, bar: Any) -> dict[str, dict[str, Any]]:
    """The cells by depth; those behind the plain base's say how far the same items came out above it."""
    found: dict[str, dict[str, Any]] = {}
    base: Sequence[float] = ()
    for measured in cells:
        found[str(measured.depth)] = measured.cell
        if measured.depth == 0:
            base = measured.values
        elif base:
            gains = [own - before for own, before in zip(measured.values, base, strict=True)]
            measured.cell["gain"] = {"value": sum(gains) / len(gains), "ci95": bootstrap(gains, seed=seed)}
        bar.update()
    return found


def _report(args: argparse.Namespace, argv: Sequence[str]) -> None:
    check(args)
    report = pool(read(args.pool)) if args.pool else _evaluate(args, argv)
    print(json.dumps(report, default=str) if args.json else table(report))
    if args.out:
        write_aside(args.out, lambda file: file.write_text(json.dumps(report, default=str, indent=1) + "\n"))
    if args.png:
        write_aside(args.png, lambda file: plot.plot(report, file))


def _evaluate(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    loaded = checkpoint.load(args.model, args.dtype, args.device, args.quantization)
    check_depths(args, loaded)
    settings = {
        name: getattr(args, name)
        for name in ("samples", "temperature", "reasoning_tokens", "positions", "stop", "pairs", "batch")
    }
    ranker = load_ranker(args.ranker, loaded) if args.ranker else None
    report = evaluate(
        loaded,
        args.depths,
        args.n,
        args.seed,
        args.tasks,
        args.thought_temperature,
        max_tokens=args.max_tokens,
        metrics=args.metrics,
        texts=args.text,
        length=args.length,
        wording=read_wording(args),
        ranker=ranker,
        **settings,
    )
    # How it was measured; where files lie is nobody else's business.
    arguments = {name: value for name, value in vars(args).items() if name not in PLACES}
    return report | {
        "command": ["quietserve", "evaluate", *argv],
        "arguments": arguments,
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """What a report was measured with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
