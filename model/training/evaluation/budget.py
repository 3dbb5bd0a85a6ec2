"""Votes at equal budgets: 2K first answers, or K first answers each of which is corrected once.

SCoRe (arXiv 2409.12917), "Inference-Compute Scaling with Self-Correction", has the comparison.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ...sampling import hash_key
from ..episodes import Turn
from ..tasks.item import Item
from .corrected import make_player, mean_of
from .evaluation import Evaluation, Measured
from .intervals import wilson
from .majority import majority

PAIRS = (1, 2, 4, 8, 16)  # K


def measure(evaluation: Evaluation, items: Sequence[Item], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth, answers sampled: `value` is the accuracy of the vote of all corrected answers, `parallel` its rival's.

    `curve` has a point for each K: the accuracy of the vote of 2K first answers (`parallel`) and of K corrected ones
    (`corrected`), the share of items of which any of those answers is right, the visible tokens an item that they took, and
    what the corrected vote is ahead by (`ahead`, paired).
    """
    for depth in depths:
        player, model = make_player(evaluation, items, evaluation.temperature, depth), evaluation.loaded.model
        firsts: list[list[Turn]] = []
        seconds: list[list[Turn]] = []
        for sample in range(2 * PAIRS[-1]):
            seeds = [hash_key(evaluation.seed, number, sample) for number in range(len(items))]
            if sample >= PAIRS[-1]:
                firsts.append(player.begin(items, seeds, model))
                continue
            episodes = player.play(items, seeds, model)
            firsts.append([episode.turns[0] for episode in episodes])
            seconds.append([episode.turns[1] for episode in episodes])
        curve, values = zip(*(_point(items, firsts, seconds, pairs, evaluation.seed) for pairs in PAIRS), strict=True)
        last = curve[-1]
        cell = {name: last["corrected"][name] for name in ("value", "ci95")} | {"n": len(items), "curve": list(curve)}
        yield Measured(depth, cell | {name: last[name] for name in ("parallel", "ahead")}, values[-1])


def _point(
    items: Sequence[Item], firsts: Sequence[list[Turn]], seconds: Sequence[list[Turn]], pairs: int, seed: int
) -> tuple[dict[str, Any], list[bool]]:
    """What K pairs come to, and whether their vote is right, by item."""
    first, second = firsts[: 2 * pairs], seconds[:pairs]
    parallel, corrected = _vote(items, first), _vote(items, second)
    ahead = [float(b) - float(a) for a, b in zip(parallel, corrected, strict=True)]
    point = {
        "k": pairs,
        "parallel": _share(parallel) | {"any": _any(first), "tokens": _tokens(first)},
        "corrected": _share(corrected) | {"any": _any(second), "tokens": _tokens([*firsts[:pairs], *second])},
        "ahead": mean_of(ahead, seed),
    }
    return point, corrected


def _vote(items: Sequence[Item], samples: Sequence[list[Turn]]) -> list[bool]:
    """Whether the commonest answer is right, by item."""
    votes = []
    for item, turns in zip(items, zip(*samples, strict=True), strict=True):
        chosen = majority([_said(item, turn.answer.text) for turn in turns])
        votes.append(chosen is not None and item.verify(chosen))
    return votes


def _said(item: Item, text: str) -> str | None:
    """What an answer votes for: for a family's problem all of it, for a file's item what it comes to."""
    return item.extract(text) if item.reasoning is None else text.strip() or None


def _share(right: Sequence[bool]) -> dict[str, Any]:
    return {"value": sum(right) / len(right), "ci95": wilson(sum(right), len(right))}


def _any(samples: Sequence[list[Turn]]) -> float:
    return sum(any(turn.right for turn in turns) for turns in zip(*samples, strict=True)) / len(samples[0])


def _tokens(samples: Sequence[list[Turn]]) -> float:
    """Mean over items of the visible tokens of all samples."""
    return sum(len(turn.ids) for turns in samples for turn in turns) / len(samples[0])
