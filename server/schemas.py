"""The bodies of requests: null is unset everywhere, and what is not honoured is refused."""

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_PROMPTS = 2048

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _invalid(message: str, param: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "param": param})


def _unsupported(message: str, param: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message, "param": param})


def _quoted(key: str) -> str:
    """A client's key on one short line, whatever it holds."""
    return key if key.isidentifier() and len(key) <= 64 else repr(key[:64])


def _wanted(description: str) -> WrapValidator:
    """One message for a whole field, in place of a complaint for each member of its type."""

    def validate(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("wanted", "Input should be {wanted}", {"wanted": description}) from None

    return WrapValidator(validate)


def _only(*neutral: Any) -> BeforeValidator:
    """For a field that is not built: it may say what holds anyway, and nothing else."""
    allowed = f"this server supports only {neutral[0]!r}" if neutral else "this server does not support this parameter"

    def validate(value: Any) -> Any:
        if not any(type(value) is type(same) and value == same for same in neutral):
            raise _unsupported(allowed)
        return value

    return BeforeValidator(validate)


class Body(BaseModel):
    """A JSON object from a client: strict types, no unknown key, null is unset."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        present = {key: value for key, value in values.items() if value is not None}
        for key in present:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key[:64], cls.model_fields, n=1, cutoff=0.75)
                raise _unsupported("unknown field" + (f"; did you mean {near[0]!r}?" if near else ""), _quoted(key))
        return present


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    continuous_usage_stats: Annotated[Any, _only(False)] = None


class ChatTemplateKwargs(Body):
    """Arguments of the chat template; the one we know is about thinking."""

    enable_thinking: bool | None = None


_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[int, Field(ge=0)]
_Stop = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[_TokenId], Field(min_length=1)]
_Stops = Annotated[
    _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)],
    _wanted(f"a string or a list of at most {MAX_STOPS} strings, none of them empty"),
]
_Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _Bias],
    _wanted("a map from token ids to biases between -100 and 100"),
]
_Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    _wanted("a map of at most 16 strings"),
]
_Prompts = Annotated[
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | _Ids
    | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)],
    _wanted("a string, a list of strings, a list of token ids, or a list of lists of token ids, none of them empty"),
]


class GenerationRequest(Body):
    """What completions and chat have in common."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    min_tokens: int = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=2)
    logit_bias: _Biases = {}
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _Stops = []
    stop_token_ids: list[_TokenId] = []
    ignore_eos: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: _Metadata | None = None

    thought_depth: int | None = Field(None, ge=0)
    thought_temperature: float | None = Field(None, ge=0, le=2)
    num_thoughts: int = Field(1, ge=1)
    thought_mode: Literal["fixed", "adaptive", "off"] = "fixed"
    thought_threshold: float | None = Field(None, ge=0)
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    include_reasoning: bool = False
    return_thoughts: bool = False

    best_of: int | None = None
    thinking_token_budget: Annotated[Any, _only(-1)] = None
    self_correction_turns: Annotated[Any, _only(0)] = None
    self_correction_prompt: Annotated[Any, _only()] = None
    return_drafts: Annotated[Any, _only(False)] = None
    voting: Annotated[Any, _only("none")] = None
    ranker: Annotated[Any, _only()] = None
    answer_pattern: Annotated[Any, _only()] = None
    return_samples: Annotated[Any, _only(False)] = None
    probes: Annotated[Any, _only([])] = None
    timeout_s: Annotated[Any, _only()] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none")] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none")] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.best_of not in (None, 1, self.n):
            raise _unsupported("this server supports only the value of n", "best_of")
        if self.thought_threshold is not None and self.thought_mode != "adaptive":
            raise _invalid("only thought_mode 'adaptive' has a threshold", "thought_threshold")
        if self.thought_mode == "off" and self.thought_depth:
            raise _invalid(f"thought_mode is 'off', but thought_depth is {self.thought_depth}", "thought_mode")
        if self.stream_options and not self.stream:
            raise _invalid("only a stream has stream_options; set stream to true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise _invalid("a stream cannot carry prompt_logprobs", "prompt_logprobs")
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
    def include_usage(self) -> bool:
        """The stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: _Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    suffix: Annotated[Any, _only("")] = None

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.token_limit == 0 and not self.echo:
            raise _invalid("0 tokens can be asked for only with echo", "max_tokens")
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


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise _invalid("set logprobs to true to get top_logprobs", "top_logprobs")
        if self.token_limit == 0:
            raise _invalid("at least 1 token must be asked for", "max_tokens")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return self.top_logprobs if self.logprobs else None
