"""What rationales teach: losses that are means over the tokens of a completion, one a lesson.

Shape letters: B texts, T tokens, N tokens that count in all texts, V vocabulary, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..backbone import causal
from ..quiet_model import QuietModel
from .batches import Batch
from .integration import in_mode, units
from .lessons import Lesson, Text, collate
from .logprobs import MAX_LOGITS, log_likelihood

LEAST_DOUBT = 1e-5  # of 1 - p, whose logarithm is taken: a token that is certain would have an infinite loss

Facts = dict[str, Tensor]  # [B]: what to log of each lesson; fewer where it is of some lessons alone
# From the mean log-probability [P] of right rationales, and of wrong ones the log-probability [N] of every token and what makes
# means [P] of those, to a loss [P].
Against = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


class Read(NamedTuple):
    """Texts that a model has read, and where it foretold what counts."""

    hidden_NH: Tensor
    targets_N: Tensor
    rows_N: Tensor  # the text of each
    counts_B: Tensor
    counted_BT: Tensor  # where they stand; T without the last token, behind which nothing comes

    def mean(self, values_N: Tensor) -> Tensor:
        """Means [B] over the tokens of each text."""
        return values_N.new_zeros(len(self.counts_B)).index_add(0, self.rows_N, values_N) / self.counts_B


def read(model: QuietModel, batch: Batch) -> Read:
    """One forward. Padding stands on the right, where nothing that counts sees it."""
    ids_BT = batch.ids_BT[:, :-1]
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
    hidden_BTH = model(ids_BT, positions_BT, causal)
    counted_BT = batch.weights_BT[:, 1:] > 0
    rows_N = counted_BT.nonzero()[:, 0]
    return Read(hidden_BTH[counted_BT], batch.ids_BT[:, 1:][counted_BT], rows_N, counted_BT.sum(1), counted_BT)


def logprobs(model: QuietModel, told: Read) -> Tensor:
    """The log-probability [N] of every token that counts."""
    return log_likelihood(model, told.hidden_NH, told.targets_N, with_entropy=False)[0]


class Imitation:
    """Cross-entropy of what a lesson says. Of a model with units it tells how much of the negative adapter they take."""

    def __init__(self, model: QuietModel) -> None:
        self.model = model

    def __call__(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Facts]:
        """A loss [B] for every lesson, and what to log."""
        told = read(self.model, _collate(self.model, [lesson.text for lesson in lessons]))
        shares = [
            told.mean(unit.share[told.counted_BT].float()) for unit in units(self.model) if unit.share is not None
        ]
        facts = {"alpha_negative": torch.stack(shares).mean(0)} if shares else {}
        return -told.mean(logprobs(self.model, told)), facts


class Contrast:
    """Cross-entropy of right rationales, and something else of wrong ones.

    Args:
        model: learns.
        against: the loss of wrong ones.
    """

    def __init__(self, model: QuietModel, against: Against) -> None:
        self.model, self._against = model, against

    def __call__(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Facts]:
        """A loss [B] for every lesson, and what to log. A lesson without a wrong rationale has the cross-entropy alone."""
        paired = [number for number, lesson in enumerate(lessons) if lesson.wrong]
        wrong = [lesson.wrong for lesson in lessons if lesson.wrong]
        told = read(self.model, _collate(self.model, [*(lesson.text for lesson in lessons), *wrong]))
        logprob_N, num_right = logprobs(self.model, told), len(lessons)
        right_B, wrong_P = told.mean(logprob_N).split([num_right, len(wrong)])
        at = torch.tensor(paired, device=right_B.device, dtype=torch.long)
        loss_P = self._against(right_B[at], logprob_N, lambda values_N: told.mean(values_N)[num_right:])
        facts = {"ce": -right_B.detach(), "ce_wrong": -wrong_P.detach()}
        return -right_B + _spread(loss_P, at, num_right), facts


def mixed(right_B: Tensor, logprob_N: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Wrong rationales are imitated, too: what makes the whole a mean over both."""
    return (right_B - mean(logprob_N)) / 2


@dataclass(frozen=True)
class Negated:
    """Negative training (He and Glass, arXiv 1903.02134): wrong tokens are made less likely, down to `floor`."""

    weight: float
    floor: float

    def __call__(self, right_B: Tensor, logprob_N: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ARG002
        """Minus the cross-entropy, of tokens above the floor; the others are left alone, or it had no bound."""
        return self.weight * mean(logprob_N.clamp(min=math.log(self.floor)))


@dataclass(frozen=True)
class Unlikelihood:
    """-log(1 - p) of wrong tokens (Welleck et al., arXiv 1908.04319)."""

    weight: float

    def __call__(self, right_B: Tensor, logprob_N: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ARG002
        """The same as a loss."""
        return self.weight * mean(-(-logprob_N.expm1()).clamp(min=LEAST_DOUBT).log())


@dataclass(frozen=True)
class Margin:
    """A right rationale is to be likelier per token than a wrong one to the same question, by `margin` nats."""

    weight: float
    margin: float

    def __call__(self, right_B: Tensor, logprob_N: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """What it lacks of that."""
        return self.weight * (self.margin - right_B + mean(logprob_N)).relu()


class Calibration:
    """NCE: half a rationale's cross-entropy, half that of the teacher's whole distribution, more where its halves differ.

    0.5 CE + 0.5 (0.5 + beta) CE(p_NAT, p) (arXiv 2312.12832, "Negative Calibrated Enhancement").
    """

    def __init__(self, model: QuietModel, teacher: QuietModel) -> None:
        self.model, self.teacher = model, teacher

    def __call__(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Facts]:
        """A loss [B] for every lesson, and what to log."""
        batch = _collate(self.model, [lesson.text for lesson in lessons])
        own = read(self.model, batch)
        with torch.no_grad():
            theirs = read(self.teacher, batch)
        ce_B = -own.mean(logprobs(self.model, own))
        soft_B = own.mean(soft_cross_entropy(self.teacher, theirs.hidden_NH, self.model, own.hidden_NH))
        beta_B = torch.tensor([lesson.text.beta for lesson in lessons], device=ce_B.device)
        facts = {"beta": beta_B, "ce": ce_B.detach(), "soft_ce": soft_B.detach()}
        return 0.5 * ce_B + 0.5 * (0.5 + beta_B) * soft_B, facts


@torch.no_grad()
def betas(teacher: QuietModel, texts: Sequence[Text]) -> list[float]:
    """tanh of the mean over a completion's tokens of KL(p_neg || p_NAT), for every text."""
    batch = _collate(teacher, texts)
    whole = read(teacher, batch)
    with in_mode(teacher, "negative"):
        negative = read(teacher, batch)
    return whole.mean(divergence(teacher, negative.hidden_NH, whole.hidden_NH)).tanh().tolist()


def soft_cross_entropy(teacher: QuietModel, their_NH: Tensor, model: QuietModel, own_NH: Tensor) -> Tensor:
    """-sum p_teacher log p_model [N]; in parts, or the logits might be most of the memory."""
    size = max(1, MAX_LOGITS // model.backbone.vocab_size)
    if len(own_NH) <= size:
        return _soft(teacher, their_NH, model, own_NH)
    parts = [
        checkpoint(_soft, teacher, theirs, model, own, use_reentrant=False)
        for theirs, own in zip(their_NH.split(size), own_NH.split(size), strict=True)
    ]
    return torch.cat(parts)


def divergence(model: QuietModel, first_NH: Tensor, second_NH: Tensor) -> Tensor:
    """KL(first || second) [N] in nats of what two states foretell; in parts."""
    size = max(1, MAX_LOGITS // model.backbone.vocab_size)
    parts = []
    for one, two in zip(first_NH.split(size), second_NH.split(size), strict=True):
        first_NV, second_NV = _log_softmax(model, one), _log_softmax(model, two)
        parts.append((first_NV.exp() * (first_NV - second_NV)).sum(-1))
    return torch.cat(parts)


def _soft(teacher: QuietModel, their_NH: Tensor, model: QuietModel, own_NH: Tensor) -> Tensor:
    with torch.no_grad():
        theirs_NV = _log_softmax(teacher, their_NH).exp()
    return -(theirs_NV * _log_softmax(model, own_NH)).sum(-1)


def _log_softmax(model: QuietModel, hidden_NH: Tensor) -> Tensor:
    logprobs_NV = model.logits(hidden_NH).log_softmax(-1)
    # The markers have no probability, and 0 times -inf is no number.
    return logprobs_NV.clamp(min=torch.finfo(logprobs_NV.dtype).min)


def _collate(model: Any, texts: Sequence[Text]) -> Batch:
    return collate(texts).to(model.backbone.device)


def _spread(values_P: Tensor, at_P: Tensor, size: int) -> Tensor:
    """Values of some lessons at their places among all; 0 at the others."""
    return values_P.new_zeros(size).index_add(0, at_P, values_P)
