"""Run a model's Karel programs and label each operation with what is then true of the robot: what `train probes` learns from.

Labels are of the first pair of worlds. As on a map: `direction`, and `position`, rows and columns from where it began. As the robot
has it: `turned`, from how it faced at the beginning, and `moved`, cells ahead and to the right of there. And `obstacle`, whether it
faces a wall. The last operation has none: its state is the one that the text shows. Programs are the model's own, or with
`--reference` those that the worlds were made with, the same for every model. With `--meaning` the words mean other operations: were
states only a record of what was written, a probe could learn those as well. Emergent Representations of Program Semantics in
Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "Abstract Interpretation of Karel Programs" and "Semantic
Interventions".
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint
from ..checkpoint import Loaded
from .arguments import require, require_least, require_output, run
from .evaluation.programs import generate_programs, operation_ids
from .karel import EVALUATIONS
from .karel_texts import Stage, form_of, held_out, parse_stage, prompt, write
from .tasks.karel import programs, synthesis
from .tasks.karel.interpreter import is_blocked, trace
from .tasks.karel.programs import MEANINGS
from .tasks.karel.synthesis import Tasks
from .tasks.karel.worlds import HEADINGS, Ints, Worlds, width
from .traces import Trace, write_traces

PROPERTIES = ("direction", "position", "turned", "moved", "obstacle")
# The paper's semantic content is of the first three; the second three say the same from where the robot began.
CONTENTS = {"content": ("direction", "position", "obstacle"), "own content": ("turned", "moved", "obstacle")}
TURNED = ("not", "right", "round", "left")  # by right turns
FIRST = next(iter(synthesis.FAMILIES))
_STEPS = np.array([[-1, 0, 1, 0], [0, 1, 0, -1]])  # rows and columns of a step, by heading
SPARE = 4  # operations that a model's program may have more than the longest that it learned from


def main(argv: list[str] | None = None) -> int:
    """Run `quietserve train karel-traces`."""
    return run(_parser(), make, argv)


def make(args: argparse.Namespace) -> None:
    """Write the labelled texts into `args.out`."""
    require_least(args, 1, "n", "threads")
    require_least(args, 0, "problem_seed")
    known = args.task is None or args.task in synthesis.FAMILIES
    require(args, "task", known, "one of " + ", ".join(synthesis.FAMILIES))
    require(args, "meaning", args.meaning in MEANINGS, "one of " + ", ".join(MEANINGS))
    require_output("--out", args.out)
    torch.set_num_threads(args.threads)
    loaded = checkpoint.load(args.model, "float32")
    stage = _stage(args)
    tasks = held_out(stage, args.n, args.problem_seed).shown(stage.pairs)
    written = reference(tasks) if args.reference else own(loaded, tasks)
    traces = label(loaded, tasks, written, args.meaning)
    write_traces(args.out, traces, loaded.tokens)
    right = tasks.solves(programs.collect(written)).mean()
    print(f"{len(traces)} programs, {sum(map(len, written))} operations; {right:.3f} of the programs are right")


def _stage(args: argparse.Namespace) -> Stage:
    """The task's; where none is named the last one of the run that made the model, if its folder is at hand."""
    file = args.model / EVALUATIONS
    if args.task is None and file.exists():
        return parse_stage(json.loads(file.read_text().splitlines()[-1])["stage"])
    family = synthesis.FAMILIES[args.task or FIRST]
    return Stage(family.size, family.pairs, family.steps[0], family.steps[-1], 1)


def own(loaded: Loaded, tasks: Tasks) -> list[list[int]]:
    """What a model writes, greedily."""
    return generate_programs(loaded, _prompts(loaded, tasks), tasks.ops_NL.shape[1] + SPARE)


def _prompts(loaded: Loaded, tasks: Tasks) -> list[str]:
    return [prompt(text) for text in write(tasks, form_of(loaded.tokens, tasks.before.size))]


def reference(tasks: Tasks) -> list[list[int]]:
    """What the worlds were made with."""
    return [[op for op in ops if op != programs.NOTHING] for ops in tasks.ops_NL.tolist()]


def label(loaded: Loaded, tasks: Tasks, written: Sequence[Sequence[int]], meaning: str = "original") -> list[Trace]:
    """Texts of programs, each operation but the last with its labels; the words are the same whatever they mean."""
    tokens, op_ids = loaded.tokens, operation_ids(loaded)
    states = abstract_states(first_worlds(tasks), written, meaning)
    traces = []
    for text, ops, told in zip(_prompts(loaded, tasks), written, states, strict=True):
        asked = tokens.encode(text)
        labels = {
            name: tuple((len(asked) + number, kinds[name]) for number, kinds in enumerate(told[:-1]))
            for name in PROPERTIES
        }
        traces.append(Trace((*asked, *(op_ids[op] for op in ops)), labels))
    return traces


def abstract_states(begin: Worlds, written: Sequence[Sequence[int]], meaning: str) -> list[list[dict[str, str]]]:
    """For each program what is true behind each of its operations."""
    ops_NL = programs.rename(programs.collect(written), meaning)
    found: list[list[dict[str, str]]] = [[] for _ in written]
    for number, now in enumerate(trace(begin, ops_NL)):
        for states, ops, state in zip(found, written, _states(begin, now), strict=True):
            if number < len(ops):
                states.append(state)
    return found


def _states(begin: Worlds, now: Worlds) -> Iterator[dict[str, str]]:
    """What is true of each robot, which has come from where it began to where it is now."""
    rows_N, columns_N = (after - before for after, before in zip(_places(now), _places(begin), strict=True))
    down, across = _STEPS
    ahead_N, right_N = (
        rows_N * down[headings_N] + columns_N * across[headings_N]
        for headings_N in (begin.headings_N, (begin.headings_N + 1) % 4)
    )
    turns_N = (now.headings_N - begin.headings_N) % 4
    told = (now.headings_N, rows_N, columns_N, turns_N, ahead_N, right_N, is_blocked(now))
    for heading, row, column, turns, ahead, right, wall in zip(*(each.tolist() for each in told), strict=True):
        yield {
            "direction": HEADINGS[heading],
            "position": f"{row:+d}{column:+d}",
            "turned": TURNED[turns],
            "moved": f"{ahead:+d}{right:+d}",
            "obstacle": "yes" if wall else "no",
        }


def _places(worlds: Worlds) -> tuple[Ints, Ints]:
    """Rows and columns."""
    return np.divmod(worlds.cells_N, width(worlds.size))


def first_worlds(tasks: Tasks) -> Worlds:
    """The first of each task's."""
    return tasks.before[np.arange(len(tasks)) * tasks.pairs]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve train karel-traces",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="of `train karel`: a folder, or a bundled one")
    add("--out", type=Path, required=True, metavar="FILE", help="a line of JSON for every program")
    add("--task", help=f"of {', '.join(synthesis.FAMILIES)} (what a run's model was last trained on, or {FIRST})")
    add("--n", type=int, default=5000, help="programs (%(default)s)")
    add("--reference", action="store_true", help="those that the worlds were made with, not the model's")
    add("--meaning", default="original", help=f"of the words: {', '.join(MEANINGS)} (%(default)s)")
    add("--problem-seed", type=int, default=3, help="draws other held-out tasks (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser
