"""One request's way through the engine: its prompts and choices become attempts, and their progress comes back by choice."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..model.config import SamplingParams
from .errors import ContextLengthError, InvalidRequestError
from .scheduler import Attempt, EngineClosedError, Ticket
from .schemas import ChatRequest, CompletionRequest, Message

if TYPE_CHECKING:
    from ..model.decode import Progress, Token
    from .engine import Engine

Request = CompletionRequest | ChatRequest

EFFORT_DEPTHS = {"none": 0, "minimal": 1, "low": 2, "medium": 4, "high": 8, "xhigh": 12}
DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """What one or more choices continue."""

    ids: tuple[int, ...]
    text: str | None = None  # as the client wrote it; None where it sent ids or messages


@dataclass(frozen=True)
class Plan:
    """The attempts of one request, one for each choice; choice i continues prompt i // n."""

    request: Request
    prompts: list[Prompt]
    attempts: list[Attempt]

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that a choice continues."""
        return self.prompts[index // self.request.n]


@dataclass
class Answer:
    """The progress of one attempt, joined."""

    text: str = ""
    tokens: "list[Token]" = field(default_factory=list)
    prompt: "list[Token]" = field(default_factory=list)
    finish_reason: str | None = None
    num_thought_tokens: int = 0

    def add(self, progress: "Progress") -> None:
        """Append what one step decided."""
        self.text += progress.text
        self.tokens += progress.tokens
        self.prompt += progress.prompt
        self.finish_reason = progress.finish_reason
        self.num_thought_tokens += progress.num_thought_tokens


class Run:
    """A plan that the engine is working on.

    Whoever iterates over it must close the iterator (`contextlib.aclosing`): that cancels what has not ended.
    """

    def __init__(self, engine: "Engine", plan: Plan) -> None:
        self.plan = plan
        self.num_visible_tokens = 0
        self.num_thought_tokens = 0
        self._engine = engine
        self._tickets = engine.submit(plan.attempts)

    async def progress(self) -> "AsyncIterator[tuple[int, Progress]]":
        """What is decided, as it is decided, with the index of its choice. Raises EngineError."""
        arrived: asyncio.Queue[tuple[int, Progress] | BaseException | None] = asyncio.Queue()
        readers = [asyncio.create_task(self._read(i, ticket, arrived)) for i, ticket in enumerate(self._tickets)]
        running = len(readers)
        try:
            while running:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    running -= 1
                    continue
                self.num_visible_tokens += len(item[1].tokens)
                self.num_thought_tokens += item[1].num_thought_tokens
                yield item
        finally:
            for ticket in self._tickets:
                self._engine.cancel(ticket)
            for reader in readers:
                reader.cancel()

    async def answers(self) -> list[Answer]:
        """Every choice, once all have ended. Raises EngineError."""
        answers = [Answer() for _ in self._tickets]
        progress = self.progress()
        ...
        return answers

    async def _read(self, index: int, ticket: Ticket, arrived: asyncio.Queue) -> None:
        ...
