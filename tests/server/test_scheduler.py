"""The queue and the slots: bounded, fair, and balanced whatever happens in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.config import SamplingParams
from quietserve.server.scheduler import Attempt, QueueFullError, Scheduler, Ticket


def tickets(count: int) -> list[Ticket]:
    return [Ticket(Attempt((5,), SamplingParams())) for _ in range(count)]


def admit(scheduler: Scheduler) -> list[Ticket]:
    admitted = []
    while ticket := scheduler.admit(lambda _, free: min(free)):
        admitted.append(ticket)
    return admitted


def test_first_come_first_served_in_the_slot_that_suits() -> None:
    scheduler = Scheduler(num_slots=2, max_waiting=4)
    first, second, third = tickets(3)
    scheduler.add([first, second, third])
    assert admit(scheduler) == [first, second]
    scheduler.remove(first)
    assert admit(scheduler) == [third]
    assert (second.slot, third.slot) == (1, 0)


def test_a_request_that_does_not_fit_is_refused_whole() -> None:
    scheduler = Scheduler(num_slots=1, max_waiting=2)
    with pytest.raises(QueueFullError, match="the queue holds 2"):
        scheduler.add(tickets(4))
    assert scheduler.idle
    scheduler.add(tickets(3))
    assert len(admit(scheduler)) == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "admit", "remove"]), st.integers(0, 6))))
def test_books_balance_under_any_traffic(traffic: list[tuple[str, int]]) -> None:
    scheduler, inside = Scheduler(num_slots=3, max_waiting=4), []
    for deed, number in traffic:
        if deed == "admit":
            admit(scheduler)
        elif deed == "remove" and inside:
            scheduler.remove(inside.pop(number % len(inside)))
        elif deed == "add":
            new = tickets(number)
            try:
                scheduler.add(new)
                inside += new
            except QueueFullError:
                pass
        scheduler.check()
        assert len(scheduler.running) + len(scheduler.waiting) == len(inside)
