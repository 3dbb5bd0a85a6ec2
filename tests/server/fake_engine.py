"""The server above the seam: a tokenizer of single bytes, and an engine that is a function from an attempt to its progress."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quietserve.model.config import QuietConfig
from quietserve.model.probe import ProbeConfig
from quietserve.model.progress import Progress, Readout, ThoughtRecord, Token
from quietserve.model.tokens import TextStream, Tokens
from quietserve.model.voting import Entry, Verdict
from quietserve.server.scheduler import Attempt, EngineClosedError, Ticket

MODEL = "fake"
EOS = 256
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"


def byte_tokens() -> Tokens:
    """One token a byte, so that every text can be written and half a character can be decided."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<eos>", "<|startthought|>", "<|endthought|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=TEMPLATE)
    return Tokens(wrapped, marker_tokens=names[1:])


def says(text: str) -> Callable[[Attempt], str]:
    return lambda attempt: text


def default_answer(attempt: Attempt) -> str:
    """Different for every seed and depth."""
    return f"Ärger {attempt.params.seed % 997} at {attempt.params.thought_depth}, done."


@dataclass
class FakeEngine:
    """Says what `answer` says, a byte a step, thinking `hm <i>` before every third token and nothing before the others."""

    tokens: Tokens
    answer: Callable[[Attempt], str] = default_answer
    max_model_len: int = 200
    max_thought_depth: int = 16
    max_num_thoughts: int = 8
    quiet: QuietConfig | None = field(default_factory=lambda: QuietConfig(thought_depth=8, thought_temperature=0.5))
    capacity: int = 272
    pace_s: float = 0.0
    refusal: Exception | None = None  # raised by submit
    failure: Exception | None = None  # raised after the third token
    healthy: bool = True
    ready: bool = True
    tickets: list[Ticket] = field(default_factory=list)
    running: list[Ticket] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    judges: dict[str, Callable[[Entry], float]] = field(default_factory=dict)  # trained rankers, by their names
    probes: dict[str, ProbeConfig] = field(default_factory=dict)  # those with an offset have nothing to say of vowels
    rank_failure: Exception | None = None  # raised by rank

    @property
    def num_running(self) -> int:
        return len(self.running)

    num_waiting = 0
    num_unranked: int = 0

    @property
    def rankers(self) -> tuple[str, ...]:
        return tuple(self.judges)

    async def rank(self, ranker: str, entries: Sequence[Entry]) -> list[float]:
        await asyncio.sleep(self.pace_s)
        if self.rank_failure:
            raise self.rank_failure
        return [self.judges[ranker](entry) for entry in entries]

    def close(self, timeout_s: float) -> None:
        self.ready = self.healthy = False

    def submit(self, attempts: Sequence[Attempt]) -> list[Ticket]:
        if self.refusal:
            raise self.refusal
        if not self.ready:
            raise EngineClosedError
        tickets = [Ticket(attempt) for attempt in attempts]
        self.tickets += tickets
        self.running += tickets
        return tickets

    def cancel(self, ticket: Ticket, reason: str = "abort") -> None:
        if ticket.finish_reason is None:
            ticket.cancelled = ticket.finish_reason = reason
            self.running.remove(ticket)

    def judge(self, ticket: Ticket, kept: bool) -> None:
        if ticket.kept is None:
            ticket.kept = kept

    def voted(self, strategy: str, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    async def results(self, ticket: Ticket) -> AsyncIterator[Progress]:
        for i, progress in enumerate(self._turns(ticket)):
            await asyncio.sleep(self.pace_s)
            if ticket.cancelled:
                yield ticket.last(Progress(finish_reason=ticket.cancelled))
                return
            if self.failure and i == 3:
                raise self.failure
            if progress.finish_reason:
                ticket.finish_reason = progress.finish_reason
                self.running.remove(ticket)
            yield progress

    def _turns(self, ticket: Ticket) -> Iterator[Progress]:
        """Every step of every turn; of a draft, only what its thoughts cost is told."""
        while True:
            prompt = tuple(ticket.prompt(self.tokens.eos_ids))
            for progress in self._decode(replace(ticket.attempt, prompt=prompt, params=ticket.params)):
                ticket.answer.add(progress)
                yield Progress(num_thought_tokens=progress.num_thought_tokens) if ticket.is_draft else progress
            if not ticket.is_draft:
                return
            ticket.turn(now=0.0)

    def _decode(self, attempt: Attempt) -> Iterator[Progress]:
        params, stream = attempt.params, TextStream(self.tokens, attempt.params.stop)
        if params.prompt_logprobs is not None:
            prompt = [self._token(id_, i, params.prompt_logprobs) for i, id_ in enumerate(attempt.prompt)]
            prompt[0] = Token(attempt.prompt[0])
            yield Progress(prompt=prompt[:2])
            yield Progress(prompt=prompt[2:], finish_reason="length" if params.max_tokens == 0 else None)
            if params.max_tokens == 0:
                return
        ids = [*self.tokens.encode(self.answer(attempt)), EOS]
        for i, id_ in enumerate(ids):
            thoughts = (self._thought(i),) * params.num_thoughts if params.thought_depth else ()
            token = self._token(id_, i, params.logprobs, thoughts)
            token = replace(token, probes=tuple((name, self.readout(name, id_)) for name in params.probes))
            text = "" if id_ == EOS else stream.add(id_)
            reason = "stop" if id_ == EOS or stream.stopped else "length" if i + 1 == params.max_tokens else None
            if reason:
                text += stream.finish()
            yield Progress(
                text, [token], [], reason, num_thought_tokens=sum(len(thought.token_ids) for thought in thoughts)
            )
            if reason:
                return

    def readout(self, probe: str, id_: int) -> Readout | None:
        config = self.probes[probe]
        if config.offset and self.tokens.token_text(id_) in "aeiou":
            return None
        return Readout(config.classes[id_ % len(config.classes)], round(0.5 + id_ / 1000, 4))

    def _thought(self, index: int) -> ThoughtRecord:
        text = f"hm {index}" if index % 3 == 0 else ""
        return ThoughtRecord(tuple(self.tokens.encode(text)), 0.25)

    def _id(self, char: str) -> int:
        return self.tokens.encode(char)[0]

    def _token(self, id_: int, i: int, count: int | None, thoughts: tuple[ThoughtRecord, ...] = ()) -> Token:
        """Every fourth token was not the likeliest."""
        if count is None:
            return Token(id_, thoughts=thoughts)
        logprob = -0.125 - i / 64 - (2 if i % 4 == 3 else 0)
        likelier = [(self._id("z"), -0.0625)] if i % 4 == 3 else []
        others = [(self._id("A") + k, -3.0 - k) for k in range(20)]
        own = [] if likelier else [(id_, logprob)]
        return Token(id_, logprob, tuple([*likelier, *own, *others][:count]), thoughts)


@dataclass
class Client:
    """Asks the application in this process, without a socket."""

    app: Any

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)

    def complete(self, **body: Any) -> dict[str, Any]:
        return self._ok("/v1/completions", {"prompt": "Say", "max_tokens": 64, **body})

    def chat(self, **body: Any) -> dict[str, Any]:
        return self._ok("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say"}], **body})

    def _ok(self, path: str, body: dict[str, Any]) -> Any:
        reply = self.post(path, body)
        assert reply.status_code == 200, reply.text
        return events(reply.text) if body.get("stream") else reply.json()


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ended as streams must."""
    *lines, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]


def eventually(holds: Callable[[], bool], within_s: float = 2.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
