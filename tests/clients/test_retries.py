from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.clients.errors import ApiError, parse_retry_after, read_error
from quietserve.clients.retries import FIRST_WAIT_S, Attempts, RetryPolicy

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
SECONDS = st.floats(0, 1000)


def busy(retry_after_s: float | None = None) -> ApiError:
    return ApiError(503, "queue_full", None, "full", retry_after_s=retry_after_s)


class Clock:
    """Stands still until it is told to go on."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# --- Retry-After -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_seconds(seconds):
    assert parse_retry_after(str(seconds)) == seconds


@given(st.integers(-(10**8), 10**8))
def test_a_date_counts_from_the_replys_own(seconds):
    until = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(until, format_datetime(NOW, usegmt=True)) == max(0, seconds)


@pytest.mark.parametrize(
    "value",
    ["Sat, 21 Nov 2026 12:00:09 GMT", "Saturday, 21-Nov-26 12:00:09 GMT", "Sat Nov 21 12:00:09 2026"],
)
def test_all_three_forms_of_a_date(value):
    assert parse_retry_after(value, "Sat, 21 Nov 2026 12:00:00 GMT") == 9


def test_without_a_date_of_the_reply_ours_must_do():
    past, future = (format_datetime(datetime(year, 1, 1, tzinfo=UTC), usegmt=True) for year in (2000, 9000))
    assert parse_retry_after(past) == 0
    assert (parse_retry_after(future) or 0) > 10**9


@given(st.text() | st.none(), st.text() | st.none())
def test_anything_else_is_no_advice(value, date):
    wait_s = parse_retry_after(value, date)
    assert wait_s is None or wait_s >= 0


@pytest.mark.parametrize("value", ["", "-1", "1.5", "soon", "²", "nan", "Sat, 99 Nov 2026 12:00:00 GMT"])
def test_nonsense_is_no_advice(value):
    assert parse_retry_after(value) is None


def test_endless_is_endless():
    assert parse_retry_after("9" * 5000) == float("inf")
    assert Attempts(RetryPolicy()).wait_after(busy(float("inf"))) is None


def test_an_error_reply_has_the_advice():
    headers = {"retry-after": "Sat, 21 Nov 2026 12:00:07 GMT", "date": "Sat, 21 Nov 2026 12:00:00 GMT"}
    assert read_error(httpx.Response(503, headers=headers)).retry_after_s == 7


# --- how long to wait ------------------------------------------------------------------------------------------------


@given(
    advice=st.lists(SECONDS | st.none(), max_size=12),
    max_retries=st.integers(0, 8),
    max_wait_s=SECONDS,
    budget_s=SECONDS | st.none(),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_call_keeps_its_promises(advice, max_retries, max_wait_s, budget_s, draw):
    clock = Clock()
    attempts = Attempts(RetryPolicy(max_retries, max_wait_s, budget_s), clock, lambda: draw)
    waits = []
    for asked_s in advice:
        wait_s = attempts.wait_after(busy(asked_s))
        if wait_s is None:
            break
        assert wait_s <= max_wait_s
        assert asked_s is None or wait_s >= asked_s
        waits.append(wait_s)
        clock.now_s += wait_s
    assert len(waits) <= max_retries
    assert budget_s is None or clock.now_s <= budget_s


def test_waits_double_up_to_the_longest():
    attempts = Attempts(RetryPolicy(max_retries=9, max_wait_s=10), draw=lambda: 1.0)
    waits = [attempts.wait_after(busy()) for _ in range(7)]
    assert waits == [FIRST_WAIT_S, 1, 2, 4, 8, 10, 10]


@given(st.floats(0, 1), st.sampled_from([None, 4.0]))
def test_chance_spreads_the_waits(draw, asked_s):
    wait_s = Attempts(RetryPolicy(), draw=lambda: draw).wait_after(busy(asked_s))
    least = FIRST_WAIT_S / 2 if asked_s is None else asked_s
    assert wait_s == pytest.approx(least + draw * (FIRST_WAIT_S - (least if asked_s is None else 0)))


def test_thousands_of_retries():
    attempts = Attempts(RetryPolicy(max_retries=5000, max_wait_s=0))
    assert all(attempts.wait_after(busy()) == 0 for _ in range(5000))
    assert attempts.wait_after(busy()) is None


def test_attempts_that_take_long_use_up_the_budget():
    clock = Clock()
    attempts = Attempts(RetryPolicy(max_retries=9, budget_s=10), clock)
    assert attempts.time_left_s == 10
    clock.now_s = 9.9
    assert attempts.wait_after(busy()) is None
    clock.now_s = 11
    assert attempts.time_left_s == 0
