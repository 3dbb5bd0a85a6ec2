"""Decoding with thoughts: one step over all running sequences, whatever each of them is doing; offline generation on top.

In one forward some sequences read a chunk of their prompt, some their newest token together with the START of the thought
after it, some a thought token, some END. A position is decided when its thought has ended (at depth 0, as soon as it is read):
the mixed logits give the next token, or score it where the prompt already says which it is. Positions are decided in order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import Cache
from .config import SamplingParams
from .quiet_model import QuietModel
from .sampling import Draw, sample, sample_thoughts, top_logprobs
from .thoughts import Choose, Rows, Thought, advance
from .tokens import TextStream, Tokens


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """What was thought before one token."""

    token_ids: tuple[int, ...]
    mixing_weight: float


@dataclass(frozen=True, slots=True)
class Token:
    """One decided token: of the output, or of a prompt that is scored."""

    id: int
    logprob: float | None = (
        None  # under the mixed distribution before temperature; None unless asked for, and for a text's first
    )
    top_logprobs: tuple[tuple[int, float], ...] = ()
    thought: ThoughtRecord | None = None


@dataclass(slots=True)
class Progress:
    """What one step decided for one attempt."""

    text: str = ""  # visible text that is certain now
    tokens: list[Token] = field(default_factory=list)  # visible tokens, an end-of-text token included
    prompt: list[Token] = field(default_factory=list)  # scored prompt tokens, in order; with params.prompt_logprobs
    finish_reason: str | None = None  # "stop", "length"; nothing follows it
    num_thought_tokens: int = 0  # hidden tokens decoded since the last progress


class Decoding:
    """The state of one attempt in a slot."""

    def __init__(self, slot: int, prompt: Sequence[int], params: SamplingParams, tokens: Tokens) -> None:
        self.slot = slot
        self.params = params
        self.tokens = list(prompt)  # the prompt, then what has been decided
        self.num_prompt = len(prompt)
        self.cached = 0  # base columns written
        self.next_position = 0 if params.prompt_logprobs is not None else len(prompt) - 1  # the next one to decide
        self.next_thought = self.next_position  # the next one to think after
        self.thoughts: deque[Thought] = deque()  # in flight, oldest first
        self.hidden: dict[int, Tensor] = {}  # base hidden states of the positions to decide
        self.text = TextStream(tokens, context=prompt)
        self.thinking = False  # a thought took part in the last forward
        self.finish_reason: str | None = None

    @property
    def readable(self) -> int:
        """Positions before this one may be decided: all that were read, less the last where nothing is to be generated."""
        return self.cached if self.params.max_tokens else min(self.cached, self.num_prompt - 1)

    @property
    def idle(self) -> bool:
        """There is nothing to decide: no token to generate, and none in the prompt to score."""
        return not self.params.max_tokens and self.next_position >= self.num_prompt - 1

    def finish_idle(self) -> Progress:
        """End an attempt that has nothing to decide."""
        self.finish_reason = "length"
        scored = [Token(self.tokens[0])] if self.params.prompt_logprobs is not None else []
        return Progress(prompt=scored, finish_reason=self.finish_reason)


@dataclass(frozen=True, slots=True)
class _Decision:
    """A position whose next token is to be decided now."""

    decoding: Decoding
    position: int
    thought: Thought | None

    @property
    def scores(self) -> bool:
        """The next token is the prompt's: it is scored, not chosen."""
        return self.position < self.decoding.num_prompt - 1


class Decoder:
    """Decodes any number of attempts at once, one per slot of its cache.

    Args:
        model: the model.
        tokens: its tokenizer.
        cache: decides how many attempts run, how long and how deep they may be; its lanes are how many thoughts of one
            attempt may be in flight at once.
        prefill_chunk: most prompt tokens of one attempt read in one forward.
        choose: who picks the tokens of thoughts; seeded noise unless a study wants otherwise.
    """

    def __init__(
        self,
        model: QuietModel,
        tokens: Tokens,
        cache: Cache,
        prefill_chunk: int = 256,
        choose: Choose | None = None,
    ) -> None:
        self.model, self.tokens, self.cache, self.prefill_chunk = model, tokens, cache, prefill_chunk
        self._choose = choose or _choose_thoughts
        self.num_rows = 0  # of the last forward

    def start(self, slot: int, prompt: Sequence[int], params: SamplingParams) -> Decoding:
        """Begin an attempt in a free slot. Raises ValueError when it cannot be served."""
        if not prompt:
            raise ValueError("the prompt is empty; it must hold at least one token")
        if len(prompt) + params.max_tokens > self.cache.max_len:
            raise ValueError(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the {self.cache.max_len} that fit"
            )
        if params.thought_depth and not self.model.can_think:
            raise ValueError(
                f"thought_depth is {params.thought_depth}, but this model has no mixing head: it must be 0"
            )
        if params.thought_depth > self.cache.max_depth:
            raise ValueError(f"thought_depth is {params.thought_depth}; it must be at most {self.cache.max_depth}")
        return Decoding(slot, prompt, params, self.tokens)

    @torch.inference_mode()
    def step(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Progress]]:
        """One forward for all of them; returns those for which something was decided."""
        self.num_rows = 0
        idle = [(d, d.finish_idle()) for d in decodings if d.idle]
        decodings = [d for d in decodings if d.finish_reason is None]
        return idle + (self._forward(decodings) if decodings else [])

    def _forward(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Progress]]:
        rows = Rows()
        spans = [self._enter(decoding, rows) for decoding in decodings]
        self.num_rows = len(rows)
        hidden_NH = self.model.run(rows, self.cache)
        for decoding, span in zip(decodings, spans, strict=True):
            self._keep(decoding, span, hidden_NH)
        thoughts = [t for d in decodings for t in d.thoughts if not t.ended]
        advance(self.model, thoughts, hidden_NH, self._choose)
        return self._decide([due for decoding in decodings for due in self._due(decoding)])

    def _enter(self, decoding: Decoding, rows: Rows) -> range:
        """Add what an attempt reads next; returns the row numbers of its base tokens."""
        params, begin = decoding.params, decoding.cached
        chunk = decoding.tokens[begin : begin + self.prefill_chunk]
        span = rows.add_base(decoding.slot, chunk, begin)
        decoding.cached += len(chunk)
        while params.thought_depth and decoding.next_thought < decoding.readable:
            if len(decoding.thoughts) == self.cache.lanes:
                break
            decoding.thoughts.append(self._new_thought(decoding))
        decoding.thinking = bool(decoding.thoughts)
        for thought in decoding.thoughts:
            if not thought.ended:  # one that has ended may still wait for an older one
                thought.enter(rows)
        return span

    def _new_thought(self, decoding: Decoding) -> Thought:
        position = decoding.next_thought
        decoding.next_thought += 1
        return Thought(
            slot=decoding.slot,
            position=position,
            own_from=self.cache.lane(position % self.cache.lanes),
            depth=decoding.params.thought_depth,
            stops=self.model.stop_ids,
            seed=decoding.params.seed,
            temperature=decoding.params.thought_temperature,
        )

    def _keep(self, decoding: Decoding, span: range, hidden_NH: Tensor) -> None:
        """Remember the base hidden states that a decision will need."""
        begin = decoding.cached - len(span)
        for position in range(max(begin, decoding.next_position), decoding.readable):
            decoding.hidden[position] = hidden_NH[span[position - begin]].clone()  # a view would keep all rows alive

    def _due(self, decoding: Decoding) -> list[_Decision]:
        """What can be decided now, in order of position."""
        due = []
        while decoding.next_position < decoding.readable:
            thought = None
            if decoding.params.thought_depth:
                if not decoding.thoughts or not decoding.thoughts[0].ended:
                    break
                thought = decoding.thoughts.popleft()
            due.append(_Decision(decoding, decoding.next_position, thought))
            decoding.next_position += 1
        return due

    def _decide(self, due: list[_Decision]) -> list[tuple[Decoding, Progress]]:
        if not due:
            return []
        hidden_MH = torch.stack([d.decoding.hidden.pop(d.position) for d in due])
        weights = [0.0] * len(due)
        if thinkers := [i for i, d in enumerate(due) if d.thought is not None]:
            thoughts = torch.stack([d.thought.hidden for d in due if d.thought and d.thought.hidden is not None])
            hidden_MH[thinkers], weight = self.model.mix(hidden_MH[thinkers], thoughts)
            for i, value in zip(thinkers, weight.tolist(), strict=True):
                weights[i] = value
        logits_MV = self.model.logits(hidden_MH)
        choosers = [i for i, d in enumerate(due) if not d.scores]
        chosen = dict(zip(choosers, sample(logits_MV[choosers], [self._draw(due[i]) for i in choosers]), strict=True))
        progress: dict[Decoding, Progress] = {}
        for i, decision in enumerate(due):
            news = progress.setdefault(decision.decoding, Progress())
            self._settle(decision, chosen.get(i), logits_MV[i], weights[i], news)
        return list(progress.items())

    def _draw(self, decision: _Decision) -> Draw:
        decoding = decision.decoding
        return Draw(decoding.params, decoding.tokens, decoding.num_prompt, self.tokens.eos_ids)

    def _settle(self, decision: _Decision, chosen: int | None, logits_V: Tensor, weight: float, news: Progress) -> None:
        """Write one decision into the attempt and its news."""
        decoding, thought = decision.decoding, decision.thought
        record = None
        if thought is not None:
            record = ThoughtRecord(tuple(thought.tokens), weight)
            news.num_thought_tokens += len(thought.tokens)
        if decision.position == 0 and decoding.params.prompt_logprobs is not None:
            news.prompt.append(Token(decoding.tokens[0]))
        if chosen is None:
            scored = decoding.tokens[decision.position + 1]
            news.prompt.append(_token(scored, logits_V, decoding.params.prompt_logprobs, record))
            if not decoding.params.max_tokens and decoding.next_position == decoding.num_prompt - 1:
                decoding.finish_reason = "length"
        else:
            news.tokens.append(_token(chosen, logits_V, decoding.params.logprobs, record))
            news.text += self._append(decoding, chosen)
        news.finish_reason = decoding.finish_reason

    def _append(self, decoding: Decoding, token: int) -> str:
        """Append a decided token, see whether it ends the attempt; returns the text that is certain now."""
        params = decoding.params
        decoding.tokens.append(token)
        num_output = len(decoding.tokens) - decoding.num_prompt
        if token in params.stop_token_ids or (token in self.tokens.eos_ids and not params.ignore_eos):
            decoding.finish_reason = "stop"
            return decoding.text.finish()
        decoding.text.stop = params.stop if num_output >= params.min_tokens else ()
        text = decoding.text.add(token)
        if not decoding.text.stopped and num_output == params.max_tokens:
            decoding.finish_reason = "length"
            text += decoding.text.finish()
        if decoding.text.stopped:
            decoding.finish_reason = "stop"
        return text


def _token(token: int, logits_V: Tensor, count: int | None, thought: ThoughtRecord | None) -> Token:
    if count is None:
        return Token(token, thought=thought)
    logprob, top = top_logprobs(logits_V.log_softmax(-1), token, count)
    return Token(token, logprob, tuple(top), thought)


def _choose_thoughts(thoughts: list[Thought], logits_MV: Tensor) -> list[int]:
    """Thought tokens by seeded noise, or greedily, as each thought's temperature says."""
    keys = [(t.seed, t.position, len(t.tokens) + 1) for t in thoughts]
    return sample_thoughts(logits_MV, keys, [t.temperature for t in thoughts])


@dataclass(slots=True)
class Generation:
    """The whole result of one attempt."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    num_thought_tokens: int = 0

    def add(self, news: Progress) -> None:
        """Take in what one step decided."""
        self.text += news.text
        self.tokens += news.tokens
        self.prompt += news.prompt
        self.finish_reason = news.finish_reason or ""
        self.num_thought_tokens += news.num_thought_tokens


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Generation]:
    """Decode prompts offline, as many at once as the cache has slots. Raises ValueError for one that cannot be served."""
    every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    generations = [Generation() for _ in prompts]
    waiting = deque(enumerate(zip(prompts, every, strict=True)))
    free = list(range(decoder.cache.slots))
    running: dict[Decoding, int] = {}
    while waiting or running:
        while waiting and free:
            number, (prompt, wanted) = waiting.popleft()
            running[decoder.start(free.pop(0), prompt, wanted)] = number
        for decoding, news in decoder.step(list(running)):
            generations[running[decoding]].add(news)
            if news.finish_reason:
                del running[decoding]
                free.append(decoding.slot)
                free.sort()
    return generations
