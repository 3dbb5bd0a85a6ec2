"""When each token of a run arrived, and the figures that follow from it; the same arithmetic for every system.

A run's throughput is that of its steady state, in which every request is decoding: it begins when the last request has got
its first token, and ends when some request has got the wanted number of tokens since. Prefill lies before it (the first
requests may be decoding while the last ones still read: those tokens do not count), and there the run is stopped: behind
it the batch would only run empty, where a server would have put the next request in the free slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np


class Arrival(NamedTuple):
    """A moment of a run."""

    wall_s: float  # since the requests were submitted
    cpu_s: float  # of all threads of this process, since then
    forwards: int | None  # of the model, since then; None where the system does not tell


@dataclass
class Timings:
    """One run: what arrived when, a list for every request."""

    tokens: list[list[int]]
    arrivals: list[list[Arrival]]
    num_tokens: int  # of one request, that end the steady state
    accepted: int = 0  # drafts
    rejected: int = 0
    thought_tokens: int = 0  # of the thoughts before the tokens
    cut: Arrival | None = None  # where a run of known cost was given up before it reached a second token
    forwards_per_token: float | None = None  # that cost


@dataclass(frozen=True)
class Figures:
    """What a run amounts to. None: it says nothing about that."""

    tokens_per_s: float  # visible tokens of all requests, in the steady state
    tokens_per_cpu_s: float  # the same against CPU time: what remains of it on a machine that others use too
    forwards_per_token: float | None  # forwards in the steady state, a visible token of one request
    acceptance: float | None  # share of drafts accepted, over the whole run
    thought_length: float  # thought tokens before a visible one, over the whole run: a mean
    ttft_s: float | None  # submit to a request's first token: median over requests
    inter_token_s: float | None  # between a request's tokens in the steady state: median
    inter_token_p95_s: float | None
    tokens: float  # visible tokens of a request that the throughput was measured over: a mean over requests
    extrapolated: bool = False  # worked out from forwards: there were no two tokens to measure between


class Stopwatch:
    """Notes the arrivals of a run that begins now.

    Args:
        num_requests: how many there are.
        num_tokens: tokens in the steady state, of the request that is ahead, after which the run is `over`.
        max_s: seconds of steady state after which it is over, too.
    """

    def __init__(self, num_requests: int, num_tokens: int, max_s: float) -> None:
        self._num_tokens, self._max_s = num_tokens, max_s
        self.tokens: list[list[int]] = [[] for _ in range(num_requests)]
        self.arrivals: list[list[Arrival]] = [[] for _ in range(num_requests)]
        self._waiting = num_requests  # for a first token
        self._steady_s = 0.0  # where the steady state began, once nobody waits
        self._steady_counts = [0] * num_requests  # tokens of each request by then
        self._steady = False  # it has given a token
        self._over = False
        self._wall, self._cpu = perf_counter(), process_time()

    def now(self, forwards: int | None = None) -> Arrival:
        """This moment."""
        return Arrival(perf_counter() - self._wall, process_time() - self._cpu, forwards)

    def tick(self, request: int, token: int, forwards: int | None = None) -> None:
        """A visible token of a request is known. A request's ticks come from one thread at a time."""
        now = self.now(forwards)
        self.tokens[request].append(token)
        self.arrivals[request].append(now)
        if self._waiting:
            self._begin(now)
        else:
            self._steady = True
            self._over |= len(self.tokens[request]) - self._steady_counts[request] >= self._num_tokens

    def _begin(self, now: Arrival) -> None:
        self._waiting = sum(not each for each in self.tokens)
        if not self._waiting:
            self._steady_s = now.wall_s
            self._steady_counts = [len(each) for each in self.tokens]

    @property
    def over(self) -> bool:
        """Enough was measured, or time is up. It never is before a token of the steady state."""
        return self._over or (self._steady and self.now().wall_s - self._steady_s > self._max_s)

    def timings(self, accepted: int = 0, rejected: int = 0, thought_tokens: int = 0) -> Timings:
        """What was noted."""
        return Timings(self.tokens, self.arrivals, self._num_tokens, accepted, rejected, thought_tokens)


def figures(timings: Timings) -> Figures:
    """What a run amounts to. Raises ValueError for one that is too short to tell."""
    begin, end, tokens = _window(timings)
    extrapolated = tokens <= 0
    if extrapolated:
        begin, end, tokens = _extrapolate(timings)
    num_requests = len(timings.arrivals)
    forwards = None
    if begin.forwards is not None and end.forwards is not None:
        forwards = (end.forwards - begin.forwards) * num_requests / tokens
    drafts = timings.accepted + timings.rejected
    steady = [[a.wall_s for a in each if a.wall_s >= begin.wall_s] for each in timings.arrivals]
    gaps = [later - earlier for each in steady for earlier, later in pairwise(each)]
    firsts = [each[0].wall_s for each in timings.arrivals if each]
    return Figures(
        tokens_per_s=tokens / (end.wall_s - begin.wall_s),
        tokens_per_cpu_s=tokens / max(end.cpu_s - begin.cpu_s, 1e-9),
        forwards_per_token=forwards,
        acceptance=timings.accepted / drafts if drafts else None,
        thought_length=timings.thought_tokens / max(sum(map(len, timings.tokens)), 1),
        ttft_s=median(firsts) if len(firsts) == num_requests else None,
        inter_token_s=median(gaps) if gaps else None,
        inter_token_p95_s=float(np.quantile(gaps, 0.95)) if gaps else None,
        tokens=tokens / num_requests,
        extrapolated=extrapolated,
    )


def _window(timings: Timings) -> tuple[Arrival, Arrival, float]:
    """The steady state: its two ends, and how many tokens all requests got between them."""
    nothing = Arrival(0.0, 0.0, None)
    if not all(timings.arrivals):
        return nothing, nothing, 0.0
    begin = max(each[0] for each in timings.arrivals)
    after = [[arrival for arrival in each if arrival.wall_s > begin.wall_s] for each in timings.arrivals]
    enough = [each[timings.num_tokens - 1] for each in after if len(each) >= timings.num_tokens]
    end = min(enough) if enough else max(each[-1] for each in timings.arrivals)
    return begin, end, sum(_count(each, end) - _count(each, begin) for each in timings.arrivals)


def _count(arrivals: Sequence[Arrival], at: Arrival) -> float:
    """Tokens of one request up to a moment. A part of the next one counts: its work was under way."""
    return float(np.interp(at.wall_s, [a.wall_s for a in arrivals], np.arange(1, len(arrivals) + 1)))


def _extrapolate(timings: Timings) -> tuple[Arrival, Arrival, float]:
    """The whole of a run that was cut, and the tokens that its forwards would have made."""
    cut = timings.cut
    if cut is None or cut.forwards is None or timings.forwards_per_token is None:
        raise ValueError("a run of less than two tokens has no throughput; ask for more tokens")
    return Arrival(0.0, 0.0, 0), cut, cut.forwards / timings.forwards_per_token * len(timings.arrivals)
