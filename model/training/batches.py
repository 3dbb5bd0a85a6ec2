"""Texts side by side, as the trainers read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Texts as ids, padded on the right. Shape letters: B texts, T tokens."""

    ids_BT: Tensor  # int64
    weights_BT: Tensor  # float32: how much the loss of foretelling this token counts; 0 for padding and for the first

    def __len__(self) -> int:
        return len(self.ids_BT)

    def lengths(self) -> Tensor:
        """Tokens [B] of each text, up to the last one that counts."""
        columns = torch.arange(1, self.ids_BT.shape[1] + 1, device=self.ids_BT.device)
        return (columns * (self.weights_BT > 0)).amax(1)

    def take(self, rows: Tensor | slice) -> "Batch":
        """Some of the texts, without the columns that only others need."""
        part = Batch(self.ids_BT[rows], self.weights_BT[rows])
        longest = int(part.lengths().max())
        return Batch(part.ids_BT[:, :longest], part.weights_BT[:, :longest])

    def to(self, device: torch.device) -> "Batch":
        """The same elsewhere."""
        return Batch(self.ids_BT.to(device), self.weights_BT.to(device))


def pad(rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], pad_id: int) -> Batch:
    """Put texts and the weights of their tokens side by side."""
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), pad_id)
    weights_BT = torch.zeros(len(rows), longest)
    for index, (row, counts) in enumerate(zip(rows, weights, strict=True)):
        ids_BT[index, : len(row)] = torch.tensor(row)
        weights_BT[index, : len(counts)] = torch.tensor(counts)
    return Batch(ids_BT, weights_BT)
