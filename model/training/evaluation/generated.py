"""Generated accuracy: the share of items whose greedy answer is right, decoded by what the server decodes with."""

from collections.abc import Iterator, Sequence
from typing import Any

from ...config import SamplingParams
from ...progress import Generation
from ..tasks.item import Item
from .evaluation import Evaluation, Measured
from .intervals import wilson

FREE_TOKENS = 16  # of an answer to what no model here was taught to answer in one word


def measure(evaluation: Evaluation, items: Sequence[Item], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth: the share of right answers with its Wilson interval, by steps, and what it cost.

    An answer is one line, or ends at other stops. The dash that opens an aside may not be spoken, or a base would reason
    in the open.
    """
    prompts = [evaluation.loaded.tokens.encode(item.prompt) for item in items]
    max_tokens = evaluation.max_tokens or longest_answer(evaluation, items)
    for depth in depths:
        params = [_params(evaluation, depth, evaluation.seed + i, max_tokens) for i in range(len(items))]
        results = evaluation.decode(prompts, params, items)
        right = [item.verify(result.text) for item, result in zip(items, results, strict=True)]
        cell: dict[str, Any] = {
            "value": sum(right) / len(right),
            "ci95": wilson(sum(right), len(right)),
            "n": len(right),
        }
        steps = [item.num_steps for item in items if item.num_steps is not None]
        if len(steps) == len(items):
            cell["by_steps"] = _by_steps(steps, right)
        yield Measured(depth, cell | _costs(results), right)


def longest_answer(evaluation: Evaluation, items: Sequence[Item]) -> int:
    """Tokens that suffice for every right answer and the end of the text, with one to spare."""
    longest = max(len(evaluation.encode_answer(item, item.answer)[1]) for item in items) + 2
    return longest if all(item.reasoning for item in items) else max(FREE_TOKENS, longest)


def _params(evaluation: Evaluation, depth: int, seed: int, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0,
        seed=seed,
        stop=evaluation.stop,
        thought_depth=depth,
        thought_temperature=evaluation.thought_temperature,
        logit_bias={} if evaluation.dash is None else {evaluation.dash: -100.0},
    )


def _by_steps(steps: Sequence[int], right: Sequence[bool]) -> dict[str, float]:
    """Accuracy by the number of steps of the problem."""
    found = {}
    for number in sorted(set(steps)):
        hits = [r for s, r in zip(steps, right, strict=True) if s == number]
        found[str(number)] = round(sum(hits) / len(hits), 4)
    return found


def _costs(results: Sequence[Generation]) -> dict[str, float | None]:
    """Hidden tokens an answer, visible tokens and forwards of all answers, and the share of drafts that were right."""
    accepted, rejected = (sum(getattr(r.counts, name) for r in results) for name in ("accepted", "rejected"))
    return {
        "thought_tokens": sum(r.num_thought_tokens for r in results) / len(results),
        "tokens": sum(len(r.tokens) for r in results),
        "forwards": sum(r.counts.forwards for r in results),
        "acceptance": accepted / (accepted + rejected) if accepted + rejected else None,
    }
