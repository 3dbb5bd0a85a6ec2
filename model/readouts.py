"""Probes beside decoding: what they read is gathered while a forward runs, and read when a token is decided."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .layer_means import LayerMeans

if TYPE_CHECKING:
    from .decoding import Decoding, Position
    from .judge import Next
    from .probe import Probe


class Readouts:
    """The probes that attempts may ask for.

    Args:
        probes: by the names that attempts call them.
    """

    def __init__(self, probes: Mapping[str, "Probe"]) -> None:
        self.probes = dict(probes)
        self._rules = list(dict.fromkeys(probe.config.layers for probe in self.probes.values()))

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError for a name that no probe has."""
        for name in names:
            if name not in self.probes:
                known = ", ".join(map(repr, self.probes)) or "none"
                raise ValueError(f"probes has {name!r}; there are {known}")

    def watch(self, decodings: Sequence["Decoding"], spans: Sequence[range]) -> "Watching | None":
        """Who is to watch the forward that reads these spans; None where nobody asks for what it shows."""
        asking = [(d, span) for d, span in zip(decodings, spans, strict=True) if d.params.probes]
        added = [(p, row) for d, span in asking for p, row in d.added(span) if not d.scores(p)]
        return Watching(self._rules, added) if added else None

    def read(self, due: Sequence["Next"]) -> None:
        """Read what decided each token, every probe all of them at once."""
        asking = [n for n in due if n.decoding.params.probes and n.chosen is not None and not n.broken]
        for name in dict.fromkeys(name for n in asking for name in n.decoding.params.probes):
            probe = self.probes[name]
            rule = self._rules.index(probe.config.layers)
            read = [n for n in asking if name in n.decoding.params.probes and probe.reads(n.chosen or 0)]
            states = [n.position.states[rule] for n in read if n.position.states is not None]
            assert len(states) == len(read), "whatever chooses a token has been read by its own attempt"
            if not read:
                continue
            for next_, readout in zip(read, probe.read(torch.stack(states)), strict=True):
                next_.readouts[name] = readout


class Watching(LayerMeans):
    """Watches one forward for the positions that it reads.

    Args:
        rules: the layers of each mean.
        added: the positions, each with its row.
    """

    def __init__(self, rules: Sequence[tuple[int, ...]], added: Sequence[tuple["Position", int]]) -> None:
        super().__init__(rules, [row for _, row in added])
        self._positions = [position for position, _ in added]

    def keep(self) -> None:
        """Give each position its states, one for each rule."""
        for position, states_SH in zip(self._positions, torch.stack(self.means(), 1), strict=True):
            position.states = states_SH.clone()  # a view would keep those of all positions alive
