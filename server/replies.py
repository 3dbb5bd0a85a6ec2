"""The bodies of replies. They are written without the fields that were not set."""

from typing import Literal

from pydantic import BaseModel
from typing_extensions import TypedDict  # typing's own is not for pydantic before Python 3.12

from ..model.voting import Strategy

FinishReason = Literal["stop", "length", "abort"]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorBody


class UsageDetails(BaseModel):
    """Parts of `completion_tokens`; the rest is what the reply's answers show."""

    reasoning_tokens: int  # hidden ones, of all answers that were drawn
    draft_tokens: int  # visible ones of earlier turns
    discarded_tokens: int  # visible ones of answers that were drawn and are not returned


class Usage(BaseModel):
    """Tokens read, and every token decoded: visible ones and thoughts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: UsageDetails


class Timings(BaseModel):
    """What a request took. Of several answers: from the first to begin to the last to end, one after the other or not."""

    queue_time_ms: float | None = None
    time_to_first_token_ms: float | None = None  # hidden or visible
    time_to_first_output_token_ms: float | None = None
    generation_time_ms: float | None = None
    thought_time_ms: float | None = None  # in forwards that thought, of the answer that thought longest
    ranker_time_ms: float | None = (
        None  # from the end of the last answer to the scores of all, where a trained ranker votes
    )
    tokens_per_second: float | None = None  # visible ones
    forwards_per_token: float | None = None
    acceptance_rate: float | None = None  # drafts that were decided as drafted


class ThoughtReply(BaseModel):
    """What was thought before the choice's visible token number `position`."""

    position: int
    token: str
    thought: str
    token_ids: list[int]
    mixing_weight: float
    thought_index: int


# "class" is no name for a field of a class
ReadoutReply = TypedDict("ReadoutReply", {"class": str, "probability": float})


class ProbeReply(BaseModel):
    """What probes read in the state that chose the choice's visible token number `position`; null: nothing to say of it."""

    position: int
    token: str
    readouts: dict[str, ReadoutReply | None]


class PromptLogprob(BaseModel):
    """A prompt token, or an alternative to it; the rank is known among those reported."""

    logprob: float
    rank: int | None
    decoded_token: str


class DraftReply(BaseModel):
    """What an earlier turn said."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    thoughts: list[ThoughtReply] = []
    probes: list[ProbeReply] = []


class SelfCorrection(BaseModel):
    """How often a choice was answered again, and whether the last turn says something else than the first."""

    turns_run: int
    changed: bool
    turns: list[DraftReply] = []  # but the last


class GroupReply(BaseModel):
    """Those who gave one answer."""

    answer: str
    count: int
    weight: float  # share of all weight that was cast
    score: float | None = None  # a ranker's, of the one that speaks for them
    sample_indices: list[int]  # the one that speaks for them first


class SampleReply(BaseModel):
    """One that voted."""

    index: int
    answer: str | None
    text: str
    finish_reason: FinishReason
    num_tokens: int
    logprob: float | None  # of all its tokens
    mean_logprob: float | None
    score: float | None = None


class VotingReply(BaseModel):
    """A vote; the winner's group first."""

    strategy: Strategy
    ranker: str | None = None
    num_samples: int  # that ended: fewer than were asked for where the rest could not change the winner
    num_valid: int  # that had an answer
    agreement: float  # share of those who gave the one that won
    tie: bool
    groups: list[GroupReply]
    samples: list[SampleReply] = []


# A field with a default is one that only some requests ask for.
class _Choice(BaseModel):
    index: int
    finish_reason: FinishReason | None
    thoughts: list[ThoughtReply] = []
    probes: list[ProbeReply] = []
    token_ids: list[int] = []
    self_correction: SelfCorrection | None = None
    vote: GroupReply | None = None


class CompletionLogprobs(BaseModel):
    """Four lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Choice):
    """One text, or a piece of one."""

    text: str
    logprobs: CompletionLogprobs | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    prompt_token_ids: list[int] = []
    prompt_logprobs: list[dict[str, PromptLogprob] | None] = []


class CompletionReply(BaseModel):
    """POST /v1/completions; of a stream, each event."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    metrics: Timings = Timings()
    voting: VotingReply | None = None
    warnings: list[str] = []


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A decided token and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry a token."""

    content: list[ChatLogprob]


class ChatMessage(BaseModel):
    """The answer, or a piece of it."""

    role: Literal["assistant"] | None = None
    content: str
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatChoice(_Choice):
    """One answer."""

    message: ChatMessage
    logprobs: ChatLogprobs | None


class ChatChunkChoice(_Choice):
    """A piece of one answer."""

    delta: ChatMessage
    logprobs: ChatLogprobs | None


class ChatReply(BaseModel):
    """POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] = []
    prompt_logprobs: list[dict[str, PromptLogprob] | None] = []
    metrics: Timings = Timings()
    voting: VotingReply | None = None
    warnings: list[str] = []


class ChatChunk(BaseModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] = []
    metrics: Timings = Timings()
    voting: VotingReply | None = None
    warnings: list[str] = []


class ProbeDescription(BaseModel):
    """A probe: what it tells apart, the mean of which layers' states it reads, and of which token it speaks."""

    name: str
    property: str
    classes: list[str]
    layers: list[int]  # 0 is the embeddings
    offset: int  # in labelled tokens from the one that the state chose


class Capabilities(BaseModel):
    """What may be asked of a model."""

    thinking: bool
    max_thought_depth: int
    max_num_thoughts: int
    max_best_of: int
    max_self_correction_turns: int
    self_correction: bool
    rankers: list[str]
    probes: list[ProbeDescription]


class ModelReply(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["quietserve"] = "quietserve"
    parent: str | None
    max_model_len: int
    capabilities: Capabilities


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


class TokenizeReply(BaseModel):
    """POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(BaseModel):
    """POST /detokenize."""

    prompt: str


class ScoreItem(BaseModel):
    """How likely one candidate is to be right."""

    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreUsage(BaseModel):
    """Tokens read: the question counts once with every candidate."""

    prompt_tokens: int
    total_tokens: int


class ScoreReply(BaseModel):
    """POST /v1/score."""

    object: Literal["list"] = "list"
    model: str
    ranker: str
    data: list[ScoreItem]
    usage: ScoreUsage


class CancelReply(BaseModel):
    """POST /v1/requests/{id}/cancel."""

    id: str
    cancelled: Literal[True] = True
