"""A request that the engine works on: its attempts' progress comes back as the progress of its choices."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ..model.voting import Entry
from .ballots import OUTVOTED, Answer, Ballot, Standing, Voting
from .errors import RequestTimeoutError
from .scheduler import Attempt, EngineError, Ticket
from .schemas import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from ..model.progress import Progress
    from ..model.voting import Group
    from .engine import Engine

GenerationRequest = CompletionRequest | ChatRequest


@dataclass(frozen=True)
class Prompt:
    """What choices continue."""

    ids: tuple[int, ...]
    text: str | None = None  # as the client wrote it; None where it sent ids or messages


@dataclass(frozen=True)
class Plan:
    """The attempts of one request, `num_samples` of them for each prompt; choice i of the reply continues prompt i // n."""

    request: GenerationRequest
    prompts: list[Prompt]
    attempts: list[Attempt]
    timeout_s: float | None = None
    voting: Voting | None = None

    @property
    def request_id(self) -> str:
        """The request's."""
        return self.attempts[0].request_id

    @property
    def num_choices(self) -> int:
        """Answers in the reply."""
        return len(self.prompts) * self.request.n

    @property
    def contested(self) -> bool:
        """More answers are drawn than are returned, or they vote: none is certain before all have ended."""
        return is_contested(self.request)

    def prompt_of(self, choice: int) -> Prompt:
        """The prompt that a choice continues."""
        return self.prompts[choice // self.request.n]


def is_contested(request: GenerationRequest) -> bool:
    """Which answers are returned, and in what order, is known when all have ended."""
    return request.num_samples > request.n or request.voting != "none"


class Run:
    """A plan that the engine works on; a context manager: whatever has not ended when it is left is cancelled.

    Args:
        engine: what works.
        plan: on what; it begins with `submit`.
        running: where the run is to be found by the id of its request while it goes on.
        deadline: on the clock of the event loop, in seconds; None: it may take as long as it takes.
    """

    def __init__(
        self, engine: "Engine", plan: Plan, running: "dict[str, list[Run]]", deadline: float | None = None
    ) -> None:
        self.plan = plan
        self.num_visible_tokens = 0
        self.num_thought_tokens = 0
        self.num_discarded_tokens = 0
        self.num_unfinished = plan.num_choices  # choices that go on
        self._engine, self._running, self._deadline = engine, running, deadline
        self._reason = "abort"  # of what is cancelled
        self.ranker_s: float | None = None  # how long a trained ranker took
        self.tickets: list[Ticket] = []
        self.ballots = [Ballot(plan.request.num_samples, plan.voting) for _ in plan.prompts if plan.contested]
        self._chosen = list(range(plan.num_choices))  # the attempt of each choice
        self._groups: list[Group | None] = []  # those that agree with each choice
        self._arrived: asyncio.Queue[tuple[int, Progress] | Exception] = asyncio.Queue()
        self._readers: list[asyncio.Task[None]] = []

    @property
    def num_draft_tokens(self) -> int:
        """Visible ones that were corrected, of all answers that were drawn."""
        return sum(ticket.num_draft_tokens for ticket in self.tickets)

    @property
    def is_ranking(self) -> bool:
        """A trained ranker has yet to score its answers."""
        return self.plan.voting is not None and self.plan.voting.trained and self.ranker_s is None

    def ticket_of(self, choice: int) -> Ticket:
        """The ticket of a choice that has ended."""
        return self.tickets[self._chosen[choice]]

    def group_of(self, choice: int) -> "Group | None":
        """Who voted for the answer of a choice; None where it has none."""
        return self._groups[choice]

    def submit(self) -> None:
        """Queue it; enter it next, or nobody reads what is decided. Raises QueueFullError and EngineClosedError."""
        self.tickets = self._engine.submit(self.plan.attempts)

    def __enter__(self) -> Self:
        """Begin to read what the engine decides."""
        self._running.setdefault(self.plan.request_id, []).append(self)
        self._readers = [asyncio.create_task(self._read(i, ticket)) for i, ticket in enumerate(self.tickets)]
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what has not ended."""
        self._running[self.plan.request_id].remove(self)
        if not self._running[self.plan.request_id]:
            del self._running[self.plan.request_id]
        self.cancel(self._reason)
        for ticket, reader in zip(self.tickets, self._readers, strict=True):
            self._engine.judge(ticket, kept=False)  # unless it was chosen
            reader.cancel()

    def cancel(self, reason: str = "abort") -> None:
        """End all attempts; what they have decided is told, with this finish reason."""
        for ticket in self.tickets:
            self._engine.cancel(ticket, reason)

    def summary(self) -> dict[str, Any]:
        """What there is to say of it in a log: numbers."""
        reasons = sorted({ticket.finish_reason or self._reason for ticket in self.tickets})
        return {
            "prompt_tokens": sum(len(prompt.ids) for prompt in self.plan.prompts),
            "visible_tokens": self.num_visible_tokens,
            "draft_tokens": self.num_draft_tokens,
            "thought_tokens": self.num_thought_tokens,
            "thought_depth": self.tickets[0].attempt.params.thought_depth,
            "finish_reason": ",".join(reasons),
        }

    async def progress(self) -> "AsyncIterator[tuple[int, Progress | Answer] | Standing]":
        """What is decided, when it is decided, with the index of its choice; before, how far a contest has got.

        Raises EngineError, and RequestTimeoutError when the time is up.
        """
        decided = self._contest() if self.plan.contested else self._attempts()
        async for news in decided:
            if not isinstance(news, Standing):
                self.num_unfinished -= news[1].finish_reason is not None
            yield news

    async def answers(self) -> list[Answer]:
        """Every choice, when all have ended. Raises what `progress` does."""
        answers = [Answer() for _ in range(self.plan.num_choices)]
        async for news in self.progress():
            if not isinstance(news, Standing):
                answers[news[0]].add(news[1])
        return answers

    async def _attempts(self) -> "AsyncIterator[tuple[int, Progress]]":
        """What the engine decides, with the index of the attempt."""
        running = len(self.tickets)
        while running:
            arrived = await self._next()
            if isinstance(arrived, Exception):
                self._reason = "error"
                raise arrived
            _, progress = arrived
            self.num_visible_tokens += len(progress.tokens)
            self.num_thought_tokens += progress.num_thought_tokens
            running -= progress.finish_reason is not None
            yield arrived

    async def _contest(self) -> AsyncIterator[tuple[int, Answer] | Standing]:
        """The answers to each prompt that are returned, best first, when all have ended."""
        request = self.plan.request
        try:
            async for attempt, progress in self._attempts():
                number, index = divmod(attempt, request.num_samples)
                self.ballots[number].answers[index].add(progress)
                if progress.finish_reason:
                    yield await self._cast(number, index)
        except (EngineError, RequestTimeoutError):
            if not all(ballot.is_settled for ballot in self.ballots):
                raise  # it befell one whose answer counts
        if self.plan.voting and self.plan.voting.trained:
            await self._rank(self.plan.voting.ranker or "")
        chosen = [
            (number * request.num_samples + index, group)
            for number, ballot in enumerate(self.ballots)
            for index, group in ballot.ranking()[: request.n]
        ]
        self._chosen, self._groups = [attempt for attempt, _ in chosen], [group for _, group in chosen]
        returned = [self.ballots[i // request.num_samples].answers[i % request.num_samples] for i in self._chosen]
        self.num_discarded_tokens = self.num_visible_tokens - sum(len(answer.tokens) for answer in returned)
        self._report()
        for choice, answer in enumerate(returned):
            yield choice, answer

    async def _cast(self, number: int, index: int) -> Standing:
        """Let an answer vote; those that can no longer change the outcome are ended."""
        ballot, size = self.ballots[number], self.plan.request.num_samples
        await asyncio.to_thread(ballot.cast, index)  # a client's expression may take its time
        if ballot.is_settled:
            for ticket in self.tickets[number * size : (number + 1) * size]:
                self._engine.cancel(ticket, OUTVOTED)
        return ballot.standing()

    async def _rank(self, ranker: str) -> None:
        """Have all answers scored, those to every prompt together."""
        voters = [(number, index) for number, ballot in enumerate(self.ballots) for index in ballot.candidates]
        entries = [Entry(self.plan.prompts[n].ids, self.ballots[n].answers[i].text) for n, i in voters]
        begin = time.monotonic()
        async with self._in_time():
            scores = dict(zip(voters, await self._engine.rank(ranker, entries), strict=True))
        self.ranker_s = time.monotonic() - begin
        for number, ballot in enumerate(self.ballots):
            ballot.rank({i: score for (n, i), score in scores.items() if n == number})

    def _report(self) -> None:
        """Enter into the books what is returned, and how they voted."""
        for attempt in self._chosen:
            self._engine.judge(self.tickets[attempt], kept=True)
        if self.plan.voting:
            for ballot in self.ballots:
                assert ballot.verdict is not None, "all of them have voted"
                self._engine.voted(self.plan.voting.strategy, ballot.verdict)

    async def _next(self) -> "tuple[int, Progress] | Exception":
        async with self._in_time():
            return await self._arrived.get()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Raises RequestTimeoutError when the time is up."""
        try:
            if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
                raise TimeoutError  # whatever waits to be read
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError:
            self._reason = "timeout"
            raise RequestTimeoutError(
                f"The request took longer than the {self.plan.timeout_s:g} seconds that it has."
            ) from None

    async def _read(self, index: int, ticket: Ticket) -> None:
        try:
            async for progress in self._engine.results(ticket):
                self._arrived.put_nowait((index, progress))
        except Exception as error:  # whoever iterates over `progress` is to see it
            self._arrived.put_nowait(error)
