"""Two models on the same items, against counting."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training.evaluation.pairs import ahead, mcnemar, overlap, relative

both = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9)


@given(both)
def test_mcnemar_is_the_share_of_coin_tosses_that_are_as_uneven(pairs: list[tuple[bool, bool]]) -> None:
    first, second = zip(*pairs, strict=True)
    leads = [a - b for a, b in pairs if a != b]
    tosses = list(product((-1, 1), repeat=len(leads)))
    wanted = sum(abs(sum(toss)) >= abs(sum(leads)) for toss in tosses) / len(tosses)
    assert mcnemar(first, second) == pytest.approx(wanted)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_of_known_counts() -> None:
    assert mcnemar([True] * 10, [False] * 10) == pytest.approx(2 / 2**10)
    assert mcnemar([True, False], [True, False]) == 1
    assert mcnemar([True] * 5000, [False] * 5000) == 0, "less than any number"
    assert mcnemar([True] * 3000 + [False] * 3000, [False] * 3000 + [True] * 3000) == 1


@given(both)
def test_overlap_is_that_of_sets(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ({n for n, pair in enumerate(pairs) if pair[side]} for side in (0, 1))
    found = overlap(*zip(*pairs, strict=True))
    assert (found["both"], found["first"], found["second"]) == (len(first & second), len(first), len(second))
    if first | second:
        assert found["iou"] == len(first & second) / len(first | second)
    else:
        assert found["iou"] is None


def test_ahead_is_the_mean_over_seeds_and_items() -> None:
    first, second = [[True, True, False, True], [True, False, False, True]], [[True, False, False, False]]
    value, (low, high) = ahead(first, second)
    assert value == pytest.approx((3 + 2) / 8 - 1 / 4)
    assert low <= value <= high
    share, ends = relative(first, second) or (0.0, (0.0, 0.0))
    assert share == pytest.approx(value * len(second[0]) / (sum(map(sum, second)) / len(second)))
    assert ends[0] < share < ends[1]
    assert relative(first, [[False] * len(second[0])]) is None, "of nothing there is no share"
    same, interval = ahead(second, second)
    assert (same, interval) == (0, (0, 0))
