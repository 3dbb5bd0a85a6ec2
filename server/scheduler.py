"""Who runs next: the bounded queue, the slots, cancellation. Knows nothing of tensors, threads or event loops."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..model.config import SamplingParams


class QueueFullError(RuntimeError):
    """More attempts wait than the queue holds."""


@dataclass(frozen=True)
class Attempt:
    """One answer to decode: a prompt and how."""

    prompt: tuple[int, ...]
    params: SamplingParams


@dataclass
class Timing:
    """Moments of a ticket on the monotonic clock, in seconds; None where it never got there."""

    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None  # got a slot
    first_token: float | None = None  # decoded anything, hidden or visible
    first_output: float | None = None  # decided a visible token
    finished: float | None = None
    thought_s: float = 0.0  # time in forwards in which one of its thoughts took part


_numbers = itertools.count()


@dataclass(eq=False)
class Ticket:
    """One attempt's way through the engine. Ends exactly once, with a finish reason or an error."""

    attempt: Attempt
    publish: Callable[["Ticket", Any], None]  # called on the device thread with each Progress, or the error it ended with
    number: int = field(default_factory=lambda: next(_numbers))
    timing: Timing = field(default_factory=Timing)
    slot: int | None = None
    cancelled: bool = False
    finish_reason: str | None = None  # "stop", "length", "abort" (cancelled) or "error"
    num_output_tokens: int = 0  # visible, the end of the text included
    num_thought_tokens: int = 0
    sequence: Any = None  # the decoder's state while it has a slot
