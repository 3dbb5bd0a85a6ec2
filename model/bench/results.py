"""What has been measured so far, in a file of one line a cell: a long grid can be killed and repeated."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = dict[str, Any]  # the cell, and all that its figures depend on


@dataclass
class Results:
    """Finished cells, in order; with a file, those that were finished before, too.

    Raises ValueError for a file that cannot be read or written.
    """

    file: Path | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file is None:
            return
        try:
            with self.file.open("a+") as opened:
                opened.seek(0)
                text = opened.read()
                if text and not text.endswith("\n"):
                    opened.write("\n")  # the run was killed in the midst of a line
        except OSError as error:
            raise ValueError(f"--out {self.file}: {error.strerror}") from error
        self.entries = [entry for line in text.splitlines() if (entry := _parse(line))]

    def find(self, key: Key) -> dict[str, Any] | None:
        """The entry of a cell that is finished."""
        return next((entry for entry in reversed(self.entries) if entry["key"] == key), None)

    def add(self, key: Key, rows: list[dict[str, Any]], ratios: list[dict[str, Any]], skipped: dict[str, str]) -> Key:
        """Keep a finished cell; returns its entry."""
        entry = {"key": key, "rows": rows, "ratios": ratios, "skipped": skipped}
        self.entries.append(entry)
        if self.file is not None:
            with self.file.open("a") as opened:
                opened.write(json.dumps(entry) + "\n")
        return entry


def _parse(line: str) -> dict[str, Any] | None:
    """An entry; None for a line that was being written when the run was killed."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"key", "rows", "ratios", "skipped"} <= entry.keys() else None
