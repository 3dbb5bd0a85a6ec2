"""Tasks from JSONL files in the shapes of GSM8K and CommonsenseQA; what each line is, is seen line by line."""

import json
from pathlib import Path
from typing import Any

from .item import Item, Wording
from .multiple_choice import read_multiple_choice
from .numeric import read_numeric

EXAMPLES = Path(__file__).parent / "examples"  # small files of our own making, in these shapes


def read_items(file: Path, wording: Wording) -> list[Item]:
    """The items of a file, one a line; empty lines count for nothing.

    Raises ValueError naming the file, and the number of the line that is at fault.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON's texts may hold what splitlines() takes for an end
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{file}: cannot be read: {reason}") from error
    items = [_read_line(line, f"{file}:{number}", wording) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise ValueError(f"{file}: holds no items")
    return items


def _read_line(line: str, source: str, wording: Wording) -> Item:
    try:
        return _read_record(_parse(line), source, wording)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not readable as JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, not an object")
    return record


def _read_record(record: dict[str, Any], source: str, wording: Wording) -> Item:
    if "answerKey" in record:
        return read_multiple_choice(record, source, wording)
    if "answer" in record:
        return read_numeric(record, source, wording)
    raise ValueError(
        "has neither `question` and `answer` (GSM8K) nor `question`, `choices` and `answerKey` (CommonsenseQA); "
        f"its keys are {', '.join(map(str, record)) or 'none'}"
    )
