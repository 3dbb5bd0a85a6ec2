"""The examples of the documentation: a fenced block of `sh` that asks the server with curl, or of `python`.

A block of `json` behind it is a part of the reply: all that it shows is there. A block of `text` is all that was printed.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving import ENVIRONMENT

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("index", "api", "clients"))]
ALL_BUNDLED = (
    "quiet-small --also score-small --also karel-small --ranker score-ranker --probe karel.obstacle=karel-obstacle"
)
ADDRESS = "http://127.0.0.1:8000"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block that is run, and what the page shows behind it."""

    place: str
    language: str
    text: str
    shown: tuple[str, str] | None


def examples_in(page: str, text: str) -> Iterator[Example]:
    fences = list(FENCE.finditer(text))
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] == "python" or (fence[1] == "sh" and re.match(rf"curl (-N )?{ADDRESS}", fence[2])):
            shows = following and following[1] in ("json", "text")
            line = text.count("\n", 0, fence.start()) + 1
            yield Example(f"{page}:{line}", fence[1], fence[2], (following[1], following[2]) if shows else None)


EXAMPLES = [example for page in PAGES for example in examples_in(page, (ROOT / page).read_text())]


def check(example: Example, url: str) -> None:
    """Run it on a server, and see that it says what its page says."""
    printed = run(example, url)
    if example.language == "sh":
        check_reply(printed, example)
    if example.shown and example.shown[0] == "text":
        assert printed == example.shown[1]


def run(example: Example, url: str) -> str:
    command = {"sh": ["bash", "-ec"], "python": [sys.executable, "-W", "error", "-c"]}[example.language]
    text = example.text.replace(ADDRESS, url).replace("curl ", "curl -sS ", 1)
    done = subprocess.run([*command, text], capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_reply(printed: str, example: Example) -> None:
    if printed.startswith("data:"):
        assert printed.rstrip().endswith("data: [DONE]")
        return
    reply = json.loads(printed)
    if example.shown:
        assert_has(reply, json.loads(example.shown[1]), "reply")
    else:
        assert "error" not in reply


def assert_has(whole: Any, part: Any, where: str) -> None:
    """All of `part` is in `whole`: the keys of an object, the items of a list, numbers to three digits."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, f"{where} has no {key!r}"
            assert_has(whole[key], value, f"{where}.{key}")
    elif isinstance(part, list):
        assert len(whole) == len(part), f"{where} has {len(whole)} items"
        for index, value in enumerate(part):
            assert_has(whole[index], value, f"{where}[{index}]")
    elif isinstance(part, float):
        assert whole == pytest.approx(part, abs=6e-4), where
    else:
        assert whole == part, where
