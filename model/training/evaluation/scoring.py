"""Next-token distributions of given texts, with a thought at each position that is asked for.

What the paper's scored metric and its perplexities are made of (Quiet-STaR, arXiv 2403.09629): texts are read by plain
forwards, thoughts go through the one thought kernel, and the mix is what serving computes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache import Cache
from ...quiet_model import QuietModel
from ...sampling import sample_thoughts
from ...thoughts import Choose, Rows, Thought, think

LANES = 8  # thoughts of one text at a time: every thought's rows are held against all the scratch columns of its slot
AT_ONCE = 256  # thoughts in one forward


@dataclass(frozen=True)
class Scored:
    """A text to read, and the positions behind which the next token is to be foretold."""

    ids: Sequence[int]
    positions: Sequence[int]
    seed: int = 0  # of its thoughts: their noise is a function of (seed, position), whatever else is in the batch


@dataclass(frozen=True)
class Scores:
    """What was foretold. Shape letters: J positions, V vocabulary."""

    logprobs_JV: Tensor  # float32, of the mixed distribution
    weights_J: Tensor  # mixing weights of the thoughts; 0 where nothing is thought
    num_thought_tokens: int


@torch.no_grad()
def score(
    model: QuietModel,
    texts: Sequence[Scored],
    depth: int,
    temperature: float = 0.0,
    choose: Choose | None = None,
    at_once: int = AT_ONCE,
) -> Iterator[Scores]:
    """Foretell the next token at the positions of each text, thinking first; yields in the order of the texts.

    Args:
        model: the model.
        texts: what to read; each needs at least one position.
        depth: most tokens of a thought; 0 is the plain base.
        temperature: of the thoughts; 0 is greedy.
        choose: who picks the tokens of thoughts; None: by seeded noise, as in serving.
        at_once: thoughts in one forward, which bounds the memory.

    Raises:
        ValueError: the model's logits are not numbers.
    """
    if not texts:
        return
    lanes = min(LANES, at_once, max(len(text.positions) for text in texts))
    slots = min(len(texts), at_once // lanes)
    longest = max(max(text.positions) + 1 for text in texts)
    cache = Cache(model.backbone, slots, longest, depth, lanes if depth else 0)
    for first in range(0, len(texts), slots):
        part = texts[first : first + slots]
        bases = _read(model, cache, part)
        flights = _think(model, cache, part, depth, temperature, lanes, choose) if depth else [[]] * len(part)
        for base_JH, thoughts in zip(bases, flights, strict=True):
            yield _mix(model, base_JH, thoughts)


def _read(model: QuietModel, cache: Cache, texts: Sequence[Scored]) -> list[Tensor]:
    """Read texts into their slots; the hidden states [J, H] at their positions."""
    rows = Rows()
    spans = [rows.add_base(slot, text.ids[: max(text.positions) + 1], 0) for slot, text in enumerate(texts)]
    hidden_NH = model.run(rows, cache)
    return [hidden_NH[[span[p] for p in text.positions]] for span, text in zip(spans, texts, strict=True)]


def _think(
    model: QuietModel,
    cache: Cache,
    texts: Sequence[Scored],
    depth: int,
    temperature: float,
    lanes: int,
    choose: Choose | None,
) -> list[list[Thought]]:
    """Finished thoughts behind every position of each text, `lanes` of a text at a time."""
    every: list[list[Thought]] = [[] for _ in texts]
    for first in range(0, max(len(text.positions) for text in texts), lanes):
        flights = [
            Thought(slot, position, cache.lane(lane, depth), depth, model.stop_ids, text.seed, temperature)
            for slot, text in enumerate(texts)
            for lane, position in enumerate(text.positions[first : first + lanes])
        ]
        think(model, cache, flights, choose or choose_by_noise)
        for thought in flights:
            every[thought.slot].append(thought)
    return every


def choose_by_noise(thoughts: list[Thought], logits_MV: Tensor) -> list[int]:
    """Thought tokens by the noise of (seed, position, place in the thought), or greedily, as in serving."""
    keys = [(t.seed, t.position, len(t.tokens) + 1) for t in thoughts]
    return sample_thoughts(logits_MV, keys, [t.temperature for t in thoughts])


def _mix(model: QuietModel, base_JH: Tensor, thoughts: Sequence[Thought]) -> Scores:
    weights_J = torch.zeros(len(base_JH))
    if thoughts:
        after_JH = torch.stack([t.hidden for t in thoughts if t.hidden is not None])
        base_JH, weights_J = model.mix(base_JH, after_JH)
    logits_JV = model.logits(base_JH)
    if logits_JV.isnan().any():
        raise ValueError("the model's logits are not numbers")
    return Scores(logits_JV.log_softmax(-1), weights_J.float().cpu(), sum(len(t.tokens) for t in thoughts))
