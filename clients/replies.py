"""What comes back from a server. What a reply does not say is None, False or empty; `raw` has all that it does say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Thought:
    """The hidden text behind one visible token; `position` counts the tokens of the answer from 0.

    Thoughts of a prompt that was scored count down to -1, its last token.
    """

    position: int
    token: str
    thought: str
    token_ids: tuple[int, ...]
    mixing_weight: float
    thought_index: int


@dataclass(frozen=True)
class Readout:
    """The class that a probe holds likeliest, by the state that chose a token, and how likely."""

    class_: str
    probability: float


@dataclass(frozen=True)
class Probed:
    """What probes read of one visible token, by their names; None where a probe has nothing to say of such a token."""

    position: int
    token: str
    readouts: Mapping[str, Readout | None]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the likeliest ones in its place; the first token of a scored text has no log-probability."""

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Usage:
    """Token counts; `completion_tokens` is every token that was decoded.

    Args:
        reasoning_tokens: hidden in thoughts.
        draft_tokens: visible ones of turns that self-correction replaced.
        discarded_tokens: visible ones of answers that were drawn and not returned.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int = 0
    draft_tokens: int = 0
    discarded_tokens: int = 0


@dataclass(frozen=True)
class Metrics:
    """How long a request took, and how well the server guessed ahead of its thoughts."""

    queue_time_ms: float | None = None
    time_to_first_token_ms: float | None = None
    time_to_first_output_token_ms: float | None = None
    generation_time_ms: float | None = None
    thought_time_ms: float | None = None
    tokens_per_second: float | None = None
    forwards_per_token: float | None = None
    acceptance_rate: float | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a self-correction before the last; its `thoughts` are listed where `return_thoughts` asked for them.

    Its `probes` are, where the request had some.
    """

    text: str
    finish_reason: str
    num_tokens: int
    thoughts: tuple[Thought, ...]
    raw: Raw = field(repr=False, compare=False)
    probes: tuple[Probed, ...] = ()


@dataclass(frozen=True)
class SelfCorrection:
    """How an answer was corrected; `turns` are listed where `return_drafts` asked for them."""

    turns_run: int
    changed: bool
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Vote:
    """One answer and the samples that gave it."""

    answer: str | None
    count: int | None
    weight: float | None
    score: float | None
    sample_indices: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One of the texts voted over; `answer` is None where none could be found in it, so that it abstained."""

    index: int | None
    text: str
    answer: str | None
    raw: Raw = field(repr=False, compare=False)


@dataclass(frozen=True)
class Voting:
    """How a vote went; `samples` are listed where `return_samples` asked for them."""

    strategy: str | None
    ranker: str | None
    num_samples: int | None
    num_valid: int | None
    agreement: float | None
    tie: bool
    groups: tuple[Vote, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of an answer, or all of it.

    Args:
        index: which of the answers asked for.
        reasoning: the text of its thoughts, empty unless `include_reasoning` asked for it.
        thoughts: empty unless `return_thoughts` asked for them.
        probes: one for each token, empty unless `probes` asked for some.
        logprobs: empty unless `logprobs` asked for them.
    """

    index: int
    text: str
    reasoning: str = ""
    thoughts: tuple[Thought, ...] = ()
    probes: tuple[Probed, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    self_correction: SelfCorrection | None = None
    vote: Vote | None = None


@dataclass(frozen=True, kw_only=True)
class Choice(Piece):
    """One answer; it ended by itself (`stop`), at a limit (`length`) or because it was cancelled (`abort`)."""

    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Delta(Piece):
    """What one event of a stream adds to the answer `index`; it may add nothing to it, and only tell the usage."""

    finish_reason: str | None = None
    usage: Usage | None = None
    metrics: Metrics | None = None
    voting: Voting | None = None
    warnings: tuple[str, ...] = ()
    request_id: str | None = field(default=None, compare=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answers to a conversation or a prompt; `request_id` is what the server's log calls the request."""

    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    metrics: Metrics | None = None
    voting: Voting | None = None
    warnings: tuple[str, ...] = ()
    request_id: str | None = field(default=None, compare=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """Why the first answer ended."""
        return self.choices[0].finish_reason

    @property
    def thoughts(self) -> tuple[Thought, ...]:
        """The first answer's thoughts."""
        return self.choices[0].thoughts

    @property
    def probes(self) -> tuple[Probed, ...]:
        """What probes read of the first answer."""
        return self.choices[0].probes

    @property
    def reasoning(self) -> str:
        """The text of the first answer's thoughts."""
        return self.choices[0].reasoning


@dataclass(frozen=True)
class Probe:
    """A probe that a model has; `layers` are those whose states it averages, 0 the embeddings."""

    name: str
    property: str
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Capabilities:
    """What may be asked of a model."""

    thinking: bool = False
    max_thought_depth: int | None = None
    self_correction: bool = False
    rankers: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Model:
    """A served model; a preset has the model whose defaults it changes as its `parent`."""

    id: str
    parent: str | None
    max_model_len: int | None
    capabilities: Capabilities
    raw: Raw = field(repr=False, compare=False)

    @property
    def max_thought_depth(self) -> int | None:
        """The most that `thought_depth` may be."""
        return self.capabilities.max_thought_depth


@dataclass(frozen=True)
class Tokenization:
    """A text as a model reads it; `strings` are the tokens' own texts, where `return_token_strs` asked for them."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    max_model_len: int | None
