"""Choosing the mixing weight at which a wanted share of drafts is accepted.

A draft is accepted when the base and the mixed logits, under the same noise, choose the same token. A thought does not
depend on the weight, so it is thought once, and the weight is then found by bisection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cache import Cache
from ..quiet_model import QuietModel
from ..sampling import gumbel, sample_thoughts
from ..thoughts import Rows, Thought, think
from .shapes import Subject, force_weight

TEXTS, CONTEXT, POSITIONS = 4, 24, 32  # texts, the tokens before the first position, and the positions of each
NOISES = 4  # draws at each position
STEPS = 12
MOST = 64.0  # weight; beyond it little changes: the mix is the thought's direction alone


@torch.inference_mode()
def calibrate(subject: Subject, depth: int, wanted: float) -> float:
    """Force the weight of the subject's thoughts so that this share of drafts is accepted; returns the weight.

    Temperature 1, random texts, thoughts of `depth` tokens. What a run then sees differs a little: its texts are others.
    """
    if depth not in subject.weights:
        subject.weights[depth] = _search(subject, depth, wanted)
    force_weight(subject.model, subject.weights[depth])
    return subject.weights[depth]


def _search(subject: Subject, depth: int, wanted: float) -> float:
    model = subject.model
    base_MH, thought_MH = _think(subject, depth)
    noise_KMV = _noise(base_MH.new_empty(len(base_MH), model.backbone.vocab_size, dtype=torch.float32))
    drafts_KM = _choose(model, base_MH, noise_KMV)

    def accepted(weight: float) -> float:
        force_weight(model, weight)
        mixed_MH, _ = model.mix(base_MH, thought_MH)
        return float((_choose(model, mixed_MH, noise_KMV) == drafts_KM).float().mean())

    low, high = 0.0, 1.0
    while high < MOST and accepted(high) > wanted:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) > wanted else (low, middle)
    return high


def _noise(like_MV: Tensor) -> Tensor:
    """Gumbel noise [NOISES, M, V] as `sample` would draw it: every seed at every position."""
    return torch.stack([gumbel([(seed, row) for row in range(len(like_MV))], like_MV) for seed in range(NOISES)])


def _choose(model: QuietModel, hidden_MH: Tensor, noise_KMV: Tensor) -> Tensor:
    """The tokens [NOISES, M] chosen at temperature 1."""
    return (model.logits(hidden_MH) + noise_KMV).argmax(-1)


def _think(subject: Subject, depth: int) -> tuple[Tensor, Tensor]:
    """Hidden states [M, H] at positions of random texts, and after a thought there."""
    model, length = subject.model, CONTEXT + POSITIONS
    cache = Cache(model.backbone, TEXTS, length, depth, lanes=POSITIONS)
    allowed = torch.tensor(subject.prompt_ids)
    generator = torch.Generator().manual_seed(0)
    rows, thoughts = Rows(), []
    for slot in range(TEXTS):
        text = allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist()
        rows.add_base(slot, text, 0)
        thoughts += [
            Thought(slot, CONTEXT + lane, cache.lane(lane, depth), depth, seed=slot) for lane in range(POSITIONS)
        ]
    hidden_NH = model.run(rows, cache)
    think(model, cache, thoughts, _choose_thoughts)
    at = [thought.slot * length + thought.position for thought in thoughts]
    return hidden_NH[at], torch.stack([t.hidden for t in thoughts if t.hidden is not None])


def _choose_thoughts(thoughts: Sequence[Thought], logits_MV: Tensor) -> list[int]:
    keys = [(thought.seed, thought.position, len(thought.tokens) + 1) for thought in thoughts]
    return sample_thoughts(logits_MV, keys, [1.0] * len(thoughts))
