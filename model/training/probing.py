"""What probes learn from and how: hidden states with classes, split by text, and a classifier fitted to them.

Emergent Representations of Program Semantics in Language Models Trained on Programs (Jin and Rinard, arXiv 2305.11169), "Probing for
the Abstract Interpretation". How much a classifier knows is told as skill, the share of what the commonest class leaves: plain
accuracies of labels that are unevenly spread cannot be compared.

Shape letters: N labelled tokens, H hidden size, P labelled tokens of all properties, F features, K classes.
"""

import copy
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ..checkpoint import Loaded
from ..probe import ProbeConfig, ProbeNet, layer_states
from .evaluation.intervals import bootstrap, bootstrap_gap, wilson
from .traces import Trace

MAX_ROWS = 16384  # tokens of a forward
WINDOW = 10  # labelled tokens that the control without states is told of


@dataclass(frozen=True)
class Fit:
    """How a probe is fitted: AdamW, the rate of learning falling by a twentieth 150 times (the released code's)."""

    widths: tuple[int, ...] = ()
    steps: int = 1500
    batch: int = 1024
    lr: float = 0.02
    weight_decay: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Labelled tokens of some texts."""

    features_NF: Tensor
    classes_N: Tensor
    texts: Sequence[int]  # which text each is of, ascending

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, texts: frozenset[int]) -> "Examples":
        """Those of some texts."""
        kept = [number for number, text in enumerate(self.texts) if text in texts]
        return Examples(self.features_NF[kept], self.classes_N[kept], [self.texts[number] for number in kept])


Fitted = tuple[ProbeNet, Examples, Examples]  # a probe, what it was fitted to and what it is measured with


class States:
    """The states that chose each labelled token of some texts, and what stood before it.

    Args:
        loaded: whose states.
        traces: the texts.
        layers: whose states are averaged.
    """

    def __init__(self, loaded: Loaded, traces: Sequence[Trace], layers: Sequence[int]) -> None:
        self.traces = traces
        self._labelled = [sorted({token for own in trace.labels.values() for token, _ in own}) for trace in traces]
        starts, total = [], 0
        for own in self._labelled:
            starts.append(total)
            total += len(own)
        self._rows = [
            {token: start + number for number, token in enumerate(own)}
            for start, own in zip(starts, self._labelled, strict=True)
        ]
        self._states_PH = torch.empty(total, loaded.model.backbone.hidden_size)
        for part in _alike(traces):
            self._read(loaded, part, layers)

    def with_labels(self, traces: Sequence[Trace]) -> "States":
        """The same states with other labels, on the same tokens of the same texts."""
        other = copy.copy(self)
        other.traces = traces
        return other

    def examples(self, name: str, classes: Sequence[str], offset: int = 0) -> Examples:
        """States with the classes of a property, `offset` labels further on."""
        return self._examples(name, classes, offset, self._states_PH)

    def tokens_alone(self, name: str, classes: Sequence[str], offset: int = 0) -> Examples:
        """The labelled tokens up to this one in place of its state: which they are, the last `WINDOW` of them, in order."""
        return self._examples(name, classes, offset, self._told)

    @cached_property
    def _told(self) -> Tensor:
        ids = sorted(
            {trace.ids[token] for trace, own in zip(self.traces, self._labelled, strict=True) for token in own}
        )
        number_of = {token: number for number, token in enumerate(ids)}
        told_PW = torch.full((len(self._states_PH), WINDOW), len(ids))
        for trace, own, rows in zip(self.traces, self._labelled, self._rows, strict=True):
            before: list[int] = []
            for token in own:
                before = [*before, number_of[trace.ids[token]]][-WINDOW:]
                told_PW[rows[token], : len(before)] = torch.tensor(before)
        return one_hot(told_PW, len(ids) + 1)[..., :-1].flatten(1).float()

    def _examples(self, name: str, classes: Sequence[str], offset: int, features_PF: Tensor) -> Examples:
        told = [
            (text, self._rows[text][token], classes.index(kind))
            for text, trace in enumerate(self.traces)
            for token, kind in trace.pairs(name, offset)
            if kind in classes
        ]
        rows = [row for _, row, _ in told]
        return Examples(features_PF[rows], torch.tensor([kind for *_, kind in told]), [text for text, *_ in told])

    @torch.no_grad()
    def _read(self, loaded: Loaded, texts: Sequence[int], layers: Sequence[int]) -> None:
        """Read some texts of about one length."""
        longest = max(len(self.traces[text].ids) for text in texts)
        ids_BT = torch.tensor(
            [[*self.traces[text].ids, *[0] * (longest - len(self.traces[text].ids))] for text in texts]
        )
        states_BTH = layer_states(loaded.model, ids_BT.to(loaded.model.backbone.device), layers).cpu()
        for number, text in enumerate(texts):
            for token, row in self._rows[text].items():
                self._states_PH[row] = states_BTH[number, token - 1]


def classes_of(traces: Sequence[Trace], name: str) -> tuple[str, ...]:
    """The classes that a property has, in the order of their names."""
    return tuple(sorted({kind for trace in traces for _, kind in trace.labels.get(name, ())}))


def split(count: int, held: float, seed: int) -> tuple[frozenset[int], frozenset[int]]:
    """Numbers of texts to learn from, and of those to measure with."""
    order = random.Random(f"split/{seed}").sample(range(count), count)
    cut = max(1, round(held * count))
    return frozenset(order[cut:]), frozenset(order[:cut])


def fit(config: ProbeConfig, learned: Examples, how: Fit) -> ProbeNet:
    """Fit a probe of a config's shape."""
    torch.manual_seed(how.seed)
    net, generator = ProbeNet(config), torch.Generator().manual_seed(how.seed)
    net.mean.copy_(learned.features_NF.mean(0))
    net.std.copy_(learned.features_NF.std(0, unbiased=False).clamp(min=1e-3))
    decays = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": decays, "weight_decay": how.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=how.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95 ** (step * 150 // how.steps))
    for _ in range(how.steps):
        drawn = torch.randint(len(learned), (how.batch,), generator=generator)
        loss = cross_entropy(net(learned.features_NF[drawn]), learned.classes_N[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def measure(net: ProbeNet, learned: Examples, measured: Examples) -> dict[str, Any]:
    """How much a probe knows of texts that it was not fitted to.

    `accuracy`, over classes evenly (`balanced`), of the class that is commonest where it was fitted (`majority`), and `skill`
    with its interval: texts are drawn again.
    """
    right_N, plain_N = _judge(net, learned, measured)
    recalls = [right_N[measured.classes_N == kind].float().mean().item() for kind in measured.classes_N.unique()]
    accuracy, majority = right_N.float().mean().item(), plain_N.float().mean().item()
    gained, left = zip(*_by_text(right_N, plain_N, measured.texts).values(), strict=True)
    return {
        "accuracy": accuracy,
        "ci95": wilson(int(right_N.sum()), len(measured)),
        "balanced": sum(recalls) / len(recalls),
        "majority": majority,
        "skill": (accuracy - majority) / (1 - majority) if majority < 1 else 0.0,  # there is nothing to know
        "skill_ci95": bootstrap(gained, left) if majority < 1 else (0.0, 0.0),
        "tokens": len(measured),
        "texts": len(set(measured.texts)),
    }


@torch.no_grad()
def skill_gap(one: Fitted, other: Fitted) -> dict[str, Any]:
    """How much more skill the first of two probes has, where both were measured on the same texts: these are drawn again.

    Both must have something to know (`leaves_something`).
    """
    first, second = (_by_text(*_judge(*each), each[2].texts) for each in (one, other))
    texts = sorted(first.keys() & second.keys())
    sums_N22 = np.array([(first[text], second[text]) for text in texts])
    gained_N2, left_N2 = sums_N22[:, :, 0], sums_N22[:, :, 1]
    skills = gained_N2.sum(0) / left_N2.sum(0)
    return {"value": float(skills[0] - skills[1]), "ci95": bootstrap_gap(gained_N2, left_N2), "texts": len(texts)}


@torch.no_grad()
def leaves_something(fitted: Fitted) -> bool:
    """The commonest class is not that of every token which the probe is measured with."""
    return not bool(_judge(*fitted)[1].all())


def _judge(net: ProbeNet, learned: Examples, measured: Examples) -> tuple[Tensor, Tensor]:
    """Of each token, whether the probe is right, and whether the class is that is commonest where it was fitted."""
    commonest = Counter(learned.classes_N.tolist()).most_common(1)[0][0]
    return net(measured.features_NF).argmax(-1) == measured.classes_N, measured.classes_N == commonest


def _by_text(right_N: Tensor, plain_N: Tensor, texts: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Skill is a ratio of sums over texts: of each, what the probe gains over the commonest class, and what that leaves."""
    sums: dict[int, tuple[float, float]] = dict.fromkeys(sorted(set(texts)), (0.0, 0.0))
    for text, right, plain in zip(texts, right_N.tolist(), plain_N.tolist(), strict=True):
        gained, left = sums[text]
        sums[text] = gained + right - plain, left + 1 - plain
    return sums


def _alike(traces: Sequence[Trace]) -> list[list[int]]:
    """Numbers of texts in parts of like length, each of a forward's size."""
    parts: list[list[int]] = []
    for number in sorted(range(len(traces)), key=lambda number: len(traces[number].ids)):
        if not parts or len(traces[number].ids) * (len(parts[-1]) + 1) > MAX_ROWS:
            parts.append([])
        parts[-1].append(number)
    return parts
