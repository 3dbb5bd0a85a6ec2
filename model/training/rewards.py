"""What a thought was worth. Quiet-STaR (arXiv 2403.09629), "Optimizing Rationale Generation".

Shape letters: B texts, J thinking positions of a text, P thoughts at a position, M = J * P,
S tokens foretold after a thought.
"""

from torch import Tensor


def rewards(base_nll_BMS: Tensor, mixed_nll_BMS: Tensor, real_BMS: Tensor) -> Tensor:
    """How much each thought helped [B, M], in nats over the real tokens after it; no gradient flows through it.

    The mixed prediction is what is rewarded, not the one after the thought alone: under that one, tokens no thought can
    help with are noise, and thoughts drift into repeating the text.
    """
    return ((base_nll_BMS - mixed_nll_BMS) * real_BMS).sum(-1).detach()


def advantages(rewards_BJP: Tensor, keep_negative: bool = True) -> Tensor:
    """Rewards less the mean of the position's other thoughts (leave-one-out); the paper keeps the positive ones only."""
    others = (rewards_BJP.sum(-1, keepdim=True) - rewards_BJP) / (rewards_BJP.shape[-1] - 1)
    advantage = rewards_BJP - others
    return advantage if keep_negative else advantage.clamp(min=0)
