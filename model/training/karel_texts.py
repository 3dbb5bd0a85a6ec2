"""Texts of Karel programs as they are learned from: drawn stage by stage, worlds larger and programs longer as it goes on.

Questions that are kept for evaluation (`tasks.is_held_out`) are left out of what is drawn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from ..tokens import Tokens
from .batches import Batch, pad
from .documents import DASH, EOS, PAD, build_tokenizer, token_id
from .tasks import is_held_out
from .tasks.karel import compact, drawing, programs, synthesis
from .tasks.karel.synthesis import Tasks
from .tasks.karel.worlds import SIZES

Form = Literal["compact", "drawing"]  # of the worlds: `tasks.karel.compact` or `tasks.karel.drawing`
_STAGE = re.compile(r"(\d+):(\d+):(\d+)-(\d+):(\d+)")


@dataclass(frozen=True)
class Stage:
    """What is drawn for so many updates."""

    size: int
    pairs: int
    shortest: int
    longest: int
    steps: int

    @property
    def lengths(self) -> range:
        """Of programs."""
        return range(self.shortest, self.longest + 1)

    def __str__(self) -> str:
        """As `parse_stage` reads it."""
        return f"{self.size}:{self.pairs}:{self.shortest}-{self.longest}:{self.steps}"


def parse_stage(text: str) -> Stage:
    """A stage from SIZE:PAIRS:SHORTEST-LONGEST:STEPS. Raises ValueError."""
    found = _STAGE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no stage; it is written SIZE:PAIRS:SHORTEST-LONGEST:STEPS, like 4:3:3-6:2000")
    stage = Stage(*map(int, found.groups()))
    if stage.size not in SIZES or not 1 <= stage.pairs <= 10 or stage.steps < 1:
        raise ValueError(f"{text!r}: sizes are {SIZES[0]} to {SIZES[-1]}, pairs 1 to 10, steps 1 or more")
    if not 1 <= stage.shortest <= stage.longest:
        raise ValueError(f"{text!r}: the shortest program has 1 operation or more, and no more than the longest")
    return stage


class KarelTexts:
    """Questions with their programs, as batches.

    Args:
        tokenizer: knows the words of its form.
        form: how worlds are written.
        everything: the loss is of all tokens, as in the paper, and not of the program alone.
        programs: how many there are in all, each seen again in every pass; 0: none is drawn twice.
        seed: same seed, same texts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, form: Form, everything: bool, num_programs: int, seed: int
    ) -> None:
        self._tokenizer, self._everything = tokenizer, everything
        self._form: Form = form
        self._num_programs, self._seed = num_programs, seed
        self._pad = token_id(tokenizer, PAD)

    def batch(self, stage: Stage, step: int, size: int) -> Batch:
        """Some `size` texts: those of a step, without the ones that are held out."""
        turn = step % max(1, self._num_programs // size) if self._num_programs else step
        rng = np.random.default_rng([self._seed, stage.size, turn])
        drawn, kept = _draw_some(rng, stage, size)
        prompts, answers = [prompt(text) for text in write(drawn, self._form)], map(programs.write, drawn.ops_NL)
        texts = [f"{prompt} {answer}{EOS}" for prompt, answer in zip(prompts, answers, strict=True)]
        rows = self._tokenizer([texts[number] for number in kept])["input_ids"]
        asked = self._tokenizer([prompts[number] for number in kept])["input_ids"]
        weights = [
            [0.0, *[float(self._everything)] * (len(before) - 1), *[1.0] * (len(row) - len(before))]
            for row, before in zip(rows, asked, strict=True)
        ]
        return pad(rows, weights, self._pad)


def _draw_some(rng: np.random.Generator, stage: Stage, size: int) -> tuple[Tasks, list[int]]:
    """Tasks, and the numbers of those that are not held out: of very few that may be all, so others are drawn then."""
    drawn = synthesis.draw(rng, size, stage.size, stage.pairs, stage.lengths)
    while not (kept := [number for number, text in enumerate(drawn.texts()) if not is_held_out(text)]):
        drawn = synthesis.draw(rng, size, stage.size, stage.pairs, stage.lengths)
    return drawn, kept


def held_out(stage: Stage, count: int, seed: int) -> Tasks:
    """Tasks that no batch holds, each with as many pairs held back behind those that are shown, to be judged by."""
    found: list[Tasks] = []
    rng, left = np.random.default_rng([seed, stage.size, 2**32]), count
    while left:
        drawn = synthesis.draw(rng, 16 * max(left, 64), stage.size, 2 * stage.pairs, stage.lengths)
        kept = [number for number, text in enumerate(drawn.shown(stage.pairs).texts()) if is_held_out(text)][:left]
        found.append(drawn.take(np.array(kept, dtype=np.int64)))
        left -= len(kept)
    return synthesis.join(found)


def write(tasks: Tasks, form: Form) -> list[str]:
    """The pairs of each task."""
    if form == "compact":
        return tasks.texts()
    return [drawing.write(one.before, one.after) for one in tasks]


def form_of(tokens: Tokens, size: int) -> Form:
    """How worlds of a size are written to the model of a tokenizer: in the words that it knows."""
    word = compact.vocabulary([size])[0]
    return "compact" if len(tokens.encode(f" {word}", special=False)) == 1 else "drawing"


def prompt(question: str) -> str:
    """What a model is given: the text up to where the program begins."""
    return f"Question: {question}\nAnswer:"


def build_words(form: Form, sizes: Sequence[int]) -> PreTrainedTokenizerFast:
    """A tokenizer to whom every word of worlds and programs is one token, and the dash that opens an aside another."""
    words = [*(compact.vocabulary(sizes) if form == "compact" else drawing.vocabulary()), *programs.OPS]
    lines = "\n".join(words) if form == "drawing" else ""  # a word that begins a line has no space before it
    return build_tokenizer([prompt(" ".join(words)), lines, DASH], spaced=True)
