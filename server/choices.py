"""Choices as OpenAI's two endpoints shape them. A piece of a stream and a whole answer are written by the same code."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..model.tokens import TextStream
from .ballots import Answer
from .replies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    DraftReply,
    ProbeReply,
    PromptLogprob,
    ReadoutReply,
    SelfCorrection,
    ThoughtReply,
    Timings,
    TopLogprob,
    Usage,
    UsageDetails,
    VotingReply,
)
from .runs import Run
from .scheduler import Ticket
from .schemas import ChatRequest, CompletionRequest
from .votes import describe_ballot, describe_group

if TYPE_CHECKING:
    from ..model.progress import Generation, Progress, Readout, Token
    from ..model.tokens import Tokens

    Decided = Progress | Answer  # what one step decided, or all steps together

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; the number OpenAI uses

RequestT = TypeVar("RequestT", CompletionRequest, ChatRequest)
ReplyT = TypeVar("ReplyT", CompletionReply, ChatReply)
ChunkT = TypeVar("ChunkT", CompletionReply, ChatChunk)


class Writer(ABC, Generic[RequestT, ReplyT, ChunkT]):
    """Writes the replies to one request. Remembers how far each choice has got.

    Args:
        request: what was asked.
        run: its answers.
        tokens: gives tokens their text.
        model: the name it was asked under.
        request_id: becomes part of the reply's own id.
    """

    id_prefix: str

    def __init__(self, request: RequestT, run: Run, tokens: "Tokens", model: str, request_id: str) -> None:
        self.request: RequestT = request
        self.run = run
        self.tokens = tokens
        self.envelope: dict[str, Any] = {"id": self.id_prefix + request_id, "created": int(time.time()), "model": model}
        count = run.plan.num_choices
        self._positions = [0] * count
        self._num_scored = [0] * count  # of the prompt
        self._begun = [False] * count
        self._reasoned = [False] * count

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> ReplyT:
        """The reply that is not streamed."""

    @abstractmethod
    def chunk(self, index: int, decided: "Decided") -> ChunkT | None:
        """The event that tells what one step decided; None where there is nothing to tell yet."""

    @abstractmethod
    def usage_chunk(self) -> ChunkT:
        """The event that tells the usage, and nothing else."""

    def usage(self) -> Usage:
        """Every token so far; a prompt counts once, however many choices continue it."""
        prompt = sum(len(prompt.ids) for prompt in self.run.plan.prompts)
        hidden, drafts = self.run.num_thought_tokens, self.run.num_draft_tokens
        decoded = self.run.num_visible_tokens + drafts + hidden
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=decoded,
            total_tokens=prompt + decoded,
            completion_tokens_details=UsageDetails(
                reasoning_tokens=hidden, draft_tokens=drafts, discarded_tokens=self.run.num_discarded_tokens
            ),
        )

    def begin(self, index: int) -> bool:
        """True the first time it is asked about a choice."""
        begun, self._begun[index] = self._begun[index], True
        return not begun

    def ending(self) -> dict[str, Any]:
        """What a reply says of the whole request."""
        warnings = [f"{name} is not a parameter of this server and was ignored" for name in self.request.ignored()]
        return {
            "metrics": timings(self.run.tickets, self.run.ranker_s),
            **self._voting(),
            **({"warnings": warnings} if warnings else {}),
        }

    def _voting(self) -> dict[str, VotingReply]:
        voting, ballots = self.run.plan.voting, self.run.ballots
        if not voting or len(ballots) > 1:  # of several prompts, each choice has its own vote
            return {}
        return {"voting": describe_ballot(ballots[0], voting, self.request.return_samples)}

    def chunk_fields(self) -> dict[str, Any]:
        """What an event says beside its choice: the usage so far, where it was asked for; at the end, all the rest."""
        options = self.request.stream_options
        if options and options.include_usage:  # then every event has the field, and one more follows the last choice
            return {"usage": self.usage() if options.continuous_usage_stats else None}
        return {} if self.run.num_unfinished else self.ending()

    def asides(self, index: int, decided: "Decided") -> dict[str, Any]:
        """What a choice carries beside its text, as far as the request asks for it."""
        first, scored = self._positions[index], self._num_scored[index] - len(self.run.plan.prompt_of(index).ids)
        self._positions[index] += len(decided.tokens)
        self._num_scored[index] += len(decided.prompt)
        fields: dict[str, Any] = {}
        if self.request.return_thoughts:  # before the answer, positions count down to the prompt's last token, -1
            fields["thoughts"] = self._thoughts(scored, decided.prompt) + self._thoughts(first, decided.tokens)
        if self.request.probes:
            fields["probes"] = self._probes(first, decided.tokens)
        if self.request.return_token_ids:
            fields["token_ids"] = [token.id for token in decided.tokens]
        if self.request.self_correction_turns and decided.finish_reason:
            fields["self_correction"] = self._correction(self.run.ticket_of(index))
        if self.run.plan.voting and (group := self.run.group_of(index)):
            fields["vote"] = describe_group(group, self.run.plan.voting.strategy)
        return fields

    def reasoning(self, index: int, decided: "Decided") -> dict[str, Any]:
        """The thoughts before these tokens, one a line, empty ones left out; under both names that clients read."""
        if not self.request.include_reasoning:
            return {}
        records = (record for token in decided.tokens for record in token.thoughts)
        thoughts = (self.tokens.decode(record.token_ids).strip() for record in records)
        text = "\n".join(thought for thought in thoughts if thought)
        if text and self._reasoned[index]:
            text = "\n" + text
        self._reasoned[index] |= bool(text)
        return {"reasoning": text, "reasoning_content": text}

    def prompt_logprobs(self, answer: Answer) -> dict[str, Any]:
        """The scored prompt in vLLM's shape."""
        count = self.request.prompt_logprobs
        return {} if count is None else {"prompt_logprobs": [self._scored(token, count) for token in answer.prompt]}

    def _correction(self, ticket: Ticket) -> SelfCorrection:
        drafts = {"turns": list(map(self._draft, ticket.drafts))} if self.request.return_drafts else {}
        return SelfCorrection(turns_run=len(ticket.drafts), changed=ticket.changed, **drafts)

    def _draft(self, draft: "Generation") -> DraftReply:
        asides: dict[str, Any] = {}
        if self.request.return_thoughts:
            asides["thoughts"] = self._thoughts(0, draft.tokens)
        if self.request.probes:
            asides["probes"] = self._probes(0, draft.tokens)
        return DraftReply(
            text=draft.text,
            finish_reason=draft.finish_reason,  # type: ignore[arg-type]
            num_tokens=len(draft.tokens),
            **asides,
        )

    def _probes(self, first: int, tokens: "Iterable[Token]") -> list[ProbeReply]:
        return [
            ProbeReply(
                position=position,
                token=self.tokens.token_text(token.id),
                readouts={name: _readout(readout) for name, readout in token.probes},
            )
            for position, token in enumerate(tokens, first)
        ]

    def _thoughts(self, first: int, tokens: "Iterable[Token]") -> list[ThoughtReply]:
        return [
            ThoughtReply(
                position=position,
                token=self.tokens.token_text(token.id),
                thought=self.tokens.decode(record.token_ids),
                token_ids=list(record.token_ids),
                mixing_weight=record.mixing_weight,
                thought_index=index,
            )
            for position, token in enumerate(tokens, first)
            for index, record in enumerate(token.thoughts)
        ]

    def _scored(self, token: "Token", count: int) -> dict[str, PromptLogprob] | None:
        if token.logprob is None:
            return None
        ranks: dict[int, tuple[int | None, float]] = {}
        for rank, (id_, logprob) in enumerate(token.top_logprobs[:count], 1):
            ranks[id_] = rank, logprob
        ranks.setdefault(token.id, (None, token.logprob))
        return {
            str(id_): PromptLogprob(logprob=_finite(logprob), rank=rank, decoded_token=self.tokens.token_text(id_))
            for id_, (rank, logprob) in ranks.items()
        }


class CompletionWriter(Writer[CompletionRequest, CompletionReply, CompletionReply]):
    """Replies of /v1/completions."""

    id_prefix = "cmpl-"

    def __init__(self, request: CompletionRequest, run: Run, tokens: "Tokens", model: str, request_id: str) -> None:
        super().__init__(request, run, tokens, model, request_id)
        echoes, prompts = request.echo, map(run.plan.prompt_of, range(run.plan.num_choices))
        self._offsets = [0] * run.plan.num_choices
        self._streams = [TextStream(tokens, context=() if echoes else prompt.ids) for prompt in prompts]

    def whole(self, answers: Sequence[Answer]) -> CompletionReply:
        """The reply that is not streamed."""
        choices = [self._choice(i, answer, self.prompt_logprobs(answer)) for i, answer in enumerate(answers)]
        return self._reply(choices, usage=self.usage(), **self.ending())

    def chunk(self, index: int, decided: "Decided") -> CompletionReply | None:
        """The event that tells what one step decided; None where there is nothing to tell yet."""
        choice = self._choice(index, decided, {})
        told = choice.text, choice.finish_reason, choice.logprobs and choice.logprobs.tokens
        asides = choice.thoughts, choice.probes, choice.reasoning, choice.token_ids, choice.prompt_token_ids
        if any((*told, *asides)):
            return self._reply([choice], **self.chunk_fields())
        return None

    def usage_chunk(self) -> CompletionReply:
        """The event that tells the usage, and nothing else."""
        return self._reply([], usage=self.usage(), **self.ending())

    def _reply(self, choices: list[CompletionChoice], **fields: Any) -> CompletionReply:
        return CompletionReply(object="text_completion", choices=choices, **self.envelope, **fields)

    def _choice(self, index: int, decided: "Decided", fields: dict[str, Any]) -> CompletionChoice:
        text = decided.text
        if self.begin(index):
            if self.request.echo:
                text = self._prompt_text(index) + text
            if self.request.return_token_ids:
                fields["prompt_token_ids"] = list(self.run.plan.prompt_of(index).ids)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, decided),
            finish_reason=decided.finish_reason,  # type: ignore[arg-type]
            **self.asides(index, decided),
            **self.reasoning(index, decided),
            **fields,
        )

    def _prompt_text(self, index: int) -> str:
        prompt = self.run.plan.prompt_of(index)
        return self.tokens.decode(prompt.ids) if prompt.text is None else prompt.text

    def _logprobs(self, index: int, decided: "Decided") -> CompletionLogprobs | None:
        count = self.request.logprobs
        if count is None:
            return None
        tokens = [*decided.prompt, *decided.tokens] if self.request.echo else decided.tokens
        return CompletionLogprobs(
            tokens=[self.tokens.token_text(token.id) for token in tokens],
            token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
            top_logprobs=[self._top(token, count) for token in tokens],
            text_offset=[self._advance(index, token) for token in tokens],
        )

    def _top(self, token: "Token", count: int) -> dict[str, float] | None:
        """By text. Where two ids have the same text the likelier stays, so that the largest value is the true one."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for id_, logprob in (*token.top_logprobs[:count], (token.id, token.logprob)):
            top.setdefault(self.tokens.token_text(id_), _finite(logprob))
        return top

    def _advance(self, index: int, token: "Token") -> int:
        offset = self._offsets[index]
        self._offsets[index] += len(self._streams[index].add(token.id))
        return offset


class ChatWriter(Writer[ChatRequest, ChatReply, ChatChunk]):
    """Replies of /v1/chat/completions."""

    id_prefix = "chatcmpl-"

    def whole(self, answers: Sequence[Answer]) -> ChatReply:
        """The reply that is not streamed."""
        choices = [
            ChatChoice(
                message=ChatMessage(role="assistant", content=answer.text, **self.reasoning(i, answer)),
                **self._shared(i, answer),
            )
            for i, answer in enumerate(answers)
        ]
        fields = {**self._prompt_ids(), **self.prompt_logprobs(answers[0]), **self.ending()}
        return ChatReply(object="chat.completion", choices=choices, usage=self.usage(), **self.envelope, **fields)

    def chunk(self, index: int, decided: "Decided") -> ChatChunk | None:
        """The event that tells what one step decided; None where there is nothing to tell yet."""
        reasoning = {name: text for name, text in self.reasoning(index, decided).items() if text}
        shared = self._shared(index, decided)
        told = decided.text, decided.finish_reason, shared["logprobs"] and shared["logprobs"].content
        if not any((*told, reasoning, *(shared.get(aside) for aside in ("thoughts", "probes", "token_ids")))):
            return None
        first = self.begin(index)
        role: dict[str, Any] = {"role": "assistant"} if first else {}
        choice = ChatChunkChoice(delta=ChatMessage(content=decided.text, **role, **reasoning), **shared)
        return self._event([choice], **self.chunk_fields(), **(self._prompt_ids() if first and index == 0 else {}))

    def usage_chunk(self) -> ChatChunk:
        """The event that tells the usage, and nothing else."""
        return self._event([], usage=self.usage(), **self.ending())

    def _event(self, choices: list[ChatChunkChoice], **fields: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **self.envelope, **fields)

    def _shared(self, index: int, decided: "Decided") -> dict[str, Any]:
        logprobs = self._logprobs(decided.tokens) if self.request.logprobs else None
        return {
            "index": index,
            "logprobs": logprobs,
            "finish_reason": decided.finish_reason,
            **self.asides(index, decided),
        }

    def _prompt_ids(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": list(self.run.plan.prompts[0].ids)} if self.request.return_token_ids else {}

    def _logprobs(self, tokens: "Iterable[Token]") -> ChatLogprobs:
        count = self.request.top_logprobs
        return ChatLogprobs(
            content=[
                ChatLogprob(
                    **self._logprob(token.id, token.logprob),
                    top_logprobs=[TopLogprob(**self._logprob(*top)) for top in token.top_logprobs[:count]],
                )
                for token in tokens
            ]
        )

    def _logprob(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.tokens.token_text(token)
        whole = "\ufffd" not in text  # else: some of a character's bytes, and which ones is not known
        return {"token": text, "logprob": _finite(logprob or 0.0), "bytes": list(text.encode()) if whole else None}


def timings(tickets: Sequence[Ticket], ranker_s: float | None = None) -> Timings:
    """What a request took; nothing is said of what never happened."""
    times, counts = [ticket.timing for ticket in tickets], [ticket.counts for ticket in tickets]
    began, ended = _all(min, (t.started for t in times)), _all(max, (t.finished for t in times))
    generation = None if began is None or ended is None else ended - began
    visible = sum(t.num_output_tokens + t.num_draft_tokens for t in tickets)
    judged = sum(c.accepted + c.rejected for c in counts)
    seconds = {
        "queue_time_ms": _all(min, (t.queue for t in times)),
        "time_to_first_token_ms": _all(min, (t.time_to_first_token for t in times)),
        "time_to_first_output_token_ms": _all(min, (t.time_to_first_output for t in times)),
        "generation_time_ms": generation,
        "thought_time_ms": max(t.thought_s for t in times),
        "ranker_time_ms": ranker_s,
    }
    told = {name: round(1000 * value, 3) for name, value in seconds.items() if value is not None}
    if visible and generation:
        told["tokens_per_second"] = round(visible / generation, 3)
    if visible:
        told["forwards_per_token"] = round(sum(c.forwards for c in counts) / visible, 3)
    if judged:
        told["acceptance_rate"] = round(sum(c.accepted for c in counts) / judged, 4)
    return Timings(**told)


def _readout(readout: "Readout | None") -> ReadoutReply | None:
    return None if readout is None else {"class": readout.class_, "probability": readout.probability}


def _all(choose: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
