"""What votes are worth: the answers to questions with keys, weighed in every way, with a ranker's scores and without.

"Turning Dust into Gold" (arXiv 2312.12832), "Adaptive Self-Consistency", weighs by a ranker; self-consistency (2203.11171) evenly.
"""

import random
from collections.abc import Sequence
from typing import Any

from ..voting import Candidate, Strategy, vote
from .evaluation.intervals import wilson
from .evaluation.pairs import ahead, mcnemar
from .samples import Asked, Sample

WAYS = ("majority", "likelihood", "min_logprob", "ranker", "one-plus", "best-of-n", "shuffled", "random", "oracle")
RANKED = ("ranker", "one-plus", "best-of-n", "shuffled")  # that read scores

Scores = Sequence[Sequence[float]]  # of every question, one an answer


def measure_votes(asked: Sequence[Asked], scores: Scores, sizes: Sequence[int], seed: int) -> dict[str, dict[str, Any]]:
    """By number of answers and way: the share of questions whose vote is right, and how far that is ahead of the majority's."""
    table = {}
    for size in sizes:
        right = {way: votes(asked, scores, way, size, seed) for way in WAYS}
        table[str(size)] = {way: _cell(found, right["majority"], seed) for way, found in right.items()}
    return table


def votes(asked: Sequence[Asked], scores: Scores, way: str, size: int, seed: int) -> list[bool]:
    """Whether the vote of the first `size` answers is right, by question.

    `one-plus` weighs 1 + p; `best-of-n` takes the answer of the highest score; `shuffled` has the scores of other answers,
    to any question; `random` draws weights evenly; `oracle` is right where any answer is.
    """
    rng = random.Random(f"votes/{way}/{seed}")
    if way == "shuffled":
        every = [score for own in scores for score in own]
        rng.shuffle(every)
        taken = iter(every)
        scores = [[next(taken) for _ in own] for own in scores]
    return [_is_right(one.samples[:size], own[:size], way, rng) for one, own in zip(asked, scores, strict=True)]


def _is_right(samples: Sequence[Sample], scores: Sequence[float], way: str, rng: random.Random) -> bool:
    if way == "oracle":
        return any(sample.right for sample in samples)
    if way == "best-of-n":
        answered = [index for index, sample in enumerate(samples) if sample.answer is not None]
        return bool(answered) and samples[max(answered, key=lambda index: scores[index])].right
    strategy: Strategy = way if way in ("majority", "likelihood") else "ranker"  # type: ignore[assignment]
    weights = {
        "min_logprob": [2.718281828459045**sample.min_logprob for sample in samples],
        "one-plus": [(1 + score) / 2 for score in scores],
        "random": [rng.random() for _ in samples],
    }.get(way, scores)
    verdict = vote([_candidate(*told) for told in zip(range(len(samples)), samples, weights, strict=True)], strategy)
    return bool(verdict.groups) and samples[verdict.groups[0].members[0].index].right


def _candidate(index: int, sample: Sample, weight: float) -> Candidate:
    mean = sample.logprob / sample.num_tokens if sample.num_tokens else float("-inf")
    return Candidate(index, sample.answer, sample.logprob, mean, weight)


def _cell(right: Sequence[bool], majority: Sequence[bool], seed: int) -> dict[str, Any]:
    gain, interval = ahead([right], [majority], seed)
    return {
        "value": sum(right) / len(right),
        "ci95": wilson(sum(right), len(right)),
        "gain": {"value": gain, "ci95": interval, "mcnemar": mcnemar(right, majority)},
    }
