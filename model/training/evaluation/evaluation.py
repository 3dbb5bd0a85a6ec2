"""What every metric of an evaluation shares: the model, the seeds, and how it is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...cache import Cache
from ...checkpoint import Loaded
from ...config import SamplingParams
from ...decode import Decoder, generate
from ...progress import Generation
from ...ranker import Ranker
from ...thoughts import Choose
from ..documents import DASH_TOKEN
from ..tasks.item import Item

PERPLEXITY = "perplexity"  # the only one that a plain text has, too
METRICS = ("generated", "scored", "maj", "corrected", "budget", PERPLEXITY)


@dataclass(frozen=True)
class Measured:
    """One metric of one task at one depth."""

    depth: int
    cell: dict[str, Any]  # what is reported: `value`, `ci95`, and what else the metric says
    values: Sequence[float] = ()  # of each item, the same items at every depth: depths can be compared in pairs


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint under evaluation. Two with the same fields measure the same."""

    loaded: Loaded
    seed: int = 1  # of thoughts, samples and resampling
    thought_temperature: float = 0.0  # 0 is greedy
    choose: Choose | None = None  # who picks the tokens of thoughts; None: seeded noise
    max_tokens: int | None = None  # of a generated answer; None: what a task's answers need
    stop: tuple[str, ...] = ("\n",)  # ends one
    samples: int = 8  # chains of thought of an item that vote
    temperature: float = 0.7  # of their visible tokens
    reasoning_tokens: int | None = None  # of a chain of thought; None: what a task's own need, or 256
    positions: int = 0  # of a document that are measured, drawn by the seed; 0: all
    pairs: int = 16  # most corrected answers of an item that vote in `budget`
    batch: int = 64  # answers decoded at once
    ranker: Ranker | None = None  # weighs the votes of `budget`, too

    @property
    def thoughts_at_once(self) -> int:
        """When scoring: a thought needs less room than an answer, whose slot holds a pipeline of them."""
        return 4 * self.batch

    @cached_property
    def dash(self) -> int | None:
        """The token that opens an aside, where the vocabulary has it."""
        return self.loaded.tokens.tokenizer.get_vocab().get(DASH_TOKEN)

    def decode(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams], items: Sequence[Item]
    ) -> list[Generation]:
        """Decode a prompt for each item by what the server decodes with. Raises ValueError for one that is too long."""
        backbone, depth = self.loaded.model.backbone, params[0].thought_depth
        for prompt, wanted, item in zip(prompts, params, items, strict=True):
            self.require_room(len(prompt) + wanted.max_tokens, depth, item.source)
        longest = max(len(prompt) + wanted.max_tokens for prompt, wanted in zip(prompts, params, strict=True))
        cache = Cache(backbone, min(self.batch, len(prompts)), longest, depth)
        decoder = Decoder(self.loaded.model, self.loaded.tokens, cache, choose=self.choose)
        return generate(decoder, prompts, params)

    def require_room(self, length: int, depth: int, source: str) -> None:
        """Raise ValueError where a text of `length` tokens, with a thought behind its last one, exceeds the context."""
        limit = self.loaded.model.backbone.max_positions - (depth + 2 if depth else 0)
        if length > limit:
            raise ValueError(
                f"{source}: {length} tokens with the answer's; at depth {depth} the model's context has room for {limit}"
            )

    def encode_answer(self, item: Item, answer: str) -> tuple[list[int], list[int]]:
        """Ids of an item's prompt and of an answer behind it, split where the prompt ends."""
        tokens = self.loaded.tokens
        prompt, whole = tokens.encode(item.prompt), tokens.encode(f"{item.prompt} {answer}")
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
        return prompt, tokens.encode(f" {answer}", special=False)  # the tokenizer joined the prompt's end to the answer
