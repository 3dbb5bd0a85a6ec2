"""How good scores are: whether right answers have more than wrong ones of the same question, and whether they are likely as said."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .evaluation.intervals import bootstrap

BINS = 15

Scored = Sequence[tuple[float, bool]]  # of one question: each answer's score, and whether it is right


def pairwise(questions: Iterable[Scored], seed: int = 0) -> dict[str, Any]:
    """The share of pairs of a right and a wrong answer to one question in which the right one has the higher score.

    Equal ones count half. `value` is over all pairs; the interval draws questions.
    """
    found = [_pairs(scored) for scored in questions]
    won, pairs = ([pair[k] for pair in found if pair[1]] for k in (0, 1))
    if not pairs:
        return {"value": None, "ci95": None, "pairs": 0, "questions": 0}
    return {
        "value": sum(won) / sum(pairs),
        "ci95": bootstrap(won, pairs, seed),
        "pairs": sum(pairs),
        "questions": len(pairs),
    }


def calibration_error(questions: Iterable[Scored], bins: int = BINS) -> float:
    """The expected calibration error: of answers in bins of as many each, the mean distance of mean score and share of right ones.

    Nixon et al. (arXiv 1904.01685) have it so; bins of equal width leave most of them nearly empty. Where a bin ends among equal
    scores nothing says which answers are on which side: each counts as the share of them that is right.
    """
    answers = np.array([answer for scored in questions for answer in scored], dtype=np.float64)
    if not len(answers):
        return math.nan
    scores, group_N, counts = np.unique(answers[:, 0], return_inverse=True, return_counts=True)
    shares = np.bincount(group_N, answers[:, 1]) / counts
    ordered = np.repeat(np.stack([scores, shares], 1), counts, axis=0)
    parts = np.array_split(ordered, min(bins, len(ordered)))
    return float(sum(abs(part[:, 0].mean() - part[:, 1].mean()) * len(part) for part in parts) / len(answers))


def fit_calibration(logits: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """Temperature and bias of the likeliest sigmoid(logit / temperature + bias) (Platt scaling; Guo et al., arXiv 1706.04599)."""
    logits_N = torch.tensor(logits, dtype=torch.float64)
    right_N = torch.tensor(right, dtype=torch.float64)
    knobs = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of 1 / temperature, bias
    optimizer = torch.optim.LBFGS([knobs], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        slope, bias = knobs.unbind()
        # A little weight decay, or scores that separate all answers would be sharpened for ever.
        value = binary_cross_entropy_with_logits(logits_N * slope.exp() + bias, right_N) + 1e-4 * knobs.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor will do as well as a float
    slope, bias = knobs.detach().tolist()
    return math.exp(-slope), bias


def _pairs(scored: Scored) -> tuple[float, int]:
    """Pairs that the right one won, and all pairs."""
    right = [score for score, is_right in scored if is_right]
    wrong = [score for score, is_right in scored if not is_right]
    won = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    return won, len(right) * len(wrong)
