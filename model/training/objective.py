"""The Quiet-STaR objective on one batch: thoughts sampled by the serving kernel, then one forward with gradients.

`Objective.sample` picks the positions that think and lets them; `Objective.forward` reads the texts, all thoughts and the true
tokens after them at once, and sums the losses. Everything random is keyed by the text, so that a batch may be split in any way.
Quiet-STaR (arXiv 2403.09629), "Quiet-STaR" and "Optimizing Rationale Generation".

Shape letters: B texts, T tokens, J thinking positions of a text, P thoughts at a position, M = J * P, L thought tokens,
G rows of a thought, S tokens foretold after it, K rows of whatever is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..quiet_model import QuietModel
from ..sampling import gumbel, hash_key, sample_thoughts
from ..thoughts import Choose, Rows, Thought, replay, think, whole_rows
from .batches import Batch
from .logprobs import ENDS, NOTHING, log_likelihood
from .loop import DivergedError
from .rewards import advantages, rewards

Arm = Literal["quiet-star", "no-reinforce", "pause", "continued"]


@dataclass(frozen=True)
class ThinkingConfig:
    """Where thoughts are, and what they are rewarded for."""

    arm: Arm = "quiet-star"
    positions: int | None = 2  # thinking positions of a text, drawn by their loss; None: every one
    thoughts: int = 4  # at a position
    after: int = 3  # true tokens foretold after a thought
    beta: float = 10.0  # weight of REINFORCE
    keep_negative: bool = True  # thoughts that are worse than the others are unlearned too; the paper's are not
    temperature: float = 1.0  # of the samples
    reinforce_temperature: float = 1.0  # of the probabilities that are reinforced; 3 in the paper
    pause_token: int = 0  # what a pause is made of


@dataclass(frozen=True)
class Sampled:
    """Thoughts of a batch and where they stand."""

    positions_BM: Tensor
    own_BMG: Tensor  # each thought's rows and the true tokens after it
    choices_BML: Tensor  # its tokens, then ENDS where it ended itself, then NOTHING
    real_BMS: Tensor  # bool: there is such a token to foretell; of a thought that is none of them are


# Thoughts of one text at a time: the rows of all of them are held against all their scratch columns, most of which no row sees.
LANES = 32
AT_ONCE = 128  # thoughts in one forward at least: of few texts more at a time


class Sums(NamedTuple):  # a tuple, or what shards the model would not see the tensors in it
    """What one part of a batch gave, to be divided by totals over all of them."""

    losses_3: Tensor  # of texts, of mixed predictions, of the policy; with gradients
    facts: dict[str, Tensor]  # sums over thoughts, for the log
    rewards_BM: Tensor


class Objective(nn.Module):
    """The model under training, and what is asked of it."""

    def __init__(self, model: QuietModel, config: ThinkingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    @property
    def shares_3(self) -> Tensor:
        """What each mean of `losses_3` over its count weighs in the loss."""
        arm, beta = self.config.arm, self.config.beta
        shares = (1.0, 0.0, 0.0) if arm == "continued" else (0.5, 0.5, beta if arm == "quiet-star" else 0.0)
        return torch.tensor(shares, device=self.model.backbone.device)

    @staticmethod
    def count(batch: Batch, sampled: Sampled | None) -> Tensor:
        """What `losses_3` are sums over: weights of tokens, mixed predictions, thoughts."""
        text = batch.weights_BT.sum()
        if sampled is None:
            return torch.stack([text, torch.zeros_like(text), torch.zeros_like(text)])
        return torch.stack([text, sampled.real_BMS.sum(), sampled.real_BMS[..., 0].sum()])

    @torch.no_grad()
    def sample(self, batch: Batch, keys: Sequence[int], depth: int) -> Sampled:
        """Let each text think, `keys` being the seeds of their noise."""
        self.eval()  # no dropout in what is to be judged
        config, lanes = self.config, self.config.thoughts
        real_BT = batch.weights_BT[:, 1:] > 0
        per_text = (config.positions or real_BT.shape[1]) * lanes
        at_once = min(per_text, max(LANES, AT_ONCE // len(batch)))
        cache = Cache(self.model.backbone, len(batch), batch.ids_BT.shape[1], depth, lanes=at_once)
        where_BJ = self._choose_positions(self._read(batch, cache), batch, keys)
        flights_BM = self._launch(cache, where_BJ.repeat_interleave(lanes, 1).tolist(), keys, depth, at_once)
        for first in range(0, per_text, at_once):
            part = [t for flights in flights_BM for t in flights[first : first + at_once] if t.position >= 0]
            think(self.model, cache, part, self._chooser())
        return _pack(list(chain.from_iterable(flights_BM)), batch, config.after, where_BJ.shape[1] * lanes)

    def forward(self, batch: Batch, sampled: Sampled | None) -> Sums:
        """The sums of one part of a batch; without thoughts the loss of the texts alone."""
        self.train()
        if sampled is None:
            return self._of_texts(batch)
        base_BTH, own_BMGH = replay(self.model, batch.ids_BT, sampled.positions_BM.clamp(min=0), sampled.own_BMG)
        base_nll_BT = self._base_nll(base_BTH, batch)
        mixed_nll_BMS, weight_BMS = self._mixed_nll(batch, sampled, base_BTH, own_BMGH)
        reward_BM = self._reward(base_nll_BT, mixed_nll_BMS, sampled)
        is_thought_BM = sampled.real_BMS[..., 0]
        policy, entropy = self._policy(own_BMGH, sampled, reward_BM)
        text = (base_nll_BT * batch.weights_BT[:, 1:]).sum()
        facts = {
            "reward": reward_BM.sum(),
            "weight": (weight_BMS[..., 0] * is_thought_BM).sum(),
            "length": ((sampled.choices_BML >= 0).sum(-1) * is_thought_BM).sum(),
            "ended": ((sampled.choices_BML == ENDS).any(-1) & is_thought_BM).sum(),
            "entropy": entropy,
        }
        losses_3 = torch.stack([text, mixed_nll_BMS.sum(), policy])
        return Sums(losses_3, {name: value.detach().float() for name, value in facts.items()}, reward_BM)

    def _of_texts(self, batch: Batch) -> Sums:
        none_BMG = torch.zeros(len(batch), 0, 1, dtype=torch.long, device=batch.ids_BT.device)
        base_BTH, _ = replay(self.model, batch.ids_BT, none_BMG[..., 0], none_BMG)
        text = (self._base_nll(base_BTH, batch) * batch.weights_BT[:, 1:]).sum()
        zero = torch.zeros_like(text)
        return Sums(torch.stack([text, zero, zero]), {}, none_BMG[..., 0])

    def _launch(
        self, cache: Cache, where_BM: list[list[int]], keys: Sequence[int], depth: int, at_once: int
    ) -> list[list[Thought]]:
        """Thoughts [B, M] that have yet to think; every `at_once` of a text share their lanes with the next ones."""
        return [
            [
                Thought(
                    slot,
                    position,
                    cache.lane(number % at_once, depth),
                    depth,
                    self.model.stop_ids,
                    hash_key(key, number),
                    wants_end=False,
                )
                for number, position in enumerate(places)
            ]
            for slot, (places, key) in enumerate(zip(where_BM, keys, strict=True))
        ]

    def _read(self, batch: Batch, cache: Cache) -> Tensor:
        """Hidden states [B, T, H] of the texts, their keys and values left in the cache."""
        rows = Rows()
        for slot, length in enumerate(batch.lengths().tolist()):
            rows.add_base(slot, batch.ids_BT[slot, :length].tolist(), 0)
        found_NH = self.model.run(rows, cache)
        hidden_BTH = found_NH.new_zeros(*batch.ids_BT.shape, found_NH.shape[-1])
        hidden_BTH[torch.tensor(rows.slots), torch.tensor(rows.columns)] = found_NH
        return hidden_BTH

    def _choose_positions(self, hidden_BTH: Tensor, batch: Batch, keys: Sequence[int]) -> Tensor:
        """Where texts think [B, J], without repetition and in proportion to the loss there; -1 where a text is too short."""
        real_BT = batch.weights_BT[:, 1:] > 0
        if self.config.positions is None:
            return torch.arange(real_BT.shape[1], device=real_BT.device).where(real_BT, -1)
        loss_BT = self._base_nll(hidden_BTH, batch) * batch.weights_BT[:, 1:]
        # The largest of log p + Gumbel noise are a sample without replacement (Vieira 2014; Kool et al. 2019).
        noisy_BT = (loss_BT + 1e-6).log() + gumbel([(key,) for key in keys], loss_BT)
        noisy_BT = noisy_BT.masked_fill(~real_BT, float("-inf"))
        best = noisy_BT.topk(min(self.config.positions, noisy_BT.shape[1]), dim=1)
        return best.indices.where(best.values > float("-inf"), -1)

    def _chooser(self) -> Choose:
        temperature, pause = self.config.temperature, self.config.pause_token

        def draw(thoughts: list[Thought], logits_NV: Tensor) -> list[int]:
            if logits_NV.isnan().any():
                raise DivergedError("logits are not numbers")
            keys = [(t.seed, t.position, len(t.tokens)) for t in thoughts]
            return sample_thoughts(logits_NV, keys, [temperature] * len(thoughts))

        return draw if self.config.arm != "pause" else lambda thoughts, _: [pause] * len(thoughts)

    def _base_nll(self, hidden_BTH: Tensor, batch: Batch) -> Tensor:
        """Loss [B, T - 1] of each next token that counts."""
        return self._nll(hidden_BTH[:, :-1], batch.ids_BT[:, 1:], batch.weights_BT[:, 1:] > 0)

    def _mixed_nll(self, batch: Batch, sampled: Sampled, base_BTH: Tensor, own_BMGH: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B, M, S] of the tokens behind each thought under the mix, and the mixing weights."""
        read_BMS, texts_B11 = (
            self._read_by(sampled),
            torch.arange(len(batch), device=batch.ids_BT.device)[:, None, None],
        )
        last = batch.ids_BT.shape[1] - 1
        base_BMSH = base_BTH[texts_B11, read_BMS.clamp(max=last)]
        # A thought that is shorter than the longest leaves room behind it, so a column out of range is never a real one.
        end_BM = (sampled.choices_BML >= 0).sum(-1) + 1
        steps_S = torch.arange(sampled.real_BMS.shape[-1], device=end_BM.device)
        behind_BMS = (end_BM[..., None] + steps_S).clamp(max=own_BMGH.shape[2] - 1)
        thought_BMSH = own_BMGH.gather(2, behind_BMS[..., None].expand(-1, -1, -1, own_BMGH.shape[-1]))
        mixed_BMSH, weight_BMS = self.model.mix(base_BMSH, thought_BMSH)
        targets_BMS = batch.ids_BT[texts_B11, (read_BMS + 1).clamp(max=last)]
        return self._nll(mixed_BMSH, targets_BMS, sampled.real_BMS), weight_BMS

    def _reward(self, base_nll_BT: Tensor, mixed_nll_BMS: Tensor, sampled: Sampled) -> Tensor:
        read_BMS = self._read_by(sampled).clamp(max=base_nll_BT.shape[1] - 1)
        base_BMS = base_nll_BT.gather(1, read_BMS.flatten(1)).view_as(read_BMS)
        return rewards(base_BMS, mixed_nll_BMS, sampled.real_BMS)

    def _policy(self, own_BMGH: Tensor, sampled: Sampled, reward_BM: Tensor) -> tuple[Tensor, Tensor]:
        """REINFORCE: minus the advantage times the log-probability of all a thought's choices; and their mean entropy."""
        if self.config.arm != "quiet-star":
            return torch.zeros_like(reward_BM.sum()), torch.zeros_like(reward_BM.sum())
        made_BML = (sampled.choices_BML != NOTHING) & sampled.real_BMS[..., :1]
        advantage_BJP = advantages(reward_BM.unflatten(1, (-1, self.config.thoughts)), self.config.keep_negative)
        logprobs_K, entropy_K = log_likelihood(
            self.model,
            own_BMGH[:, :, : made_BML.shape[-1]][made_BML],
            sampled.choices_BML[made_BML],
            self.config.reinforce_temperature,
        )
        advantage_K = advantage_BJP.flatten(1)[..., None].expand_as(made_BML)[made_BML]
        per_thought = made_BML.sum(-1).clamp(min=1)[..., None].expand_as(made_BML)[made_BML]
        return -(advantage_K * logprobs_K).sum(), (entropy_K / per_thought).sum()

    def _nll(self, hidden: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """Minus the log-probability of each target, 0 where it is not real; only real ones are computed."""
        logprobs_K, _ = log_likelihood(self.model, hidden[real], targets[real], with_entropy=False)
        return torch.zeros(real.shape, device=real.device).masked_scatter(real, -logprobs_K)

    def _read_by(self, sampled: Sampled) -> Tensor:
        """The positions [B, M, S] behind which the foretold tokens stand."""
        steps_S = torch.arange(sampled.real_BMS.shape[-1], device=sampled.positions_BM.device)
        return sampled.positions_BM.clamp(min=0)[..., None] + steps_S


def _pack(flights: list[Thought], batch: Batch, after: int, per_text: int) -> Sampled:
    """Finished thoughts as tensors; the true tokens after each are read behind its END."""
    texts, device = batch.ids_BT.tolist(), batch.ids_BT.device
    pad = texts[0][0]  # any real id: nothing sees the padding
    rows = [whole_rows(t.tokens, texts[t.slot][t.position + 1 : t.position + after]) for t in flights]
    choices = [[*t.tokens, *([ENDS] if t.ended and not t.full else [])] for t in flights]
    positions_BM = torch.tensor([t.position for t in flights], device=device).view(-1, per_text)
    read_BMS = positions_BM[..., None] + torch.arange(after, device=device)
    inside_BMS = (positions_BM[..., None] >= 0) & (read_BMS < batch.ids_BT.shape[1] - 1)
    counts_BMS = batch.weights_BT[:, 1:].gather(1, read_BMS.clamp(0, batch.ids_BT.shape[1] - 2).flatten(1)) > 0
    return Sampled(
        positions_BM,
        _stack(rows, pad, device).unflatten(0, (-1, per_text)),
        _stack(choices, NOTHING, device).unflatten(0, (-1, per_text)),
        inside_BMS & counts_BMS.view_as(inside_BMS),
    )


def _stack(rows: list[list[int]], filler: int, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)
