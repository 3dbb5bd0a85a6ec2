"""From hidden states to tokens: what thoughts say next, what can be decided, and what may be drafted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from .decoding import Decoding, Position
from .mixing import average
from .progress import Readout
from .quiet_model import QuietModel
from .sampling import Draw, sample, sample_thoughts
from .thoughts import Choose, Thought, grow, settle
from .tokens import Tokens


@dataclass(slots=True, eq=False)
class Next:
    """A position and what is known of the token behind it."""

    decoding: Decoding
    position: Position
    logits_V: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Sequence[float] = ()  # of its thoughts
    chosen: int | None = None  # not where the prompt says which it is
    broken: bool = False  # its logits are not numbers
    readouts: dict[str, Readout] = field(default_factory=dict)  # by the probe's name


class Judge:
    """Chooses every token of a forward, each with the noise of its own position.

    Args:
        model: the model.
        tokens: its tokenizer.
        choose: who picks the tokens of thoughts; seeded noise unless a study wants otherwise.
    """

    def __init__(self, model: QuietModel, tokens: Tokens, choose: Choose | None = None) -> None:
        self._model, self._tokens, self._choose = model, tokens, choose or _choose_thoughts

    def __call__(
        self, decodings: Sequence[Decoding], hidden_NH: Tensor, in_flight: int
    ) -> tuple[list[Next], list[Next]]:
        """Carry the thoughts on by a forward that was run; nothing is decided yet.

        Returns the positions whose next token can be decided now, in order, and those from which one may look ahead;
        `in_flight` positions of each attempt may think at once.
        """
        due, peeks = self._carry_on(decodings, hidden_NH, in_flight)
        self._choose_next(due, peeks)
        return due, peeks

    def _carry_on(
        self, decodings: Sequence[Decoding], hidden_NH: Tensor, in_flight: int
    ) -> tuple[list[Next], list[Next]]:
        """One product with the output embedding does for thoughts, decisions and drafts; only where thoughts end before
        their depth, or turn out to be needless, a second one follows.
        """
        thoughts = [t for d in decodings for p in d.flight for t in p.thoughts or () if not t.ended]
        settle(thoughts, hidden_NH)
        growing = [t for t in thoughts if not t.ended]
        due = _due(decodings)
        peeks = [Next(d, p) for d in decodings for p in _peeks(d, in_flight)]
        bases_MH = _stacked([peek.position.base for peek in peeks], hidden_NH)
        parts = [hidden_NH[[t.row for t in growing]], self._mixed(due, hidden_NH), bases_MH]
        thoughts_MV, due_MV, peeks_MV = self._model.logits(torch.cat(parts)).split([len(part) for part in parts])
        _take_logits(due, due_MV)
        for peek, logits_V in zip(peeks, peeks_MV, strict=True):
            peek.logits_V = logits_V
        _skip_thoughts(peeks)
        for thought, is_broken in zip(growing, thoughts_MV.isnan().any(-1).tolist(), strict=True):
            thought.broken |= is_broken
        grow(growing, thoughts_MV, self._choose, hidden_NH)
        known = {next_.position for next_ in due}
        if later := [next_ for next_ in _due(decodings) if next_.position not in known]:
            _take_logits(later, self._model.logits(self._mixed(later, hidden_NH)))
        for decoding in decodings:
            decoding.free_lanes()
        return due + later, peeks

    def _mixed(self, due: Sequence[Next], like_NH: Tensor) -> Tensor:
        """The hidden states to decide by, one for each thought of each position."""
        bases_MH = _stacked([n.position.base for n in due for _ in n.position.thoughts or [None]], like_NH)
        if not any(n.position.thoughts for n in due):
            return bases_MH
        # A position that did not think is mixed with itself: whatever the weight, it stays what it is.
        after = [t.hidden if t else n.position.base for n in due for t in n.position.thoughts or [None]]
        mixed_MH, weights_M = self._model.mix(bases_MH, _stacked(after, like_NH))
        weights = iter(weights_M.tolist())
        for next_ in due:
            each = [next(weights) for _ in next_.position.thoughts or [None]]
            next_.weights = each if next_.position.thoughts else ()
        return mixed_MH

    def _choose_next(self, due: Sequence[Next], peeks: Sequence[Next]) -> None:
        """Pick decisions and drafts, all with the noise of their own position."""
        if due:
            broken = torch.stack([n.logits_V for n in due]).isnan().any(-1).tolist()
            for next_, is_broken in zip(due, broken, strict=True):
                next_.broken = is_broken or next_.position.broken
        choosers = [n for n in due if not n.decoding.scores(n.position)]
        choosers += [n for n in peeks if n.position is n.decoding.flight[-1]]
        if choosers:
            draws = [self._draw(n) for n in choosers]
            for next_, token in zip(choosers, sample(torch.stack([n.logits_V for n in choosers]), draws), strict=True):
                next_.chosen = token

    def _draw(self, next_: Next) -> Draw:
        decoding, length = next_.decoding, next_.position.number + 1
        before = decoding.tokens if len(decoding.tokens) == length else decoding.tokens[:length]
        return Draw(decoding.params, before, decoding.num_prompt, self._tokens.eos_ids)


def _due(decodings: Sequence[Decoding]) -> list[Next]:
    """Positions that have thought enough, and all older ones too."""
    return [Next(d, position) for d in decodings for position in takewhile(lambda p: p.ended, d.flight)]


def _peeks(decoding: Decoding, in_flight: int) -> list[Position]:
    """Positions whose base logits are wanted: to draft from, or to see whether a thought is needed."""
    adaptive = decoding.params.thought_threshold is not None
    peeks = [position for position in decoding.flight if position.fresh] if adaptive else []
    if in_flight > 1 and decoding.may_draft(in_flight + 1) and decoding.flight[-1] not in peeks:
        peeks.append(decoding.flight[-1])
    return peeks


def _skip_thoughts(peeks: Sequence[Next]) -> None:
    """Adaptive attempts do not think where the base is sure of the next token."""
    asked = [n for n in peeks if n.decoding.params.thought_threshold is not None and n.position.fresh]
    if not asked:
        return
    logprobs_MV = torch.stack([n.logits_V for n in asked]).log_softmax(-1)
    entropies = -torch.where(logprobs_MV.isinf(), 0.0, logprobs_MV.exp() * logprobs_MV).sum(-1)  # of the markers: 0
    for next_, entropy in zip(asked, entropies.tolist(), strict=True):
        if entropy < (next_.decoding.params.thought_threshold or 0.0):
            next_.position.skip()
        elif math.isnan(entropy):
            for thought in next_.position.thoughts or ():
                thought.broken = True


def _take_logits(due: Sequence[Next], logits_MV: Tensor) -> None:
    """Hand out logits, one row for each thought of each position; the distributions of parallel thoughts are averaged."""
    counts = [len(n.position.thoughts or [None]) for n in due]
    for next_, logits_KV in zip(due, logits_MV.split(counts), strict=True):
        next_.logits_V = logits_KV[0] if len(logits_KV) == 1 else average(logits_KV)


def _choose_thoughts(thoughts: list[Thought], logits_MV: Tensor) -> list[int]:
    """Thought tokens by seeded noise, or greedily, as each thought's temperature says."""
    keys = [(t.seed, t.position, len(t.tokens) + 1) for t in thoughts]
    return sample_thoughts(logits_MV, keys, [t.temperature for t in thoughts])


def _stacked(rows: Sequence[Tensor | None], like_NH: Tensor) -> Tensor:
    held = [row for row in rows if row is not None]
    assert len(held) == len(rows)
    return torch.stack(held) if held else like_NH[:0]
