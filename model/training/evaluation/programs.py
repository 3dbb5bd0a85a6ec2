"""How good a model's Karel programs are: greedy, an operation or the end at every place, run on the worlds of their tasks.

Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "Training a
Synthetic Language Model": generative accuracy, perplexity, and how varied the programs are.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ...backbone import causal
from ...cache import Cache
from ...checkpoint import Loaded
from ...config import SamplingParams
from ...decode import Decoder, generate
from ..batches import pad
from ..tasks.karel import programs
from ..tasks.karel.synthesis import Tasks
from .intervals import wilson

AT_ONCE = 256  # programs


def measure(loaded: Loaded, tasks: Tasks, pairs: int, prompts: Sequence[str]) -> dict[str, Any]:
    """Accuracy over the first `pairs` worlds of every task and over all of them, perplexity of the drawn programs, variety.

    `prompts` show the worlds, each up to where the program begins.
    """
    longest = tasks.ops_NL.shape[1] + 4
    written = generate_programs(loaded, prompts, longest)
    ops_NL = programs.collect(written)
    right_N, general_N = tasks.shown(pairs).solves(ops_NL), tasks.solves(ops_NL)
    ends, count = Counter(map(tuple, written)), len(written)
    return {
        "n": count,
        "accuracy": float(right_N.mean()),
        "ci95": wilson(int(right_N.sum()), count),
        "held_back": float(general_N.mean()),  # right on the worlds, too, that were not shown
        "perplexity": perplexity(loaded, prompts, [programs.write(ops) for ops in tasks.ops_NL]),
        "unique": len(ends) / count,
        "top": ends.most_common(1)[0][1] / count,
        "length": float(np.mean([len(ops) for ops in written])),
    }


def generate_programs(loaded: Loaded, prompts: Sequence[str], longest: int) -> list[list[int]]:
    """A greedy program for each prompt, of one operation or more, by what the server decodes with."""
    tokens = loaded.tokens
    ids = [tokens.encode(prompt) for prompt in prompts]
    ops = operation_ids(loaded)
    params = SamplingParams(
        max_tokens=longest, min_tokens=1, temperature=0.0, allowed_token_ids=(*ops, *sorted(tokens.eos_ids))
    )
    cache = Cache(loaded.model.backbone, min(AT_ONCE, len(ids)), max(map(len, ids)) + longest, 0)
    decoder = Decoder(loaded.model, tokens, cache, prefill_chunk=4096, reuse_prefixes=False)
    found = generate(decoder, ids, params)
    return [[ops.index(token.id) for token in one.tokens if token.id in ops] for one in found]


def operation_ids(loaded: Loaded) -> list[int]:
    """The token of each operation. Raises ValueError where the tokenizer has none for it."""
    ids = [loaded.tokens.encode(f" {op}", special=False) for op in programs.OPS]
    for op, own in zip(programs.OPS, ids, strict=True):
        if len(own) != 1:
            raise ValueError(f"{loaded.name} was not made for Karel programs: its tokenizer has no token ' {op}'")
    return [own[0] for own in ids]


@torch.inference_mode()
def perplexity(loaded: Loaded, prompts: Sequence[str], answers: Sequence[str]) -> float:
    """Of the programs' tokens, their ends included."""
    tokens, (end, *_) = loaded.tokens, sorted(loaded.tokens.eos_ids)
    asked = [tokens.encode(prompt) for prompt in prompts]
    rows = [
        [*before, *tokens.encode(f" {answer}", special=False), end]
        for before, answer in zip(asked, answers, strict=True)
    ]
    weights = [[0.0] * len(before) + [1.0] * (len(row) - len(before)) for before, row in zip(asked, rows, strict=True)]
    batch, total = pad(rows, weights, end).to(loaded.model.backbone.device), 0.0
    for numbers in batch.lengths().argsort().split(AT_ONCE):
        part = batch.take(numbers)
        ids_BT, positions = part.ids_BT[:, :-1], torch.arange(part.ids_BT.shape[1] - 1, device=part.ids_BT.device)
        hidden_BTH = loaded.model(ids_BT, positions.expand_as(ids_BT), causal)
        counts_BT = part.weights_BT[:, 1:] > 0
        losses = cross_entropy(
            loaded.model.logits(hidden_BTH[counts_BT]), part.ids_BT[:, 1:][counts_BT], reduction="sum"
        )
        total += float(losses)
    return math.exp(total / float(batch.weights_BT.sum()))
