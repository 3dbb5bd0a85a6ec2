"""Episodes as tensors: whole conversations side by side, and in them every choice that was made.

Shape letters: B episodes, T tokens, K decided tokens of an episode (both turns'), G rows of a thought, L thought tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..thoughts import whole_rows
from .episodes import Episode, Turn
from .logprobs import ENDS, NOTHING


@dataclass(frozen=True)
class Transcript:
    """What was read and what was chosen."""

    ids_BT: Tensor  # both prompts and answers; padding is never seen
    at_BK: Tensor  # behind which token a choice was made; -1: there is none
    chosen_BK: Tensor  # the decided tokens, ends of texts included
    turns_BK: Tensor  # 0 or 1
    thought_BK: Tensor  # bool: there was a thought before it
    own_BKG: Tensor  # its rows; [B, 0, 1] where nobody thought
    choices_BKL: Tensor  # its tokens, ENDS where it ended itself, then NOTHING

    def to(self, device: torch.device) -> "Transcript":
        """The same elsewhere."""
        return Transcript(*(value.to(device) for value in vars(self).values()))


def transcribe(episodes: Sequence[Episode], depth: int) -> Transcript:
    """Lay episodes side by side; `depth` is the most tokens a thought may have had."""
    told = [_tell(episode, depth) for episode in episodes]
    ids, at, chosen, turns, thoughts, rows, choices = (list(column) for column in zip(*told, strict=True))
    pad = ids[0][0]  # any id: nothing sees it
    own_BKG = _stack_twice(rows, pad)
    return Transcript(
        _stack(ids, pad),
        _stack(at, -1),
        _stack(chosen, pad),
        _stack(turns, 0),
        _stack(thoughts, 0).bool(),
        own_BKG if own_BKG.shape[-1] else own_BKG.new_zeros(len(episodes), 0, 1),
        _stack_twice(choices, NOTHING),
    )


def _tell(episode: Episode, depth: int) -> tuple[list, ...]:
    last = episode.turns[-1]
    ids = [*last.prompt, *last.ids]
    found: list[tuple] = []
    for number, turn in enumerate(episode.turns):
        found += [(number, *each) for each in _choices(turn, depth)]
    turns, at, chosen, thoughts, rows, choices = (list(column) for column in zip(*found, strict=True))
    return ids, at, chosen, turns, thoughts, rows, choices


def _choices(turn: Turn, depth: int) -> list[tuple]:
    """Of every decided token where it was decided, its id, and the thought before it."""
    found = []
    for number, token in enumerate(turn.answer.tokens):
        thought = list(token.thoughts[0].token_ids) if token.thoughts else []
        rows = whole_rows(thought) if token.thoughts else []
        ends = [ENDS] if token.thoughts and len(thought) < depth else []
        found.append((len(turn.prompt) - 1 + number, token.id, int(bool(token.thoughts)), rows, [*thought, *ends]))
    return found


def _stack(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], dtype=torch.long)


def _stack_twice(rows: Sequence[Sequence[Sequence[int]]], filler: int) -> Tensor:
    most, longest = max(map(len, rows)), max((len(cell) for row in rows for cell in row), default=0)
    flat = [[*row, *[[]] * (most - len(row))] for row in rows]
    padded = [[*cell, *[filler] * (longest - len(cell))] for row in flat for cell in row]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), most, longest)
