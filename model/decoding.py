"""The state of one attempt: what is decided, what is drafted behind it, and the positions on their way to a decision."""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor

from .config import SamplingParams
from .progress import Counts
from .thoughts import Rows, Thought
from .tokens import TextStream, Tokens


@dataclass(slots=True, eq=False)
class Position:
    """A position on its way to the decision of the token behind it."""

    number: int
    thoughts: list[Thought] | None = None  # None: not begun, for want of lanes; empty: decided without a thought
    lanes: list[int] = field(default_factory=list)  # the scratch strips its thoughts hold
    base: Tensor | None = None  # hidden state of its token, [H]
    states: Tensor | None = None  # means over layers for probes, [S, H]; where some are asked for

    @property
    def num_hidden(self) -> int:
        """Tokens of its thoughts so far."""
        return sum(len(thought.tokens) for thought in self.thoughts or ())

    @property
    def fresh(self) -> bool:
        """It has read START and nothing behind it."""
        return bool(self.thoughts) and not any(thought.tokens or thought.ended for thought in self.thoughts or ())

    @property
    def ended(self) -> bool:
        """It thinks no more: it can be decided once all older ones are."""
        return self.thoughts is not None and all(thought.ended for thought in self.thoughts)

    @property
    def broken(self) -> bool:
        """A thought of it cannot be trusted."""
        return any(thought.broken for thought in self.thoughts or ())

    def skip(self) -> None:
        """Decide without a thought after all."""
        for thought in self.thoughts or ():
            thought.ended = True
        self.thoughts = []


class Decoding:
    """One attempt in a slot.

    `tokens` holds the prompt, what has been decided, and drafts: guesses of the tokens behind, which are read and thought
    after before it is known whether they will stand. A wrong one is replaced and all behind it forgotten, which shortens
    lists and moves `cached` back; nothing is copied.
    """

    def __init__(
        self,
        slot: int,
        prompt: Sequence[int],
        params: SamplingParams,
        tokens: Tokens,
        num_lanes: int,
        whole_text: bool = False,
    ) -> None:
        self.slot = slot
        self.params = params
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.cached = 0  # base columns written: those of tokens[:cached]
        self.filled = False  # it was seen what other slots hold of its tokens
        self.awaited: tuple[Decoding, int] | None = None  # one that is reading so many of its tokens just now
        self.started_over = False  # its slot held what is no number
        self.next_position = 0 if params.prompt_logprobs is not None else len(prompt) - 1  # the next one to decide
        self.flight: deque[Position] = deque()  # the next one to decide and those behind it
        self.ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else tokens.eos_ids)
        self.text = TextStream(tokens, context=prompt, whole=whole_text and not params.stop)
        self.finish_reason: str | None = None
        self.thinking = False  # a thought took part in the last forward
        self.counts = Counts()
        self.num_hidden = 0  # tokens of the thoughts behind what is decided
        self.num_lanes = num_lanes  # thoughts that may be in flight at once
        self._free_lanes = list(range(num_lanes))

    @property
    def end(self) -> int:
        """Positions before this one are to be decided: the last token asked for is never read."""
        return self.num_prompt - 1 + self.params.max_tokens

    @property
    def idle(self) -> bool:
        """There is nothing to decide: no token to generate, and none in the prompt to score."""
        return self.next_position >= self.end

    @property
    def unread(self) -> int:
        """Tokens whose keys and values are not in the cache."""
        return len(self.tokens) - self.cached

    @property
    def may_read(self) -> bool:
        """It was seen what other slots hold, and all positions read so far have begun to think: there are lanes to spare."""
        return self.filled and not (self.flight and self.flight[-1].thoughts is None)

    @property
    def num_thinking(self) -> int:
        """Positions whose thoughts go on."""
        return sum(not position.ended for position in self.flight)

    @property
    def num_drafts(self) -> int:
        """Tokens that are guesses so far."""
        return len(self.tokens) - max(self.num_prompt, self.next_position + 1)

    def may_draft(self, in_flight: int) -> bool:
        """All tokens have been read, one more is wanted, and fewer than `in_flight` positions think."""
        asked = self.params.thought_depth > 0 and len(self.tokens) < self.end
        return asked and bool(self.flight) and self.unread == 0 and self.num_thinking < in_flight

    def scores(self, position: Position) -> bool:
        """The token behind a position is the prompt's: it is scored, not chosen."""
        return position.number < self.num_prompt - 1

    def depth_of(self, position: Position) -> int | None:
        """How deep a position of the flight may think, all older ones having begun; None: that depends on how they end.

        A budget is spent in the order of the text, the last of it on a thought that is cut short. It is the same at every
        pipeline depth, because nobody begins whose share could still change.
        """
        depth, count, budget = self.params.thought_depth, self.params.num_thoughts, self.params.thinking_token_budget
        if budget is None or not depth:
            return depth
        older = list(takewhile(lambda p: p is not position, self.flight))
        spent = self.num_hidden + sum(p.num_hidden for p in older)
        unspent = sum(t.depth - len(t.tokens) for p in older for t in p.thoughts or () if not t.ended)
        most, least = ((budget - used) // count for used in (spent, spent + unspent))
        return min(depth, max(least, 0)) if unspent == 0 or least >= depth or most <= 0 else None

    def read(self, rows: Rows, most: int) -> range:
        """Add rows for the next tokens, and the positions that can be decided once they are read; returns the row numbers."""
        span = rows.add_base(self.slot, self.tokens[self.cached : self.cached + most], self.cached)
        first, readable = self.next_position + len(self.flight), min(self.cached + len(span), self.end)
        self.flight.extend(Position(number) for number in range(first, readable))
        return span

    def added(self, span: range) -> Iterator[tuple[Position, int]]:
        """The positions that `read` added, the newest first, each with the row of its token."""
        for position in reversed(self.flight):
            if position.number < self.cached:
                break
            yield position, span[position.number - self.cached]

    def keep(self, span: range, hidden_NH: Tensor) -> None:
        """The tokens that `read` added have been read: keep the hidden states that decisions will need."""
        for position, row in self.added(span):
            position.base = hidden_NH[row].clone()  # a view would keep all rows alive
        self.cached += len(span)
        self.counts.forwards += self.cached >= self.num_prompt

    def take_back(self) -> None:
        """What `read` added was not read, the forward having failed: its positions will be added again."""
        while self.flight and self.flight[-1].number >= self.cached:
            self._give_back(self.flight.pop())

    def take_lanes(self, count: int) -> list[int]:
        """The lowest free lanes; none where there are not enough."""
        if len(self._free_lanes) < count:
            return []
        return [heapq.heappop(self._free_lanes) for _ in range(count)]

    def free_lanes(self) -> None:
        """Take back the lanes of positions that think no more."""
        for position in self.flight:
            if position.ended:
                self._give_back(position)

    def decide(self, token: int) -> bool | None:
        """The token behind the oldest position. A draft that says otherwise goes, with all that was built on it.

        Returns whether the draft was right; None where there was none.
        """
        self.next_position += 1
        self.num_hidden += self.flight.popleft().num_hidden
        if len(self.tokens) > self.next_position:
            if self.tokens[self.next_position] == token:
                self.counts.accepted += 1
                return True
            self.counts.rejected += 1
            self.counts.dropped += len(self.tokens) - self.next_position - 1
            self._forget(self.next_position)
            self.tokens.append(token)
            return False
        self.tokens.append(token)
        return None

    def score(self) -> int:
        """The prompt's token behind the oldest position."""
        self.next_position += 1
        self.num_hidden += self.flight.popleft().num_hidden
        return self.tokens[self.next_position]

    def tell(self, token: int) -> str:
        """The text that a decided token makes certain; the attempt finishes where the token or the text ends it."""
        params, num_output = self.params, self.next_position + 1 - self.num_prompt
        if token in self.ends:
            self.finish("stop")
            return self.text.finish()
        self.text.stop = params.stop if num_output >= params.min_tokens else ()
        text = self.text.add(token)
        if not self.text.stopped and num_output == params.max_tokens:
            self.finish("length")
            text += self.text.finish()
        if self.text.stopped:
            self.finish("stop")
        return text

    def finish(self, reason: str) -> None:
        """End here; drafts are forgotten."""
        self.finish_reason = reason
        self._forget(len(self.tokens) - self.num_drafts)

    def move(self, slot: int) -> None:
        """Go on in another slot, from what is decided: nothing of this attempt has been read there."""
        self._forget(len(self.tokens) - self.num_drafts)
        self.slot, self.cached, self.filled = slot, 0, False

    def _give_back(self, position: Position) -> None:
        for lane in position.lanes:
            heapq.heappush(self._free_lanes, lane)
        position.lanes = []

    def _forget(self, length: int) -> None:
        """Keep the first tokens only, and nothing in flight."""
        del self.tokens[length:]
        self.cached = min(self.cached, length)
        self.flight.clear()
        self._free_lanes = list(range(self.num_lanes))
