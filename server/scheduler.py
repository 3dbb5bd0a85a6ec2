"""Who runs next: the bounded queue, the slots, cancellation. Knows nothing of tensors, threads or event loops."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..model.config import SamplingParams
from ..model.correction import next_prompt
from ..model.progress import Counts, Generation, Progress


class QueueFullError(RuntimeError):
    """More attempts wait than the queue holds."""


class EngineClosedError(RuntimeError):
    """The engine takes no new work: it is draining or has stopped."""


class EngineError(RuntimeError):
    """The engine could not finish an attempt; the message is safe to show, the code one of the API's."""

    def __init__(self, message: str, code: str = "internal_error") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Attempt:
    """One answer to decode: a prompt and how; first its drafts, if it has any, each to be corrected by the next turn."""

    prompt: tuple[int, ...]
    params: SamplingParams
    endpoint: str = ""  # that asked for it, for the metrics
    request_id: str = ""  # for the log
    num_samples: int = 1  # answers to its prompt, for the metrics
    contested: bool = False  # whether its answer is returned is decided when it has ended
    draft_params: tuple[SamplingParams, ...] = ()  # of the turns before the last, whose are `params`
    bridge: tuple[int, ...] = ()  # ids between the turns
    voting: str = "none"  # how it and the others to its prompt vote, for the metrics
    sample: int = 0  # which of them it is: what is one for all of them is counted with the first


@dataclass
class Timing:
    """Moments of a ticket on the monotonic clock, in seconds, and the times between them; None where it never got there."""

    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None  # got a slot
    first_token: float | None = None  # decoded anything, hidden or visible
    first_output: float | None = None  # decided a visible token
    last_output: float | None = None
    drafted: float | None = None  # its first draft ended
    finished: float | None = None
    thought_s: float = 0.0  # spent in forwards in which one of its thoughts took part

    @property
    def queue(self) -> float | None:
        """From submission to a slot."""
        return _between(self.submitted, self.started)

    @property
    def prefill(self) -> float | None:
        """From a slot to the forward that read the prompt's end, which decodes the first token."""
        return _between(self.started, self.first_token)

    @property
    def decode(self) -> float | None:
        """From there to the end."""
        return _between(self.first_token, self.finished)

    @property
    def time_to_first_token(self) -> float | None:
        """From submission to the first token, hidden or visible."""
        return _between(self.submitted, self.first_token)

    @property
    def time_to_first_output(self) -> float | None:
        """From submission to the first visible token."""
        return _between(self.submitted, self.first_output)

    @property
    def total(self) -> float | None:
        """From submission to the end."""
        return _between(self.submitted, self.finished)

    @property
    def correction(self) -> float | None:
        """From the end of the first draft to the end."""
        return _between(self.drafted, self.finished)

    def per_token(self, num_output_tokens: int) -> float | None:
        """Mean time between visible tokens; None where there are fewer than two."""
        whole = _between(self.first_output, self.last_output)
        return None if whole is None or num_output_tokens < 2 else whole / (num_output_tokens - 1)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


_numbers = itertools.count()


@dataclass(eq=False)
class Ticket:
    """One attempt's way through the engine, in one slot for all its turns. It ends exactly once."""

    attempt: Attempt
    mailbox: Any = None  # where its news go; the engine's
    number: int = field(default_factory=lambda: next(_numbers))
    timing: Timing = field(default_factory=Timing)
    slot: int | None = None
    cancelled: str | None = None  # the finish reason that it is to get: "abort", "timeout" or "outvoted"
    finish_reason: str | None = None  # "stop", "length", "abort", "timeout", "outvoted" or "error"
    kept: bool | None = None  # a contested one's answer is returned; None: not decided
    drafts: list[Generation] = field(default_factory=list)  # of the turns that have been corrected, or are just now
    answer: Generation = field(default_factory=Generation)  # of the turn that runs, where there are several
    num_output_tokens: int = 0  # visible ones of the turn that runs, the end of the text included
    num_thought_tokens: int = 0
    counts: Counts = field(default_factory=Counts)  # what it cost
    decoding: Any = None  # the decoder's state while it has a slot

    @property
    def is_draft(self) -> bool:
        """What is decoded now is to be corrected."""
        return len(self.drafts) < len(self.attempt.draft_params)

    @property
    def params(self) -> SamplingParams:
        """How the turn that runs is decoded."""
        return (*self.attempt.draft_params, self.attempt.params)[len(self.drafts)]

    @property
    def num_draft_tokens(self) -> int:
        """Visible ones of all drafts that have ended."""
        return sum(len(draft.tokens) for draft in self.drafts)

    @property
    def changed(self) -> bool:
        """The answer says something else than the first draft."""
        return bool(self.drafts) and self.drafts[0].text.strip() != self.answer.text.strip()

    def prompt(self, ends: frozenset[int]) -> list[int]:
        """What the turn that runs continues; `ends` are the ids that end a text."""
        ids = list(self.attempt.prompt)
        for draft in self.drafts:
            ids = next_prompt(ids, [token.id for token in draft.tokens], ends, self.attempt.bridge)
        return ids

    def last(self, news: Progress) -> Progress:
        """What is told when it ends with this: all of a draft, which nobody will correct, is the answer."""
        self.answer.add(news)
        if not self.is_draft:
            return news
        held = self.answer
        return Progress(held.text, held.tokens, [], held.finish_reason, num_thought_tokens=held.num_thought_tokens)

    def turn(self, now: float) -> None:
        """The draft has ended; what is decoded from now on corrects it."""
        self.drafts.append(self.answer)
        self.answer, self.num_output_tokens = Generation(), 0
        self.timing.drafted = self.timing.drafted or now
        self.timing.first_output = self.timing.last_output = None  # of what is told: so far, nothing


class Scheduler:
    """First come, first served: tickets wait, get a free slot, and give it back when they leave."""

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.waiting: deque[Ticket] = deque()
        self.running: dict[int, Ticket] = {}
        self._free = list(range(num_slots))

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.waiting and not self.running

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them, or none: raises QueueFullError."""
        if len(self.waiting) + len(tickets) > self.max_waiting + len(self._free):
            raise QueueFullError(f"{len(self.waiting)} attempts are waiting; the queue holds {self.max_waiting}")
        self.waiting.extend(tickets)

    def admit(self, choose_slot: Callable[[Ticket, Sequence[int]], int]) -> Ticket | None:
        """Give the one who waits longest the free slot that suits it; None where nobody waits or no slot is free."""
        if not self.waiting or not self._free:
            return None
        ticket = self.waiting.popleft()
        ticket.slot = choose_slot(ticket, self._free)
        self._free.remove(ticket.slot)
        self.running[ticket.slot] = ticket
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out, wherever it is."""
        if ticket.slot is None:
            self.waiting.remove(ticket)
        else:
            del self.running[ticket.slot]
            self._free.append(ticket.slot)

    def check(self) -> None:
        """Every slot is either free or one ticket's."""
        assert sorted([*self._free, *self.running]) == list(range(self.num_slots))
        assert all(ticket.slot == slot for slot, ticket in self.running.items())
