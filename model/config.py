"""What a quiet model is, and what a request may ask of it."""

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Self


@dataclass(frozen=True)
class QuietConfig:
    """The thinking half of a checkpoint; `quiet_config.json` holds exactly these fields.

    Raises ValueError naming the field when a value is out of its range.
    """

    thought_depth: int = 8  # most sampled tokens between the markers, as trained: a server's default
    thought_temperature: float = 1.0  # of the thought's own sampling; 0 is greedy
    thought_stop_tokens: tuple[str, ...] = ()  # at which a thought ends itself; none: every thought is full length
    start_token: str = "<|startthought|>"  # the marker's name in the tokenizer; refused in prompts, never emitted
    end_token: str = "<|endthought|>"
    mixing_layers: Literal[1, 3] = 3  # linear layers in the mixing head
    mixing_input: Literal["both", "thought"] = "both"  # what the head reads: [h_base ; h_thought] or h_thought alone

    def __post_init__(self) -> None:
        depth, warmth, stops = self.thought_depth, self.thought_temperature, self.thought_stop_tokens
        check(type(depth) is int and depth >= 0, "thought_depth", depth, "a whole number, 0 or more")
        check(type(warmth) in (int, float) and 0 <= warmth <= 2, "thought_temperature", warmth, "between 0 and 2")
        texts = isinstance(stops, tuple) and all(isinstance(stop, str) for stop in stops)
        check(texts, "thought_stop_tokens", stops, "a list of strings")
        check(isinstance(self.start_token, str), "start_token", self.start_token, "a string")
        check(isinstance(self.end_token, str), "end_token", self.end_token, "a string")
        check(self.mixing_layers in (1, 3), "mixing_layers", self.mixing_layers, "1 or 3")
        check(self.mixing_input in ("both", "thought"), "mixing_input", self.mixing_input, "'both' or 'thought'")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from parsed JSON; an unknown key is an error."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
        stops = values.get("thought_stop_tokens", [])
        return cls(**{**values, "thought_stop_tokens": tuple(stops) if isinstance(stops, list) else stops})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of `from_dict`."""
        return {**asdict(self), "thought_stop_tokens": list(self.thought_stop_tokens)}


@dataclass(frozen=True)
class SamplingParams:
    """How one attempt is decoded. Every attempt has its own; nothing is shared across a batch."""

    max_tokens: int = 16  # visible tokens; 0 only scores the prompt
    min_tokens: int = 0  # visible tokens before an end may be chosen; a stop string must begin behind them
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # least probability as a share of the likeliest token's
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # counts the prompt too; the two above count the output alone
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] = ()  # visible tokens are chosen among these; none: among all
    probes: tuple[str, ...] = ()  # names of those that read what chose each visible token
    logprobs: int | None = None  # alternatives reported for each visible token; 0 reports the chosen token's alone
    prompt_logprobs: int | None = None  # the same for the prompt, scored with thoughts at every position
    thought_depth: int = 0  # 0: no thought at all, the plain base model
    thought_temperature: float = 1.0  # 0 is greedy
    thinking_token_budget: int | None = None  # hidden tokens in all; then it goes on without thoughts. None: no limit
    num_thoughts: int = 1  # parallel thoughts at each position; the distributions after them are averaged
    thought_threshold: float | None = None  # nats: think only where the base's entropy is at least this; None: always

    def __post_init__(self) -> None:
        check(self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
        check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "between 0 and max_tokens")
        check(0 <= self.temperature <= 2, "temperature", self.temperature, "between 0 and 2")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(self.top_k >= 0, "top_k", self.top_k, "0 or more")
        check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        check(-2 <= self.presence_penalty <= 2, "presence_penalty", self.presence_penalty, "between -2 and 2")
        check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", self.frequency_penalty, "between -2 and 2")
        check(0 < self.repetition_penalty <= 2, "repetition_penalty", self.repetition_penalty, "above 0 and at most 2")
        check(self.thought_depth >= 0, "thought_depth", self.thought_depth, "0 or more")
        check(0 <= self.thought_temperature <= 2, "thought_temperature", self.thought_temperature, "between 0 and 2")
        budget = self.thinking_token_budget
        check(budget is None or budget >= 0, "thinking_token_budget", budget, "0 or more")
        check(self.num_thoughts >= 1, "num_thoughts", self.num_thoughts, "1 or more")
        check(
            self.thought_threshold is None or self.thought_threshold >= 0,
            "thought_threshold",
            self.thought_threshold,
            "0 or more",
        )

    @cached_property
    def worked_out(self) -> dict[Any, Any]:
        """What whoever decodes by them keeps, so as to work it out once for all tokens; it is no part of their value."""
        return {}

    def banned(self, num_output: int, eos_ids: frozenset[int]) -> frozenset[int]:
        """Ids that may not be chosen behind so many visible tokens."""
        if num_output < self.min_tokens:
            return eos_ids | frozenset(self.stop_token_ids)
        return eos_ids if self.ignore_eos else frozenset()

    def leaves_nothing(self, eos_ids: frozenset[int]) -> bool:
        """All ids that are allowed may not be chosen at first."""
        return bool(self.allowed_token_ids) and self.banned(0, eos_ids).issuperset(self.allowed_token_ids)


def check(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError that names a field, its value and what would be allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
