"""One cell of the grid, and what a system that is measured there is told."""

from dataclasses import dataclass

import torch

from .shapes import Subject

CHUNK = 256  # prompt tokens; no system reads fewer of them in a forward


class Unavailable(ValueError):  # noqa: N818  it is an answer, not a failure
    """A system that cannot be measured here; the message is one line and says why."""


@dataclass(frozen=True)
class Cell:
    """What is measured together."""

    shape: str
    batch: int  # requests at once
    prompt: int  # tokens of each prompt
    depth: int  # thought tokens; 0: nothing thinks

    @property
    def temperature(self) -> float:
        """Of visible tokens: 1 where drafts are to be rejected, greedy where other engines are compared with."""
        return 1.0 if self.depth else 0.0


@dataclass(frozen=True)
class Setup:
    """All that a system is built from."""

    subject: Subject
    cell: Cell
    num_tokens: int  # visible tokens of a request that are measured
    max_s: float  # of decoding, in one run
    num_threads: int

    @property
    def room(self) -> int:
        """Most visible tokens of a request: the first ones to be read decode while the last ones are still being read."""
        return self.cell.batch * -(-self.cell.prompt // CHUNK) + self.num_tokens + 1

    @property
    def max_len(self) -> int:
        """Columns of a request's text."""
        return self.cell.prompt + self.room

    def draw_prompts(self, seed: int) -> list[list[int]]:
        """Random prompts, the same for every system."""
        allowed = torch.tensor(self.subject.prompt_ids)
        generator = torch.Generator().manual_seed(seed)
        shape = (self.cell.batch, self.cell.prompt)
        return allowed[torch.randint(len(allowed), shape, generator=generator)].tolist()
