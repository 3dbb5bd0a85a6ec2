"""Forwards of fixed shapes, each recorded once as a CUDA graph: a small forward on a GPU costs what launching it costs.

A shape is (slots, rows a slot, base columns): the first slots of the cache, each with as many rows. Rows that a forward does
not need read any token and write to a column that nothing sees. What differs from forward to forward is seven integers a row,
copied to the device at once; nothing in between waits for it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import Cache, CachedAttention, Group, ranks
from .quiet_model import QuietModel
from .thoughts import Rows, visible

logger = logging.getLogger("quietserve")

MAX_WIDTH = 40  # rows a slot: more is a prefill, whose products are long enough to hide their launches
_WIDTHS = (1, 2, 4, 8, 12, 16, 20, 24, 32, MAX_WIDTH)
_FIELDS = ("tokens", "positions", "slots", "columns", "base", "own_from", "own")


@dataclass(frozen=True)
class _Shape:
    slots: int
    width: int
    columns: int  # base columns, from the first


class StaticForwards:
    """`QuietModel.run` by recorded forwards; where a shape cannot be recorded, or is a prefill's, by the model itself.

    Args:
        model: the model.
        cache: its keys and values; all forwards read and write them in place.
        record: False: fixed shapes without a recording, which any device can run.
    """

    def __init__(self, model: QuietModel, cache: Cache, record: bool = True) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._forwards: dict[_Shape, Callable[[Tensor], Tensor] | None] = {}
        self._pool: Any = None  # of memory, that all recordings share: no two run at once

    def run(self, rows: Rows) -> Tensor:
        """Hidden states [N, H] of the rows."""
        counts_S = np.bincount(np.array(rows.slots, dtype=np.int64))
        if not len(rows) or counts_S.max() > MAX_WIDTH:
            return self._model.run(rows, self._cache)
        shape = self._shape(rows, counts_S)
        if shape not in self._forwards:
            self._forwards[shape] = self._prepare(shape)
        forward = self._forwards[shape]
        if forward is None:
            return self._model.run(rows, self._cache)
        places_N, padded = self._pad(rows, counts_S, shape)
        device = self._model.backbone.device
        return forward(padded)[torch.from_numpy(places_N).to(device, non_blocking=True)]

    def _shape(self, rows: Rows, counts_S: np.ndarray) -> _Shape:
        """The smallest that holds these rows: a few widths, powers of two of all else."""
        return _Shape(
            slots=min(_power(len(counts_S), 1), self._cache.slots),
            width=next(width for width in _WIDTHS if width >= counts_S.max()),
            columns=min(_power(max(rows.base), 128), self._cache.max_len),
        )

    def _pad(self, rows: Rows, counts_S: np.ndarray, shape: _Shape) -> tuple[np.ndarray, Tensor]:
        """Where the rows stand among those of the shape, and the seven integers of each of these."""
        slots_N = np.array(rows.slots)
        places_N = slots_N * shape.width + ranks(slots_N, counts_S)
        padded = np.zeros((len(_FIELDS), shape.slots * shape.width), dtype=np.int64)
        padded[_FIELDS.index("slots")] = np.repeat(np.arange(shape.slots), shape.width)
        padded[_FIELDS.index("columns")] = self._cache.spare
        padded[_FIELDS.index("base")] = 1  # a row that saw nothing would be no number
        padded[:, places_N] = [getattr(rows, field) for field in _FIELDS]
        held = torch.from_numpy(padded)
        return places_N, held.pin_memory() if self._model.backbone.device.type == "cuda" else held

    def _prepare(self, shape: _Shape) -> Callable[[Tensor], Tensor] | None:
        inputs = torch.zeros(len(_FIELDS), shape.slots * shape.width, dtype=torch.long)
        inputs[_FIELDS.index("columns")] = self._cache.spare
        inputs[_FIELDS.index("base")] = 1
        inputs = inputs.to(self._model.backbone.device)

        def compute() -> Tensor:
            return self._compute(inputs, shape)

        replay = compute
        if self._record:
            try:
                replay = self._recorded(compute)
            except RuntimeError as error:
                logger.warning("a forward of %s cannot be recorded and runs unrecorded: %s", shape, error)
                return None

        def forward(padded: Tensor) -> Tensor:
            inputs.copy_(padded, non_blocking=True)
            return replay()

        return forward

    def _compute(self, inputs: Tensor, shape: _Shape) -> Tensor:
        """One forward, of tensors alone."""
        tokens, positions, slots, columns, base, own_from, own = inputs
        scratch = self._cache.scratch
        numbers_C = torch.arange(-scratch, shape.columns, device=inputs.device)
        sees = (x.view(shape.slots, shape.width, 1) for x in (base, own_from, own))
        group = Group(
            slots=slice(0, shape.slots),
            columns=slice(0, scratch + shape.columns),
            sees_SWC=visible(numbers_C, *sees),
        )
        attention = CachedAttention(self._cache, slots, columns + scratch, [group])
        return self._model(tokens[None], positions[None], attention)[0]

    def _recorded(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Run a few times beside the main stream, as recording asks for, then record."""
        with torch.cuda.device(self._model.backbone.device):
            main, side = torch.cuda.current_stream(), torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(3):
                    compute()
            main.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    out = compute()
            finally:
                torch.cuda.set_stream(main)  # a recording that fails would leave its own behind

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def _power(count: int, least: int) -> int:
    """The smallest power of two times `least` that is no less than `count`."""
    while least < count:
        least *= 2
    return least
