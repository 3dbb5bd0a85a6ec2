"""One training step written as the public Quiet-STaR code writes it: what the trainer's own step is measured against.

In `modeling_mistral.py` of the public code (github.com/ezelikman/quiet-star) texts are repeated for each thought, every position
thinks, and each thought token is one forward of all positions. All of it stays in the autograd graph: the keys and values of every
forward, joined anew in each layer; the softmax over the vocabulary of every row; the tokens, which are read as one-hot rows times
the embedding matrix. A thought has a fixed length.

The mathematics is that of `Objective` with all positions, term for term, and a test holds the two together. The original does more:
it multiplies by the output embedding twice in a forward, for the thought's next token and for a mixed prediction, and here that is
done once, where the objective needs it.

Shape letters: B texts, P thoughts at a position, N = B * P, T tokens, L thought tokens, S tokens foretold after a thought,
V vocabulary.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gumbel_softmax, one_hot, scaled_dot_product_attention

from ..quiet_model import QuietModel
from .batches import Batch
from .objective import ThinkingConfig
from .rewards import advantages, rewards


class PublicSums(NamedTuple):
    """What a batch gave; the loss is `(losses_3 / counts_3 * Objective.shares_3).sum()`."""

    losses_3: Tensor  # of texts, of mixed predictions, of the policy; with gradients
    counts_3: Tensor  # what they are sums over


class PublicStep(nn.Module):
    """The forward of one step.

    Args:
        model: whose thoughts do not end themselves.
        config: as `Objective` takes it, with every position thinking.

    Raises ValueError for a model with stop tokens, and for a number of positions.
    """

    def __init__(self, model: QuietModel, config: ThinkingConfig) -> None:
        super().__init__()
        if model.stop_ids:
            raise ValueError("thoughts of this model may end themselves; the public step thinks to the full depth")
        if config.positions is not None:
            raise ValueError("in the public step every position thinks")
        self.model, self.config = model, config

    def forward(self, batch: Batch, depth: int, forced_NTL: Tensor | None = None) -> PublicSums:
        """Think `depth` tokens behind every position, or read those that are given, and sum the losses."""
        lanes, after = self.config.thoughts, self.config.after
        ids_NT, weights_NT = (x.repeat_interleave(lanes, 0) for x in (batch.ids_BT, batch.weights_BT))
        attend = _KeptAttention(ids_NT.shape[1], ids_NT.device)
        base_NTH = self._read(self.model.backbone.embed(ids_NT), 0, attend)
        base_NT = _nll(self.model.logits(base_NTH), _later(ids_NT, 1))
        logprobs_NTL = self._think(ids_NT, attend, depth, forced_NTL)
        mixed_NTS = self._foretell(base_NTH, ids_NT, attend, depth)
        base_NTS = torch.stack([_later(base_NT, s) for s in range(after)], -1)
        is_thought_NT = _later(weights_NT, 1) > 0
        real_NTS = torch.stack([_later(weights_NT, s + 1) > 0 for s in range(after)], -1) & is_thought_NT[..., None]
        advantage_NT = self._advantage(rewards(base_NTS, mixed_NTS, real_NTS))
        text = (base_NT * _later(weights_NT, 1)).sum() / lanes
        losses_3 = torch.stack([text, (mixed_NTS * real_NTS).sum(), -(advantage_NT * logprobs_NTL.sum(-1)).sum()])
        return PublicSums(losses_3, torch.stack([batch.weights_BT.sum(), real_NTS.sum(), is_thought_NT.sum()]))

    def _think(self, ids_NT: Tensor, attend: "_KeptAttention", depth: int, forced_NTL: Tensor | None) -> Tensor:
        """Log-probabilities [N, T, L] of the thoughts' tokens; all of them are read, END is not."""
        logprobs: list[Tensor] = []
        read_NTH = self.model.start_embedding.expand(*ids_NT.shape, -1)
        for step in range(depth):
            logits_NTV = self.model.logits(self._read(read_NTH, step + 1, attend))
            onehot_NTV = self._choose(logits_NTV, None if forced_NTL is None else forced_NTL[..., step])
            every_NTV = (logits_NTV / self.config.reinforce_temperature).log_softmax(-1)
            logprobs.append(every_NTV.gather(-1, onehot_NTV.argmax(-1, keepdim=True)).squeeze(-1))
            read_NTH = self._embed(onehot_NTV)
        self._read(read_NTH, depth + 1, attend)
        return torch.stack(logprobs, -1)

    def _foretell(self, base_NTH: Tensor, ids_NT: Tensor, attend: "_KeptAttention", depth: int) -> Tensor:
        """Loss [N, T, S] of the tokens behind each thought under the mix."""
        losses: list[Tensor] = []
        for s in range(self.config.after):
            onehot_NTV = one_hot(_later(ids_NT, s), self.model.backbone.vocab_size)
            read_NTH = self._embed(onehot_NTV) if s else self.model.end_embedding.expand_as(base_NTH)
            thought_NTH = self._read(read_NTH, depth + 2 + s, attend)
            mixed_NTH, _ = self.model.mix(_later(base_NTH, s), thought_NTH)
            losses.append(_nll(self.model.logits(mixed_NTH), _later(ids_NT, s + 1)))
        return torch.stack(losses, -1)

    def _choose(self, logits_NTV: Tensor, forced_NT: Tensor | None) -> Tensor:
        if forced_NT is not None:
            return one_hot(forced_NT, logits_NTV.shape[-1])
        # Straight through, and then cut off from the graph: `gumbel_detach`, which the published recipe has on.
        return gumbel_softmax(logits_NTV / self.config.temperature, hard=True).detach()

    def _embed(self, onehot_NTV: Tensor) -> Tensor:
        weight_VH = cast(nn.Embedding, self.model.backbone.lm.get_input_embeddings()).weight
        return onehot_NTV.to(weight_VH.dtype) @ weight_VH

    def _read(self, embeds_NTH: Tensor, step: int, attend: "_KeptAttention") -> Tensor:
        """One forward of all positions: row i stands `step` places behind token i."""
        positions_T = torch.arange(embeds_NTH.shape[1], device=embeds_NTH.device) + step
        return self.model.backbone(embeds_NTH, positions_T.expand(len(embeds_NTH), -1), attend)

    def _advantage(self, reward_NT: Tensor) -> Tensor:
        reward_BTP = reward_NT.unflatten(0, (-1, self.config.thoughts)).transpose(1, 2)
        return advantages(reward_BTP, self.config.keep_negative).transpose(1, 2).flatten(0, 1)


class _KeptAttention:
    """Attends to this forward and all before it: causal among the text, the diagonal alone of every later one."""

    def __init__(self, length: int, device: torch.device) -> None:
        self._text_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        self._diagonal_TT = torch.eye(length, dtype=torch.bool, device=device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer in self._kept:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self._kept[layer], (key, value), strict=True))
        self._kept[layer] = key, value
        later = key.shape[2] // len(self._text_TT) - 1
        mask = torch.cat([self._text_TT, *[self._diagonal_TT] * later], dim=1)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def _nll(logits_NTV: Tensor, targets_NT: Tensor) -> Tensor:
    """Minus the log-probability [N, T] of each target."""
    return cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten(), reduction="none").view_as(targets_NT)


def _later(x_NT: Tensor, by: int) -> Tensor:
    """What stands `by` places on, [N, T, ...]; zeros behind the end."""
    return x_NT if by == 0 else torch.cat([x_NT[:, by:], torch.zeros_like(x_NT[:, :by])], dim=1)
