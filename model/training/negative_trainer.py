"""One stage of learning from rationales: which lessons, which loss, and where it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..quiet_model import QuietModel
from .lessons import Draw, Lesson
from .loop import Loop, LoopConfig, decay_linearly, make_optimizer
from .processes import Processes
from .rationale_losses import Facts


class Objective(Protocol):
    """Judges lessons."""

    model: QuietModel

    def __call__(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Facts]:
        """A loss [B] for every lesson, and what to log of it."""
        ...


@dataclass(frozen=True)
class StageConfig:
    """How a stage learns."""

    lr: float
    warmup: int
    weight_decay: float = 0.0
    micro_batch: int | None = None  # lessons in memory at once; None: all


class NegativeTrainer:
    """Steps a model over lessons; what of it learns is what needs a gradient.

    Args:
        config: how it learns.
        objective: the loss, and whose it is.
        draw: the lessons of a step.
        looping: how long, and what is kept.
        processes: where it computes.
        folder: of the log and the state.
        recipe: whatever must be equal for a saved state to be continued.
        facts: logged beside what the objective tells.
    """

    def __init__(
        self,
        config: StageConfig,
        objective: Objective,
        draw: Draw,
        looping: LoopConfig,
        processes: Processes,
        folder: Path,
        recipe: Mapping[str, object],
        facts: Mapping[str, float],
    ) -> None:
        self._config, self._objective, self._draw, self._processes = config, objective, draw, processes
        self._facts = dict(facts)
        self.loop = Loop(
            objective.model,
            make_optimizer(objective.model, config.weight_decay),
            lambda step: decay_linearly(step, looping.steps, config.lr, config.warmup),
            looping,
            folder,
            recipe,
            processes,
        )

    def run(self, resume: bool) -> None:
        """Train to the end."""
        if not (resume and self.loop.resume()):
            self.loop.start_afresh()
        model = self._objective.model.train()
        self.loop.run(self.take_step)
        model.eval()

    def take_step(self, step: int) -> dict[str, float]:
        """Leave the gradients of a step in the model; returns what to log of it."""
        lessons = self._draw(step)
        size = self._config.micro_batch or len(lessons)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for first in range(0, len(lessons), size):
            with self._processes.precision():
                loss_B, facts = self._objective(lessons[first : first + size])
            self._processes.backward(loss_B.sum() / len(lessons))
            for name, values_B in {"loss": loss_B.detach(), **facts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=values_B.device)) + values_B.sum()
                counts[name] = counts.get(name, 0) + len(values_B)
        # A fact of some lessons alone is a mean over those; a step that has none of them logs nothing.
        return {name: float(total) / counts[name] for name, total in sums.items() if counts[name]} | self._facts
