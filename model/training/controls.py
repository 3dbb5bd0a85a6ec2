"""Thoughts that are not the model's own: what is left of a gain when the thinking is taken out of it.

Swapped: each problem gets the thought of another problem of the same family and number of steps. Random: each gets as many
tokens as its own thought had, drawn evenly from the vocabulary. Both are forced through the one thought kernel.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..checkpoint import Loaded
from ..mixing import MixingHead
from ..sampling import sample_thoughts
from ..thoughts import Choose, Thought
from .evaluation.scoring import choose_by_noise
from .tasks import Problem

Thoughts = Mapping[tuple[int, int], Sequence[int]]  # (seed, position) to tokens


class Recorder:
    """Chooses as serving does, and remembers each thought."""

    def __init__(self) -> None:
        self._thoughts: dict[tuple[int, int], Thought] = {}

    def __call__(self, thoughts: list[Thought], logits_MV: Tensor) -> list[int]:
        """The next token of each."""
        self._thoughts |= {(t.seed, t.position): t for t in thoughts}
        return choose_by_noise(thoughts, logits_MV)

    @property
    def thoughts(self) -> Thoughts:
        """What was thought so far."""
        return {key: tuple(thought.tokens) for key, thought in self._thoughts.items()}


def forced(table: Thoughts, stop: int) -> Choose:
    """Thoughts as the table has them, ended by the token `stop`."""

    def choose(thoughts: list[Thought], logits_MV: Tensor) -> list[int]:  # noqa: ARG001
        return [next(iter(table[t.seed, t.position][len(t.tokens) :]), stop) for t in thoughts]

    return choose


def swapped(own: Thoughts, seeds: Sequence[int], partner: Callable[[int], int]) -> Thoughts:
    """Each thought exchanged for that of the problem `partner` names; `seeds` are the problems' in order."""
    by_seed = {seed: own[seed, position] for seed, position in sorted(own, reverse=True)}  # the first position's
    numbers = {seed: number for number, seed in enumerate(seeds)}
    return {key: by_seed[seeds[partner(numbers[key[0]])]] for key in own}


def scrambled(own: Thoughts, allowed: Sequence[int]) -> Thoughts:
    """As many tokens as each thought had, drawn evenly from `allowed` by the noise of its key."""
    flat_V = torch.zeros(1, len(allowed))
    return {
        key: [allowed[sample_thoughts(flat_V, [(*key, place)], [1.0])[0]] for place in range(len(tokens))]
        for key, tokens in own.items()
    }


def ordinary_tokens(loaded: Loaded) -> list[int]:
    """Every token that a thought may hold."""
    model, special = loaded.model, set(loaded.tokens.tokenizer.all_special_ids)
    kept = special | set(model.hidden_ids.tolist()) | model.stop_ids
    return [token for token in range(len(loaded.tokens.tokenizer)) if token not in kept]


def reasons(problem: Problem, thought: str) -> bool:
    """The thought begins to work the problem: it opens as the problem's notes do."""
    words = thought.split()
    return bool(words) and words[0] == problem.working.split()[0]


def is_right(problem: Problem, thought: str, depth: int) -> bool:
    """The thought is the problem's notes, as many of them as its depth holds."""
    return thought.split() == problem.working.split()[:depth]


class Always(MixingHead):
    """A mixing head that gives every thought the same weight."""

    def __init__(self, weight: float) -> None:
        torch.nn.Module.__init__(self)
        self.weight = weight

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:  # noqa: ARG002
        """The weight, in the shape of the hidden states [..., H] less their last."""
        return torch.full_like(base[..., 0], self.weight)
