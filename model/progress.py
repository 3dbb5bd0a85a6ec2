"""What decoding reports: decided tokens, the thoughts before them, and what became of an attempt."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """What was thought before one token."""

    token_ids: tuple[int, ...]
    mixing_weight: float


@dataclass(frozen=True, slots=True)
class Readout:
    """What a probe reads in the state that chose a token."""

    class_: str
    probability: float


@dataclass(frozen=True, slots=True)
class Token:
    """One decided token: of the output, or of a prompt that is scored."""

    id: int
    # Under the mixed distribution before temperature; None unless asked for, and for a text's first.
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    thoughts: tuple[ThoughtRecord, ...] = ()  # the parallel thoughts before it; none at depth 0 and where it was sure
    probes: tuple[tuple[str, Readout | None], ...] = ()  # those asked for, by name; None: it has nothing to say of it


@dataclass(slots=True)
class Progress:
    """What one step decided for one attempt."""

    text: str = ""  # visible text that is certain now
    tokens: list[Token] = field(default_factory=list)  # visible tokens, an end-of-text token included
    prompt: list[Token] = field(default_factory=list)  # scored prompt tokens, in order; with params.prompt_logprobs
    finish_reason: str | None = None  # "stop", "length" or "error"; nothing follows it
    error: Exception | None = None  # why it ended with an error
    num_thought_tokens: int = 0  # of the thoughts before all these tokens, the prompt's included


@dataclass(slots=True)
class Counts:
    """What an attempt has cost and saved so far."""

    forwards: int = 0  # from the one that read the prompt's end
    accepted: int = 0  # drafts that were decided as drafted
    rejected: int = 0  # drafts that were decided otherwise
    dropped: int = 0  # drafts behind a rejected one
    thought: int = 0  # positions decided after thinking
    skipped: int = 0  # positions that an adaptive attempt was sure of
    looked_up: int = 0  # prompt tokens that were looked for in the slots
    reused: int = 0  # prompt tokens whose keys and values another attempt had left


@dataclass(slots=True)
class Generation:
    """The whole result of one attempt."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    num_thought_tokens: int = 0
    counts: Counts = field(default_factory=Counts)

    @property
    def logprobs(self) -> list[float]:
        """Of its tokens, where they were asked for."""
        return [token.logprob for token in self.tokens if token.logprob is not None]

    def add(self, news: Progress) -> None:
        """Take in what one step decided. Raises the error that ended it."""
        if news.error is not None:
            raise news.error
        self.text += news.text
        self.tokens += news.tokens
        self.prompt += news.prompt
        self.finish_reason = news.finish_reason or ""
        self.num_thought_tokens += news.num_thought_tokens
