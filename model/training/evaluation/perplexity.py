"""Perplexity of given texts at each depth, and where the gain lies: by how hard a token is for the plain base.

Quiet-STaR (arXiv 2403.09629) finds that thoughts hardly move the average and help with hard tokens. The tenths are drawn by
the base's loss, of which luck is a part: any other model of the same quality would gain on the hardest tenth and lose on the
easiest. Compare depths with each other, and with untrained thoughts.
"""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...sampling import hash_key
from ...tokens import Tokens
from .evaluation import Evaluation, Measured
from .intervals import bootstrap, bootstrap_columns
from .scoring import Scored, score

TENTHS = 10
Document = tuple[str, list[int]]  # where it comes from, and its ids


def measure(evaluation: Evaluation, documents: Sequence[Document], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth, over tokens behind a thought each: all but a document's first, or a seeded subsample.

    `value` is the perplexity, `nll` the loss in nats a token, `gain` how much it is below the plain base's (paired), each
    with a bootstrap over documents; `weight` the mean mixing weight; `tenths` the base's loss and the gain by tenth of the
    base's loss, easiest tokens first (none where there are fewer than ten).
    """
    texts = [
        Scored(ids, _positions(evaluation, number, len(ids) - 1), hash_key(evaluation.seed, number))
        for number, (_, ids) in enumerate(documents)
    ]
    for (source, _), text in zip(documents, texts, strict=True):
        evaluation.require_room(max(text.positions) + 1, max(depths), source)
    base_N, _ = _losses(evaluation, texts, 0)
    units_N = np.repeat(np.arange(len(texts)), [len(text.positions) for text in texts])
    for depth in depths:
        own_N, weight = _losses(evaluation, texts, depth) if depth else (base_N, 0.0)
        yield Measured(depth, _summary(base_N, own_N, units_N, evaluation.seed) | {"weight": weight})


def windows(file: Path, tokens: Tokens, length: int, most: int) -> list[Document]:
    """A plain text as windows of `length` tokens side by side, `most` at most; a last token alone is left out.

    Raises ValueError for a file that cannot be read or holds fewer than two tokens.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{file}: cannot be read: {reason}") from error
    ids = tokens.encode(text, special=False)
    parts = [ids[begin : begin + length] for begin in range(0, len(ids), length)][:most]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise ValueError(f"{file}: holds fewer than two tokens")
    return [(f"{file}, window {number}", part) for number, part in enumerate(parts, 1)]


def _positions(evaluation: Evaluation, number: int, count: int) -> list[int]:
    """The positions of a document whose next token is foretold."""
    if not evaluation.positions or evaluation.positions >= count:
        return list(range(count))
    return sorted(random.Random(hash_key(evaluation.seed, number)).sample(range(count), evaluation.positions))


def _losses(evaluation: Evaluation, texts: Sequence[Scored], depth: int) -> tuple[np.ndarray, float]:
    """Loss of each token in nats, and the mean mixing weight."""
    every = score(
        evaluation.loaded.model,
        texts,
        depth,
        evaluation.thought_temperature,
        evaluation.choose,
        evaluation.thoughts_at_once,
    )
    losses, weights = [], []
    for text, scores in zip(texts, every, strict=True):
        targets_J = torch.tensor([text.ids[p + 1] for p in text.positions], device=scores.logprobs_JV.device)
        losses.append(-scores.logprobs_JV.gather(1, targets_J[:, None]).squeeze(1).cpu())
        weights.append(scores.weights_J)
    return torch.cat(losses).double().numpy(), float(torch.cat(weights).mean())


def _summary(base_N: np.ndarray, own_N: np.ndarray, units_N: np.ndarray, seed: int) -> dict[str, Any]:
    """The cell of one depth; `units_N` says which document a token is of."""
    counts_U = np.bincount(units_N)
    nll, nll_ci = _mean(own_N, units_N, counts_U, seed)
    gain, gain_ci = _mean(base_N - own_N, units_N, counts_U, seed)
    return {
        "value": math.exp(nll),
        "ci95": tuple(math.exp(end) for end in nll_ci),
        "n": len(counts_U),
        "tokens": len(own_N),
        "nll": {"value": nll, "ci95": nll_ci},
        "gain": {"value": gain, "ci95": gain_ci},
        "tenths": tenths(base_N, own_N, units_N, seed) if len(base_N) >= TENTHS else [],
    }


def _mean(values_N: np.ndarray, units_N: np.ndarray, counts_U: np.ndarray, seed: int) -> tuple[float, Any]:
    sums_U = np.bincount(units_N, weights=values_N)
    return float(values_N.mean()), bootstrap(sums_U.tolist(), counts_U.tolist(), seed)


def tenths(base_N: np.ndarray, own_N: np.ndarray, units_N: np.ndarray, seed: int = 0) -> list[dict[str, Any]]:
    """Ten equal shares of the tokens, easiest first: the base's mean loss, the mean gain and its interval."""
    order_N = np.argsort(base_N, kind="stable")
    tenth_N = np.empty_like(order_N)
    tenth_N[order_N] = np.arange(len(order_N)) * TENTHS // len(order_N)
    gains_UD, bases_UD, counts_UD = (np.zeros((units_N.max() + 1, TENTHS)) for _ in range(3))
    for sums_UD, values_N in ((gains_UD, base_N - own_N), (bases_UD, base_N), (counts_UD, np.ones_like(base_N))):
        np.add.at(sums_UD, (units_N, tenth_N), values_N)
    counts_D, intervals = counts_UD.sum(0), bootstrap_columns(gains_UD, counts_UD, seed)
    return [
        {"base_nll": float(base), "gain": float(gain), "ci95": interval}
        for base, gain, interval in zip(bases_UD.sum(0) / counts_D, gains_UD.sum(0) / counts_D, intervals, strict=True)
    ]
