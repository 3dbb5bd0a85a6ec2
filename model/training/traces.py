"""Texts some of whose tokens have labels: what probes learn from.

A file has a line of JSON for every text: `{"text": "...", "labels": {"direction": [[41, "N"], [46, "E"]]}}`. A label belongs to the
token in which the text's letter of that number, from 0, lies, or ends where it is several tokens; `null` in place of a class is no
label. Properties may label different tokens.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tokens import Tokens


@dataclass(frozen=True)
class Trace:
    """One text and its labels."""

    ids: tuple[int, ...]
    labels: Mapping[str, tuple[tuple[int, str], ...]]  # by property: numbers of tokens, ascending, and their classes

    def pairs(self, name: str, offset: int = 0) -> list[tuple[int, str]]:
        """A property's tokens, each with the class `offset` labels further on; those for which there is none are left out."""
        own = self.labels.get(name, ())
        return [
            (token, own[number + offset][1]) for number, (token, _) in enumerate(own) if 0 <= number + offset < len(own)
        ]


def properties(traces: Sequence[Trace]) -> list[str]:
    """All that are labelled anywhere."""
    return sorted({name for trace in traces for name, labels in trace.labels.items() if labels})


def read_traces(file: Path, tokens: Tokens) -> list[Trace]:
    """The texts of a file. Raises ValueError naming the line that cannot be, and for a file without a label."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON's texts may hold what splitlines() takes for an end
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    traces = [_read(line, tokens, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not properties(traces):
        raise ValueError(f"{file}: holds no text with a label")
    return traces


def write_traces(file: Path, traces: Sequence[Trace], tokens: Tokens) -> None:
    """Write texts as `read_traces` reads them. Raises ValueError for one that would be read otherwise."""
    with file.open("w") as out:
        for trace in traces:
            text = tokens.decode(trace.ids, special=True)
            ids, offsets = _read_text(text, tokens)
            if tuple(ids) != trace.ids:
                raise ValueError(f"{text[:80]!r} is read as other tokens than it was written with")
            labels = {name: [[offsets[token], told] for token, told in own] for name, own in trace.labels.items()}
            out.write(json.dumps({"text": text, "labels": labels}) + "\n")


def _read(line: str, tokens: Tokens, where: str) -> Trace:
    try:
        told = json.loads(line)
        text, labels = told["text"], told["labels"]
        known = {
            str(name): [(int(place), str(kind)) for place, kind in own if kind is not None]
            for name, own in labels.items()
        }
        ids, offsets = _read_text(text, tokens)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: no text with labels: {type(error).__name__}: {error}") from error
    found = {name: tuple(_place(own, offsets, len(text), f"{where}: {name}")) for name, own in known.items()}
    return Trace(tuple(ids), found)


def _place(own: Sequence[tuple[int, str]], offsets: Sequence[int], length: int, where: str) -> list[tuple[int, str]]:
    """Letters' numbers become tokens'."""
    for letter, _ in own:
        if not 0 <= letter < length:
            raise ValueError(f"{where}: there is no letter {letter}; the text's are 0 to {length - 1}")
    placed = sorted((bisect_right(offsets, letter) - 1, kind) for letter, kind in own)
    if placed and placed[0][0] == 0:
        raise ValueError(f"{where}: the first token has a label, but nothing before it that a probe could read")
    if len({token for token, _ in placed}) < len(placed):
        raise ValueError(f"{where}: one token has two labels")
    return placed


def _read_text(text: str, tokens: Tokens) -> tuple[list[int], list[int]]:
    """A text's ids, and the letter at which each begins. Raises ValueError where the tokenizer cannot say."""
    ids = tokens.encode(text)
    try:
        spans = tokens.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError as error:
        raise ValueError("its tokenizer does not tell where in a text its tokens are") from error
    begins, ended = [], 0
    for begin, end in spans:  # a token without letters, such as one that ends a text, stands behind those before it
        begins.append(begin if begin < end else ended)
        ended = max(ended, end)
    return ids, begins
