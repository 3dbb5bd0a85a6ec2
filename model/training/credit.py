"""What each turn of an episode is credited with. SCoRe (arXiv 2409.12917), "Stage I" and "Stage II".

Shape letters: N problems, K episodes of a problem. Turn 1 is credited with its own reward, turn 2 with its reward and a bonus for
what it gained over turn 1:

    return_1 = first * r1 + discount * return_2         return_2 = second * r2 + bonus * (r2 - r1)

With a discount above 0 the first turn is paid for leaving something to gain, and learns to fail: a negative control.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rewards import advantages


@dataclass(frozen=True)
class Credit:
    """The weights."""

    first: float = 1.0
    second: float = 1.0
    bonus: float = 0.0  # alpha in the paper
    discount: float = 0.0  # gamma

    def returns(self, rewards_NK2: Tensor) -> Tensor:
        """What each turn is credited with [N, K, 2]."""
        first, second = rewards_NK2.unbind(-1)
        shaped = self.second * second + self.bonus * (second - first)
        return torch.stack([self.first * first + self.discount * shaped, shaped], dim=-1)


def turn_advantages(returns_NK2: Tensor) -> Tensor:
    """Returns less the mean of the same turn in the problem's other episodes [N, K, 2]."""
    return advantages(returns_NK2.transpose(1, 2)).transpose(1, 2)
