"""Answers that wait for a ranker: they are scored between two forwards, so that one thread has the device."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..model.ranker import Ranker
from ..model.voting import Entry

MOST_AT_ONCE = 64  # answers between two forwards, of as many requests as there are


@dataclass(frozen=True)
class Ranking:
    """Answers of one request."""

    ranker: str
    entries: Sequence[Entry]
    loop: asyncio.AbstractEventLoop
    scores: "asyncio.Future[list[float]]"  # the loop's: how likely each is to be right

    def settle(self, scores: Sequence[float]) -> None:
        """Hand over what was asked for. Any thread."""
        self._post(lambda: self.scores.set_result(list(scores)))

    def fail(self, error: Exception) -> None:
        """Say why there will be no scores. Any thread."""
        self._post(lambda: self.scores.set_exception(error))

    def _post(self, settle: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will read it
            self.loop.call_soon_threadsafe(lambda: None if self.scores.done() else settle())


class Rankings:
    """Those that wait. The engine guards it.

    Args:
        rankers: by their names.
    """

    def __init__(self, rankers: Mapping[str, Ranker]) -> None:
        self.names = tuple(rankers)
        self._rankers = rankers
        self._waiting: deque[Ranking] = deque()

    def __len__(self) -> int:
        """Answers that wait."""
        return sum(len(ranking.entries) for ranking in self._waiting)

    def add(self, ranker: str, entries: Sequence[Entry]) -> "list[asyncio.Future[list[float]]]":
        """Queue answers, in parts, on the event loop that will read their scores."""
        loop = asyncio.get_running_loop()
        parts = [entries[first : first + MOST_AT_ONCE] for first in range(0, len(entries), MOST_AT_ONCE)]
        added = [Ranking(ranker, part, loop, loop.create_future()) for part in parts]
        self._waiting.extend(added)
        return [ranking.scores for ranking in added]

    def take(self) -> list[Ranking]:
        """The first, and others for the same ranker as long as they are not too many; none if nobody waits."""
        taken: list[Ranking] = []
        count = 0
        for ranking in list(self._waiting):
            if taken and (ranking.ranker != taken[0].ranker or count + len(ranking.entries) > MOST_AT_ONCE):
                break
            taken.append(self._waiting.popleft())
            count += len(ranking.entries)
        return [ranking for ranking in taken if not ranking.scores.cancelled()]

    def score(self, taken: Sequence[Ranking]) -> list[list[float]]:
        """Score answers of one ranker, all together."""
        scores = iter(self._rankers[taken[0].ranker].score([entry for ranking in taken for entry in ranking.entries]))
        return [[next(scores) for _ in ranking.entries] for ranking in taken]
