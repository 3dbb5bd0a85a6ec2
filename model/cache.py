"""Static keys and values: slots, lasting base columns, scratch columns for thoughts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .backbone import Backbone, causal, tolerance
from .thoughts import Rows, visible

MAX_GAP = 2  # slots may stand this far apart in one group: one without rows costs less than a second product


@dataclass(frozen=True)
class Group:
    """Slots attended to together: their rows, padded to one width, against one contiguous view of the cache."""

    slots: slice
    columns: slice
    sees_SWC: Tensor  # bool; slots, rows a slot, columns
    rows_N: Tensor | None = None  # which rows of the forward; None: all of them
    places_N: Tensor | None = None  # where they stand in the padded [slots * width]; None: they fill it in order

    @cached_property
    def width(self) -> int:
        """Rows a slot."""
        return self.sees_SWC.shape[1]

    def mask(self, share: int, dtype: torch.dtype) -> Tensor:
        """What to add to the scores, for each of the query heads that share a key; made once, for all layers."""
        if (share, dtype) not in self._masks:
            slots, width, columns = self.sees_SWC.shape
            zeros = torch.zeros(slots, 1, share, width, columns, dtype=dtype, device=self.sees_SWC.device)
            mask = zeros.masked_fill_(~self.sees_SWC[:, None, None], float("-inf"))
            self._masks[share, dtype] = mask.view(slots, 1, share * width, columns)
        return self._masks[share, dtype]

    @cached_property
    def _masks(self) -> dict[tuple[int, torch.dtype], Tensor]:
        return {}


class Cache:
    """Keys and values of every slot, `[slots, columns, kv_heads, head_dim]` a layer.

    A slot's scratch columns stand before its base columns, so that what a forward needs is one view. Columns are numbered
    from the first base column: base columns 0, 1, ..., scratch columns -1, -2, ... A lane is the strip of scratch columns of
    one thought; a slot has more of them where thoughts are shallow. Inference only: rows are written in place.

    Args:
        backbone: whose keys and values.
        slots: texts held at a time.
        max_len: base columns of a slot.
        max_depth: tokens of the deepest thought.
        lanes: thoughts of that depth that a slot has room for at once; None: a full pipeline, one more than its tokens.
    """

    def __init__(self, backbone: Backbone, slots: int, max_len: int, max_depth: int, lanes: int | None = None) -> None:
        lanes = max_depth + 1 if lanes is None else lanes
        self.sizes = slots, max_len, max_depth, lanes
        self.slots, self.max_len, self.max_depth = slots, max_len, max_depth
        scratch = lanes * _strip(max_depth)
        self.scratch = -(-scratch // 8) * 8  # GPUs want masks whose rows begin at multiples of eight
        self.spare = max_len  # a column that no row may see
        shape = (slots, self.scratch + max_len + 1)
        self._leader = backbone.leader  # of processes that have other heads: they are to do the same
        new = {"dtype": backbone.dtype, "device": backbone.device}
        self.keys = [torch.zeros(*shape, *kv, **new) for kv in backbone.kv_shapes]
        self.values = [torch.zeros(*shape, *kv, **new) for kv in backbone.kv_shapes]

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def num_lanes(self, depth: int) -> int:
        """How many thoughts of this depth a slot has room for at once."""
        return self.scratch // _strip(depth)

    def lane(self, number: int, depth: int) -> int:
        """The first column of a lane for a thought of this depth."""
        assert 0 <= number < self.num_lanes(depth)
        return -(number + 1) * _strip(depth)

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a slot the first base columns of another."""
        if self._leader:
            self._leader.copy(self, source, target, length)
        columns = slice(self.scratch, self.scratch + length)
        for tensor in (*self.keys, *self.values):
            tensor[target, columns] = tensor[source, columns]

    def clear(self, slot: int) -> None:
        """Forget a slot's values. Wanted only after a failed forward: a NaN shines through even a masked column."""
        if self._leader:
            self._leader.clear(self, slot)
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()

    def attend(self, rows: Rows) -> "CachedAttention":
        """The attention of one forward over `rows`: masks and places are worked out here, once for all layers."""
        device = self.keys[0].device
        slots_N = np.array(rows.slots)
        columns_N = np.array(rows.columns) + self.scratch
        counts_S = np.bincount(slots_N)
        ranks_N = ranks(slots_N, counts_S)
        sees_3N = np.array([rows.base, rows.own_from, rows.own])
        runs = _runs(counts_S)
        groups = [self._group(slots, counts_S, slots_N, ranks_N, sees_3N, len(runs) == 1) for slots in runs]
        at_N = torch.from_numpy(slots_N).to(device), torch.from_numpy(columns_N).to(device)
        return CachedAttention(self, *at_N, groups, rows)

    def _group(
        self,
        slots: np.ndarray,
        counts_S: np.ndarray,
        slots_N: np.ndarray,
        ranks_N: np.ndarray,
        sees_3N: np.ndarray,
        alone: bool,
    ) -> Group:
        device = self.keys[0].device
        rows_N = np.flatnonzero((slots_N >= slots[0]) & (slots_N <= slots[-1]) & np.isin(slots_N, slots))
        first, last, width = int(slots[0]), int(slots[-1]), int(counts_S[slots].max())
        places_N = (slots_N[rows_N] - first) * width + ranks_N[rows_N]
        padded = np.zeros((3, (last - first + 1) * width), dtype=np.int64)
        padded[:, places_N] = sees_3N[:, rows_N]
        low, high = min(0, int(sees_3N[1, rows_N].min())), max(1, int(sees_3N[0, rows_N].max()))
        base, own_from, own = torch.from_numpy(padded).to(device).view(3, -1, width, 1)
        filled = np.array_equal(places_N, np.arange(padded.shape[1]))
        return Group(
            slots=slice(first, last + 1),
            columns=slice(self.scratch + low, self.scratch + high),
            sees_SWC=visible(torch.arange(low, high, device=device), base, own_from, own),
            rows_N=None if alone else torch.from_numpy(rows_N).to(device),
            places_N=None if filled else torch.from_numpy(places_N).to(device),
        )


def _strip(depth: int) -> int:
    """Columns of a thought: START, its tokens, END."""
    return depth + 2


class CachedAttention:
    """Writes a forward's keys and values to the cache and lets each row see what its group's mask says.

    Args:
        cache: where to.
        slots_N: each row's slot.
        columns_N: its column, counted from the slot's first scratch column.
        groups: every row is in one of them.
        rows: what all that was made from, if it was.
    """

    def __init__(
        self, cache: Cache, slots_N: Tensor, columns_N: Tensor, groups: Sequence[Group], rows: Rows | None = None
    ) -> None:
        self.cache, self.rows = cache, rows
        self._at_N, self._groups = (slots_N, columns_N), groups

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Queries [1, heads, N, D] to [1, heads, N, D]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        # Under autocast what arrives is of several precisions.
        keys[self._at_N] = key[0].transpose(0, 1).to(keys.dtype)
        values[self._at_N] = value[0].transpose(0, 1).to(values.dtype)
        query_NhD = query[0].transpose(0, 1)
        if len(self._groups) == 1:
            out_NhD = _attend(self._groups[0], query_NhD, keys, values, scale)
        else:
            out_NhD = torch.empty_like(query_NhD)
            for group in self._groups:
                out_NhD[group.rows_N] = _attend(group, query_NhD[group.rows_N], keys, values, scale).to(out_NhD.dtype)
        return out_NhD.transpose(0, 1)[None]


def ranks(slots_N: np.ndarray, counts_S: np.ndarray) -> np.ndarray:
    """Each row's number among the rows of its slot."""
    order = np.argsort(slots_N, kind="stable")
    ranks_N = np.empty_like(order)
    ranks_N[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)
    return ranks_N


def _runs(counts_S: np.ndarray) -> list[np.ndarray]:
    """Slots attended to together: neighbours, with as many rows to a power of two.

    A prefill would otherwise pad its neighbours to its length, and slots without rows would be attended to for nothing.
    """
    slots = np.flatnonzero(counts_S)
    powers = np.maximum(np.ceil(np.log2(counts_S[slots])), 3)
    runs = []
    for power in np.unique(powers):
        alike = slots[powers == power]
        runs += np.split(alike, np.flatnonzero(np.diff(alike) > MAX_GAP) + 1)
    return runs


def _attend(group: Group, query_NhD: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention of one group's rows; the query heads that share a key are folded into its query rows."""
    slots, width = group.slots.stop - group.slots.start, group.width
    num_heads, size = query_NhD.shape[1:]
    kv_heads, share = keys.shape[2], num_heads // keys.shape[2]
    padded = query_NhD
    if group.places_N is not None:
        padded = query_NhD.new_zeros(slots * width, num_heads, size)
        padded[group.places_N] = query_NhD
    folded = padded.reshape(slots, width, kv_heads, share, size).permute(0, 2, 3, 1, 4)
    out = scaled_dot_product_attention(
        folded.reshape(slots, kv_heads, share * width, size),
        keys[group.slots, group.columns].transpose(1, 2),
        values[group.slots, group.columns].transpose(1, 2),
        attn_mask=group.mask(share, query_NhD.dtype),
        scale=scale,
    )
    out = out.view(slots, kv_heads, share, width, size).permute(0, 3, 1, 2, 4).reshape(-1, num_heads, size)
    return out if group.places_N is None else out[group.places_N]


@torch.no_grad()
def check_cached(backbone: Backbone) -> None:
    """Read eight tokens at once and through a cache, in pieces; raise ValueError where the two differ.

    They do for a model that keeps more of the past than keys and values (a recurrent state, a convolution), and for one
    that counts positions by itself.
    """
    ids = torch.arange(8, device=backbone.device).remainder(backbone.vocab_size)
    plain = backbone(backbone.embed(ids)[None], torch.arange(8, device=backbone.device)[None], causal)[0]
    cache, pieces = Cache(backbone, slots=2, max_len=8, max_depth=0), []
    for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
        rows = Rows()
        rows.add_base(1, ids[begin:end].tolist(), begin)
        positions = torch.arange(begin, end, device=backbone.device)
        pieces.append(backbone(backbone.embed(ids[begin:end])[None], positions[None], cache.attend(rows))[0])
    error = (torch.cat(pieces) - plain).abs().max() / plain.abs().max().clamp(min=1e-3)
    if not error < tolerance(backbone.dtype):
        raise ValueError(f"its hidden states through a cache of keys and values differ by {error:.2g} of their size")
