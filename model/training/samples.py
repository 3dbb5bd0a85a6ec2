"""Answers drawn from a model, several to a question, each with what it comes to and whether that is right.

In a folder: `samples.jsonl`, a line for every question; `positive.jsonl` and `negative.jsonl`, a line for every right and every
wrong answer (`prompt`, `completion`), as other libraries read them. Who came to no answer is in neither. "Turning Dust into
Gold" (arXiv 2312.12832) has both.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .loop import write_aside

SAMPLES = "samples.jsonl"
POSITIVE, NEGATIVE = "positive.jsonl", "negative.jsonl"


@dataclass(frozen=True)
class Sample:
    """One answer."""

    text: str  # as it was written behind the prompt, without what ends a text
    answer: str | None  # what it comes to, in its normal spelling (`answers.normalise`); None: to nothing
    right: bool
    logprob: float  # of all its tokens, before temperature
    min_logprob: float  # of the least likely one
    num_tokens: int  # the one that ends it included


@dataclass(frozen=True)
class Asked:
    """A question with the answers to it."""

    source: str
    question: str
    prompt: str  # where the answers begin
    direct_prompt: str  # where an answer without its working begins: after one space
    key: str  # the right answer
    samples: tuple[Sample, ...]

    @property
    def right(self) -> list[Sample]:
        """D_pos."""
        return [sample for sample in self.samples if sample.right]

    @property
    def wrong(self) -> list[Sample]:
        """D_neg: those that come to an answer, but not to the right one."""
        return [sample for sample in self.samples if not sample.right and sample.answer is not None]


def read_samples(folder: Path, most: int | None = None) -> list[Asked]:
    """The questions of a folder, the first `most` of them.

    Raises ValueError naming the file, and the number of the line that is at fault.
    """
    file = folder / SAMPLES
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{file}: cannot be read: {reason}; `quietserve train sample` makes it") from error
    if lines == [""]:
        raise ValueError(f"{file}: holds no questions")
    return [_read_line(line, f"{file}:{number}") for number, line in enumerate(lines[:most], 1)]


def append(folder: Path, asked: Sequence[Asked]) -> None:
    """Add questions to a folder's."""
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(one)) + "\n" for one in asked)


def num_questions(folder: Path) -> int:
    """How many a folder holds, without one whose writing was cut short."""
    file = folder / SAMPLES
    return file.read_bytes().count(b"\n") if file.exists() else 0


def keep_multiple(folder: Path, size: int, enough: int) -> int:
    """Take away what a run that was killed left behind the last `size` questions; how many there still are.

    Where there are `enough`, none is taken away that is whole.
    """
    file, whole = folder / SAMPLES, num_questions(folder)
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    kept = whole if whole >= enough else whole // size * size
    if kept < len(lines):
        write_aside(file, lambda aside: aside.write_bytes(b"".join(lines[:kept])))
    return kept


def write_halves(folder: Path) -> tuple[int, int]:
    """Write the right and the wrong answers apart; how many there are of each."""
    asked = read_samples(folder)
    right = [(one, sample) for one in asked for sample in one.right]
    wrong = [(one, sample) for one in asked for sample in one.wrong]
    for name, half in ((POSITIVE, right), (NEGATIVE, wrong)):
        text = "".join(_pair(one, sample) for one, sample in half)
        write_aside(folder / name, lambda file, text=text: file.write_text(text, encoding="utf-8"))
    return len(right), len(wrong)


def _pair(asked: Asked, sample: Sample) -> str:
    return json.dumps({"prompt": asked.prompt, "completion": sample.text}) + "\n"


def _read_line(line: str, source: str) -> Asked:
    try:
        record = json.loads(line)
        return Asked(**{**record, "samples": tuple(_read_samples(record["samples"]))})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{source}: holds no question with its samples: {error}") from error


def _read_samples(records: list[dict[str, Any]]) -> Iterator[Sample]:
    return (Sample(**record) for record in records)
