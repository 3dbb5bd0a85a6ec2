"""A run that breaks what it trains is ended, one that merely wavers is not."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training.loop import DivergedError
from quietserve.model.training.watch import SHARE, SLACK, UPDATES, Watch


def told(loss: float) -> dict[str, float]:
    return {"base_nll": loss, "reward": 1.0}


@given(st.floats(0, 10), st.lists(st.floats(0, 1), max_size=100))
def test_it_is_the_rise_over_the_lowest_that_counts(lowest: float, rises: list[float]) -> None:
    """Falling, staying, and rising by less than the slack end nothing, whatever single batches do."""
    watch = Watch("base_nll")
    for number in range(50):
        watch.see(told(lowest + 5 - number / 10))
    for _ in range(UPDATES):
        watch.see(told(lowest))
    for rise in rises:
        watch.see(told(lowest + rise * SLACK * 0.99))


def test_a_rise_that_stays_is_named() -> None:
    """One run of three went from .23 nats to 1.3 in thirty of its updates, and on for 140 more: nothing said so."""
    watch = Watch("base_nll")
    losses = [0.23] * 100 + [5.0] + [0.23 + number / 60 for number in range(60)]  # the one batch is hard, and no more
    with pytest.raises(DivergedError, match=r"base_nll was 0\.23 and is 0\.3\d* in the last 20 updates.*a lower --lr"):
        deque(map(watch.see, map(told, losses)), maxlen=0)


def test_a_high_loss_may_rise_by_more() -> None:
    watch = Watch("base_nll")
    for loss in [3.0] * UPDATES + [3.0 * SHARE] * UPDATES:
        watch.see(told(loss))


def test_what_it_remembers_outlives_it() -> None:
    """A stopped run that was resumed took the level that had stopped it for the lowest, and went on to its end."""
    before = Watch("base_nll")
    for loss in [0.23] * UPDATES + [0.5] * (UPDATES // 2 - 1):
        before.see(told(loss))
    after = Watch("base_nll")
    after.load(before.state())
    for watch in (before, after):
        with pytest.raises(DivergedError, match=r"was 0\.23"):
            deque(map(watch.see, [told(0.5)] * 3), maxlen=0)
