"""What a request asks of the engine: its prompts and choices become attempts."""

import asyncio
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..model.answers import finder
from ..model.config import SamplingParams
from ..model.correction import CorrectionConfig, bridge
from ..model.tokens import PromptError
from ..model.voting import SELF_RANKERS
from .ballots import Voting
from .errors import ContextLengthError, InvalidRequestError, RequestTimeoutError
from .runs import GenerationRequest, Plan, Prompt, Run, is_contested
from .scheduler import Attempt, EngineClosedError
from .schemas import DEFAULT_PATTERN, ChatRequest, CompletionRequest, Message

if TYPE_CHECKING:
    from ..model.tokens import Tokens
    from .engine import Engine

EFFORT_DEPTHS = {"none": 0, "minimal": 1, "low": 2, "medium": 4, "high": 8, "xhigh": 12}
DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_THRESHOLD = 0.3  # nats: in the pilots no argmax changed where the base was surer than this


class Pipeline:
    """Plans requests and starts them.

    Args:
        engine: what decodes.
        default_thought_depth: of requests that name none; None is the depth the checkpoint was trained at.
        max_best_of: answers to one prompt that a request may ask for.
        request_timeout_s: how long a request may take that asks for no less; None: as long as it takes.
        max_self_correction_turns: times that a request may have an answer corrected.
        correction: how the checkpoint learned to; None: it did not, and is asked in our words.
    """

    def __init__(
        self,
        engine: "Engine",
        default_thought_depth: int | None = None,
        max_best_of: int = 16,
        request_timeout_s: float | None = None,
        max_self_correction_turns: int = 2,
        correction: CorrectionConfig | None = None,
    ) -> None:
        self.engine = engine
        self.draining = False
        self.runs: dict[str, list[Run]] = {}  # that go on, by the id of their request
        self._max_best_of, self._timeout_s = max_best_of, request_timeout_s
        self._max_turns, self._correction = max_self_correction_turns, correction or CorrectionConfig()
        trained = engine.quiet.thought_depth if engine.quiet else 0
        self._default_depth = (
            min(trained, engine.max_thought_depth) if default_thought_depth is None else default_thought_depth
        )

    @property
    def rankers(self) -> list[str]:
        """Names of all, the one first that is taken where a request names none: a trained one, if there is any."""
        return [*self.engine.rankers, *SELF_RANKERS]

    @property
    def is_ranking(self) -> bool:
        """Some request is not done when its answers are."""
        return any(run.is_ranking for runs in self.runs.values() for run in runs)

    @property
    def timeout_s(self) -> float | None:
        """How long a request may take that asks for no less; None: as long as it takes."""
        return self._timeout_s

    def limits(self) -> dict[str, int]:
        """The largest value of whole numbers in a request, by the name of their field."""
        engine = self.engine
        ids = dict.fromkeys(("prompt", "stop_token_ids", "allowed_token_ids", "tokens"), engine.tokens.num_ids - 1)
        counts = dict.fromkeys(("n", "best_of"), self._max_best_of)
        thoughts = {"thought_depth": engine.max_thought_depth, "num_thoughts": engine.max_num_thoughts}
        return ids | counts | thoughts | {"self_correction_turns": self._max_turns}

    async def prepare(self, request: GenerationRequest, request_id: str = "") -> Run:
        """Make a request ready to be submitted.

        Raises ApiError where it asks for what the model cannot do, PromptError and EngineClosedError.
        """
        if self.draining:
            raise EngineClosedError
        begin, limit = asyncio.get_running_loop().time(), self._limit(request)
        try:
            async with asyncio.timeout(limit):  # a long prompt holds no other request up; many may keep it waiting
                plan = await asyncio.to_thread(self.plan, request, request_id)
        except TimeoutError:
            raise RequestTimeoutError(f"The request took longer than the {limit:g} seconds that it has.") from None
        return Run(self.engine, plan, self.runs, None if limit is None else begin + limit)

    def _limit(self, request: GenerationRequest) -> float | None:
        """Seconds that it may take."""
        return min((limit for limit in (request.timeout_s, self._timeout_s) if limit is not None), default=None)

    def plan(self, request: GenerationRequest, request_id: str = "") -> Plan:
        """What a request asks of the engine. Raises ApiError and PromptError."""
        if request.num_samples > self._max_best_of:
            param = "n" if request.best_of is None else "best_of"
            raise InvalidRequestError(
                f"{param} is {request.num_samples}; it must be between 1 and {self._max_best_of}.", param=param
            )
        num_prompts = 1 if isinstance(request, ChatRequest) else len(request.prompts)
        if (count := num_prompts * request.num_samples) > self.engine.capacity:  # asked before any of them is read
            raise InvalidRequestError(
                f"The request asks for {count} answers; this server holds {self.engine.capacity}."
            )
        between = self._bridge(request)
        prompts = list(self._prompts(request))
        attempts = [attempt for prompt in prompts for attempt in self._attempts(request, prompt, between, request_id)]
        return Plan(request, prompts, attempts, self._limit(request), self._voting(request))

    def _voting(self, request: GenerationRequest) -> Voting | None:
        if request.voting == "none":
            return None
        ranker = (request.ranker or self.rankers[0]) if request.voting == "ranker" else None
        if ranker and ranker not in self.rankers:
            known = ", ".join(self.rankers)
            raise InvalidRequestError(f"ranker is {ranker[:50]!r}; this model has {known}.", param="ranker")
        trained = ranker in self.engine.rankers
        may_stop = request.voting == "majority" and request.n == 1 and not request.return_samples
        return Voting(request.voting, finder(request.answer_pattern or DEFAULT_PATTERN), ranker, trained, may_stop)

    def _prompts(self, request: GenerationRequest) -> Iterable[Prompt]:
        tokens = self.engine.tokens
        try:
            yield from self._encoded(request, tokens)
        except PromptError as error:
            param = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise InvalidRequestError(str(error), param=param) from error

    def _encoded(self, request: GenerationRequest, tokens: "Tokens") -> Iterable[Prompt]:
        if isinstance(request, ChatRequest):
            text = tokens.render_text([as_template_reads(message) for message in request.messages])
            check_length(self.engine, text, "messages")
            yield Prompt(tuple(tokens.encode(text, special=False)))
            return
        for prompt in request.prompts:
            if isinstance(prompt, str):
                check_length(self.engine, prompt, "prompt")
                yield Prompt(tuple(tokens.encode(prompt)), prompt)
            else:
                yield Prompt(tuple(tokens.check(prompt)))

    def _bridge(self, request: GenerationRequest) -> tuple[int, ...]:
        """What stands between the turns of a request; nothing where it has but one."""
        turns, most = request.self_correction_turns, self._max_turns
        if turns > most:
            raise InvalidRequestError(
                f"self_correction_turns is {turns}; it must be between 0 and {most}.", param="self_correction_turns"
            )
        own = request.self_correction_prompt
        try:
            return tuple(bridge(self.engine.tokens, own or self._correction.instruction)) if turns else ()
        except PromptError as error:
            param = "self_correction_prompt" if own else "self_correction_turns"
            raise InvalidRequestError(str(error), param=param) from error

    def _attempts(
        self, request: GenerationRequest, prompt: Prompt, between: tuple[int, ...], request_id: str
    ) -> Iterable[Attempt]:
        if not prompt.ids:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        endpoint = "chat" if isinstance(request, ChatRequest) else "completions"
        seed = secrets.randbits(63) if request.seed is None else request.seed
        contested, turns = is_contested(request), self._turns(request, prompt, between)
        if contested:
            _check_random(turns)
        for sample in range(request.num_samples):
            *drafts, last = (replace(how, seed=attempt_seed(seed, sample, turn)) for turn, how in enumerate(turns))
            yield Attempt(
                prompt.ids,
                last,
                endpoint,
                request_id,
                request.num_samples,
                contested,
                tuple(drafts),
                between,
                request.voting,
                sample,
            )

    def _turns(self, request: GenerationRequest, prompt: Prompt, between: tuple[int, ...]) -> list[SamplingParams]:
        """How each turn of an attempt is decoded."""
        params, last = self._params(request, prompt, between), request.self_correction_turns
        if not last:
            return [params]
        depths = (self._correction.depth(params.thought_depth, turn == last) for turn in range(last + 1))
        return [replace(params, thought_depth=depth) for depth in depths]

    def _params(self, request: GenerationRequest, prompt: Prompt, between: tuple[int, ...]) -> SamplingParams:
        max_tokens = self._max_tokens(request, prompt, between)
        if request.min_tokens > max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {request.min_tokens}; it must be at most max_tokens, {max_tokens}.", param="min_tokens"
            )
        biases = {int(token): bias for token, bias in request.logit_bias.items()}
        self._check_ids("logit_bias", biases)
        self._check_ids("stop_token_ids", request.stop_token_ids)
        self._check_ids("allowed_token_ids", request.allowed_token_ids or ())
        params = SamplingParams(
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
            stop=request.stops,
            stop_token_ids=tuple(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            allowed_token_ids=tuple(request.allowed_token_ids or ()),
            logprobs=0 if is_contested(request) and request.num_logprobs is None else request.num_logprobs,
            prompt_logprobs=_prompt_logprobs(request),
            probes=self._probes(request),
            **self._thinking(request),
        )
        self._check_choice(params)
        return params

    def _check_choice(self, params: SamplingParams) -> None:
        if params.leaves_nothing(self.engine.tokens.eos_ids):
            raise InvalidRequestError(
                "allowed_token_ids holds only ids that min_tokens or ignore_eos rules out; it must hold one that may be chosen.",
                param="allowed_token_ids",
            )

    def _probes(self, request: GenerationRequest) -> tuple[str, ...]:
        for name in request.probes:
            if name not in self.engine.probes:
                known = ", ".join(self.engine.probes) or "none; --probe loads one"
                raise InvalidRequestError(f"probes has {name[:50]!r}; this model has {known}.", param="probes")
        return tuple(request.probes)

    def _thinking(self, request: GenerationRequest) -> dict[str, Any]:
        """The parameters that say how to think."""
        depth, temperature = self._thought_depth(request), self._thought_temperature(request)
        count, most = request.num_thoughts, self.engine.max_num_thoughts
        if count > most:
            raise InvalidRequestError(
                f"num_thoughts is {count}; it must be between 1 and {most}.", param="num_thoughts"
            )
        if count > 1 and not depth:
            raise InvalidRequestError(
                f"num_thoughts is {count}, but at thought_depth 0 there are none.", param="num_thoughts"
            )
        if count > 1 and temperature == 0:
            raise InvalidRequestError(
                f"num_thoughts is {count}, but at thought_temperature 0 all thoughts are the same; raise it.",
                param="num_thoughts",
            )
        threshold = DEFAULT_THRESHOLD if request.thought_threshold is None else request.thought_threshold
        return {
            "thought_depth": depth,
            "thought_temperature": temperature,
            "num_thoughts": count,
            "thinking_token_budget": None if request.thinking_token_budget == -1 else request.thinking_token_budget,
            "thought_threshold": threshold if request.thought_mode == "adaptive" else None,
        }

    def _max_tokens(self, request: GenerationRequest, prompt: Prompt, between: tuple[int, ...]) -> int:
        """Visible tokens of each turn. Raises ContextLengthError where all of them do not fit behind the prompt."""
        turns, most = 1 + request.self_correction_turns, self.engine.max_model_len
        used = len(prompt.ids) + (turns - 1) * len(between)
        asked, room = request.token_limit, (most - used) // turns
        if asked is None and room > 0:
            return room if isinstance(request, ChatRequest) else min(room, DEFAULT_COMPLETION_TOKENS)
        if asked is not None and asked <= room:
            return asked
        where = "messages" if isinstance(request, ChatRequest) else "prompt"
        least = turns * (1 if asked is None else asked)  # something must be left for an answer
        wanted = f", {'at least ' * (asked is None)}{least} in the completion"
        wanted += f", {used - len(prompt.ids)} between its {turns} turns" if turns > 1 else ""
        raise ContextLengthError(
            f"This model's maximum context length is {most} tokens. However, you requested {used + least} "
            f"tokens ({len(prompt.ids)} in the {where}{wanted}). Please reduce the length of the {where} or completion.",
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


def check_length(engine: "Engine", text: str, param: str) -> None:
    """Raises ContextLengthError where a text is certain not to fit; to read it might take seconds."""
    if (least := engine.tokens.least(text)) > engine.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {engine.max_model_len} tokens. However, you requested at least "
            f"{least} tokens in the {param}. Please reduce the length of the {param}.",
            param=param,
        )


def _check_random(turns: Iterable[SamplingParams]) -> None:
    """Raises InvalidRequestError where all answers would be the same."""
    if all(how.temperature == 0 and (how.thought_depth == 0 or how.thought_temperature == 0) for how in turns):
        raise InvalidRequestError(
            "best_of asks for the best of several answers, but at temperature 0 all are the same; raise it.",
            param="best_of",
        )


def attempt_seed(seed: int, sample: int, turn: int = 0) -> int:
    """The seed of one attempt: 64 bits that depend on nothing but the request's seed and the attempt's place in it."""
    parts = b"".join((part % 2**64).to_bytes(8, "little") for part in (seed, sample, turn))
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "little")


def _prompt_logprobs(request: GenerationRequest) -> int | None:
    """Alternatives to score for each prompt token: the most that any field asks for."""
    asked = [request.prompt_logprobs, request.num_logprobs if _echoes(request) else None]
    return max((count for count in asked if count is not None), default=None)


def _echoes(request: GenerationRequest) -> bool:
    return isinstance(request, CompletionRequest) and request.echo


def as_template_reads(message: Message) -> dict[str, str]:
    """A message as chat templates expect it: the content one string, only the fields that were sent."""
    content = message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
    role = "system" if message.role == "developer" else message.role
    sent = {"name": message.name, "reasoning": message.reasoning, "reasoning_content": message.reasoning_content}
    return {"role": role, "content": content, **{key: text for key, text in sent.items() if text is not None}}
