"""The device thread with a real tiny model: every ticket ends once, a leaver frees its slot, faults stay with their forward."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

import tiny
from quietserve.model.config import SamplingParams
from quietserve.model.decode import generate
from quietserve.model.progress import Generation
from quietserve.model.quiet_model import QuietModel
from quietserve.model.tokens import Tokens
from quietserve.model.voting import Verdict
from quietserve.server.engine import Engine
from quietserve.server.scheduler import Attempt, EngineClosedError, EngineError, QueueFullError, Ticket

MODEL = tiny.quiet_model(stops="aeiou")
TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
LONG = SamplingParams(max_tokens=300, thought_depth=4, ignore_eos=True)


class Books:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.ended: list[str | None] = []
        self.forwards = 0
        self.last_gauges = (0, 0, 0.0)
        self.judgements: list[tuple[bool | None, int]] = []
        self.num_out_of_memory = 0
        self.ranked_answers = 0
        self.readouts = Counter[str]()

    def admitted(self, ticket: Ticket) -> None: ...

    def decided(self, ticket: Ticket, num_visible: int, seconds_since_last: float | None) -> None: ...

    def forward(self, num_rows: int, seconds: float, in_flight: int) -> None:
        self.forwards += 1

    def finished(self, ticket: Ticket) -> None:
        self.ended.append(ticket.finish_reason)

    def judged(self, ticket: Ticket) -> None:
        self.judgements.append((ticket.kept, ticket.num_output_tokens))

    def ranked(self, ranker: str, num_answers: int, seconds: float) -> None:
        self.ranked_answers += num_answers

    def read(self, probe: str, num_tokens: int) -> None:
        self.readouts[probe] += num_tokens

    def voted(self, strategy: str, verdict: Verdict) -> None: ...

    def out_of_memory(self, times: int) -> None:
        self.num_out_of_memory += times

    def gauges(self, running: int, waiting: int, cache_usage: float) -> None:
        self.last_gauges = (running, waiting, cache_usage)


def run(work: Callable[[Engine, Books], Awaitable[Any]], model: QuietModel = MODEL, **settings: Any) -> Books:
    """Run `work` against a started engine, close it, and check that everything is back where it was."""
    books = Books()
    engine = Engine(
        model=model, tokens=TOKENS, observer=books, **({"max_num_seqs": 4, "max_model_len": 400} | settings)
    )
    engine.start()
    try:
        asyncio.run(work(engine, books))
    finally:
        engine.close(20.0)
    assert engine.num_running == engine.num_waiting == 0
    assert books.last_gauges == (0, 0, 0.0)
    return books


async def collect(engine: Engine, ticket: Ticket) -> Generation:
    result = Generation()
    async for news in engine.results(ticket):
        result.add(news)
    return result


def test_sixteen_at_once_get_what_each_gets_alone() -> None:
    attempts = [
        Attempt((9, 8, 7 + i), SamplingParams(max_tokens=3 + i % 5, thought_depth=i % 5, seed=i)) for i in range(16)
    ]

    async def work(engine: Engine, books: Books) -> None:
        together = await asyncio.gather(*(collect(engine, ticket) for ticket in engine.submit(attempts)))
        for attempt, result in zip(attempts, together, strict=True):
            alone = generate(engine._decoder, [attempt.prompt], attempt.params)[0]
            assert [t.id for t in result.tokens] == [t.id for t in alone.tokens]
            assert result.num_thought_tokens == alone.num_thought_tokens

    books = run(work, max_num_seqs=5)
    assert len(books.ended) == 16


def test_a_cancelled_ticket_ends_as_abort_and_frees_its_slot_within_one_forward() -> None:
    async def work(engine: Engine, books: Books) -> None:
        ticket = engine.submit([Attempt((5, 6), LONG)])[0]
        right, begun_in_vain = engine._decoder.step, []

        def step(decodings: Any) -> Any:
            begun_in_vain.append(ticket.cancelled is not None)
            return right(decodings)

        engine._decoder.step = step
        results = engine.results(ticket)
        await anext(results)
        engine.cancel(ticket)
        async for news in results:
            last = news
        assert last.finish_reason == "abort"
        assert sum(begun_in_vain) <= 1  # one that was about to begin
        engine.cancel(ticket)  # again: nothing happens

    assert run(work, max_num_seqs=1).ended == ["abort"]


def test_a_waiting_ticket_can_be_cancelled_and_the_queue_is_bounded() -> None:
    async def work(engine: Engine, books: Books) -> None:
        running, waiting = engine.submit([Attempt((5,), LONG), Attempt((5,), LONG)])
        with pytest.raises(QueueFullError):
            engine.submit([Attempt((5,), LONG)] * 2)
        engine.cancel(waiting)
        assert (await collect(engine, waiting)).finish_reason == "abort"
        engine.cancel(running)
        await collect(engine, running)

    assert run(work, max_num_seqs=1, max_num_queued_reqs=1).ended == ["abort", "abort"]


def test_a_reader_that_vanishes_keeps_nothing_alive() -> None:
    async def work(engine: Engine, books: Books) -> None:
        for ticket in engine.submit([Attempt((5,), LONG)] * 3):
            engine.cancel(ticket)  # and nobody ever reads its results

    assert run(work).ended == ["abort"] * 3


def test_a_failed_step_ends_its_tickets_and_the_engine_goes_on() -> None:
    async def work(engine: Engine, books: Books) -> None:
        right = engine._decoder.step

        def broken(decodings: Any) -> Any:
            engine._decoder.step = right
            for decoding in decodings:
                engine._decoder.cache.values[0][decoding.slot] = torch.nan
            raise RuntimeError("a bug of ours")

        engine._decoder.step = broken
        for ticket in engine.submit([Attempt((5,), LONG), Attempt((6,), LONG)]):
            with pytest.raises(EngineError, match="failed on this request"):
                await collect(engine, ticket)
        after = engine.submit([Attempt((5,), SamplingParams(max_tokens=4, thought_depth=2, ignore_eos=True))])[0]
        assert len((await collect(engine, after)).tokens) == 4
        assert engine.healthy

    assert run(work, max_num_seqs=2).ended == ["error", "error", "length"]


def test_who_makes_a_forward_fail_ends_alone() -> None:
    async def work(engine: Engine, books: Books) -> None:
        right = engine._decoder.model.run

        def run_rows(rows: Any, cache: Any) -> torch.Tensor:
            if 99 in [token for token, own in zip(rows.tokens, rows.own, strict=True) if not own]:
                raise torch.OutOfMemoryError("this one is too much")
            return right(rows, cache)

        engine._decoder.model.run = run_rows
        try:
            params = SamplingParams(max_tokens=5, thought_depth=2, ignore_eos=True, logit_bias={99: -100.0})
            first, guilty, last = engine.submit([Attempt(prompt, params) for prompt in ((5,), (99,), (6,))])
            with pytest.raises(EngineError, match="too little memory") as told:
                await collect(engine, guilty)
            assert told.value.code == "out_of_memory"
            assert books.num_out_of_memory >= 2, "the batch, and the one that was left"
            for ticket in (first, last):
                assert len((await collect(engine, ticket)).tokens) == 5
        finally:
            engine._decoder.model.run = right

    assert sorted(run(work).ended) == ["error", "length", "length"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_device_thread_dies_every_ticket_still_ends() -> None:
    async def work(engine: Engine, books: Books) -> None:
        def broken(num_rows: int, seconds: float, in_flight: int) -> None:
            raise RuntimeError("a bug of ours")

        books.forward = broken
        for ticket in engine.submit([Attempt((5,), LONG)] * 6):
            with pytest.raises(EngineError, match="stopped"):
                await collect(engine, ticket)
        assert not engine.healthy
        assert not engine.ready
        with pytest.raises(EngineClosedError):
            engine.submit([Attempt((5,), LONG)])

    assert run(work).ended == ["error"] * 6


def test_closing_lets_the_running_finish_and_takes_nothing_new() -> None:
    async def work(engine: Engine, books: Books) -> None:
        ticket = engine.submit([Attempt((5,), SamplingParams(max_tokens=40, thought_depth=4, ignore_eos=True))])[0]
        closing = asyncio.create_task(asyncio.to_thread(engine.close, 20.0))
        while engine.ready:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineClosedError, match="shutting down"):
            engine.submit([Attempt((5,), LONG)])
        assert len((await collect(engine, ticket)).tokens) == 40
        await closing

    assert run(work).ended == ["length"]


def test_limits_that_the_model_cannot_keep_are_refused() -> None:
    for settings, reason in (
        ({"max_model_len": 512}, "max_model_len is 512; it must be between 1 and 494 with thoughts up to 16"),
        ({"model": tiny.quiet_model(quiet=None), "max_thought_depth": 4}, "no mixing head"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(lambda engine, books: asyncio.sleep(0), **settings)


def test_a_ticket_ends_with_the_reason_that_it_was_cancelled_for() -> None:
    async def work(engine: Engine, books: Books) -> None:
        running, waiting = engine.submit([Attempt((5,), LONG)] * 2)
        results = engine.results(running)
        await anext(results)
        for ticket in (running, waiting):
            engine.cancel(ticket, "timeout")
            engine.cancel(ticket)  # the first word counts
        assert (await collect(engine, waiting)).finish_reason == "timeout"

    assert run(work, max_num_seqs=1).ended == ["timeout"] * 2


def test_what_was_withheld_for_a_stop_string_is_told_when_it_is_cancelled() -> None:
    async def work(engine: Engine, books: Books) -> None:
        bias = {TOKENS.encode("a")[0]: 100.0}
        params = SamplingParams(max_tokens=300, ignore_eos=True, logit_bias=bias, stop=("a" * 400,))
        ticket = engine.submit([Attempt((5,), params)])[0]
        result, results = Generation(), engine.results(ticket)
        result.add(await anext(results))
        engine.cancel(ticket)
        async for news in results:
            result.add(news)
        assert result.text == "a" * len(result.tokens) != ""

    run(work)


def test_contested_tickets_are_judged_once_whether_they_ended_before_or_after() -> None:
    async def work(engine: Engine, books: Books) -> None:
        short = Attempt((5,), SamplingParams(max_tokens=3, ignore_eos=True), contested=True)
        first, second = engine.submit([short, short])
        for ticket in (first, second):
            await collect(engine, ticket)
        engine.judge(first, kept=True)
        for ticket in (first, second):
            engine.judge(ticket, kept=False)
        third, plain = engine.submit([Attempt((5,), LONG, contested=True), Attempt((5,), SamplingParams(max_tokens=3))])
        results = engine.results(third)
        await anext(results)
        engine.cancel(third)
        for ticket in (third, plain):
            engine.judge(ticket, kept=False)
        async for _ in results:
            pass
        await collect(engine, plain)
        assert books.judgements[:2] == [(True, 3), (False, 3)]
        assert [(kept, count > 0) for kept, count in books.judgements[2:]] == [(False, True)]

    run(work)


def test_the_cache_takes_no_more_memory_than_it_may() -> None:
    async def work(engine: Engine, books: Books) -> None:
        assert engine.capacity == 3 + 7
        assert engine.kv_cache_bytes <= memory < engine.kv_cache_bytes / 3 * 4

    slots = [Engine(model=MODEL, tokens=TOKENS, observer=Books(), max_num_seqs=n, max_model_len=400) for n in (1, 3)]
    memory = slots[1].kv_cache_bytes + slots[0].kv_cache_bytes - 1
    run(work, max_num_seqs=9, max_num_queued_reqs=7, kv_cache_memory_bytes=memory)
    with pytest.raises(ValueError, match="one answer needs"):
        run(work, kv_cache_memory_bytes=slots[0].kv_cache_bytes - 1)
