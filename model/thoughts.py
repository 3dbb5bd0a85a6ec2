"""The one thought kernel: what a thought reads, what it may see, and how it is carried on.

After token x_i a thought reads START, y_1, ..., y_t, END at position ids i+1, i+2, ... Each of its rows sees the base tokens
0..i and the earlier rows of its own thought, nothing else; no later token ever sees a thought. Quiet-STaR (arXiv 2403.09629),
"Parallel Generation". START shares a forward with x_i, and END with y_t: t + 1 forwards a thought.

Training, serving and scoring all think through `Thought.enter` and `advance`; `think` runs them to the end. `replay` computes,
with gradients and in one forward, what thoughts whose tokens are known would have read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbone import causal

if TYPE_CHECKING:
    from .cache import Cache
    from .quiet_model import QuietModel

START, END = -1, -2  # row tokens outside every vocabulary: the learned markers


class Rows:
    """The rows of one forward, as columns of integers: nothing else decides where a row writes and what it sees."""

    def __init__(self) -> None:
        self.tokens: list[int] = []  # an id, or START or END
        self.positions: list[int] = []  # position ids
        self.slots: list[int] = []
        self.columns: list[int] = []  # where the row's key and value go: >= 0 a base column, < 0 a scratch column
        self.base: list[int] = []  # how many base columns it sees, from 0
        self.own: list[int] = []  # how many scratch columns it sees, from its thought's first one up to itself
        self.own_from: list[int] = []  # that first one

    def __len__(self) -> int:
        return len(self.tokens)

    def add_base(self, slot: int, tokens: Sequence[int], begin: int) -> range:
        """Lasting tokens at positions `begin`, `begin` + 1, ...; returns their row numbers."""
        first, count = len(self), len(tokens)
        span = range(begin, begin + count)
        self.tokens.extend(tokens)
        self.positions.extend(span)
        self.slots.extend([slot] * count)
        self.columns.extend(span)
        self.base.extend(range(begin + 1, begin + count + 1))
        self.own.extend([0] * count)
        self.own_from.extend([0] * count)
        return range(first, first + count)

    def add_own(self, slot: int, token: int, position: int, own_from: int, offset: int) -> int:
        """One row of the thought after `position`, `offset` rows after its START; returns its row number."""
        self.tokens.append(token)
        self.positions.append(position + 1 + offset)
        self.slots.append(slot)
        self.columns.append(own_from + offset)
        self.base.append(position + 1)
        self.own.append(offset + 1)
        self.own_from.append(own_from)
        return len(self) - 1


def visible(columns: Tensor, base: Tensor, own_from: Tensor, own: Tensor) -> Tensor:
    """Which columns a row sees. Columns [C] against rows [..., 1], numbered as in `Rows`; returns bool [..., C]."""
    is_base = (columns >= 0) & (columns < base)
    is_own = (columns >= own_from) & (columns < own_from + own)
    return is_base | is_own


@dataclass(slots=True, eq=False)
class Thought:
    """One thought in flight, or finished."""

    slot: int
    position: int  # of the token it thinks after
    own_from: int  # its first scratch column: START there, y_k at own_from + k
    depth: int  # most tokens between the markers
    stops: frozenset[int] = frozenset()  # tokens at which it ends itself; such a token is not part of it
    seed: int = 0
    temperature: float = 1.0
    wants_end: bool = True  # False where the tokens alone are wanted: END is never read
    tokens: list[int] = field(default_factory=list)
    hidden: Tensor | None = None  # after END, [H]
    ended: bool = False
    broken: bool = False  # a token of it was chosen by what is no number
    row: int = -1
    end_row: int = -1

    @property
    def full(self) -> bool:
        """No token may be added."""
        return len(self.tokens) == self.depth

    def enter(self, rows: Rows) -> None:
        """Add the rows it reads next.

        A thought that may end itself carries END in every forward: when it does end, the answer to END is already there.
        END's column is the one its next token will overwrite.
        """
        offset = len(self.tokens)
        token = self.tokens[-1] if self.tokens else START
        self.row = rows.add_own(self.slot, token, self.position, self.own_from, offset)
        if self.wants_end and (self.full or self.stops):
            self.end_row = rows.add_own(self.slot, END, self.position, self.own_from, offset + 1)

    def take(self, token: int, hidden_NH: Tensor) -> None:
        """Continue with `token`, or end if it is one of the stops: END, too, was read in this forward."""
        if token in self.stops:
            self.end(hidden_NH)
            return
        self.tokens.append(token)
        if self.full and not self.wants_end:
            self.end(hidden_NH)

    def end(self, hidden_NH: Tensor) -> None:
        """Think no more."""
        if self.wants_end:
            self.hidden = hidden_NH[self.end_row].clone()  # a view would keep all rows alive
        self.ended = True


# choose(thoughts, logits): the next token of each thought, from logits [len(thoughts), V].
Choose = Callable[[list[Thought], Tensor], list[int]]


def advance(model: "QuietModel", thoughts: Sequence[Thought], hidden_NH: Tensor, choose: Choose) -> None:
    """Carry each thought on by the forward whose rows it entered."""
    settle(thoughts, hidden_NH)
    growing = [thought for thought in thoughts if not thought.ended]
    grow(growing, model.logits(hidden_NH[[thought.row for thought in growing]]), choose, hidden_NH)


def settle(thoughts: Iterable[Thought], hidden_NH: Tensor) -> None:
    """End the thoughts that are full: this forward has read their END."""
    for thought in thoughts:
        if thought.full:
            thought.end(hidden_NH)


def grow(thoughts: Sequence[Thought], logits_MV: Tensor, choose: Choose, hidden_NH: Tensor) -> None:
    """Choose the next token of each thought, by logits behind its newest row; those that have ended stay as they are."""
    alive = [i for i, thought in enumerate(thoughts) if not thought.ended]
    if not alive:
        return
    growing = [thoughts[i] for i in alive]
    tokens = choose(growing, logits_MV if len(alive) == len(thoughts) else logits_MV[alive])
    for thought, token in zip(growing, tokens, strict=True):
        thought.take(token, hidden_NH)


@torch.no_grad()
def think(model: "QuietModel", cache: "Cache", thoughts: Iterable[Thought], choose: Choose) -> None:
    """Carry thoughts to their ends, all of them in every forward; the cache holds the base tokens they think after.

    Thoughts of one slot need scratch columns that do not overlap.
    """
    pending = list(thoughts)
    while pending := [t for t in pending if not t.ended]:
        rows = Rows()
        for thought in pending:
            thought.enter(rows)
        advance(model, pending, model.run(rows, cache), choose)


def whole_rows(tokens: Sequence[int], after: Sequence[int] = ()) -> list[int]:
    """All row tokens of a finished thought, and of the text read after it."""
    return [START, *tokens, END, *after]


def replay(model: "QuietModel", tokens_BT: Tensor, positions_BR: Tensor, own_BRG: Tensor) -> tuple[Tensor, Tensor]:
    """Read texts and whole thoughts in one forward, with gradients.

    Args:
        model: the model.
        tokens_BT: the texts, padded on the right.
        positions_BR: after which token each thought stands.
        own_BRG: each thought's `whole_rows`, padded on the right with any id.

    Returns:
        Hidden states of the texts [B, T, H] and of the thoughts' rows [B, R, G, H].
    """
    num_texts, length = tokens_BT.shape
    offsets_G = torch.arange(own_BRG.shape[-1], device=tokens_BT.device)
    own_positions = (positions_BR[..., None] + 1 + offsets_G).flatten(1)
    base_positions = torch.arange(length, device=tokens_BT.device).expand(num_texts, length)
    hidden = model(
        torch.cat([tokens_BT, own_BRG.flatten(1)], dim=1),
        torch.cat([base_positions, own_positions], dim=1),
        _ReplayAttention(length, positions_BR, own_BRG.shape[-1]),
    )
    return hidden[:, :length], hidden[:, length:].unflatten(1, own_BRG.shape[1:])


class _ReplayAttention:
    """Causal among the text; a thought's row sees the text up to its position and its own thought up to itself.

    The same rule as `visible`, laid out so that no thought's scores against another's are ever computed.
    """

    def __init__(self, length: int, positions_BR: Tensor, group: int) -> None:
        self._length, self._group = length, group
        device = positions_BR.device
        columns_T = torch.arange(length, device=device)
        base_BRT = columns_T > positions_BR[..., None]
        self._hidden_base = base_BRT.repeat_interleave(group, dim=1)[:, None, None]  # [B, 1, 1, R*G, T]
        self._hidden_own = torch.ones(group, group, dtype=torch.bool, device=device).triu(1)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        base_query, base_key, base_value = (x[:, :, : self._length] for x in (query, key, value))
        out = causal(layer, base_query, base_key, base_value, scale)
        query, key, value = (x[:, :, self._length :] for x in (query, key, value))
        return torch.cat([out, self._own(query, key, value, base_key, base_value, scale)], dim=2)

    def _own(
        self, query: Tensor, key: Tensor, value: Tensor, base_key: Tensor, base_value: Tensor, scale: float
    ) -> Tensor:
        """Thought rows [B, heads, R*G, D] against the text's keys and their own thought's."""
        kv_heads = key.shape[1]
        query = query.unflatten(1, (kv_heads, -1)) * scale  # [B, kv, share, R*G, D]
        to_base = query @ base_key.unsqueeze(2).transpose(-1, -2)
        by_thought = query.unflatten(3, (-1, self._group))
        key, value = (x.unflatten(2, (-1, self._group)).unsqueeze(2) for x in (key, value))
        to_own = by_thought @ key.transpose(-1, -2)  # [B, kv, share, R, G, G]
        to_base = to_base.masked_fill(self._hidden_base, float("-inf"))
        to_own = to_own.masked_fill(self._hidden_own, float("-inf")).flatten(3, 4)
        weights = torch.cat([to_base, to_own], dim=-1).float().softmax(-1).to(query.dtype)
        on_base, on_own = weights.split([self._length, self._group], dim=-1)
        out = on_base @ base_value.unsqueeze(2)
        out = out + (on_own.unflatten(3, (-1, self._group)) @ value).flatten(3, 4)
        return out.flatten(1, 2)
