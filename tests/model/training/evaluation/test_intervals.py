"""Intervals against textbooks, and what must hold of any bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietserve.model.training.evaluation.intervals import bootstrap, bootstrap_columns, bootstrap_gap, wilson


def test_a_share_has_wilsons_interval() -> None:
    assert wilson(50, 100) == (0.4038, 0.5962)  # the textbook's example
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_shares_interval_holds_it_and_stays_in_range(counted: tuple[int, int]) -> None:
    right, n = counted
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-4
    assert right / n - 1e-4 <= high <= 1


def test_a_mean_has_the_interval_of_the_normal_curve() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap(values.tolist())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(0, 5))
@settings(max_examples=15)
def test_it_stays_among_the_values_and_repeats(values: list[float], seed: int) -> None:
    low, high = bootstrap(values, seed=seed)
    assert min(values) - 1e-5 <= low <= high <= max(values) + 1e-5
    assert bootstrap(values, seed=seed) == (low, high)


def test_units_keep_their_tokens_together() -> None:
    """Two documents of one loss each are two observations, however long they are."""
    assert bootstrap([0.0, 1000.0], [1000, 1000]) == (0.0, 1.0)
    low, high = bootstrap([0.0, 1.0] * 1000)
    assert high - low < 0.05


def test_columns_are_drawn_together() -> None:
    sums_ND = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    first, second = bootstrap_columns(sums_ND, np.ones_like(sums_ND), seed=4)
    assert second == pytest.approx((2 * first[0], 2 * first[1]), abs=1e-5)


def test_what_is_measured_on_the_same_units_is_told_apart_by_them() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 300)  # units differ far more than the two do
    sums = np.stack([hard + 1.0 + rng.normal(0, 0.1, 300), hard], axis=1)
    low, high = bootstrap_gap(sums, np.ones_like(sums))
    assert 0.98 < low < 1.0 < high < 1.02
    assert high - low < 0.1 * (np.subtract(*bootstrap(hard.tolist())[::-1]))
