"""Self-correction: the first answer, what is said to it, and how much better the second one is.

`gap` tells correction from another try: how much better the second answer is behind the model's own first one than behind
the one to another problem. SCoRe (arXiv 2409.12917), "Preliminaries and Problem Setup", has the other metrics.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

from ...correction import CorrectionConfig
from ..episodes import TURNS, Episode, Player, Turn
from ..tasks.item import Item
from .evaluation import Evaluation, Measured
from .generated import longest_answer
from .intervals import bootstrap, wilson

BINS = 10


def measure(evaluation: Evaluation, items: Sequence[Item], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth, answers greedy: `value` is the second turn's accuracy, `t1` the first's, `delta` what lies between.

    `repaired` and `broken` are shares of all problems, `fix` and `break` of those that were wrong and right at first; `edits`
    counts second answers by how much of the first they keep, in tenths of difflib's ratio from 0 to 1. `tokens`, visible ones, and
    `thought_tokens` are those of both answers to a problem.
    """
    seeds = [evaluation.seed + number for number in range(len(items))]
    for depth in depths:
        player = make_player(evaluation, items, 0.0, depth)
        episodes = player.play(items, seeds, evaluation.loaded.model)
        swapped = player.swap(items, seeds, episodes, evaluation.loaded.model)
        cell = _summary(episodes, swapped, evaluation.seed)
        yield Measured(depth, cell, [float(episode.turns[1].right) for episode in episodes])


def make_player(evaluation: Evaluation, items: Sequence[Item], temperature: float, depth: int) -> Player:
    """Who attempts the items of a task."""
    return Player(
        evaluation.loaded,
        evaluation.loaded.correction or CorrectionConfig(),
        evaluation.max_tokens or longest_answer(evaluation, items),
        temperature,
        depth,
        evaluation.thought_temperature,
        evaluation.stop,
        evaluation.batch,
        logprobs=0,
    )


def _summary(episodes: Sequence[Episode], swapped: Sequence[Turn], seed: int) -> dict[str, Any]:
    first, second = ([episode.turns[turn].right for episode in episodes] for turn in range(TURNS))
    pairs, n = list(zip(first, second, strict=True)), len(episodes)
    repaired, broken = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
    return {
        "value": sum(second) / n,
        "ci95": wilson(sum(second), n),
        "n": n,
        "t1": {"value": sum(first) / n, "ci95": wilson(sum(first), n)},
        "delta": mean_of([b - a for a, b in pairs], seed),
        "gap": mean_of([own - turn.right for own, turn in zip(second, swapped, strict=True)], seed),
        "repaired": repaired / n,
        "broken": broken / n,
        "fix": repaired / max(1, n - sum(first)),
        "break": broken / max(1, sum(first)),
        "changed": sum(len({turn.answer.text.strip() for turn in e.turns}) > 1 for e in episodes) / n,
        "edits": _edits(episodes),
        "tokens": sum(len(turn.ids) for episode in episodes for turn in episode.turns) / n,
        "thought_tokens": sum(turn.answer.num_thought_tokens for episode in episodes for turn in episode.turns) / n,
    }


def mean_of(values: Sequence[float], seed: int) -> dict[str, Any]:
    """A mean with its interval."""
    return {"value": sum(values) / len(values), "ci95": bootstrap(values, seed=seed)}


def _edits(episodes: Sequence[Episode]) -> list[int]:
    counts = [0] * BINS
    for episode in episodes:
        a, b = (turn.answer.text.split() for turn in episode.turns)
        counts[min(BINS - 1, int(SequenceMatcher(None, a, b, autojunk=False).ratio() * BINS))] += 1
    return counts
