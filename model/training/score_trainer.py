"""One run of SCoRe: problems, two attempts at each, and what each attempt is credited with."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..checkpoint import Loaded
from ..quiet_model import QuietModel
from ..sampling import hash_key
from .episodes import Episode, Player
from .loop import Loop, LoopConfig, make_optimizer, step_rng
from .lora import Lora
from .policy import Divergence, Judged, Policy
from .processes import Processes
from .stages import Stage
from .tasks.item import Item
from .thinker import decoder_layers
from .trained import choose_what_learns, save
from .transcripts import transcribe


@dataclass(frozen=True)
class ScoreConfig:
    """How a run learns."""

    base: Path | str
    stages: Sequence[Stage]
    problems: int  # an update
    rollouts: int  # episodes of a problem
    lr: float
    warmup: int
    weight_decay: float = 0.0
    from_base: float = 0.0  # share of problems whose first attempts are the base's, not credited
    divergence: Divergence = "exact"
    micro_batch: int | None = None  # problems of a process in memory at once; None: all
    lora: Lora | None = None

    def stage_at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


class ScoreTrainer:
    """Steps a policy over problems.

    Args:
        config: how it learns.
        loaded: the model that learns.
        reference: the base, a `twin` of it, which does not.
        player: makes the attempts.
        draw: problems of a step.
        looping: how long, and what is kept.
        processes: who trains.
        folder: of the checkpoint, the log and the state.
        recipe: whatever must be equal for a saved state to be continued.
    """

    def __init__(
        self,
        config: ScoreConfig,
        loaded: Loaded,
        reference: QuietModel,
        player: Player,
        draw: Callable[[random.Random, int], list[Item]],
        looping: LoopConfig,
        processes: Processes,
        folder: Path,
        recipe: dict[str, object],
    ) -> None:
        self._config, self._loaded, self._reference = config, loaded, reference
        self._player, self._draw, self._looping, self._processes = player, draw, looping, processes
        self._folder = folder
        choose_what_learns(loaded.model, config.lora, player.thinks)
        policy = Policy(loaded.model, config.divergence, player.temperature)
        self.policy = processes.spread(policy, decoder_layers(loaded.model.backbone.lm), "play")
        self.loop = Loop(
            self.policy,
            make_optimizer(self.policy, config.weight_decay),
            lambda step: config.lr * min(1.0, (step + 1) / max(1, config.warmup)),
            looping,
            folder,
            recipe,
            processes,
        )

    def run(self, resume: bool) -> None:
        """Train to the end and write the checkpoint."""
        if not (resume and self.loop.resume()):
            self.loop.start_afresh()
        self.loop.run(self.take_step)
        self.save()

    def take_step(self, step: int) -> dict[str, float]:
        """Leave the gradients of a step in the model; returns what to log of it."""
        stage, config = self._config.stage_at(step), self._config
        groups = self._play(step, stage)
        size = config.micro_batch or len(groups)
        parts = [groups[first : first + size] for first in range(0, len(groups), size)]
        sums, names = [], ["loss"]
        for number, part in enumerate(parts, 1):
            with self._processes.part(self.policy, last=number == len(parts)):
                loss, facts = self._judge(part, stage)
                self._processes.backward(loss / (config.problems * config.rollouts))
            names = ["loss", *facts]
            sums.append(torch.stack([loss.detach(), *facts.values()]))
        total = self._processes.total(torch.stack(sums).sum(0)) / (config.problems * config.rollouts)
        return dict(zip(names, total.tolist(), strict=True))

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name.removeprefix("model."): value for name, value in self._processes.weights(self.policy).items()}
        if self._processes.is_main:
            config, dtype = self._config, str(self._loaded.model.backbone.dtype).removeprefix("torch.")
            loaded = replace(self._loaded, correction=self._player.correction)
            save(
                loaded, state, self._folder, config.lora, config.base, lambda: checkpoint.load(config.base, dtype).model
            )

    def _play(self, step: int, stage: Stage) -> list[list[Episode]]:
        """This process's problems, several episodes of each."""
        config, processes = self._config, self._processes
        drawn = self._draw(step_rng(self._looping.seed, step), config.problems)
        mine = range(processes.rank, config.problems, processes.size)
        items = [drawn[number] for number in mine for _ in range(config.rollouts)]
        seeds = [hash_key(self._looping.seed, step, number, k) for number in mine for k in range(config.rollouts)]
        given = config.rollouts * sum(number < config.from_base * config.problems for number in mine)
        episodes = self._act(items, seeds, stage, given)
        return [episodes[first : first + config.rollouts] for first in range(0, len(episodes), config.rollouts)]

    def _act(self, items: list[Item], seeds: list[int], stage: Stage, given: int) -> list[Episode]:
        """Two attempts at every item; the first ones at the first `given` items are the base's."""
        player = self._player
        with self._processes.precision():
            if stage.imitate:  # the base's own second attempts are what is copied
                return player.play(items, seeds, self._reference)
            turns = player.begin(items[:given], seeds[:given], self._reference)
            with self._processes.whole(self.policy):
                policy: Policy = self._processes.unwrap(self.policy)
                return policy.play(player, items, seeds, turns)

    def _judge(self, groups: list[list[Episode]], stage: Stage) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss of some problems, and sums for the log."""
        episodes = [episode for group in groups for episode in group]
        told = transcribe(episodes, self._player.depth).to(self._processes.device)
        reference = self._reference if any(stage.anchors) else None
        with self._processes.precision():
            judged = self.policy(told, reference)
        rewards_BD = torch.tensor(
            [[float(turn.right) for turn in e.turns] for e in episodes], device=told.ids_BT.device
        )
        own_BD = torch.tensor([[float(e.own), 1.0] for e in episodes], device=told.ids_BT.device)
        loss = stage.loss(judged, rewards_BD, own_BD, len(groups), self._config.divergence)
        return loss, _facts(episodes, rewards_BD) | (_divergences(judged) if reference else {})


def _facts(episodes: Sequence[Episode], rewards_BD: Tensor) -> dict[str, Tensor]:
    """Sums over episodes."""
    first, second = rewards_BD.unbind(-1)
    changed = sum(len({turn.answer.text.strip() for turn in episode.turns}) > 1 for episode in episodes)
    return {
        "t1": first.sum(),
        "t2": second.sum(),
        "repaired": ((1 - first) * second).sum(),
        "broken": (first * (1 - second)).sum(),
        "changed": first.new_tensor(changed),
    }


def _divergences(judged: Judged) -> dict[str, Tensor]:
    """Sums over episodes."""
    return dict(zip(("kl1", "kl2"), judged.divergence_BD.detach().sum(0), strict=True))
