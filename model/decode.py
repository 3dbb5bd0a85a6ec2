"""Decoding with thoughts: prefill, one step over all running sequences, offline generation, scoring."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import Cache
from .config import SamplingParams
from .quiet_model import QuietModel
from .sampling import Draw, sample, sample_thoughts, top_logprobs
from .thoughts import Rows, Thought, advance
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
    logprob: float | None = None  # under the mixed distribution before temperature; None unless asked for, and for a text's first
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
