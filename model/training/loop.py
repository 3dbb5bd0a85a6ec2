"""The training loop: schedule, clipping, log, and states from which a killed run goes on bit for bit.

Every step seeds itself from (seed, step), so a state is the weights, the optimizer, the place in the data and one number.
"""

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .processes import Processes

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number; the last saved state is from before."""


class Data(Protocol):
    """Where batches come from, and how far it has been read."""

    def state(self) -> dict[str, Any]:
        """What brings it back to where it stands."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go there."""
        ...


class Guard(Protocol):
    """Sees what each step tells, and ends a run that goes wrong."""

    def see(self, facts: Mapping[str, float]) -> None:
        """Raises DivergedError."""
        ...

    def state(self) -> dict[str, Any]:
        """What it remembers."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Remember that."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How long to train and what to keep on the way."""

    steps: int
    seed: int = 0
    clip: float = 1.0  # largest norm of the whole gradient
    log_every: int = 20  # steps
    save_every: int = 200  # steps
    tensorboard: bool = False


class Loop:
    """Steps a model from where its folder left off to the end.

    Args:
        model: as `processes.spread` gives it.
        optimizer: over its parameters.
        lr_at: step to learning rate, which a parameter group's `lr_scale` multiplies.
        config: how long.
        folder: of the state and the log.
        recipe: whatever must be equal for a saved state to be continued.
        processes: who trains.
        data: what is read on the way, where it has a place to be remembered.
        guard: ends it where it goes wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_at: Callable[[int], float],
        config: LoopConfig,
        folder: Path,
        recipe: Mapping[str, Any],
        processes: Processes,
        data: Data | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model, self.optimizer, self.lr_at, self.config = model, optimizer, lr_at, config
        self.folder, self.recipe, self.processes, self.data = folder, dict(recipe), processes, data
        self.guard = guard
        self.step = 0  # steps done

    def resume(self) -> bool:
        """Load the folder's saved state; False when there is none.

        Raises ValueError for a file that is no saved state, one of another recipe, or of a model of another shape.
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
        self._check_shapes(state["model"], path)
        self.processes.load(self.model, self.optimizer, state)
        if self.data:
            self.data.load(state["data"])
        if self.guard and "guard" in state:
            self.guard.load(state["guard"])
        self.step = state["step"]
        if self.processes.is_main:
            drop_lines_after(self.folder / LOG_FILE, self.step)
        return True

    def start_afresh(self) -> None:
        """Forget the log of a run that saved no state. Raises ValueError where there is one: hours may be in it."""
        if (self.folder / STATE_FILE).exists():
            raise ValueError(
                f"{self.folder / STATE_FILE} is an earlier run's: --resume goes on with it; or use another folder"
            )
        if self.processes.is_main:
            (self.folder / LOG_FILE).unlink(missing_ok=True)
        self.processes.wait()

    def run(self, work: Callable[[int], dict[str, float]]) -> None:
        """Train to the last step.

        `work(step)` draws the step's batch, leaves gradients in the model and returns what to log, the loss among it; its
        randomness is the step's own. Raises DivergedError naming the step whose loss is not a number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = not self.processes.is_main
        bar = progress_bar(total=self.config.steps, initial=self.step, unit="step", disable=hidden)
        with bar, Log(self.folder, self.config.tensorboard) if self.processes.is_main else nullcontext() as log:
            while self.step < self.config.steps:
                facts = self._take_step(work)
                bar.update()
                if log and (self.step % self.config.log_every == 0 or self.step == self.config.steps):
                    log.write(self.step, facts)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in facts.items()}, refresh=False)
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self.save()

    def save(self) -> None:
        """Write the state aside and rename it: the file is the old one or the new one, never half of one."""
        state = {
            "step": self.step,
            "recipe": self.recipe,
            "data": self.data.state() if self.data else {},
            "guard": self.guard.state() if self.guard else {},
            **self.processes.state(self.model, self.optimizer),
        }
        if self.processes.is_main:
            write_aside(self.folder / STATE_FILE, lambda file: torch.save(state, file))
        self.processes.wait()

    def _check_shapes(self, saved: Mapping[str, Tensor], path: Path) -> None:
        own = self.processes.unwrap(self.model).state_dict(keep_vars=True)
        wanted = {name: value.shape for name, value in own.items() if value.requires_grad}
        for name in sorted(wanted.keys() | saved.keys()):
            if name not in saved or name not in own:
                raise ValueError(f"{path}: tensor {name!r} is {'missing' if name not in saved else 'not expected'}")
            if saved[name].shape != own[name].shape:
                shapes = f"{list(saved[name].shape)}, not {list(own[name].shape)}"
                raise ValueError(f"{path}: tensor {name!r} has shape {shapes}")

    def _take_step(self, work: Callable[[int], dict[str, float]]) -> dict[str, float]:
        seed_everything(self.config.seed, self.step)
        lr = self.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad()
        try:
            facts = work(self.step)
            if self.guard:
                self.guard.see(facts)
        except DivergedError as error:
            raise DivergedError(f"{error} at step {self.step}") from error
        norm = self.processes.clip(self.model, self.config.clip)
        if not (math.isfinite(facts["loss"]) and math.isfinite(norm)):
            raise DivergedError(f"loss {facts['loss']} and gradient norm {norm} at step {self.step}")
        self.optimizer.step()
        self.step += 1
        return {**facts, "norm": norm, "lr": lr}


class Log(AbstractContextManager["Log"]):
    """What a run writes as it goes: JSON lines, and TensorBoard's files where they are asked for.

    Raises ValueError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self._file = (folder / LOG_FILE).open("a")
        self._board = _open_tensorboard(folder) if tensorboard else None

    def write(self, step: int, facts: Mapping[str, float]) -> None:
        """Add a line."""
        self._file.write(json.dumps({"step": step, **facts}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in facts.items():
                self._board.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--tensorboard: {error}: pip install 'quietserve[train]'") from error
    return SummaryWriter(folder / "tensorboard")


def progress_bar(**settings: Any) -> "tqdm[Any]":
    """How far something has got, on stderr; where that is no terminal, a line every half minute in place of one that moves."""
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, mininterval=1.0, **settings)
    # At a position of its own one bar inside another would move the cursor.
    return tqdm(file=_Lines(), position=0, ascii=True, ncols=0, mininterval=30.0, maxinterval=30.0, **settings)


class _Lines:
    """What a bar is written to: its every state is a line."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, and rename it: what was there stays whole until the new one is."""
    aside = path.with_name(path.name + ".new")
    try:
        write(aside)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch says the second of a full disk
        aside.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}; what was there is whole") from error


def digest(file: Path) -> str:
    """What tells a file from others in a recipe, wherever it lies."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


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

    `lr_scales` maps a part of a parameter's name to a multiple of the learning rate.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((s for part, s in (lr_scales or {}).items() if part in name), 1.0)
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


def drop_lines_after(path: Path, step: int) -> None:
    """Forget the lines of steps that a resumed run will take again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))
