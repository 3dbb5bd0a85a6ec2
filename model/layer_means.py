"""What the layers of a language model hold while a forward runs: means over some of them, at some of its rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Whose states are averaged: 0 the embeddings, k the output of layer k, the last behind the final norm.
Rule = tuple[int, ...]


class LayerMeans:
    """Watches one forward (`backbone.Watch`) and adds up what its layers hold, in float32.

    Args:
        rules: the layers of each mean.
        rows: of a forward of one sequence, those that are wanted; None: all of all sequences.
    """

    def __init__(self, rules: Sequence[Rule], rows: Sequence[int] | None = None) -> None:
        self._rules = [frozenset(rule) for rule in rules]
        self._rows = None if rows is None else torch.tensor(rows, dtype=torch.long)
        self._sums: list[Tensor | None] = [None] * len(rules)
        self._num_seen = [0] * len(rules)

    def __call__(self, layer: int, hidden_BRH: Tensor) -> None:
        """Take in the states of one layer."""
        wanted = [i for i, rule in enumerate(self._rules) if layer in rule]
        if not wanted:
            return
        state = self._picked(hidden_BRH).float()
        for i in wanted:
            before = self._sums[i]
            self._sums[i] = state if before is None else before + state
            self._num_seen[i] += 1

    def means(self) -> list[Tensor]:
        """Of each rule: [M, H] for M rows that are wanted, or [B, R, H] of all. Raises ValueError for a layer that is not."""
        found = []
        for rule, total, count in zip(self._rules, self._sums, self._num_seen, strict=True):
            if total is None or count < len(rule):
                raise ValueError(f"the model does not have all of the layers {sorted(rule)}")
            found.append(total / count)
        return found

    def _picked(self, hidden_BRH: Tensor) -> Tensor:
        if self._rows is None:
            return hidden_BRH
        self._rows = self._rows.to(hidden_BRH.device)
        return hidden_BRH[0].index_select(0, self._rows)
