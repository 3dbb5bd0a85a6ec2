"""Three ways to take one training step of Quiet-STaR on the same weights, for a comparison of what they cost.

`subsampled` and `all` are the trainer's own objective, with a few thinking positions of a text and with every one; `public` is the
step as the public code writes it. A step is thinking, the forward and the backward pass; the optimizer's part is the same for all.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..bench.shapes import write
from ..quiet_model import QuietModel
from ..sampling import hash_key
from .batches import Batch
from .objective import Objective, ThinkingConfig
from .public_step import PublicStep
from .thinker import ThinkerConfig, open_thinker

WAYS = ("subsampled", "all", "public")
_SPECIAL_IDS = 3  # at the beginning of a vocabulary: no text holds them


@dataclass(frozen=True)
class Size:
    """How much a step reads and thinks."""

    batch: int  # texts
    length: int  # tokens of a text
    depth: int  # tokens of a thought
    thoughts: int  # at a position
    after: int  # true tokens foretold after a thought
    positions: int  # of a text that think, where they are subsampled


@dataclass(frozen=True)
class Taken:
    """What one step took."""

    seconds: float
    cpu_seconds: float
    thinking_seconds: float  # of these, before the forward with gradients; `public` thinks within it
    num_thoughts: int


def open_model(sizes: Mapping[str, int], dtype: str, device: str, seed: int) -> QuietModel:
    """A random Llama of these sizes, given thoughts that do not end themselves. The same seed gives the same weights."""
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        write(dict(sizes), getattr(torch, dtype), Path(folder), seed)
        torch.manual_seed(seed)
        model = open_thinker(folder, ThinkerConfig(depth=1, stops=(), dtype=dtype), device).model
    return model.requires_grad_(True)


def draw_texts(model: QuietModel, size: Size, seed: int) -> Batch:
    """Random tokens, every one but a text's first to be foretold."""
    most = min(model.backbone.vocab_size, *model.hidden_ids.tolist())
    rng = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(_SPECIAL_IDS, most, (size.batch, size.length), generator=rng)
    weights_BT = torch.ones(ids_BT.shape)
    weights_BT[:, 0] = 0
    return Batch(ids_BT, weights_BT).to(model.backbone.device)


class Step:
    """Takes steps in one of the `WAYS`."""

    def __init__(self, way: str, model: QuietModel, size: Size) -> None:
        positions = size.positions if way == "subsampled" else None
        config = ThinkingConfig(positions=positions, thoughts=size.thoughts, after=size.after)
        self._model, self._depth = model, size.depth
        self._objective = Objective(model, config)
        self._public = PublicStep(model, config) if way == "public" else None

    def take(self, batch: Batch, seed: int) -> Taken:
        """Leave the gradients of a batch in the model."""
        self._model.zero_grad(set_to_none=False)
        began, cpu_began = self._now(), time.process_time()
        losses_3, counts_3, thought = self._forward(batch, seed)
        (losses_3 / counts_3 * self._objective.shares_3).sum().backward()
        ended = self._now()
        return Taken(ended - began, time.process_time() - cpu_began, max(0.0, thought - began), int(counts_3[2]))

    def _forward(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor, float]:
        """Losses, what they are sums over, and when the thinking was done."""
        if self._public:
            torch.manual_seed(seed)
            return (*self._public(batch, self._depth), 0.0)
        sampled = self._objective.sample(batch, [hash_key(seed, text) for text in range(len(batch))], self._depth)
        thought = self._now()
        return self._objective(batch, sampled).losses_3, self._objective.count(batch, sampled), thought

    def _now(self) -> float:
        if self._model.backbone.device.type == "cuda":
            torch.cuda.synchronize(self._model.backbone.device)
        return time.perf_counter()
