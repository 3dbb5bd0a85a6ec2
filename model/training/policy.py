"""A model as a policy over conversations: how likely its choices were, and how far it has moved from a reference.

Everything a model chose counts: visible tokens under the mixed distribution, the tokens of the thoughts before them, and where
those ended. Both models read the same text and the same thoughts, in one forward each.

Shape letters: as in `transcripts`; N choices that were made, D = 2 turns.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..quiet_model import QuietModel
from ..thoughts import replay
from .episodes import Episode, Player, Turn
from .logprobs import MAX_LOGITS, NOTHING, log_likelihood, pick
from .tasks.item import Item
from .transcripts import Transcript

Divergence = Literal["exact", "sampled"]


class Judged(NamedTuple):
    """Sums over the choices of each turn."""

    logprob_BD: Tensor
    divergence_BD: Tensor  # KL(policy || reference) in nats; `exact` has a gradient, `sampled` has none


class _Choices(NamedTuple):
    """Every choice of a transcript, in one order."""

    hidden_NH: Tensor
    chosen_N: Tensor
    cells_N: Tensor  # episode * 2 + turn


class Policy(nn.Module):
    """The model under training.

    Args:
        model: the model.
        divergence: `exact`: over the whole vocabulary at every choice; `sampled`: the difference of log-probabilities of what
            was chosen, of which nothing is kept for the backward pass, but which is noise where `exact` is none.
        temperature: at which visible tokens were sampled; log-probabilities are those of what was sampled from.
    """

    def __init__(self, model: QuietModel, divergence: Divergence = "exact", temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.divergence, self.temperature = model, divergence, temperature

    def play(
        self, player: Player, items: Sequence[Item], seeds: Sequence[int], given: Sequence[Turn] = ()
    ) -> list[Episode]:
        """Attempt every item twice, as `Player.play` has it."""
        self.eval()  # no dropout in what is to be judged
        return player.play(items, seeds, self.model, given)

    def forward(self, told: Transcript, reference: QuietModel | None) -> Judged:
        """Judge every turn; without a reference nothing diverges."""
        self.train()
        own = _choices(self.model, told)
        judged_2N = self._judge(own, told, reference)
        sums = [x.new_zeros(2 * len(told.ids_BT)).index_add(0, own.cells_N, x) for x in judged_2N]
        return Judged(*(x.view(-1, 2).clone() for x in sums))  # FSDP loses its hooks on views

    def _judge(self, own: _Choices, told: Transcript, reference: QuietModel | None) -> tuple[Tensor, Tensor]:
        """Of every choice its log-probability and the divergence."""
        if reference and self.divergence == "exact":
            with torch.no_grad():
                their_NH = _choices(reference, told).hidden_NH
            return self._compare(own, their_NH, reference)
        logprob_N = self._likelihood(self.model, own)
        if not reference:
            return logprob_N, torch.zeros_like(logprob_N)
        with torch.no_grad():
            return logprob_N, logprob_N.detach() - self._likelihood(reference, _choices(reference, told))

    def _likelihood(self, model: QuietModel, choices: _Choices) -> Tensor:
        return log_likelihood(model, choices.hidden_NH, choices.chosen_N, self.temperature, with_entropy=False)[0]

    def _compare(self, own: _Choices, their_NH: Tensor, reference: QuietModel) -> tuple[Tensor, Tensor]:
        """In parts: the logits of all choices at once might be most of the memory."""
        size = max(1, MAX_LOGITS // self.model.backbone.vocab_size)
        if len(own.chosen_N) <= size:
            return self._compare_part(own.hidden_NH, their_NH, own.chosen_N, reference)
        found = [
            checkpoint(self._compare_part, *part, reference, use_reentrant=False)
            for part in zip(own.hidden_NH.split(size), their_NH.split(size), own.chosen_N.split(size), strict=True)
        ]
        logprobs, divergences = zip(*found, strict=True)
        return torch.cat(logprobs), torch.cat(divergences)

    def _compare_part(
        self, own_NH: Tensor, their_NH: Tensor, chosen_N: Tensor, reference: QuietModel
    ) -> tuple[Tensor, Tensor]:
        logprobs_NV = self._logprobs(self.model, own_NH)
        with torch.no_grad():
            their_NV = self._logprobs(reference, their_NH)
        logprob_N = pick(logprobs_NV, chosen_N, self.model.stop_ids)
        least = torch.finfo(logprobs_NV.dtype).min  # the markers have no probability, and 0 times -inf is no number
        ratio_NV = logprobs_NV.clamp(min=least) - their_NV.clamp(min=least)
        return logprob_N, (logprobs_NV.exp() * ratio_NV).sum(-1)

    def _logprobs(self, model: QuietModel, hidden_NH: Tensor) -> Tensor:
        logits_NV = model.logits(hidden_NH)
        return (logits_NV if self.temperature == 1 else logits_NV / self.temperature).log_softmax(-1)


def _choices(model: QuietModel, told: Transcript) -> _Choices:
    """States behind which the choices were made."""
    thinking_BK = told.at_BK[:, : told.own_BKG.shape[1]].clamp(min=0)
    base_BTH, own_BKGH = replay(model, told.ids_BT, thinking_BK, told.own_BKG)
    made_BK = told.at_BK >= 0
    cells_BK = 2 * torch.arange(len(made_BK), device=made_BK.device)[:, None] + told.turns_BK
    behind_BKH = base_BTH.gather(1, told.at_BK.clamp(min=0)[..., None].expand(-1, -1, base_BTH.shape[-1]))
    if not told.own_BKG.shape[1]:
        return _Choices(behind_BKH[made_BK], told.chosen_BK[made_BK], cells_BK[made_BK])
    end_BK = (told.choices_BKL >= 0).sum(-1) + 1
    after_BKH = own_BKGH.gather(2, end_BK[..., None, None].expand(-1, -1, 1, own_BKGH.shape[-1])).squeeze(2)
    mixed_BKH, _ = model.mix(behind_BKH, after_BKH)
    visible_BKH = torch.where(told.thought_BK[..., None], mixed_BKH, behind_BKH)
    hidden_BKLH = own_BKGH[:, :, : told.choices_BKL.shape[-1]]
    made_BKL = told.choices_BKL != NOTHING
    cells_BKL = cells_BK[..., None].expand_as(made_BKL)
    return _Choices(
        torch.cat([visible_BKH[made_BK], hidden_BKLH[made_BKL]]),
        torch.cat([told.chosen_BK[made_BK], told.choices_BKL[made_BKL]]),
        torch.cat([cells_BK[made_BK], cells_BKL[made_BKL]]),
    )
