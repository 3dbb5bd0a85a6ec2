"""The one thread that owns the device: inbox, schedule, step, outbox."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Protocol

from ..model.cache import Cache
from ..model.decode import Decoder, is_out_of_memory
from ..model.probe import Probe
from ..model.progress import Counts, Progress
from ..model.quiet_model import QuietModel
from ..model.ranker import Ranker
from ..model.tokens import Tokens
from ..model.voting import Entry, Verdict
from .rankings import Rankings
from .scheduler import Attempt, EngineClosedError, EngineError, Scheduler, Ticket

logger = logging.getLogger("quietserve")

MAX_DEPTH = 16  # of thoughts, where neither the checkpoint nor the operator asks for more
MAX_MODEL_LEN = 4096  # tokens, where the operator does not ask for more: every slot reserves its whole length
FAILED = "the model failed on this request"
STOPPED = "the server stopped before this request was answered"
TOO_LARGE = "the server has too little memory for this request just now"
MAX_NUM_THOUGHTS = 8  # parallel thoughts of a position, where the operator does not say


class Observer(Protocol):
    """What the engine reports, on its thread; `gauges` on a submitter's too."""

    def admitted(self, ticket: Ticket) -> None:
        """It got a slot."""
        ...

    def decided(self, ticket: Ticket, num_visible: int, seconds_since_last: float | None) -> None:
        """Visible tokens were decided; None for the first."""
        ...

    def forward(self, num_rows: int, seconds: float, in_flight: int) -> None:
        """One forward was done, with up to `in_flight` positions of each attempt thinking."""
        ...

    def finished(self, ticket: Ticket) -> None:
        """It ended; called exactly once a ticket."""
        ...

    def judged(self, ticket: Ticket) -> None:
        """A contested one has ended, and it is known whether its answer is returned; called exactly once."""
        ...

    def voted(self, strategy: str, verdict: Verdict) -> None:
        """The answers to a prompt have voted."""
        ...

    def ranked(self, ranker: str, num_answers: int, seconds: float) -> None:
        """A ranker has scored so many answers together."""
        ...

    def read(self, probe: str, num_tokens: int) -> None:
        """A probe had something to say of so many tokens."""
        ...

    def out_of_memory(self, times: int) -> None:
        """Memory did not suffice for so many forwards, which were repeated by halves."""
        ...

    def gauges(self, running: int, waiting: int, cache_usage: float) -> None:
        """How many tickets run and wait now, and the share of the cache's columns that the running ones use."""
        ...


@dataclass
class _Mailbox:
    """Where a ticket's news go: a queue of the event loop that submitted it."""

    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Progress | EngineError]" = field(default_factory=asyncio.Queue)


class Engine:
    """Decodes tickets, all running ones in every forward.

    Args:
        model: the model.
        tokens: its tokenizer.
        max_model_len: prompt and output tokens of one attempt; None: what the checkpoint allows, at most `MAX_MODEL_LEN`.
        max_num_seqs: attempts that run at once.
        max_num_queued_reqs: attempts that may wait.
        kv_cache_memory_bytes: most that the cache may take: fewer attempts run at once where it would be more.
        max_thought_depth: None: what the checkpoint was trained for, at least `MAX_DEPTH`.
        max_num_thoughts: parallel thoughts that a request may ask for.
        max_num_batched_tokens: prompt tokens read in one forward, of all attempts together.
        pipeline_depth: positions of one attempt that may think at once; None: chosen for each forward.
        prefix_caching: an attempt takes over what any slot holds of its prompt.
        cuda_graphs: record forwards, on a GPU.
        observer: told of everything worth counting.
        rankers: trained ones, by the names that requests call them.
        probes: of the model's states, by the names that requests call them.

    Raises ValueError when the model cannot be as long or think as deep as asked.
    """

    def __init__(
        self,
        *,
        model: QuietModel,
        tokens: Tokens,
        max_model_len: int | None = None,
        max_num_seqs: int = 16,
        max_num_queued_reqs: int = 256,
        kv_cache_memory_bytes: int | None = None,
        max_thought_depth: int | None = None,
        max_num_thoughts: int = MAX_NUM_THOUGHTS,
        max_num_batched_tokens: int = 256,
        pipeline_depth: int | None = None,
        prefix_caching: bool = True,
        cuda_graphs: bool = True,
        observer: Observer,
        rankers: Mapping[str, Ranker] | None = None,
        probes: Mapping[str, Probe] | None = None,
    ) -> None:
        self.tokens, self.quiet, self._observer = tokens, model.quiet, observer
        self.max_thought_depth = _thought_depth(model, max_thought_depth)
        self.max_model_len = _model_len(model, max_model_len, self.max_thought_depth)
        self.max_num_thoughts = max_num_thoughts
        lanes = max(self.max_thought_depth + 1, max_num_thoughts) if model.can_think else 0

        def make_cache(slots: int) -> Cache:
            return Cache(model.backbone, slots, self.max_model_len, self.max_thought_depth, lanes)

        if kv_cache_memory_bytes is not None:
            max_num_seqs = min(max_num_seqs, _num_slots(kv_cache_memory_bytes, make_cache(1).num_bytes))
        cache = make_cache(max_num_seqs)
        self.kv_cache_bytes = cache.num_bytes
        self.model_bytes = model.num_bytes
        self._decoder = Decoder(
            model,
            tokens,
            cache,
            prefill_chunk=max_num_batched_tokens,
            pipeline_depth=pipeline_depth,
            reuse_prefixes=prefix_caching,
            graphs=cuda_graphs,
            probes=probes,
        )
        self.probes = {name: probe.config for name, probe in (probes or {}).items()}
        self._scheduler = Scheduler(max_num_seqs, max_num_queued_reqs)
        self._rankings = Rankings(rankers or {})
        self._work = threading.Condition()  # guards the scheduler and the rankings
        self._draining = self._stopping = self._dead = False
        self._thread = threading.Thread(target=self._run, name="quietserve-device", daemon=True)

    @property
    def healthy(self) -> bool:
        """The device thread is alive."""
        return self._thread.is_alive() and not self._dead

    @property
    def ready(self) -> bool:
        """New work is taken."""
        return self.healthy and not self._draining

    @property
    def capacity(self) -> int:
        """Attempts that fit an idle engine: running and waiting."""
        return self._scheduler.num_slots + self._scheduler.max_waiting

    @property
    def rankers(self) -> tuple[str, ...]:
        """Names of the trained ones."""
        return self._rankings.names

    @property
    def num_running(self) -> int:
        """Tickets with a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._scheduler.waiting)

    @property
    def num_unranked(self) -> int:
        """Answers that wait for a ranker."""
        with self._work:
            return len(self._rankings)

    def start(self) -> None:
        """Start the device thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Take no new work, let the running finish for `timeout_s`, then end what is left with an error."""
        deadline = time.monotonic() + timeout_s
        with self._work:
            self._draining = True
            self._work.wait_for(
                lambda: self._scheduler.idle and not self._rankings, max(0.0, deadline - time.monotonic())
            )
            self._stopping = True
            self._work.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, attempts: Sequence[Attempt]) -> list[Ticket]:
        """Queue attempts, all or none; on the event loop that will read their results.

        Raises QueueFullError, EngineClosedError.
        """
        loop = asyncio.get_running_loop()
        tickets = [Ticket(attempt, _Mailbox(loop)) for attempt in attempts]
        with self._work:
            if not self.ready:
                raise EngineClosedError("the server is shutting down" if self._draining else "the engine has stopped")
            self._scheduler.add(tickets)
            self._show_gauges()
            self._work.notify_all()
        return tickets

    def cancel(self, ticket: Ticket, reason: str = "abort") -> None:
        """End a ticket before the next forward. Any thread; a ticket that has ended stays as it is."""
        with self._work:
            ticket.cancelled = ticket.cancelled or reason
            self._work.notify_all()

    def judge(self, ticket: Ticket, kept: bool) -> None:
        """Say whether a contested ticket's answer is returned, before or after it ends; only the first word counts."""
        with self._work:
            if ticket.attempt.contested and ticket.kept is None:
                ticket.kept = kept
                if ticket.finish_reason:
                    self._observer.judged(ticket)

    def voted(self, strategy: str, verdict: Verdict) -> None:
        """Say how the answers to a prompt voted."""
        with self._work:
            self._observer.voted(strategy, verdict)

    async def rank(self, ranker: str, entries: Sequence[Entry]) -> list[float]:
        """How likely answers are to be right, as a trained ranker has it; also while the engine drains.

        Raises EngineError, and EngineClosedError where nobody is left to do it.
        """
        with self._work:
            if not self.healthy or self._stopping:
                raise EngineClosedError("the engine has stopped")
            parts = self._rankings.add(ranker, entries)
            self._work.notify_all()
        return [score for scores in await asyncio.gather(*parts) for score in scores]

    async def results(self, ticket: Ticket) -> AsyncIterator[Progress]:
        """What was decided, as it is; ends behind a Progress with a finish reason. Raises EngineError."""
        while True:
            news = await ticket.mailbox.queue.get()
            if isinstance(news, EngineError):
                raise news
            yield news
            if news.finish_reason:
                return

    def _run(self) -> None:
        try:
            self._decoder.measure_forwards()
            while (tickets := self._next_tickets()) is not None:
                self._rank()
                if tickets:
                    self._forward(tickets)
        except Exception:
            logger.exception("the device thread died")
        finally:
            with self._work:
                self._draining = self._dead = True
                for ticket in [*self._scheduler.running.values(), *self._scheduler.waiting]:
                    with contextlib.suppress(Exception):  # whatever is broken, each reader is told
                        self._end(ticket, self._stopped())
                while self._rankings:
                    for ranking in self._rankings.take():
                        ranking.fail(self._stopped())
                self._show_gauges()

    def _stopped(self) -> EngineError:
        return EngineError(STOPPED, "draining" if self._stopping else "internal_error")

    def _show_gauges(self) -> None:
        running = [ticket.decoding for ticket in self._scheduler.running.values() if ticket.decoding]
        usage = sum(decoding.cached for decoding in running) / (self._scheduler.num_slots * self.max_model_len)
        self._observer.gauges(self.num_running, self.num_waiting, usage)

    def _next_tickets(self) -> list[Ticket] | None:
        """Wait for work, drop what was cancelled, fill free slots; None once the engine is to stop."""
        with self._work:
            while not self._stopping:
                self._drop_cancelled()
                while ticket := self._scheduler.admit(self._choose_slot):
                    self._start(ticket)
                self._show_gauges()
                if self._scheduler.running or self._rankings:
                    return list(self._scheduler.running.values())
                if self._scheduler.waiting:
                    continue  # those just admitted could not start
                self._scheduler.check()
                self._work.notify_all()  # to `close`, which waits for this
                self._work.wait()
            return None

    def _drop_cancelled(self) -> None:
        scheduler = self._scheduler
        for ticket in [t for t in (*scheduler.running.values(), *scheduler.waiting) if t.cancelled]:
            withheld = ticket.decoding.text.finish() if ticket.decoding else ""  # it might have become a stop string
            self._end(ticket, ticket.last(Progress(withheld, finish_reason=ticket.cancelled)))

    def _choose_slot(self, ticket: Ticket, free: Sequence[int]) -> int:
        return self._decoder.prefixes.choose_slot(ticket.attempt.prompt, free)

    def _start(self, ticket: Ticket) -> None:
        ticket.timing.started = time.monotonic()
        if self._begin_turn(ticket):
            self._observer.admitted(ticket)

    def _begin_turn(self, ticket: Ticket) -> bool:
        """Decode in the ticket's slot; False where that cannot be, and the ticket has ended."""
        assert ticket.slot is not None
        try:
            decoding = self._decoder.start(ticket.slot, ticket.prompt(self.tokens.eos_ids), ticket.params)
        except ValueError as error:
            self._end(ticket, EngineError(str(error)))
            return False
        decoding.counts = Counts(*map(sum, zip(astuple(ticket.counts), astuple(decoding.counts), strict=True)))
        ticket.decoding, ticket.counts = decoding, decoding.counts
        return True

    def _rank(self) -> None:
        """Score what waits for one ranker. What fails there, fails for those alone."""
        with self._work:
            taken = self._rankings.take()
        if not taken:
            return
        begin = time.monotonic()
        try:
            scores = self._rankings.score(taken)
        except Exception as error:
            logger.exception("the ranker %s failed", taken[0].ranker)
            for ranking in taken:
                ranking.fail(_failure(error))
            return
        self._observer.ranked(taken[0].ranker, sum(map(len, scores)), time.monotonic() - begin)
        for ranking, own in zip(taken, scores, strict=True):
            ranking.settle(own)

    def _forward(self, tickets: list[Ticket]) -> None:
        """One forward for all running tickets. What fails there is the decoder's to sort out; if it cannot, they all end."""
        begin = time.monotonic()
        try:
            news = dict(self._decoder.step([ticket.decoding for ticket in tickets]))
        except Exception as error:
            logger.exception("a forward failed; its %d attempts end", len(tickets))
            with self._work:
                for ticket in tickets:
                    self._decoder.drop(ticket.decoding)
                self._fail(tickets, error)
            return
        now = time.monotonic()
        self._observer.forward(self._decoder.num_rows, now - begin, self._decoder.pace.in_flight)
        if times := self._decoder.num_out_of_memory:
            self._observer.out_of_memory(times)
        with self._work:
            for ticket in tickets:
                self._note(ticket, begin, now)
                if ticket.decoding in news:
                    self._publish(ticket, news[ticket.decoding], now)

    def _note(self, ticket: Ticket, begin: float, now: float) -> None:
        """What a forward tells of a ticket even where nothing was decided."""
        decoding, timing = ticket.decoding, ticket.timing
        if decoding.thinking:
            timing.thought_s += now - begin
        if timing.first_token is None and decoding.cached >= decoding.num_prompt:
            timing.first_token = now

    def _publish(self, ticket: Ticket, news: Progress, now: float) -> None:
        timing = ticket.timing
        ticket.num_thought_tokens += news.num_thought_tokens
        if news.tokens:
            since = None if timing.last_output is None else now - timing.last_output
            timing.first_output, timing.last_output = timing.first_output or now, now
            ticket.num_output_tokens += len(news.tokens)
            self._observer.decided(ticket, len(news.tokens), since)
            self._count_readouts(news)
        if news.error is not None:
            self._fail([ticket], news.error)
            return
        if ticket.attempt.draft_params:
            ticket.answer.add(news)
        if ticket.is_draft:
            if news.finish_reason:
                self._correct(ticket, now)
        elif news.finish_reason:
            self._end(ticket, news)
        else:
            self._post(ticket, news)

    def _count_readouts(self, news: Progress) -> None:
        said = Counter(name for token in news.tokens for name, readout in token.probes if readout)
        for name, num_tokens in said.items():
            self._observer.read(name, num_tokens)

    def _correct(self, ticket: Ticket, now: float) -> None:
        """Begin the turn behind a draft, before anybody else gets the slot. Of the draft, only its thoughts are told of."""
        self._post(ticket, Progress(num_thought_tokens=ticket.answer.num_thought_tokens))
        ticket.turn(now)
        self._begin_turn(ticket)

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        for ticket in tickets:
            logger.error("request %s: an attempt ends with an error", ticket.attempt.request_id)
            self._end(ticket, _failure(error))

    def _end(self, ticket: Ticket, last: Progress | EngineError) -> None:
        """The only way out of the engine: books first, then the last news."""
        assert ticket.finish_reason is None, "a ticket ends once"
        ticket.finish_reason = "error" if isinstance(last, EngineError) else last.finish_reason
        ticket.timing.finished = time.monotonic()
        self._scheduler.remove(ticket)
        if ticket.decoding is not None and ticket.decoding.finish_reason is None:
            ticket.decoding.finish(ticket.finish_reason)  # what its slot holds stays; what it had in flight goes
        try:
            self._observer.finished(ticket)
            if ticket.kept is not None:
                self._observer.judged(ticket)
        finally:
            self._post(ticket, last)

    def _post(self, ticket: Ticket, news: Progress | EngineError) -> None:
        mailbox: _Mailbox = ticket.mailbox
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will read it
            mailbox.loop.call_soon_threadsafe(mailbox.queue.put_nowait, news)


def _failure(error: Exception) -> EngineError:
    return EngineError(TOO_LARGE, "out_of_memory") if is_out_of_memory(error) else EngineError(FAILED)


def _thought_depth(model: QuietModel, wanted: int | None) -> int:
    if model.quiet is None:
        if wanted:
            raise ValueError(f"max_thought_depth is {wanted}, but this model has no mixing head: it must be 0")
        return 0
    return max(model.quiet.thought_depth, MAX_DEPTH) if wanted is None else wanted


def _num_slots(memory: int, slot: int) -> int:
    if memory < slot:
        raise ValueError(
            f"kv_cache_memory_bytes is {memory}; one answer needs {slot}: raise it, or lower max_model_len or "
            "max_thought_depth"
        )
    return memory // slot


def _model_len(model: QuietModel, wanted: int | None, depth: int) -> int:
    """A thought after the last token reads START, `depth` tokens and END at positions behind it."""
    most = model.backbone.max_positions - (depth + 2 if depth else 0)
    if most < 1:
        room = model.backbone.max_positions - 3
        raise ValueError(
            f"max_thought_depth is {depth}; it must be at most {room}, or no text fits the model's positions"
        )
    if wanted is None:
        return min(most, MAX_MODEL_LEN)
    if not 1 <= wanted <= most:
        raise ValueError(
            f"max_model_len is {wanted}; it must be between 1 and {most} with thoughts up to {depth} tokens"
        )
    return wanted
