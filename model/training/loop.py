"""The training loop: schedule, clipping, log, and checkpoints from which a killed run goes on bit for bit.

Every step seeds itself from (seed, step), so a checkpoint is the weights, the optimizer and one number.
"""

import json
import math
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number; the last saved state is from before."""


@dataclass(frozen=True)
class LoopConfig:
    """How long to train and what to keep on the way."""

    steps: int
    seed: int = 0
    clip: float = 1.0  # largest norm of the whole gradient
    log_every: int = 20  # steps
    save_every: int = 200  # steps


class Loop:
    """Steps a model from where its folder left off to the end.

    `lr_at(step)` is the learning rate, which a parameter group's `lr_scale` multiplies. `recipe` is whatever must be
    equal for a saved state to be continued.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_at: Callable[[int], float],
        config: LoopConfig,
        folder: Path,
        recipe: Mapping[str, Any],
    ) -> None:
        self.model, self.optimizer, self.lr_at, self.config = model, optimizer, lr_at, config
        self.folder, self.recipe = folder, dict(recipe)
        self.step = 0  # steps done

    def resume(self) -> bool:
        """Load the folder's saved state; False when there is none.

        Raises ValueError for a file that is no saved state, or one of another recipe.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a saved training state: {type(error).__name__}") from error
        if differing := sorted(k for k in self.recipe if state["recipe"].get(k) != self.recipe[k]):
            name, saved = differing[0], state["recipe"].get(differing[0])
            raise ValueError(f"{path} was saved with {name} {saved!r}, not {self.recipe[name]!r}; use another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        _drop_log_after(self.folder / LOG_FILE, self.step)
        return True

    def start_afresh(self) -> None:
        """Forget what an earlier run left in the folder."""
        for name in (STATE_FILE, LOG_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def run(self, loss_at: Callable[[int], tuple[Tensor, dict[str, float]]]) -> None:
        """Train to the last step.

        `loss_at(step)` draws the step's batch and returns the loss and what to log of it; its randomness is the step's
        own. Raises DivergedError naming the step whose loss is not a number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=self.config.steps, initial=self.step, file=sys.stderr, unit="step", mininterval=1.0)
        with bar, (self.folder / LOG_FILE).open("a") as log:
            while self.step < self.config.steps:
                facts = self._take_step(loss_at)
                bar.update()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    log.write(json.dumps({"step": self.step, **facts}) + "\n")
                    log.flush()
                    bar.set_postfix({name: f"{value:.3f}" for name, value in facts.items()}, refresh=False)
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self.save()

    def save(self) -> None:
        """Write the state aside and rename it: the file is the old one or the new one, never half of one."""
        state = {
            "step": self.step,
            "recipe": self.recipe,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        aside = self.folder / f"{STATE_FILE}.new"
        torch.save(state, aside)
        os.replace(aside, self.folder / STATE_FILE)

    def _take_step(self, loss_at: Callable[[int], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        seed_everything(self.config.seed, self.step)
        lr = self.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad()
        try:
            loss, facts = loss_at(self.step)
        except DivergedError as error:
            raise DivergedError(f"{error} at step {self.step}") from error
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise DivergedError(f"loss {loss.item()} and gradient norm {norm} at step {self.step}")
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item(), **facts, "norm": norm, "lr": lr}


def seed_everything(seed: int, step: int) -> None:
    """Seed Python's and torch's generators for one step of one run."""
    rng = step_rng(seed, step)
    random.seed(rng.getrandbits(64))
    torch.manual_seed(rng.getrandbits(63))


def step_rng(seed: int, step: int) -> random.Random:
    """The generator from which a step's data is drawn."""
    return random.Random(f"{seed}/{step}")


def make_optimizer(
    model: nn.Module, weight_decay: float = 0.0, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices decay.

    `lr_scales` maps the beginning of a parameter's name to a multiple of the learning rate.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((s for prefix, s in (lr_scales or {}).items() if name.startswith(prefix)), 1.0)
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": found, "lr_scale": scale, "weight_decay": decay} for (scale, decay), found in groups.items()],
        betas=(0.9, 0.95),
        fused=True,
    )


def decay_linearly(step: int, steps: int, peak: float, warmup: int) -> float:
    """Warm up over `warmup` steps, stay at `peak` until half way, then fall in a line to nearly zero at `steps`."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = min(1.0, 2 * (steps - step) / steps)
    return peak * min(rising, falling)


def _drop_log_after(path: Path, step: int) -> None:
    """Forget the lines of steps that a resumed run will take again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))
