"""The Quiet-STaR objective as plain functions of tensors. Quiet-STaR (arXiv 2403.09629), "Optimizing Rationale Generation".

Shape letters: B texts, J thinking positions of a text, P thoughts at a position, S tokens foretold after a thought, L thought tokens.
"""

import torch
from torch import Tensor


def rewards(base_nll_BJS: Tensor, mixed_nll_BJPS: Tensor, real_BJS: Tensor) -> Tensor:
    """How much a thought helped [B, J, P], in nats over the real tokens after it; no gradient flows through it.

    The mixed prediction is what is rewarded, not the one after the thought alone: under that one, tokens no thought can
    help with are noise, and thoughts drift into repeating the text.
    """
    gain = (base_nll_BJS.unsqueeze(2) - mixed_nll_BJPS) * real_BJS.unsqueeze(2)
    return gain.sum(-1).detach()


def advantages(rewards_BJP: Tensor, keep_negative: bool = True) -> Tensor:
    """Rewards less the mean of the position's other thoughts (leave-one-out); the paper keeps the positive ones only."""
    others = (rewards_BJP.sum(-1, keepdim=True) - rewards_BJP) / (rewards_BJP.shape[-1] - 1)
    advantage = rewards_BJP - others
    return advantage if keep_negative else advantage.clamp(min=0)


def choice_logprobs(
    logits_NLV: Tensor, tokens_NL: Tensor, lengths_N: Tensor, ended_N: Tensor, stops: list[int]
) -> Tensor:
    """Log-probability [N, L] of every choice a thought made: its tokens, then, where it ended itself, the end.

    Args:
        logits_NLV: before each choice; the markers masked.
        tokens_NL: the tokens chosen, padded with any id.
        lengths_N: how many were chosen.
        ended_N: whether the thought then ended itself; that choice stands at column `lengths_N`.
        stops: ids at which a thought ends itself. Which of them it was does not matter: their probabilities add up.
    """
    logprobs = logits_NLV.log_softmax(-1)
    columns = torch.arange(tokens_NL.shape[1], device=tokens_NL.device)
    chosen = logprobs.gather(-1, tokens_NL.unsqueeze(-1)).squeeze(-1)
    # The padding's log-probability may be -inf (a masked id): where() keeps it out of the sum and of the gradient.
    total = torch.where(columns < lengths_N[:, None], chosen, 0.0)
    if stops:
        end = logprobs[..., stops].logsumexp(-1)
        total = total + torch.where((columns == lengths_N[:, None]) & ended_N[:, None], end, 0.0)
    return total


def policy_loss(advantages_N: Tensor, logprobs_NL: Tensor) -> Tensor:
    """REINFORCE: minus the advantage times the log-probability of the whole thought, averaged over thoughts."""
    return -(advantages_N * logprobs_NL.sum(-1)).mean()


def mean_where(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where no weight is."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-9)
