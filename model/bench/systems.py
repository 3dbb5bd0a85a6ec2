"""The systems that are measured against each other: one table, and our own decoder under three names."""

from collections.abc import Callable
from typing import Protocol

from ..cache import Cache
from ..config import SamplingParams
from ..decode import Decoder
from .cell import Setup
from .hugging_face import ContinuousBatching, Generate
from .llama_cpp import LlamaCpp
from .recompute import Recompute
from .timings import Stopwatch, Timings


class System(Protocol):
    """Something that decodes."""

    name: str

    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Decode all prompts at once, with thoughts of `depth` tokens, for `num_tokens` visible tokens in steady state."""
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


# From a setup to a system. Raises Unavailable where it cannot be measured.
Factory = Callable[[Setup], System]


class Ours:
    """Our decoder: `plain` never thinks, `sequential` thinks after one position at a time, `pipeline` after many."""

    def __init__(self, name: str, setup: Setup, pipeline_depth: int | None) -> None:
        self.name, self._setup = name, setup
        depth = 0 if name == "plain" else setup.cell.depth
        lanes = depth + 1 if pipeline_depth is None else 1
        slack = depth + 2  # what may be read ahead of the last token
        model, tokens = setup.subject.model, setup.subject.tokens
        cache = Cache(model.backbone, setup.cell.batch, setup.max_len + slack, depth, lanes)
        self._decoder = Decoder(model, tokens, cache, pipeline_depth=pipeline_depth, reuse_prefixes=False)
        self._decoder.measure_forwards()  # as a server does before its first request

    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Decode all prompts, one a slot."""
        decoder, num_steps, num_thought = self._decoder, 0, 0
        params = [self._params(seed, depth) for seed in range(len(prompts))]
        watch = Stopwatch(len(prompts), num_tokens, self._setup.max_s)
        running = [decoder.start(slot, prompt, params[slot]) for slot, prompt in enumerate(prompts)]
        while not watch.over:
            num_steps += 1
            for decoding, news in decoder.step(running):
                num_thought += news.num_thought_tokens
                for token in news.tokens:
                    watch.tick(decoding.slot, token.id, num_steps)
        counts = [decoding.counts for decoding in running]
        return watch.timings(sum(c.accepted for c in counts), sum(c.rejected for c in counts), num_thought)

    def close(self) -> None:
        """Forget the cache."""
        del self._decoder

    def _params(self, seed: int, depth: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=self._setup.room,
            temperature=self._setup.cell.temperature,
            ignore_eos=True,
            seed=seed,
            thought_depth=0 if self.name == "plain" else depth,
        )


SYSTEMS: dict[str, Factory] = {
    "recompute": Recompute,
    "sequential": lambda setup: Ours("sequential", setup, 1),
    "pipeline": lambda setup: Ours("pipeline", setup, None),
    "plain": lambda setup: Ours("plain", setup, 1),
    "transformers": Generate,
    "transformers-cb": ContinuousBatching,
    "llama.cpp": LlamaCpp,
}
THINKING = ("recompute", "sequential", "pipeline", "plain")  # measured in a cell with thoughts
PLAIN = ("plain", "transformers", "transformers-cb", "llama.cpp")  # in one without
