"""Reads queries, as far as telling which metrics they select by which labels goes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_SELECTOR = re.compile(r"\b((?:quietserve[_:][\w:]*|up)\b)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Selector:
    """A metric, and the labels that a query asks of it."""

    metric: str
    labels: frozenset[str]


def selectors(query: str) -> Iterator[Selector]:
    for found in _SELECTOR.finditer(query):
        yield Selector(found[1], frozenset(_MATCHER.findall(found[2] or "")))


def grouping_labels(query: str) -> set[str]:
    """The labels that a query keeps, joins by or drops."""
    return {label.strip() for found in _GROUPING.finditer(query) for label in found[1].split(",") if label.strip()}


def sample_labels(exposition: str) -> dict[str, set[str]]:
    """The names of the labels of every sample of an exposition."""
    told: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            told.setdefault(sample.name, set()).update(sample.labels)
    return told
