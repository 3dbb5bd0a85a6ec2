"""One request's way through the engine: its prompts and choices become attempts, whose progress comes back."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ..model.config import SamplingParams
from ..model.tokens import PromptError
from .errors import ContextLengthError, InvalidRequestError
from .scheduler import Attempt, EngineClosedError, Ticket
from .schemas import ChatRequest, CompletionRequest, Message

if TYPE_CHECKING:
    from ..model.progress import Progress, Token
    from ..model.tokens import Tokens
    from .engine import Engine

GenerationRequest = CompletionRequest | ChatRequest

EFFORT_DEPTHS = {"none": 0, "minimal": 1, "low": 2, "medium": 4, "high": 8, "xhigh": 12}
DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_THRESHOLD = 0.3  # nats: in the pilots no argmax changed where the base was surer than this


@dataclass(frozen=True)
class Prompt:
    """What choices continue."""

    ids: tuple[int, ...]
    text: str | None = None  # as the client wrote it; None where it sent ids or messages


@dataclass(frozen=True)
class Plan:
    """The attempts of one request, one for each choice; choice i continues prompt i // n."""

    request: GenerationRequest
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

    def add(self, progress: "Progress") -> None:
        """Append what one step decided."""
        self.text += progress.text
        self.tokens += progress.tokens
        self.prompt += progress.prompt
        self.finish_reason = progress.finish_reason


class Run:
    """A plan that the engine works on; a context manager: whatever has not ended when it is left is cancelled."""

    def __init__(self, engine: "Engine", plan: Plan) -> None:
        self.plan = plan
        self.num_visible_tokens = 0
        self.num_thought_tokens = 0
        self._engine = engine
        self._tickets = engine.submit(plan.attempts)
        self._arrived: asyncio.Queue[tuple[int, Progress] | Exception] = asyncio.Queue()
        self._readers: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        """Begin to read what the engine decides."""
        self._readers = [asyncio.create_task(self._read(i, ticket)) for i, ticket in enumerate(self._tickets)]
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what has not ended."""
        for ticket, reader in zip(self._tickets, self._readers, strict=True):
            self._engine.cancel(ticket)
            reader.cancel()

    async def progress(self) -> "AsyncIterator[tuple[int, Progress]]":
        """What is decided, when it is decided, with the index of its choice. Raises EngineError."""
        running = len(self._tickets)
        while running:
            arrived = await self._arrived.get()
            if isinstance(arrived, Exception):
                raise arrived
            _, progress = arrived
            self.num_visible_tokens += len(progress.tokens)
            self.num_thought_tokens += progress.num_thought_tokens
            running -= progress.finish_reason is not None
            yield arrived

    async def answers(self) -> list[Answer]:
        """Every choice, when all have ended. Raises EngineError when the first one fails."""
        answers = [Answer() for _ in self._tickets]
        async for index, progress in self.progress():
            answers[index].add(progress)
        return answers

    async def _read(self, index: int, ticket: Ticket) -> None:
        try:
            async for progress in self._engine.results(ticket):
                self._arrived.put_nowait((index, progress))
        except Exception as error:  # whoever iterates over `progress` is to see it
            self._arrived.put_nowait(error)


class Pipeline:
    """Plans requests and starts them.

    Args:
        engine: what decodes.
        default_thought_depth: of requests that name none; None is the depth the checkpoint was trained at.
    """

    def __init__(self, engine: "Engine", default_thought_depth: int | None = None) -> None:
        self.engine = engine
        self.draining = False
        trained = engine.quiet.thought_depth if engine.quiet else 0
        self._default_depth = (
            min(trained, engine.max_thought_depth) if default_thought_depth is None else default_thought_depth
        )

    def start(self, request: GenerationRequest) -> Run:
        """Hand a request to the engine.

        Raises ApiError where it asks for what the model cannot do, PromptError, QueueFullError and EngineClosedError.
        """
        if self.draining:
            raise EngineClosedError
        return Run(self.engine, self.plan(request))

    def plan(self, request: GenerationRequest) -> Plan:
        """What a request asks of the engine. Raises ApiError and PromptError."""
        prompts = list(self._prompts(request))
        if (count := len(prompts) * request.n) > self.engine.capacity:
            raise InvalidRequestError(
                f"The request asks for {count} answers; this server holds {self.engine.capacity}."
            )
        attempts = [attempt for prompt in prompts for attempt in self._attempts(request, prompt)]
        return Plan(request, prompts, attempts)

    def _prompts(self, request: GenerationRequest) -> Iterable[Prompt]:
        tokens = self.engine.tokens
        try:
            yield from self._encoded(request, tokens)
        except PromptError as error:
            param = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise InvalidRequestError(str(error), param=param) from error

    def _encoded(self, request: GenerationRequest, tokens: "Tokens") -> Iterable[Prompt]:
        if isinstance(request, ChatRequest):
            yield Prompt(tuple(tokens.render([_as_template_reads(message) for message in request.messages])))
            return
        for prompt in request.prompts:
            if isinstance(prompt, str):
                yield Prompt(tuple(tokens.encode(prompt)), prompt)
            else:
                yield Prompt(tuple(tokens.check(prompt)))

    def _attempts(self, request: GenerationRequest, prompt: Prompt) -> Iterable[Attempt]:
        if not prompt.ids:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        endpoint = "chat" if isinstance(request, ChatRequest) else "completions"
        seed = secrets.randbits(63) if request.seed is None else request.seed
        for sample in range(request.n):
            yield Attempt(prompt.ids, self._params(request, prompt, attempt_seed(seed, sample)), endpoint)

    def _params(self, request: GenerationRequest, prompt: Prompt, seed: int) -> SamplingParams:
        max_tokens = self._max_tokens(request, prompt)
        if request.min_tokens > max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {request.min_tokens}; it must be at most max_tokens, {max_tokens}.", param="min_tokens"
            )
        biases = {int(token): bias for token, bias in request.logit_bias.items()}
        self._check_ids("logit_bias", biases)
        self._check_ids("stop_token_ids", request.stop_token_ids)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=max(request.top_k, 0),
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=biases,
            seed=seed,
            stop=request.stops,
            stop_token_ids=tuple(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            logprobs=request.num_logprobs,
            prompt_logprobs=_prompt_logprobs(request),
            **self._thinking(request),
        )

    def _thinking(self, request: GenerationRequest) -> dict[str, Any]:
        """The parameters that say how to think."""
        depth, temperature = self._thought_depth(request), self._thought_temperature(request)
        count, most = request.num_thoughts, self.engine.max_num_thoughts
        if count > most:
            raise InvalidRequestError(
                f"num_thoughts is {count}; it must be between 1 and {most}.", param="num_thoughts"
            )
        if depth and count > 1 and temperature == 0:
            raise InvalidRequestError(
                f"num_thoughts is {count}, but at thought_temperature 0 all thoughts are the same; raise it.",
                param="num_thoughts",
            )
        threshold = DEFAULT_THRESHOLD if request.thought_threshold is None else request.thought_threshold
        return {
            "thought_depth": depth,
            "thought_temperature": temperature,
            "num_thoughts": count,
            "thought_threshold": threshold if request.thought_mode == "adaptive" else None,
        }

    def _max_tokens(self, request: GenerationRequest, prompt: Prompt) -> int:
        """Visible tokens of a choice. Raises ContextLengthError where they do not fit behind the prompt."""
        used, most = len(prompt.ids), self.engine.max_model_len
        asked, room = request.token_limit, most - used
        if asked is None and room > 0:
            return room if isinstance(request, ChatRequest) else min(room, DEFAULT_COMPLETION_TOKENS)
        if asked is not None and asked <= room:
            return asked
        where = "messages" if isinstance(request, ChatRequest) else "prompt"
        wanted = "" if asked is None else f", {asked} in the completion"
        raise ContextLengthError(
            f"This model's maximum context length is {most} tokens. However, you requested {used + (asked or 0)} "
            f"tokens ({used} in the {where}{wanted}). Please reduce the length of the {where} or completion.",
            param=where,
        )

    def _thought_depth(self, request: GenerationRequest) -> int:
        depth, param, most = request.thought_depth, "thought_depth", self.engine.max_thought_depth
        if request.thought_mode == "off" or (depth is None and request.chat_template_kwargs.enable_thinking is False):
            return 0
        if depth is None and request.reasoning_effort is not None:
            depth, param = EFFORT_DEPTHS.get(request.reasoning_effort, most), "reasoning_effort"
        if depth is None:
            return self._default_depth
        if depth > 0 and self.engine.quiet is None:
            raise InvalidRequestError(
                f"{param} asks for thoughts {depth} deep, but this model cannot think.", param=param
            )
        if depth > most:
            raise InvalidRequestError(f"{param} asks for depth {depth}; it must be between 0 and {most}.", param=param)
        return depth

    def _thought_temperature(self, request: GenerationRequest) -> float:
        if request.thought_temperature is not None:
            return request.thought_temperature
        return self.engine.quiet.thought_temperature if self.engine.quiet else 1.0

    def _check_ids(self, param: str, ids: Iterable[int]) -> None:
        tokens = self.engine.tokens
        markers = frozenset(tokens.markers.values())
        for token in ids:
            if not 0 <= token < tokens.num_ids:
                raise InvalidRequestError(f"{param} has id {token}; ids are 0 to {tokens.num_ids - 1}.", param=param)
            if token in markers:
                raise InvalidRequestError(f"{param} has id {token}, which is a thought marker.", param=param)


def attempt_seed(seed: int, sample: int, turn: int = 0) -> int:
    """The seed of one attempt: 64 bits that depend on nothing but the request's seed and the attempt's place in it."""
    parts = b"".join(part.to_bytes(8, "little", signed=True) for part in (seed, sample, turn))
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "little")


def _prompt_logprobs(request: GenerationRequest) -> int | None:
    """Alternatives to score for each prompt token: the most that any field asks for."""
    asked = [request.prompt_logprobs, request.num_logprobs if _echoes(request) else None]
    return max((count for count in asked if count is not None), default=None)


def _echoes(request: GenerationRequest) -> bool:
    return isinstance(request, CompletionRequest) and request.echo


def _as_template_reads(message: Message) -> dict[str, str]:
    """A message as chat templates expect it: the content one string, only the fields that were sent."""
    content = message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
    role = "system" if message.role == "developer" else message.role
    sent = {"name": message.name, "reasoning": message.reasoning, "reasoning_content": message.reasoning_content}
    return {"role": role, "content": content, **{key: text for key, text in sent.items() if text is not None}}
