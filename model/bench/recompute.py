"""Thinking with no cache: every forward reads the whole text again, as the published Quiet-STaR generation does.

`zero-shotcot-eval.py` of the public code calls the training forward for every visible token, without past keys and values.
This is that cost written plainly and batched: one forward for the base state, one for each thought token, one for END:
t + 2 a visible token. It is kinder than the original, which thinks at every position of the text, not at the last alone.
"""

import torch
from torch import Tensor

from ..backbone import causal
from ..config import SamplingParams
from ..sampling import Draw, sample, sample_thoughts
from ..thoughts import END, START
from .cell import Setup, Unavailable
from .timings import Stopwatch, Timings


class Recompute:
    """Thinks by reading everything again."""

    name = "recompute"

    def __init__(self, setup: Setup) -> None:
        if setup.subject.model.stop_ids:
            raise Unavailable("thoughts of this model may end themselves; the recompute loop thinks to the full depth")
        self._setup, self._model = setup, setup.subject.model
        self._forwards = 0

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Decode all prompts in step."""
        self._forwards = 0
        watch = Stopwatch(len(prompts), num_tokens, self._setup.max_s)
        texts_BT = torch.tensor(prompts, device=self._model.backbone.device)
        while not watch.over:
            tokens = self._step(watch, texts_BT, len(prompts[0]), depth)
            if tokens is None:
                break
            for request, token in enumerate(tokens):
                watch.tick(request, token, self._forwards)
            texts_BT = torch.cat([texts_BT, texts_BT.new_tensor(tokens)[:, None]], dim=1)
        timings = watch.timings()
        timings.cut, timings.forwards_per_token = watch.now(self._forwards), depth + 2
        timings.thought_tokens = depth * sum(map(len, timings.tokens))
        return timings

    def close(self) -> None:
        """Nothing is held."""

    def _step(self, watch: Stopwatch, texts_BT: Tensor, num_prompt: int, depth: int) -> list[int] | None:
        """The next token of every text; None when time is up before it is known."""
        base_BH = self._read(texts_BT)
        read_BT = _append(texts_BT, START)
        position = texts_BT.shape[1] - 1
        for number in range(1, depth + 1):
            if self._too_slow(watch):
                return None
            logits_BV = self._model.logits(self._read(read_BT))
            keys = [(seed, position, number) for seed in range(len(texts_BT))]
            tokens = sample_thoughts(logits_BV, keys, [1.0] * len(keys))
            read_BT = torch.cat([read_BT, read_BT.new_tensor(tokens)[:, None]], dim=1)
        thought_BH = self._read(_append(read_BT, END))
        logits_BV = self._model.logits(self._model.mix(base_BH, thought_BH)[0])
        return sample(logits_BV, self._draws(texts_BT, num_prompt))

    def _read(self, tokens_BT: Tensor) -> Tensor:
        """The last hidden state of each text."""
        self._forwards += 1
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        return self._model(tokens_BT, positions_BT, causal)[:, -1]

    def _too_slow(self, watch: Stopwatch) -> bool:
        """Its first token is no prefill: time runs from the beginning, and from forwards alone the rest can be told."""
        return len(watch.tokens[0]) < 2 and watch.now().wall_s > self._setup.max_s

    def _draws(self, texts_BT: Tensor, num_prompt: int) -> list[Draw]:
        warmth = self._setup.cell.temperature
        eos = self._setup.subject.tokens.eos_ids
        return [
            Draw(SamplingParams(temperature=warmth, seed=seed, ignore_eos=True), text, num_prompt, eos)
            for seed, text in enumerate(texts_BT.tolist())
        ]


def _append(tokens_BT: Tensor, token: int) -> Tensor:
    return torch.cat([tokens_BT, tokens_BT.new_full((len(tokens_BT), 1), token)], dim=1)
