"""How much a thought counts: the mixing head and the mix of the two hidden states."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


class MixingHead(nn.Module):
    """The weight of a thought, read off the hidden states before and after it.

    A raw linear output: no sigmoid, it may leave [0, 1]. The last layer starts at zero, so that a new model begins as its
    base. Quiet-STaR (arXiv 2403.09629), "Mixing (Residual) Heads"; layer numbers are those of the public checkpoints.
    """

    def __init__(self, hidden_size: int, layers: Literal[1, 3] = 3, reads: Literal["both", "thought"] = "both") -> None:
        super().__init__()
        self.reads = reads
        width = 2 * hidden_size if reads == "both" else hidden_size
        if layers == 1:
            self.layers = nn.Sequential(nn.Linear(width, 1, bias=False))
        else:
            self.layers = nn.Sequential(
                nn.Linear(width, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, 1, bias=False),
            )
        nn.init.zeros_(self.layers[-1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """Weights [...] of hidden states [..., H]."""
        read = torch.cat([base, thought], dim=-1) if self.reads == "both" else thought
        return self.layers(read).squeeze(-1)


def mix(base: Tensor, thought: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) base + w thought, over [..., H] hidden states (or logits: the output embedding being linear, it is the same)."""
    return torch.lerp(base, thought, weight.unsqueeze(-1).to(base.dtype))


def average(logits_KV: Tensor) -> Tensor:
    """Log-probabilities [V] of the mean of K distributions: what parallel thoughts say together."""
    return logits_KV.log_softmax(-1).logsumexp(0) - math.log(len(logits_KV))
