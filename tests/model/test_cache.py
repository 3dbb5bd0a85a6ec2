"""The cache's books: lanes that do not overlap, memory that is what it is said to be, groups that leave nobody out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import MAX_GAP, Cache, _runs
from quietserve.model.thoughts import Rows

BACKBONE = tiny.quiet_model().backbone


@pytest.mark.parametrize("max_depth", [0, 1, 4])
def test_memory_is_what_the_shape_says(max_depth: int) -> None:
    """Per slot: max_len columns, (t + 1)(t + 2) scratch columns for a full pipeline, to a multiple of 8; one to spare."""
    cache = Cache(BACKBONE, slots=3, max_len=20, max_depth=max_depth)
    columns = 20 + -(-(max_depth + 1) * (max_depth + 2) // 8) * 8 + 1
    assert cache.num_bytes == 3 * columns * sum(2 * heads * size * 4 for heads, size in BACKBONE.kv_shapes)


@given(st.integers(1, 16), st.integers(1, 9), st.integers(0, 16))
def test_lanes_do_not_overlap_and_stay_in_the_scratch(max_depth: int, lanes: int, depth: int) -> None:
    cache = Cache(BACKBONE, slots=1, max_len=2, max_depth=max_depth, lanes=lanes)
    depth = min(depth, max_depth)
    starts = [cache.lane(number, depth) for number in range(cache.num_lanes(depth))]
    columns = [column for start in starts for column in range(start, start + depth + 2)]
    assert len(starts) >= lanes
    assert len(set(columns)) == len(columns)
    assert -cache.scratch <= min(columns)
    assert max(columns) < 0


@given(st.lists(st.integers(0, 70), min_size=1, max_size=24).filter(any))
def test_groups_hold_every_slot_with_rows_once(counts: list[int]) -> None:
    runs = _runs(np.array(counts))
    assert sorted(np.concatenate(runs)) == [slot for slot, count in enumerate(counts) if count]
    for run in runs:
        assert all(np.diff(run) <= MAX_GAP)
        assert max(counts[s] for s in run) <= max(8, 2 * min(counts[s] for s in run))


def test_a_copied_prefix_is_as_good_as_the_one_read() -> None:
    cache, model = Cache(BACKBONE, slots=3, max_len=12, max_depth=2), tiny.quiet_model()
    rows = Rows()
    rows.add_base(0, [5, 6, 7, 8], 0)
    rows.add_base(2, [9, 9, 9, 9, 9, 9], 0)
    with torch.no_grad():
        read = model.run(rows, cache)[3]
        cache.copy(0, 2, 3)
        last = Rows()
        last.add_base(2, [8], 3)
        torch.testing.assert_close(model.run(last, cache)[0], read, atol=1e-5, rtol=1e-5)
