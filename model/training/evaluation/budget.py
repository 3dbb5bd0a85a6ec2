"""Votes at equal budgets: 2K first answers, or K first answers each of which is corrected once.

SCoRe (arXiv 2409.12917), "Inference-Compute Scaling with Self-Correction", has the comparison. With a ranker they also vote with
its scores for weights, as "Turning Dust into Gold" (arXiv 2312.12832), "Adaptive Self-Consistency", has it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...sampling import hash_key
from ...voting import Candidate, Entry, Strategy, judge, vote
from ..episodes import Turn
from ..loop import progress_bar
from ..tasks.item import Item
from .corrected import make_player, mean_of
from .evaluation import Evaluation, Measured
from .intervals import wilson


@dataclass(frozen=True)
class Attempt:
    """One of an item's answers."""

    turn: Turn
    said: str | None  # what it votes for
    score: float | None = None  # a ranker's, where there is one

    def candidate(self, index: int) -> Candidate:
        """As the server lets it stand in a vote."""
        return replace(judge(index, self.said, self.turn.answer.logprobs), score=self.score or 0.0)


Round = Sequence[Attempt]  # of every item one


def measure(evaluation: Evaluation, items: Sequence[Item], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth, answers sampled: `value` is the accuracy of the vote of all corrected answers, `parallel` its rival's.

    `curve` has a point for each K, the powers of two up to the evaluation's `pairs`: the accuracy of the vote of 2K first answers
    (`parallel`) and of K corrected ones (`corrected`), with a ranker also that of their weighed vote (`ranked`), the share of items
    of which any of those answers is right, the visible tokens and those of thoughts an item that they took, and what the corrected
    vote is ahead by (`ahead`, paired).
    """
    sizes = [2**k for k in range(evaluation.pairs.bit_length())]
    for depth in depths:
        firsts, seconds = _attempt(evaluation, items, depth, sizes[-1])
        curve, values = zip(*(_point(items, firsts, seconds, pairs, evaluation.seed) for pairs in sizes), strict=True)
        last = curve[-1]
        told = {name: last["corrected"][name] for name in ("value", "ci95", "ranked") if name in last["corrected"]}
        cell = told | {"n": len(items), "curve": list(curve)} | {name: last[name] for name in ("parallel", "ahead")}
        yield Measured(depth, cell, values[-1])


def _attempt(evaluation: Evaluation, items: Sequence[Item], depth: int, pairs: int) -> tuple[list[Round], list[Round]]:
    """Twice as many first answers as pairs; behind the first half of them, corrected ones."""
    player, model = make_player(evaluation, items, evaluation.temperature, depth), evaluation.loaded.model
    prompts = player.prompts(items)
    firsts: list[Round] = []
    seconds: list[Round] = []
    told = progress_bar(iterable=range(2 * pairs), desc=f"votes at depth {depth}", unit="answer", leave=False)
    for sample in told:  # a depth may take half an hour
        seeds = [hash_key(evaluation.seed, number, sample) for number in range(len(items))]
        if sample >= pairs:
            firsts.append(_judge(evaluation, items, prompts, player.begin(items, seeds, model)))
            continue
        turns = zip(*(episode.turns for episode in player.play(items, seeds, model)), strict=True)
        first, second = (_judge(evaluation, items, prompts, own) for own in turns)
        firsts.append(first)
        seconds.append(second)
    return firsts, seconds


def _judge(
    evaluation: Evaluation, items: Sequence[Item], prompts: Sequence[list[int]], turns: Sequence[Turn]
) -> list[Attempt]:
    """What answers vote for and, with a ranker, how likely it finds them: a second answer as if it were the first, as in serving."""
    said = [_said(item, turn.answer.text) for item, turn in zip(items, turns, strict=True)]
    if evaluation.ranker is None:
        return [Attempt(*told) for told in zip(turns, said, strict=True)]
    entries = [Entry(tuple(prompt), turn.answer.text) for prompt, turn in zip(prompts, turns, strict=True)]
    return [Attempt(*told) for told in zip(turns, said, evaluation.ranker.score(entries), strict=True)]


def _point(
    items: Sequence[Item], firsts: Sequence[Round], seconds: Sequence[Round], pairs: int, seed: int
) -> tuple[dict[str, Any], list[bool]]:
    """What K pairs come to, and whether their vote is right, by item."""
    first, second = firsts[: 2 * pairs], seconds[:pairs]
    parallel, corrected = _vote(items, first, "majority"), _vote(items, second, "majority")
    ahead = [float(b) - float(a) for a, b in zip(parallel, corrected, strict=True)]
    point = {
        "k": pairs,
        "parallel": _share(parallel) | _rest(items, first, first),
        "corrected": _share(corrected) | _rest(items, second, [*firsts[:pairs], *second]),
        "ahead": mean_of(ahead, seed),
    }
    return point, corrected


def _vote(items: Sequence[Item], rounds: Sequence[Round], strategy: Strategy) -> list[bool]:
    """Whether the answer that wins is right, by item."""
    votes = []
    for item, own in zip(items, zip(*rounds, strict=True), strict=True):
        groups = vote([attempt.candidate(index) for index, attempt in enumerate(own)], strategy).groups
        votes.append(bool(groups) and item.verify(groups[0].answer))
    return votes


def _said(item: Item, text: str) -> str | None:
    """What an answer votes for: for a family's problem all of it, for a file's item what it comes to."""
    return item.extract(text) if item.reasoning is None else text.strip() or None


def _rest(items: Sequence[Item], voting: Sequence[Round], made: Sequence[Round]) -> dict[str, Any]:
    """What else there is to say of a vote, and what its answers and those before them took."""
    told = {
        "any": sum(any(attempt.turn.right for attempt in own) for own in zip(*voting, strict=True)) / len(items),
        "tokens": sum(len(attempt.turn.ids) for own in made for attempt in own) / len(items),
        "thought_tokens": sum(attempt.turn.answer.num_thought_tokens for own in made for attempt in own) / len(items),
    }
    is_ranked = voting[0][0].score is not None
    return told | ({"ranked": _share(_vote(items, voting, "ranker"))} if is_ranked else {})


def _share(right: Sequence[bool]) -> dict[str, Any]:
    return {"value": sum(right) / len(right), "ci95": wilson(sum(right), len(right))}
