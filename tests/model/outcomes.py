"""What a model gives to a few questions of every kind, wherever it runs: what must be equal, and numbers that rounding may move."""

from pathlib import Path
from typing import Any

import torch

from quietserve.model.backbone import causal
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.probe import load_probe
from quietserve.model.progress import Generation, Token
from quietserve.model.quiet_model import QuietModel
from quietserve.model.ranker import load_ranker
from quietserve.model.thoughts import Rows
from quietserve.model.voting import Entry

ALIKE = "Count past 9 from 0. a is 3. a plus 4 is b. "  # enough that those who begin so share what is read of it
PROMPTS = [ALIKE + "b", ALIKE + "c and d", "x", "A dial is at 3."]
DECODERS: list[dict[str, Any]] = [{}, {"pipeline_depth": 1, "prefill_chunk": 7, "reuse_prefixes": False}]
PLAIN = [SamplingParams(max_tokens=8, temperature=0.0, logprobs=2), SamplingParams(max_tokens=8, seed=5)]
THINKING = [
    SamplingParams(max_tokens=6, seed=1, thought_depth=3, logprobs=2, probes=("read",)),
    SamplingParams(max_tokens=6, temperature=0.0, thought_temperature=0.0, thought_depth=6),
    SamplingParams(max_tokens=4, seed=2, thought_depth=4, num_thoughts=2, top_p=0.9),
    SamplingParams(max_tokens=4, seed=3, thought_depth=4, thought_threshold=4.65, thinking_token_budget=20),
    SamplingParams(max_tokens=1, seed=4, thought_depth=2, prompt_logprobs=1),
]


def outcome(loaded: Loaded, ranker: str | None = None, probe: str | None = None) -> dict[str, Any]:
    """Equal things and numbers, and how many tokens were read once for several."""
    exact: list[Any] = []
    numbers, reused = logits(loaded.model) + states(loaded.model), 0
    params = THINKING + PLAIN if probe else PLAIN
    probes = {"read": load_probe(Path(probe), loaded)} if probe else {}
    for settings in DECODERS if probe else DECODERS[:1]:
        cache = Cache(loaded.model.backbone, slots=5, max_len=96, max_depth=6)
        decoder = Decoder(loaded.model, loaded.tokens, cache, probes=probes, **settings)
        asked = [(loaded.tokens.encode(text), wanted) for text in PROMPTS for wanted in params]
        for found in generate(decoder, [prompt for prompt, _ in asked], [wanted for _, wanted in asked]):
            exact.append(equal_things(found))
            numbers += numbers_of(found)
            reused += found.counts.reused
    if ranker:
        entries = [Entry(tuple(loaded.tokens.encode(text)), answer) for text in PROMPTS for answer in ("b", "c d")]
        numbers += load_ranker(ranker, loaded).logits(entries)
    return {"exact": exact, "numbers": numbers, "reused": reused}


def equal_things(found: Generation) -> list[Any]:
    return [
        found.text,
        found.finish_reason,
        [[_said(token) for token in part] for part in (found.tokens, found.prompt)],
    ]


def _said(token: Token) -> list[Any]:
    readouts = [[name, readout and readout.class_] for name, readout in token.probes]
    return [token.id, [list(thought.token_ids) for thought in token.thoughts], readouts]


def numbers_of(found: Generation) -> list[float]:
    tokens = found.tokens + found.prompt
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    weights = [thought.mixing_weight for token in tokens for thought in token.thoughts]
    return logprobs + weights + [readout.probability for token in tokens for _, readout in token.probes if readout]


@torch.inference_mode()
def logits(model: QuietModel) -> list[float]:
    """Behind the tokens of two texts, read without a cache."""
    ids = torch.arange(2 * 9).view(2, 9) + 40
    positions = torch.arange(9).expand(2, 9)
    return model.logits(model(ids, positions, causal)).clamp(min=-1e3).flatten().tolist()  # the markers' are infinite


@torch.inference_mode()
def states(model: QuietModel) -> list[float]:
    """Behind tokens that see what was read, what was copied, and what was wiped."""
    cache, found = Cache(model.backbone, slots=3, max_len=16, max_depth=0), []

    def read(slot: int, tokens: range, begin: int) -> None:
        rows = Rows()
        rows.add_base(slot, tokens, begin)
        found.append(model.run(rows, cache))

    read(0, range(40, 48), 0)
    cache.copy(0, 2, 5)
    read(2, range(50, 53), 5)
    cache.clear(0)
    read(0, range(60, 61), 8)
    return torch.cat(found).flatten().tolist()
