"""Decoding with pipelined thoughts: one step over all running attempts, whatever each of them is doing; generation on top.

In one forward some attempts read a chunk of their prompt, some their newest token together with the START of the thought
after it, some tokens of several thoughts, some END. While a position thinks, the base logits after its token already draft the
next one, which is read and thought after in its turn. When the oldest thought ends, the mixed logits decide: a right draft
stands, a wrong one goes with all behind it. The same noise picks the draft and the decision, so drafting changes when a
token is known and never which token it is.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import Cache
from .config import SamplingParams
from .decoding import Decoding, Position
from .graphs import StaticForwards
from .judge import Judge, Next
from .pacing import Pace
from .prefixes import Prefixes
from .progress import Generation, Progress, Readout, ThoughtRecord, Token
from .quiet_model import QuietModel
from .readouts import Readouts, Watching
from .sampling import hash_key, top_logprobs
from .thoughts import Choose, Rows, Thought
from .tokens import Tokens

if TYPE_CHECKING:
    from .probe import Probe

logger = logging.getLogger("quietserve")

_PATIENCE = 256  # steps
_MOST_MEASURED = 512  # rows: larger forwards are prefills'


class Decoder:
    """Decodes any number of attempts at once, one per slot of its cache.

    Args:
        model: the model.
        tokens: its tokenizer.
        cache: decides how many attempts run, how long and how deep they may be; its lanes are how many thoughts of one
            attempt may be in flight at once.
        prefill_chunk: most prompt tokens read in one forward, of all attempts together: a long prompt holds nobody up.
        pipeline_depth: positions of one attempt that may think at once, where each is a guess about the one before; 1 is
            sequential, None is chosen for each forward by what forwards cost and how often guesses are right.
        reuse_prefixes: an attempt takes over what any slot holds of its prompt.
        graphs: record forwards as CUDA graphs, on a GPU that holds all of the model.
        choose: who picks the tokens of thoughts; seeded noise unless a study wants otherwise.
        probes: what attempts may have read in the states that choose their tokens, by name.
    """

    def __init__(
        self,
        model: QuietModel,
        tokens: Tokens,
        cache: Cache,
        *,
        prefill_chunk: int = 256,
        pipeline_depth: int | None = None,
        reuse_prefixes: bool = True,
        graphs: bool = True,
        choose: Choose | None = None,
        probes: "Mapping[str, Probe] | None" = None,
    ) -> None:
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk is {prefill_chunk}; it must be 1 or more")
        self.model, self.tokens, self.cache, self.prefill_chunk = model, tokens, cache, prefill_chunk
        self.pace = Pace(pipeline_depth, may_end=bool(model.stop_ids))
        self.prefixes = Prefixes(cache, reuse_prefixes)
        self.num_rows = 0  # of the last step
        self.num_out_of_memory = 0  # forwards of the last step for which memory did not suffice
        self._most_at_once = cache.slots  # attempts of one forward: fewer where memory did not suffice
        self._num_since_full = 0  # steps since it did not
        recorded = graphs and model.backbone.device.type == "cuda" and not model.backbone.leader  # who must be told
        self._graphs = StaticForwards(model, cache) if recorded else None
        self._judge = Judge(model, tokens, choose)
        self._readouts = Readouts(probes or {})

    def start(self, slot: int, prompt: Sequence[int], params: SamplingParams, whole_text: bool = False) -> Decoding:
        """Begin an attempt in a free slot. Raises ValueError when it cannot be served.

        `whole_text`: nobody reads along, the text may come when it has ended.
        """
        if not prompt:
            raise ValueError("the prompt is empty; it must hold at least one token")
        self.tokens.check(prompt)
        self._check_allowed(params)
        self._readouts.check(params.probes)
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
        lanes = self.cache.num_lanes(params.thought_depth)
        if params.thought_depth and params.num_thoughts > lanes:
            raise ValueError(f"num_thoughts is {params.num_thoughts}; it must be at most {lanes} at this depth")
        decoding = Decoding(slot, prompt, params, self.tokens, lanes, whole_text)
        self.prefixes.enter(decoding)
        return decoding

    def _check_allowed(self, params: SamplingParams) -> None:
        """Raises ValueError where no visible token could be chosen."""
        markers, most = frozenset(self.tokens.markers.values()), self.tokens.num_ids - 1
        for token in params.allowed_token_ids:
            if not 0 <= token <= most or token in markers:
                raise ValueError(f"allowed_token_ids has id {token}; ids are 0 to {most}, without the thought markers")
        if params.leaves_nothing(self.tokens.eos_ids):
            raise ValueError("allowed_token_ids holds only ids that min_tokens or ignore_eos rules out")

    def resume(self, decoding: Decoding, slot: int) -> None:
        """Go on with a running attempt in another free slot; it reads again what no slot holds, and decides the same."""
        self.prefixes.leave(decoding)
        decoding.move(slot)
        self.prefixes.enter(decoding)

    @torch.inference_mode()
    def step(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Progress]]:
        """One forward for all of them, oldest first; returns those for which something was decided.

        A forward that raises is repeated by halves, until it is known whose fault it is: only those end, with an error.
        It can be, since up to its commit a forward changes nothing that a second one would not find or do again.
        """
        self.num_rows = self.num_out_of_memory = 0
        news = [(d, _finish_idle(d)) for d in decodings if d.idle]
        active = [d for d in decodings if d.finish_reason is None]
        for first in range(0, len(active), self._most_at_once):
            news += self._step(active[first : first + self._most_at_once])
        self._try_more()
        return news

    def _try_more(self) -> None:
        """What did not fit may fit again: as many as failed are tried from time to time."""
        self._num_since_full += 1
        if self.num_out_of_memory:
            self._num_since_full = 0
        elif self._num_since_full >= _PATIENCE and self._most_at_once < self.cache.slots:
            self._most_at_once, self._num_since_full = 2 * self._most_at_once, 0

    @torch.inference_mode()
    def measure_forwards(self, budget_s: float = 2.0) -> None:
        """Learn what a forward costs by its rows, before any attempt has begun; about `budget_s` seconds."""
        most = min(self.cache.slots * min(self.cache.max_depth + 2, self.cache.max_len), _MOST_MEASURED)
        deadline = time.perf_counter() + budget_s
        try:
            for size in [2**i for i in range(most.bit_length())] * 4:
                if time.perf_counter() > deadline:
                    return
                self._measure_forward(size)
        except Exception:  # it is learnt from what runs, then
            logger.warning("the cost of forwards could not be measured beforehand", exc_info=True)

    def _measure_forward(self, size: int) -> None:
        begin, rows = time.perf_counter(), Rows()
        for slot in range(min(size, self.cache.slots)):
            rows.add_base(slot, [0] * max(1, size // self.cache.slots), 0)
        self.model.logits(self._run(rows)).argmax(-1).tolist()
        self.pace.times.add(len(rows), time.perf_counter() - begin)

    def _step(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Progress]]:
        if not decodings:
            return []
        try:
            return self._forward(decodings)
        except Exception as error:
            if is_out_of_memory(error):  # the next forwards are not to fail first, too
                self.num_out_of_memory += 1
                self._most_at_once = max(1, len(decodings) // 2)
            for decoding in decodings:
                decoding.take_back()
            if len(decodings) == 1:
                logger.exception("a forward failed; its attempt ends")
                return [(decodings[0], self._fail(decodings[0], error))]
        logger.warning("a forward of %d attempts failed; it is repeated by halves", len(decodings))
        half = len(decodings) // 2
        return self._step(decodings[:half]) + self._step(decodings[half:])

    def _forward(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Progress]]:
        begin, in_flight = time.perf_counter(), self.pace.choose(decodings)
        rows = Rows()
        spans = self._read(decodings, rows)
        self.num_rows += len(rows)
        watching = self._readouts.watch(decodings, spans)
        hidden_NH = self._run(rows, watching)
        if watching:
            watching.keep()
        for decoding, span in zip(decodings, spans, strict=True):
            decoding.keep(span, hidden_NH)
        due, peeks = self._judge(decodings, hidden_NH, in_flight)
        self._readouts.read(due)
        news = self._commit(due)
        for peek in peeks:
            _draft(peek, in_flight)
        if len(rows):
            self.pace.times.add(len(rows), time.perf_counter() - begin)
        return list(news.items())

    def _run(self, rows: Rows, watching: Watching | None = None) -> Tensor:
        if watching:  # a recorded forward shows nobody its layers
            return self.model.run(rows, self.cache, watching)
        return self._graphs.run(rows) if self._graphs else self.model.run(rows, self.cache)

    def _read(self, decodings: Sequence[Decoding], rows: Rows) -> list[range]:
        """Add what each attempt reads next; returns the row numbers of its text's tokens.

        Who has least to read is served first, so that a short prompt does not wait for a long one.
        """
        for i, decoding in enumerate(decodings):
            if not decoding.filled:
                decoding.filled = self.prefixes.fill(decoding, decodings[:i])
        most, budget = dict.fromkeys(decodings, 0), self.prefill_chunk
        for decoding in sorted((d for d in decodings if d.may_read), key=lambda d: d.unread):
            most[decoding] = 1 if decoding.unread == 1 else min(decoding.unread, budget)
            budget -= most[decoding] if decoding.unread > 1 else 0
        spans = []
        for decoding in decodings:
            spans.append(decoding.read(rows, most[decoding]))
            self._think(decoding, rows)
        return spans

    def _think(self, decoding: Decoding, rows: Rows) -> None:
        decoding.thinking = False
        for position in decoding.flight:
            if position.thoughts is None and not self._begin(decoding, position):
                break  # they begin in order
            for thought in position.thoughts or ():
                if not thought.ended:  # one that has ended may still wait for an older one
                    thought.enter(rows)
                    decoding.thinking = True

    def _begin(self, decoding: Decoding, position: Position) -> bool:
        """Let a position think, if there are lanes for its thoughts and it is known how deep it may."""
        params, depth = decoding.params, decoding.depth_of(position)
        if depth is None:
            return False
        count = params.num_thoughts if depth else 0
        position.lanes = decoding.take_lanes(count)
        if len(position.lanes) < count:
            return False
        position.thoughts = [
            Thought(
                slot=decoding.slot,
                position=position.number,
                own_from=self.cache.lane(lane, params.thought_depth),
                depth=depth,
                stops=self.model.stop_ids,
                seed=thought_seed(params.seed, index),
                temperature=params.thought_temperature,
            )
            for index, lane in enumerate(position.lanes)
        ]
        return True

    def _commit(self, due: Sequence[Next]) -> dict[Decoding, Progress]:
        """Write decisions into their attempts, oldest positions first."""
        news: dict[Decoding, Progress] = {}
        for next_ in due:
            decoding = next_.decoding
            if not decoding.flight or decoding.flight[0] is not next_.position:
                continue  # it ended before, or stood behind a wrong draft
            try:
                if next_.broken:
                    self._start_over(decoding)
                    continue
                self._decide(next_, news.setdefault(decoding, Progress()))
            except Exception as error:
                logger.exception("a decision failed; its attempt ends")
                news[decoding] = self._fail(decoding, error)
        return news

    def _decide(self, next_: Next, news: Progress) -> None:
        decoding, position, logits_V = next_.decoding, next_.position, next_.logits_V
        thoughts = self._record(next_)
        news.num_thought_tokens += sum(len(thought.token_ids) for thought in thoughts)
        if position.number == 0 and decoding.params.prompt_logprobs is not None:
            news.prompt.append(Token(decoding.tokens[0]))
        if next_.chosen is None:
            news.prompt.append(_token(decoding.score(), logits_V, decoding.params.prompt_logprobs, thoughts))
            if decoding.idle:
                decoding.finish("length")
        else:
            right = decoding.decide(next_.chosen)
            if right is not None and thoughts:  # without a thought a draft is right by nature
                self.pace.decided(right)
            probes = tuple((name, next_.readouts.get(name)) for name in decoding.params.probes)
            news.tokens.append(_token(next_.chosen, logits_V, decoding.params.logprobs, thoughts, probes))
            news.text += decoding.tell(next_.chosen)
        news.finish_reason = decoding.finish_reason

    def _record(self, next_: Next) -> tuple[ThoughtRecord, ...]:
        thoughts, counts = next_.position.thoughts or [], next_.decoding.counts
        counts.thought += bool(thoughts)
        counts.skipped += not thoughts and next_.decoding.params.thought_threshold is not None
        for thought in thoughts:
            self.pace.thought(len(thought.tokens), thought.depth)
        return tuple(ThoughtRecord(tuple(t.tokens), weight) for t, weight in zip(thoughts, next_.weights, strict=True))

    def _start_over(self, decoding: Decoding) -> None:
        """Read again all that an attempt has read: its slot holds what is no number, which shines through any mask.

        Somebody else may have left it there. Raises FloatingPointError the second time.
        """
        if decoding.started_over:
            raise FloatingPointError("the model's logits are not numbers")
        logger.warning("an attempt's logits are not numbers; its slot is wiped, and it starts over")
        decoding.move(decoding.slot)
        decoding.started_over = decoding.filled = True
        self.cache.clear(decoding.slot)

    def drop(self, decoding: Decoding) -> None:
        """End an attempt and wipe its slot: what it holds is nobody's prefix, and may be no numbers."""
        decoding.finish("error")
        decoding.cached = 0
        self.cache.clear(decoding.slot)

    def _fail(self, decoding: Decoding, error: Exception) -> Progress:
        self.drop(decoding)
        return Progress(finish_reason="error", error=error)


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Generation]:
    """Decode prompts offline, as many at once as the cache has slots.

    Raises ValueError for one that cannot be served, and what a forward raises.
    """
    every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    generations = [Generation() for _ in prompts]
    waiting = deque(enumerate(zip(prompts, every, strict=True)))
    free = list(range(decoder.cache.slots))
    running: dict[Decoding, int] = {}
    while waiting or running:
        while waiting and free:
            number, (prompt, wanted) = waiting.popleft()
            slot = decoder.prefixes.choose_slot(prompt, free)
            free.remove(slot)
            decoding = decoder.start(slot, prompt, wanted, whole_text=True)
            generations[number].counts = decoding.counts
            running[decoding] = number
        for decoding, news in decoder.step(list(running)):
            generations[running[decoding]].add(news)
            if news.finish_reason:
                del running[decoding]
                free.append(decoding.slot)
    return generations


def is_out_of_memory(error: BaseException) -> bool:
    """A device's memory, or the machine's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def thought_seed(seed: int, index: int) -> int:
    """The seed of the thought with this number among those of one position; a single thought has the attempt's own."""
    return hash_key(seed, index) if index else seed


def _draft(peek: Next, in_flight: int) -> None:
    """Guess the token behind the newest position; it will be read, and thought after, in the next forward.

    Nothing is guessed behind a guess that ends the text.
    """
    decoding, token = peek.decoding, peek.chosen
    if token is None or not decoding.flight or decoding.flight[-1] is not peek.position:
        return  # it is not the newest, or has gone with a wrong draft before it
    if decoding.may_draft(in_flight) and token not in decoding.ends:
        decoding.tokens.append(token)


def _token(
    token: int,
    logits_V: Tensor,
    count: int | None,
    thoughts: tuple[ThoughtRecord, ...],
    probes: tuple[tuple[str, Readout | None], ...] = (),
) -> Token:
    if count is None:
        return Token(token, thoughts=thoughts, probes=probes)
    logprob, top = top_logprobs(logits_V.log_softmax(-1), token, count)
    return Token(token, logprob, tuple(top), thoughts, probes)


def _finish_idle(decoding: Decoding) -> Progress:
    """End an attempt that has nothing to decide."""
    decoding.finish("length")
    scored = [Token(decoding.tokens[0])] if decoding.params.prompt_logprobs is not None else []
    return Progress(prompt=scored, finish_reason=decoding.finish_reason)
