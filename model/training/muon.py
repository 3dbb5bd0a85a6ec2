"""Muon for matrices, AdamW for all else: what trains a small model in a quarter of the steps.

A matrix's step is its momentum with all singular values brought near to one, by a Newton-Schulz iteration (Keller Jordan et al.,
"Muon: An optimizer for hidden layers in neural networks", 2024).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at zero, and not below 0.7 behind five rounds
_ROUNDS = 5
_BETAS = (0.9, 0.95)


class Muon(torch.optim.Optimizer):
    """Steps two kinds of parameters; a group is `matrices` or not.

    Args:
        model: its trainable matrices, but embeddings and the output layer, take Muon's steps.
        weight_decay: of matrices, both kinds.
        momentum: of Muon's.
    """

    def __init__(self, model: nn.Module, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        matrices, tables, vectors = _sort(model)
        shared = {"momentum": momentum, "lr": 0.0}
        groups = [
            {"params": matrices, "matrices": True, "weight_decay": weight_decay},
            {"params": tables, "matrices": False, "weight_decay": weight_decay},
            {"params": vectors, "matrices": False, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], shared)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; there is no closure to call."""
        assert closure is None
        for group in self.param_groups:
            move = self._move_matrix if group["matrices"] else self._move_other
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, group)

    def _move_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        mean = self._buffer(parameter, "mean")
        mean.lerp_(parameter.grad, 1 - group["momentum"])
        direction = orthogonalise(parameter.grad.lerp(mean, group["momentum"]))
        # As large as AdamW's steps are: one learning rate does for both (Liu et al., arXiv 2502.16982, "Matching update RMS").
        parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)

    def _move_other(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        mean, square = self._buffer(parameter, "mean"), self._buffer(parameter, "square")
        count = self._count(parameter)
        mean.lerp_(parameter.grad, 1 - _BETAS[0])
        square.lerp_(parameter.grad.square(), 1 - _BETAS[1])
        spread = (square / (1 - _BETAS[1] ** count)).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, spread, value=-group["lr"] / (1 - _BETAS[0] ** count))

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        if name not in self.state[parameter]:
            self.state[parameter][name] = torch.zeros_like(parameter)
        return self.state[parameter][name]

    def _count(self, parameter: Tensor) -> int:
        """Steps of a parameter, this one included."""
        count = self.state[parameter].setdefault("step", torch.zeros(()))
        count += 1
        return int(count)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, or nearly so."""
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def _sort(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Hidden layers' matrices, embeddings and output layers, and what is no matrix."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    head = getattr(model, "lm_head", None)
    tables |= {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    known: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for parameter in _trainable(model.parameters()):
        known[2 if parameter.ndim != 2 else 1 if id(parameter) in tables else 0].append(parameter)
    return known


def _trainable(parameters: Iterable[Tensor]) -> Iterable[Tensor]:
    return (parameter for parameter in parameters if parameter.requires_grad)
