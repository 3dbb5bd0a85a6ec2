"""What a NAT model gives its student: right rationales of its own, and how much each sequence is to count."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..answers import find_choice, find_last_number, normalise
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..quiet_model import QuietModel
from .documents import DASH
from .lessons import Text, Texts
from .loop import write_aside
from .rationale_losses import betas
from .sampler import LocalSampler
from .samples import Asked

OWN = "own_samples.jsonl"
AT_ONCE = 32  # questions
_LABEL = re.compile("[A-Z]")


@dataclass(frozen=True)
class OwnDraw:
    """Which answers are drawn."""

    samples: int  # of every question
    temperature: float
    seed: int
    of: str  # what tells the teacher and the questions from others
    at_once: int = 128  # answers


def own_texts(
    teacher: Loaded, asked: Sequence[Asked], texts: Texts, draw: OwnDraw, folder: Path, resume: bool = False
) -> list[Text]:
    """The teacher's right answers; read from the folder where the same ones were drawn before.

    Raises ValueError where a run that is resumed began with others.
    """
    file, settings = folder / OWN, {k: v for k, v in asdict(draw).items() if k != "at_once"}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    before = json.loads(lines[0]) if lines else {}
    if resume and (differing := [name for name in before if before[name] != settings.get(name)]):
        raise ValueError(f"{file} was drawn with another {', '.join(differing)}; use another folder")
    if before != settings:
        lines = [json.dumps(settings), *_draw(teacher, asked, texts, draw)]
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(file, lambda aside: aside.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    records = map(json.loads, lines[1:])
    return [texts.encode(record["question"], record["text"]) for record in records]


def weighed(teacher: QuietModel, texts: Sequence[Text], size: int) -> list[Text]:
    """The same texts with their betas, `size` of them read at once."""
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number].prompt) + len(texts[number].said))
    found: dict[int, Text] = {}
    for first in range(0, len(texts), size):
        part = by_length[first : first + size]
        own = betas(teacher, [texts[number] for number in part])
        found |= {number: replace(texts[number], beta=beta) for number, beta in zip(part, own, strict=True)}
    return [found[number] for number in range(len(texts))]


def comes_to(asked: Asked, text: str) -> str | None:
    """The answer that a rationale comes to, in its normal spelling, where only the key tells what kind of answer it is.

    Where many answers are right, as in problems of search, what it comes to must be the key all the same.
    """
    if asked.prompt.endswith(DASH):
        _, dash, behind = text.rpartition(DASH)
        found = behind if dash else None
    elif _LABEL.fullmatch(asked.key):
        found = find_choice(text)
    else:
        found = find_last_number(text) if find_last_number(asked.key) == asked.key else text
    return normalise(found or "") or None


def _draw(teacher: Loaded, asked: Sequence[Asked], texts: Texts, draw: OwnDraw) -> list[str]:
    """A line for every right answer; one that did not end by itself is none."""
    longest = max(len(text.said) for text in texts.right) + 1
    sampler = LocalSampler(teacher, SamplingParams(longest, temperature=draw.temperature, seed=draw.seed), draw.at_once)
    lines = []
    for first in range(0, len(asked), AT_ONCE):
        part = asked[first : first + AT_ONCE]
        numbers = range(first, first + len(part))
        drawn = sampler.draw([one.prompt for one in part], numbers, draw.samples)
        for number, one, answers in zip(numbers, part, drawn, strict=True):
            right = [a for a in answers if len(a.logprobs) < longest and comes_to(one, a.text) == normalise(one.key)]
            lines += [json.dumps({"question": number, "text": answer.text}) for answer in right]
    return lines
