"""One run of Quiet-STaR: the model, the data, and how they meet in a step."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import Loaded
from ..sampling import hash_key
from .batches import Batch
from .loop import Loop, LoopConfig, decay_linearly, drop_lines_after, make_optimizer, step_rng
from .lora import Lora
from .objective import Objective, Sampled, Sums, ThinkingConfig
from .problem_texts import ProblemTexts
from .processes import Processes
from .thinker import ThinkerConfig, decoder_layers, open_thinker
from .trained import choose_what_learns, save
from .watch import Watch

if TYPE_CHECKING:
    from .corpus import Corpus

THOUGHTS_FILE = "thoughts.jsonl"
SHOWN = 2  # thoughts of a step that are written down
CONTEXT = 48  # tokens shown before a thought


@dataclass(frozen=True)
class TrainerConfig:
    """How a run learns."""

    base: Path | str
    depths: Sequence[int]  # most tokens of a thought, one drawn for each step
    lr: float
    warmup: int = 10
    weight_decay: float = 0.0
    marker_lr_scale: float = 1.0  # START and END
    head_lr_scale: float = 1.0  # the mixing head
    micro_batch: int | None = None  # texts in memory at once; None: all
    lora: Lora | None = None


class Trainer:
    """Steps a thinking model over a data set.

    Args:
        config: how it learns.
        opening: how its base is opened.
        thinking: the objective; `continued` has no thoughts.
        looping: how long, and what is kept.
        processes: who trains.
        folder: of the checkpoint, the log and the state.
        recipe: whatever must be equal for a saved state to be continued.
    """

    def __init__(
        self,
        config: TrainerConfig,
        opening: ThinkerConfig,
        thinking: ThinkingConfig,
        looping: LoopConfig,
        processes: Processes,
        folder: Path,
        recipe: dict[str, object],
    ) -> None:
        self._config, self._opening, self._looping = config, opening, looping
        self._processes, self._folder = processes, folder
        self.loaded = open_thinker(config.base, opening, str(processes.device))
        thinking = replace(thinking, pause_token=pause_token(self.loaded))
        choose_what_learns(self.loaded.model, config.lora, thinking=thinking.arm != "continued")
        layers = decoder_layers(self.loaded.model.backbone.lm)
        self.model = processes.spread(Objective(self.loaded.model, thinking), layers, "sample")
        self._objective: Objective = processes.unwrap(self.model)
        scales = {"start_embedding": config.marker_lr_scale, "end_embedding": config.marker_lr_scale}
        self.loop = Loop(
            self.model,
            make_optimizer(self.model, config.weight_decay, {**scales, "mixing_head": config.head_lr_scale}),
            lambda step: decay_linearly(step, looping.steps, config.lr, config.warmup),
            looping,
            folder,
            recipe,
            processes,
            guard=Watch("base_nll"),  # rewards do not feel its rise: every thought at a position gains alike
        )

    def run(self, data: "Corpus | ProblemTexts", resume: bool) -> None:
        """Train to the end and write the checkpoint."""
        self.loop.data = data
        if not (resume and self.loop.resume()):
            self.loop.start_afresh()
        if self._processes.is_main:
            drop_lines_after(self._folder / THOUGHTS_FILE, self.loop.step)
        self.loop.run(lambda step: self.take_step(step, data.batch(step)))
        self.save()

    def take_step(self, step: int, batch: Batch) -> dict[str, float]:
        """Leave the gradients of a batch in the model; returns what to log of it."""
        depth = step_rng(self._looping.seed, step).choice(self._config.depths)
        parts, sampled = self._think(batch, step, depth)
        counts_3 = torch.stack([self._objective.count(*pair) for pair in zip(parts, sampled, strict=True)]).sum(0)
        counts_3 = self._processes.total(counts_3).clamp(min=1e-9)
        found: list[Sums] = []
        for number, (part, thoughts) in enumerate(zip(parts, sampled, strict=True), 1):
            with self._processes.part(self.model, last=number == len(parts)):
                with self._processes.precision():
                    sums = self.model(part, thoughts)
                self._processes.backward((sums.losses_3 / counts_3 * self._objective.shares_3).sum())
            found.append(sums)
        if sampled[0] and step % self._looping.log_every == 0:
            self._note_thoughts(step, parts[0], sampled[0], found[0].rewards_BM)
        return self._facts(found, counts_3)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name.removeprefix("model."): value for name, value in self._processes.weights(self.model).items()}
        if self._processes.is_main:
            config, opening = self._config, replace(self._opening, quantization="none")
            save(
                self.loaded,
                state,
                self._folder,
                config.lora,
                config.base,
                lambda: open_thinker(config.base, opening).model,
            )

    def _think(self, batch: Batch, step: int, depth: int) -> tuple[list[Batch], list[Sampled | None]]:
        """This process's texts, in parts that fit into memory, and their thoughts."""
        own = torch.arange(self._processes.rank, len(batch), self._processes.size)
        numbers = own.split(self._config.micro_batch or len(own))
        parts = [batch.take(number).to(self._processes.device) for number in numbers]
        if self._objective.config.arm == "continued":
            return parts, [None] * len(parts)
        keys = [[hash_key(self._looping.seed, step, text) for text in number.tolist()] for number in numbers]
        with self._processes.whole(self.model), self._processes.precision():
            return parts, [self._objective.sample(*each, depth) for each in zip(parts, keys, strict=True)]

    def _facts(self, found: Sequence[Sums], counts_3: Tensor) -> dict[str, float]:
        """Means over the whole batch."""
        names = list(found[0].facts)
        sums = torch.stack([torch.stack([*s.losses_3.detach(), *(s.facts[n] for n in names)]) for s in found]).sum(0)
        sums = self._processes.total(sums)
        losses_3, of_thoughts = sums[:3] / counts_3, sums[3:] / counts_3[2]
        told = {"loss": (losses_3 * self._objective.shares_3).sum(), "base_nll": losses_3[0]}
        if names:
            told |= {"mixed_nll": losses_3[1], **dict(zip(names, of_thoughts, strict=True))}
        return {name: float(value) for name, value in told.items()}

    def _note_thoughts(self, step: int, batch: Batch, sampled: Sampled, rewards_BM: Tensor) -> None:
        """Write down the first thoughts of some texts, for people."""
        if not self._processes.is_main:
            return
        decode = self.loaded.tokens.decode
        with (self._folder / THOUGHTS_FILE).open("a") as file:
            for text in range(min(SHOWN, len(batch))):
                at = int(sampled.positions_BM[text, 0])
                ids, choices = batch.ids_BT[text].tolist(), sampled.choices_BML[text, 0].tolist()
                told = {
                    "step": step + 1,
                    "text": decode(ids[max(0, at + 1 - CONTEXT) : at + 1]),
                    "thought": decode([token for token in choices if token >= 0]),
                    "next": decode(ids[at + 1 : at + 2]),
                    "reward": float(rewards_BM[text, 0]),
                }
                file.write(json.dumps(told) + "\n")


def pause_token(loaded: Loaded) -> int:
    """A token that says nothing and does not end a thought."""
    pad, model = loaded.tokens.tokenizer.pad_token_id, loaded.model
    spoken = model.stop_ids | set(model.hidden_ids.tolist())
    return pad if pad is not None and pad not in spoken else min(set(range(model.backbone.vocab_size)) - spoken)
