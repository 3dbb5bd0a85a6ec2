import pytest

from quietserve.model.bench.timings import Arrival, Stopwatch, Timings, figures


def arrivals(*times: float) -> list[Arrival]:
    """One forward a second, and half the CPU."""
    return [Arrival(time, time / 2, int(time)) for time in times]


def timings(*requests: list[Arrival], num_tokens: int = 4, **more) -> Timings:
    return Timings([[0] * len(each) for each in requests], list(requests), num_tokens, **more)


def test_requests_in_step():
    result = figures(timings(arrivals(3, 4, 5, 6, 7), arrivals(3, 4, 5, 6, 7)))
    assert result.tokens_per_s == pytest.approx(2)
    assert result.tokens_per_cpu_s == pytest.approx(4)
    assert result.forwards_per_token == pytest.approx(1)
    assert (result.ttft_s, result.inter_token_s, result.tokens) == (3, 1, pytest.approx(4))
    assert result.acceptance is None
    assert not result.extrapolated


def test_what_is_decoded_while_others_read_their_prompt_does_not_count():
    early, late = arrivals(1, 2, 3, 4, 5, 6, 7, 8), arrivals(4, 5, 6, 7, 8)
    result = figures(timings(early, late))
    assert result.tokens_per_s == pytest.approx(2)
    assert result.ttft_s == 2.5


def test_bursts_average_out():
    """A pipeline gives several tokens in a row and then none for a while; the run ends amid one request's burst."""
    result = figures(timings(arrivals(1, 2, 3, 10, 11), arrivals(1, 8, 9, 10, 17)))
    assert result.tokens_per_s == pytest.approx((4 + 3 + 1 / 7) / 10)


def test_a_straggler_is_cut_where_the_first_request_is_done():
    result = figures(timings(arrivals(1, 2, 3, 4, 5), arrivals(1, 5, 9, 13, 17)))
    assert result.tokens_per_s == pytest.approx((4 + 1) / 4)


def test_drafts():
    result = figures(timings(arrivals(1, 2), num_tokens=1, accepted=9, rejected=1))
    assert result.acceptance == 0.9


def test_a_run_that_was_cut_is_extrapolated_and_says_so():
    cut = Arrival(50.0, 25.0, 5)
    result = figures(timings([], [], cut=cut, forwards_per_token=10))
    assert result.extrapolated
    assert result.tokens_per_s == pytest.approx(2 * 0.5 / 50)
    assert result.forwards_per_token == pytest.approx(10)
    assert result.ttft_s is None


def test_a_run_without_a_second_token_says_nothing():
    with pytest.raises(ValueError, match="less than two tokens"):
        figures(timings(arrivals(1), arrivals(1)))


def test_stopwatch_counts_from_the_last_first_token():
    watch = Stopwatch(2, num_tokens=2, max_s=60)
    for request in (0, 0, 0, 0, 1, 1, 0):
        watch.tick(request, 7)
        assert not watch.over
    watch.tick(1, 7)
    assert watch.over


def test_stopwatch_cuts_neither_a_prefill_nor_the_first_token_behind_it():
    watch = Stopwatch(2, num_tokens=9, max_s=0)
    for request in (0, 0, 1):
        watch.tick(request, 7)
        assert not watch.over
    watch.tick(0, 7)
    assert watch.over
