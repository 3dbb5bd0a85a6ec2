"""A stage of SCoRe: what its turns are rewarded for, and what holds them to the base.

Shape letters: B episodes, D = 2 turns; N problems, K episodes of each.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .credit import Credit, turn_advantages
from .policy import Divergence, Judged

Imitated = Literal["repairs", "right"]


@dataclass(frozen=True)
class Stage:
    """A number of updates with one objective."""

    steps: int
    credit: Credit = field(default_factory=Credit)
    anchors: tuple[float, float] = (0.0, 0.0)  # weights of the two turns' divergence from the base
    imitate: Imitated | None = None  # instead: the base's own second attempts, if right, or if they repair

    def loss(
        self, judged: Judged, rewards_BD: Tensor, own_BD: Tensor, problems: int, divergence: Divergence = "exact"
    ) -> Tensor:
        """Summed over episodes; those of one problem stand together.

        Args:
            judged: what the policy made of them.
            rewards_BD: of both turns.
            own_BD: 1 for turns the policy made; others are not credited, though an exact divergence holds them, too.
            problems: how many there are.
            divergence: one with a gradient holds the policy by itself; a sampled one is taken from what turns are credited with.
        """
        anchors_D = torch.tensor(self.anchors, device=rewards_BD.device)
        paid_BD = torch.zeros_like(rewards_BD) if divergence == "exact" else anchors_D * judged.divergence_BD
        weights_BD = self.weights(*(x.view(problems, -1, 2) for x in (rewards_BD, paid_BD))).view(-1, 2)
        losses_BD = -own_BD * weights_BD * judged.logprob_BD
        if divergence == "exact":
            losses_BD = losses_BD + anchors_D * judged.divergence_BD
        return losses_BD.sum()

    def weights(self, rewards_NK2: Tensor, paid_NK2: Tensor) -> Tensor:
        """What the log-probability of each turn weighs [N, K, 2], where so much is taken from its return."""
        if self.imitate:
            first, second = rewards_NK2.unbind(-1)
            wanted = second * (1 - first) if self.imitate == "repairs" else second
            return torch.stack([torch.zeros_like(wanted), wanted], dim=-1)
        return turn_advantages(self.credit.returns(rewards_NK2) - paid_NK2)
