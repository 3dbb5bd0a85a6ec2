"""Two models on the same items: how far one is ahead, whether that may be luck, and whether they are right on the same ones."""

from collections.abc import Sequence
from typing import Any

from .intervals import Interval, bootstrap


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """How likely counts as uneven as these are, or more so, were neither better: exact and two-sided (McNemar 1947)."""
    only_first, only_second = _apart(first, second)
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1  # to choose none of n, then one more at a time
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def ahead(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], seed: int = 0) -> tuple[float, Interval]:
    """How much larger the first one's share is, over the seeds of both, and its interval: items are drawn again."""
    by_item = [own - other for own, other in zip(_shares(first), _shares(second), strict=True)]
    return sum(by_item) / len(by_item), bootstrap(by_item, seed=seed)


def relative(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], seed: int = 0
) -> tuple[float, Interval] | None:
    """The same as a share of what the second one has; None where it has nothing."""
    own, other = _shares(first), _shares(second)
    if not any(other):
        return None
    gains = [a - b for a, b in zip(own, other, strict=True)]
    return sum(gains) / sum(other), bootstrap(gains, other, seed)


def overlap(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """On how many items both are right, each is, and the first as a share of those on which any is (`iou`)."""
    only_first, only_second = _apart(first, second)
    both = sum(map(int, first)) - only_first
    any_ = both + only_first + only_second
    return {
        "both": both,
        "first": both + only_first,
        "second": both + only_second,
        "iou": both / any_ if any_ else None,
    }


def _shares(by_seed: Sequence[Sequence[bool]]) -> list[float]:
    """Of the seeds that are right, by item."""
    return [sum(map(int, own)) / len(own) for own in zip(*by_seed, strict=True)]


def _apart(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Items on which only the first is right, and only the second."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
