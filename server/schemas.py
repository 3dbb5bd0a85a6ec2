"""The bodies of requests: null is unset everywhere; what we know and do not honour is refused, what we do not know is told."""

import difflib
from functools import cache, lru_cache
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema, no_info_before_validator_function

from ..model.answers import finder
from ..model.tokens import is_writable
from ..model.voting import Strategy
from .complaints import UNSUPPORTED

MAX_CHOICES = 1024  # of one prompt; a server allows fewer
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_PROMPTS = 2048
MAX_STOP_IDS = 1024
MAX_ALLOWED_IDS = 1024
MAX_BIASES = 1024
MAX_PROBES = 16
MAX_UNKNOWN = 64  # fields, of an object and of a list of them; each is compared with all that we know
MAX_PIECES = 4096  # messages and their parts, which are read while everybody waits
MAX_COUNT = 2**31 - 1  # of anything
MAX_VOTED = 2**20  # characters of all candidates of a vote
DEFAULT_PATTERN = "full_text"  # of answers that vote

_NEAR = 0.81  # likeness from which a key that we do not know is taken for a slip of the pen

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _invalid(message: str, param: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "param": param})


def _unsupported(message: str, param: str | None = None) -> PydanticCustomError:
    return PydanticCustomError(UNSUPPORTED, "{message}", {"message": message, "param": param})


def _quoted(key: str) -> str:
    """A client's key on one short line of ASCII, whatever it holds."""
    return key if key.isidentifier() and key.isascii() and len(key) <= 64 else ascii(key[:64])


def _wanted(description: str) -> WrapValidator:
    """One message for a whole field, in place of a complaint for each member of its type."""

    def validate(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("wanted", "Input should be {wanted}", {"wanted": description}) from None

    return WrapValidator(validate)


def _whole(value: Any) -> Any:
    """8.0 is the number 8: JSON has one kind, and some languages write all of theirs so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_ids(value: Any) -> Any:
    """The same for a list of ids, which is long: it is looked through, and seldom written anew."""
    floats = isinstance(value, list) and float in set(map(type, value))
    return [_whole(member) for member in value] if floats else value


def _whole_members(value: Any) -> Any:
    """The same for a list of ids, or a list of those."""
    nested = isinstance(value, list) and list in set(map(type, value))
    return [_whole_ids(member) for member in value] if nested else _whole_ids(value)


def _at_most(count: int) -> BeforeValidator:
    """A map of so many, counted before any is looked at: pydantic counts last."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"more than {count}")
        return value

    return BeforeValidator(check)


def _checked_pattern(pattern: str) -> str:
    try:
        finder(pattern)
    except ValueError as error:
        raise _invalid(str(error)) from None
    return pattern


def _different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("two are the same")
    return names


_Members = BeforeValidator(_whole_members)


class _Only:
    """For a field that is not built: it may say what holds anyway, and nothing else."""

    def __init__(self, *neutral: Any) -> None:
        self.neutral = neutral

    def check(self, value: Any) -> Any:
        """The value, if it changes nothing."""
        if any(type(value) is type(same) and value == same for same in self.neutral):
            return value
        only = f"only {self.neutral[0]!r}" if self.neutral else None
        raise _unsupported(f"this server supports {only}" if only else "this server does not support this parameter")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [*self.neutral, None]}


class Body(BaseModel):
    """A JSON object from a client: strict types, null is unset, keys that we do not know stay in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
    elsewhere: ClassVar[frozenset[str]] = frozenset()  # keys that another endpoint has, and this one does not

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        present = {key: value for key, value in values.items() if value is not None}
        unknown = present.keys() - cls.model_fields.keys()
        if len(unknown) > MAX_UNKNOWN:
            raise _unsupported(f"more than {MAX_UNKNOWN} unknown fields", _quoted(min(unknown)))
        for key in unknown:
            if not is_writable(key):
                raise _unsupported("no field has such a name", _quoted(key))
            if key in cls.elsewhere:
                raise _unsupported("this endpoint does not have this field", key)
            if near := _near(cls, key[:64]):
                raise _unsupported(f"unknown field; did you mean {near!r}?", _quoted(key))
        whole = _whole_fields(cls)
        return {key: _whole(value) if key in whole else value for key, value in present.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What is not required may be null."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, told in schema.get("properties", {}).items():
            nullable = {"type": "null"} in told.get("anyOf", []) or None in told.get("enum", [])
            if name not in schema.get("required", []) and not nullable:
                outer = {key: told.pop(key) for key in ("title", "description", "default") if key in told}
                schema["properties"][name] = {"anyOf": [told, {"type": "null"}], **outer}
        return schema

    def ignored(self) -> list[str]:
        """The keys that mean nothing to us, here and in the objects below, as one writes them: `messages[0].audio`."""
        names = [_quoted(key) for key in self.model_extra or {}]
        for field in sorted(self.model_fields_set & type(self).model_fields.keys()):
            value = getattr(self, field)
            for place, part in [("", value)] if isinstance(value, Body) else _bodies(value):
                names += [f"{field}{place}.{name}" for name in part.ignored()]
        return names


@lru_cache(maxsize=4096)  # the same ones stand in every message
def _near(kind: type[Body], key: str) -> str | None:
    """The field that a key seems to mean."""
    return next(iter(difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=_NEAR)), None)


@cache
def _whole_fields(kind: type[Body]) -> frozenset[str]:
    return frozenset(name for name, field in kind.model_fields.items() if field.annotation in (int, int | None))


def _bodies(value: Any) -> "list[tuple[str, Body]]":
    parts = enumerate(value) if isinstance(value, list) else ()
    return [(f"[{i}]", part) for i, part in parts if isinstance(part, Body)]


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="after")
    def _check_usage(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise _invalid("only a stream with include_usage has these", "continuous_usage_stats")
        return self


class ChatTemplateKwargs(Body):
    """Arguments of the chat template; the one we know is about thinking."""

    enable_thinking: bool | None = None


_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
_Stop = Annotated[str, Field(min_length=1)]
# Described and not checked here: what reads prompts says better what is wrong with an empty one.
_Text = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]
# All 64-bit ones, signed or not, in bounds that those who read decimals as floats hold exactly.
_Seed = Field(None, ge=-(10**19), le=10**19)
# One complaint is enough, of a list that may be millions long.
_Ids = Annotated[list[_TokenId], Field(min_length=1, fail_fast=True)]
_Stops = Annotated[
    _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)],
    _wanted(f"a string or a list of at most {MAX_STOPS} strings, none of them empty"),
]
_Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _Bias],
    _at_most(MAX_BIASES),
    _wanted(f"a map from token ids to biases between -100 and 100, at most {MAX_BIASES}"),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
_Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    _at_most(16),
    _wanted("a map of at most 16 strings"),
]
_Instruction = Annotated[str, Field(pattern=r"\S"), _wanted("a string that is not blank")]
_Pattern = Annotated[str, Field(min_length=1), AfterValidator(_checked_pattern)]
_Probes = Annotated[
    list[str],
    Field(max_length=MAX_PROBES),
    AfterValidator(_different),
    _wanted(f"a list of at most {MAX_PROBES} names of probes, all different"),
]
_AllowedIds = Annotated[list[_TokenId], Field(min_length=1, max_length=MAX_ALLOWED_IDS, fail_fast=True), _Members]
_Prompts = Annotated[
    _Text
    | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | _Ids
    | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)],
    _wanted("a string, a list of strings, a list of token ids, or a list of lists of token ids, none of them empty"),
    _Members,
]


class GenerationRequest(Body):
    """What completions and chat have in common."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    max_completion_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    min_tokens: int = Field(0, ge=0, le=MAX_COUNT)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=MAX_COUNT)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=2)
    logit_bias: _Biases = {}
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = _Seed
    stop: _Stops = []
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=MAX_STOP_IDS, fail_fast=True), _Members] = []
    ignore_eos: bool = False
    allowed_token_ids: _AllowedIds | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: _Metadata | None = None

    thought_depth: int | None = Field(None, ge=0, le=MAX_COUNT)
    thought_temperature: float | None = Field(None, ge=0, le=2)
    num_thoughts: int = Field(1, ge=1, le=MAX_COUNT)
    thought_mode: Literal["fixed", "adaptive", "off"] = "fixed"
    thought_threshold: float | None = Field(None, ge=0)
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    include_reasoning: bool = False
    return_thoughts: bool = False

    thinking_token_budget: int | None = Field(None, ge=-1, le=MAX_COUNT)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    timeout_s: float | None = Field(None, gt=0)

    self_correction_turns: int = Field(0, ge=0, le=MAX_COUNT)
    self_correction_prompt: _Instruction | None = None
    return_drafts: bool = False

    voting: Literal["none", "majority", "likelihood", "ranker"] = "none"
    ranker: str | None = None
    answer_pattern: _Pattern | None = None
    return_samples: bool = False

    probes: _Probes = []

    response_format: Annotated[Any, _Only({"type": "text"})] = None
    tools: Annotated[Any, _Only([])] = None
    tool_choice: Annotated[Any, _Only("none")] = None
    functions: Annotated[Any, _Only([])] = None
    function_call: Annotated[Any, _Only("none")] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise _invalid(f"best_of is {self.best_of}; it must be at least n, {self.n}", "best_of")
        if self.thought_threshold is not None and self.thought_mode != "adaptive":
            raise _invalid("only thought_mode 'adaptive' has a threshold", "thought_threshold")
        if self.thought_mode == "off" and self.thought_depth:
            raise _invalid(f"thought_mode is 'off', but thought_depth is {self.thought_depth}", "thought_mode")
        if self.stream_options and not self.stream:
            raise _invalid("only a stream has stream_options; set stream to true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise _invalid("a stream cannot carry prompt_logprobs", "prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _check_correction(self) -> Self:
        if self.self_correction_prompt and not self.self_correction_turns:
            raise _invalid("only a request with self_correction_turns has one", "self_correction_prompt")
        if self.return_drafts and not self.self_correction_turns:
            raise _invalid("only a request with self_correction_turns has drafts", "return_drafts")
        if self.self_correction_turns and self.prompt_logprobs is not None:
            raise _invalid("a request with self_correction_turns cannot carry prompt_logprobs", "prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _check_voting(self) -> Self:
        if self.voting == "none":
            for name in ("ranker", "answer_pattern", "return_samples"):
                if getattr(self, name):
                    raise _invalid("only a request with voting has one", name)
        elif (self.best_of or 1) < 2:
            raise _invalid(f"voting is {self.voting!r}: best_of, the answers that vote, must be 2 or more", "best_of")
        if self.ranker and self.voting != "ranker":
            raise _invalid("only voting 'ranker' has one", "ranker")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most visible tokens of a choice, where the request says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_samples(self) -> int:
        """Answers drawn for each prompt, of which `n` are returned."""
        return self.best_of or self.n

    @property
    def include_usage(self) -> bool:
        """The stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    elsewhere = frozenset({"messages", "top_logprobs"})

    prompt: _Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    suffix: Annotated[Any, _Only("")] = None

    @model_validator(mode="after")
    def _check_echo(self) -> Self:
        if self.token_limit == 0 and not self.echo:
            raise _invalid("0 tokens can be asked for only with echo", "max_tokens")
        if self.self_correction_turns and self.echo:
            raise _invalid("a request with self_correction_turns cannot echo its prompt", "echo")
        if self.return_samples and len(self.prompts) > 1:
            raise _invalid("only a request with one prompt has one", "return_samples")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[return-value]

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return self.logprobs


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation; a name and earlier reasoning are for the chat template to use."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], _wanted("a string or a list of text parts")]
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[Any, _Only([])] = None
    function_call: Annotated[Any, _Only()] = None


def _bounded(pieces: Any) -> Any:
    """A list of objects that may have parts, unless to look through all of it would take long."""
    if not isinstance(pieces, list):
        return pieces
    contents = [piece.get("content") for piece in pieces[: MAX_PIECES + 1] if isinstance(piece, dict)]
    parts = [content for content in contents if isinstance(content, list)]
    if len(pieces) + sum(map(len, parts)) > MAX_PIECES:
        raise _invalid(f"there may be {MAX_PIECES}, their parts counted too")
    every = [*pieces, *chain.from_iterable(parts)]
    names = {name for one in every if isinstance(one, dict) for name, value in one.items() if value is not None}
    unknown = names - Message.model_fields.keys() - TextPart.model_fields.keys() - VoteCandidate.model_fields.keys()
    if len(unknown) > MAX_UNKNOWN:
        raise _unsupported(f"more than {MAX_UNKNOWN} unknown fields")
    return pieces


_Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_PIECES), BeforeValidator(_bounded)]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    elsewhere = frozenset({"prompt", "suffix", "echo"})

    messages: _Messages
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise _invalid("set logprobs to true to get top_logprobs", "top_logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return self.top_logprobs if self.logprobs else None


class _OfText(Body):
    """A text, or a conversation as the chat endpoint renders it."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [one], "properties": {one: {"type": kind}, other: {"type": "null"}}}
                for one, kind, other in (("prompt", "string", "messages"), ("messages", "array", "prompt"))
            ]
        }
    )

    model: str | None = None
    prompt: str | None = None
    messages: _Messages | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise _invalid("give either a prompt or messages", "prompt")
        return self


class TokenizeRequest(_OfText):
    """POST /tokenize."""

    add_special_tokens: bool = True  # to a text; a conversation's are its template's
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[_TokenId], Field(fail_fast=True), _Members]


def _writable(text: str) -> str:
    if not is_writable(text):
        raise _invalid("half a character cannot be written")
    return text


class ScoreRequest(_OfText):
    """POST /v1/score: answers to one question, for a trained ranker to judge."""

    elsewhere = frozenset({"best_of", "voting", "answer_pattern"})

    candidates: Annotated[list[Annotated[str, AfterValidator(_writable)]], Field(min_length=1, max_length=MAX_CHOICES)]
    ranker: str | None = None


class VoteCandidate(Body):
    """An answer that votes."""

    text: Annotated[str, AfterValidator(_writable)]
    logprob: float | None = Field(None, ge=-1e9, le=0)  # of all its tokens
    mean_logprob: float | None = Field(None, ge=-1e9, le=0)  # of one of them; without it ties go by `logprob`
    score: float | None = Field(None, ge=0, le=1)


_Candidate = Annotated[
    VoteCandidate,
    BeforeValidator(lambda given: {"text": given} if isinstance(given, str) else given, str | VoteCandidate),
]


class VoteRequest(Body):
    """POST /v1/vote: answers that somebody has."""

    elsewhere = frozenset({"n", "best_of", "ranker", "return_samples"})

    model: str | None = None
    candidates: Annotated[list[_Candidate], Field(min_length=1, max_length=MAX_CHOICES), BeforeValidator(_bounded)]
    voting: Strategy = "majority"
    answer_pattern: _Pattern | None = None

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if sum(len(candidate.text) for candidate in self.candidates) > MAX_VOTED:
            raise _invalid(f"all texts together may have {MAX_VOTED} characters", "candidates")
        needed = {"majority": None, "likelihood": "logprob", "ranker": "score"}[self.voting]
        for number, candidate in enumerate(self.candidates):
            if needed and getattr(candidate, needed) is None:
                raise _invalid(f"voting is {self.voting!r}: candidate {number} must have a {needed}", "candidates")
        return self
