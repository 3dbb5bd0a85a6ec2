"""When to try again, and how long to wait first. Nothing here sleeps or sends: the clients do."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ApiError

FIRST_WAIT_S = 0.5


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is.

    Args:
        max_retries: attempts after the first one.
        max_wait_s: the longest wait before a retry; a server that asks for a longer one is taken at its word, and not
            asked again.
        budget_s: how long all attempts and waits of a call may take together; None is for ever.
    """

    max_retries: int = 2
    max_wait_s: float = 30.0
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries {self.max_retries} is below 0")
        if not self.max_wait_s >= 0:
            raise ValueError(f"max_wait_s {self.max_wait_s} is below 0")


class Attempts:
    """The attempts at one call: after each failure it says how long to wait, or that this was the last."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._num_retries = 0
        self._end = None if policy.budget_s is None else clock() + policy.budget_s

    @property
    def time_left_s(self) -> float | None:
        """What remains of the budget; None is for ever."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    def wait_after(self, error: ApiError) -> float | None:
        """Seconds to wait before the next attempt; None if there should be none."""
        if self._num_retries == self._policy.max_retries or not error.retryable:
            return None
        wait_s = self._choose_wait(error.retry_after_s)
        left_s = self.time_left_s
        if wait_s is None or (left_s is not None and wait_s >= left_s):
            return None
        self._num_retries += 1
        return wait_s

    def _choose_wait(self, retry_after_s: float | None) -> float | None:
        """Chance keeps clients that failed together from coming back together."""
        longest = self._policy.max_wait_s
        backoff = min(longest, FIRST_WAIT_S * 2.0 ** min(self._num_retries, 30))
        if retry_after_s is None:
            return backoff * (1 + self._draw()) / 2
        return None if retry_after_s > longest else min(longest, retry_after_s + backoff * self._draw())
