"""How many positions of an attempt think at once: the pipeline's depth D, chosen for the most tokens a second.

With D positions in flight and a share `a` of drafts accepted, a thought of t tokens costs fewer forwards a token, and each
forward has more rows. How much a row costs is measured, forward by forward.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .decoding import Decoding

_PRIOR_ACCEPTANCE = 0.9
_SURE = 0.999  # the model has no end where every draft is right
_MEMORY = 200  # decisions, and forwards of one size, that the running means look back on
_FIRST = 4  # forwards of a size of which the fastest counts
_MOST = 5  # times the mean that one forward may count
_REFRESH = 32  # forwards between two choices for the same batch


def forwards_per_token(depth: int, in_flight: int, acceptance: float) -> float:
    """Expected forwards a token, where a thought is `depth` tokens long and `in_flight` positions may think at once.

    After a wrong draft the pipeline is empty: the next decision comes depth + 1 forwards later. Then decisions come in
    bursts of `in_flight`, one a forward, a burst every depth + 1 forwards, until a draft is wrong again. At in_flight = 1
    this is depth + 1, at depth + 1 it is 1 + (1 - a) depth.
    """
    acceptance = min(acceptance, _SURE)
    return (1 - acceptance) * _run(depth + 1, min(in_flight, depth + 1), acceptance)


def rows_in_flight(depth: int, in_flight: int, acceptance: float) -> float:
    """Expected number of thinking positions in a forward: fewer than `in_flight` while the pipeline fills."""
    in_flight, acceptance = min(in_flight, depth + 1), min(acceptance, _SURE)
    return max(1.0, in_flight - in_flight * (in_flight - 1) / (2 * _run(depth + 1, in_flight, acceptance)))


def _run(length: int, in_flight: int, acceptance: float) -> float:
    """Expected forwards from one wrong draft to the next; decision k comes after
    length (1 + k // in_flight) + k % in_flight of them, and is the wrong one with probability (1 - a) a^k."""
    powers = [acceptance**k for k in range(in_flight + 1)]
    burst = powers[in_flight]
    within = sum(k * powers[k] for k in range(in_flight)) / sum(powers[:in_flight])
    return length + length * burst / (1 - burst) + within


class ForwardTimes:
    """Seconds of a forward by its number of rows: running means in steps of half an octave, lines between them."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[float, float, int]] = {}  # mean rows, mean seconds, how many
        self._rows: list[float] = []
        self._seconds: list[float] = []

    def add(self, rows: int, seconds: float) -> None:
        """One forward was measured."""
        size = round(2 * math.log2(max(rows, 1)))
        mean_rows, mean_seconds, count = self._sizes.get(size, (float(rows), seconds, 0))
        if count < _FIRST:  # among them may be one that was recorded, or had to wait for memory
            mean_seconds = min(mean_seconds, seconds)
        else:  # what takes far longer was held up by something else, or is how it is from now on
            mean_seconds += (min(seconds, _MOST * mean_seconds) - mean_seconds) / _MEMORY
        self._sizes[size] = mean_rows + (rows - mean_rows) / _MEMORY, mean_seconds, count + 1
        known = sorted(self._sizes.values())
        self._rows, self._seconds = [k[0] for k in known], [k[1] for k in known]

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, rows: float) -> float:
        """Expected seconds. Beyond what was measured the last slope goes on; more rows are never faster."""
        assert len(self) > 1
        i = min(max(bisect_left(self._rows, rows), 1), len(self) - 1)
        (r0, r1), (s0, s1) = self._rows[i - 1 : i + 1], self._seconds[i - 1 : i + 1]
        return max(s0 + max(s1 - s0, 0.0) * (rows - r0) / (r1 - r0), 1e-9)


@dataclass(frozen=True)
class _Batch:
    """What a choice of D depends on, besides what was measured."""

    thinkers: tuple[tuple[tuple[int, int, int], int], ...]  # ((thought depth, parallel thoughts, lanes), attempts)
    others: int  # rows of attempts that do not think


class Pace:
    """Chooses D for each forward.

    Args:
        fixed: this D, whatever is measured; 1 is sequential thinking.
        may_end: thoughts may end themselves, and so carry END in every forward.
    """

    def __init__(self, fixed: int | None = None, may_end: bool = False) -> None:
        self.times = ForwardTimes()
        self.acceptance = _PRIOR_ACCEPTANCE
        self.thought_share = 1.0  # of its depth that a thought uses
        self.in_flight = fixed or 1  # the last choice
        if fixed is not None and fixed < 1:
            raise ValueError(f"pipeline_depth is {fixed}; it must be 1 or more")
        self._fixed, self._may_end = fixed, may_end
        self._choices: dict[_Batch, tuple[int, int]] = {}  # with the forward of the choice
        self._num_forwards = 0

    def choose(self, decodings: Sequence[Decoding]) -> int:
        """How many positions of each attempt may think at once in this forward."""
        self._num_forwards += 1
        if self._fixed is None:
            kinds = Counter((d.params.thought_depth, d.params.num_thoughts, d.num_lanes) for d in decodings)
            others = sum(count for (depth, *_), count in kinds.items() if not depth)
            batch = _Batch(tuple(sorted((k, n) for k, n in kinds.items() if k[0])), others)
            self.in_flight = self._chosen(batch)
            if self.in_flight == 1:  # nothing is drafted, and nothing learnt: what was measured fades
                self.acceptance += (_PRIOR_ACCEPTANCE - self.acceptance) / (5 * _MEMORY)
        return self.in_flight

    def decided(self, accepted: bool) -> None:
        """A draft was compared with what was decided."""
        self.acceptance += (accepted - self.acceptance) / _MEMORY

    def thought(self, length: int, depth: int) -> None:
        """A thought was used."""
        self.thought_share += (length / depth - self.thought_share) / _MEMORY

    def _chosen(self, batch: _Batch) -> int:
        chosen, since = self._choices.get(batch, (0, -_REFRESH))
        if self._num_forwards - since >= _REFRESH:
            chosen = self._best(batch)
            if len(self._choices) > 256:
                self._choices.clear()
            self._choices[batch] = chosen, self._num_forwards
        return chosen

    def _best(self, batch: _Batch) -> int:
        deepest = max((min(depth, lanes // count - 1) for (depth, count, lanes), _ in batch.thinkers), default=0)
        if len(self.times) < 2:
            return deepest + 1
        return max(range(1, deepest + 2), key=lambda in_flight: self._rate(batch, in_flight))

    def _rate(self, batch: _Batch, in_flight: int) -> float:
        """Tokens a second of the attempts that think."""
        tokens, rows = 0.0, float(batch.others)
        for (depth, num_thoughts, lanes), count in batch.thinkers:
            length, room = max(1, round(depth * self.thought_share)), min(in_flight, lanes // num_thoughts)
            per_token = forwards_per_token(length, room, self.acceptance)
            thoughts = num_thoughts * rows_in_flight(length, room, self.acceptance)
            ends = thoughts if self._may_end else thoughts / (length + 1)
            tokens += count / per_token
            rows += count * (1 + thoughts + ends)
        return tokens / self.times(rows)
