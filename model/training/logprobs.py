"""Log-probabilities of chosen tokens, without ever holding the logits of a whole batch.

A batch of thoughts has some thousands of rows, and a row of logits is a vocabulary wide: kept for the backward pass they would
be most of the memory. They are computed in parts, and computed again where gradients are wanted.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..quiet_model import QuietModel

# A choice: the thought ended itself. Which of its stop tokens did it does not matter: their probabilities add up.
ENDS = -1
NOTHING = -2  # a choice that was not made
MAX_LOGITS = 2**23  # held at once; 32 MiB in float32. With 128 MiB a CPU took 1.6 times as long


def log_likelihood(
    model: QuietModel, hidden_KH: Tensor, targets_K: Tensor, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """What the model says of each target, and how sure it was.

    Args:
        model: whose output embedding; the markers have no probability.
        hidden_KH: the states before each target.
        targets_K: ids, or ENDS.
        temperature: logits are divided by it.
        with_entropy: the entropies are wanted; they take about as long as the softmax.

    Returns:
        Log-probabilities [K], and entropies [K] in nats, without gradients; zeros where they are not wanted.
    """
    size = max(1, MAX_LOGITS // model.backbone.vocab_size)
    if len(targets_K) <= size:
        return _judge(model, hidden_KH, targets_K, temperature, with_entropy)
    parts = [
        checkpoint(_judge, model, hidden, targets, temperature, with_entropy, use_reentrant=False)
        for hidden, targets in zip(hidden_KH.split(size), targets_K.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _judge(
    model: QuietModel, hidden_KH: Tensor, targets_K: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits_KV = model.logits(hidden_KH)
    logprobs_KV = (logits_KV if temperature == 1 else logits_KV / temperature).log_softmax(-1)
    chosen_K = pick(logprobs_KV, targets_K, model.stop_ids)
    with torch.no_grad():
        entropy_K = _entropy(logprobs_KV) if with_entropy else torch.zeros_like(chosen_K)
    return chosen_K, entropy_K


def pick(logprobs_KV: Tensor, targets_K: Tensor, stop_ids: frozenset[int]) -> Tensor:
    """The log-probability [K] of each target; that of ENDS is any stop token's."""
    chosen_K = logprobs_KV.gather(-1, targets_K.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if not stop_ids:
        return chosen_K
    ends_K = logprobs_KV[:, sorted(stop_ids)].logsumexp(-1)
    # where() keeps what is not asked for out of the gradient, -inf among it.
    return torch.where(targets_K == ENDS, ends_K, chosen_K)


def _entropy(logprobs_KV: Tensor) -> Tensor:
    """The same as torch.special.entr of the probabilities, without a second logarithm of each."""
    least = torch.finfo(logprobs_KV.dtype).min  # 0 times -inf is no number
    return -(logprobs_KV.exp() * logprobs_KV.clamp(min=least)).sum(-1)
