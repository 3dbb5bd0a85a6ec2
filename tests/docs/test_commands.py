"""Every command that the documentation prints is one that its parser takes; none of them is run."""

import argparse
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from quietserve.clients.command import SUMMARIES, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```sh\n((?:.*\n)*?)```$|^((?: {4}\S.*\n)+)", re.MULTILINE)
INLINE = re.compile(r"`((?:\.venv/bin/)?quietserve [^`]+)`")
COMMAND = re.compile(rf"\bquietserve\)? (({'|'.join(SUMMARIES)})\b.*)")
NO_RUN = re.compile(r"\.\.\.|\||--help|--seed S\b")  # `train quiet-star ...`, `--layout quietserve|public|plain`


class Taken(BaseException):
    """In place of a run."""


def commands() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in (*BLOCK.finditer(text), *INLINE.finditer(text)):
            inline = found.re is INLINE
            block = found[1].replace("\n", " ") if inline else (found[1] or found[2]).replace("\\\n", " ")
            for line in block.splitlines():
                if (command := COMMAND.search(line)) and not NO_RUN.search(command[1]):
                    place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}: {command[1][:40]}"
                    yield pytest.param(command[1], inline, id=place)


@pytest.mark.parametrize(("command", "inline"), list(commands()))
def test_a_command_is_taken(command: str, inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence one may leave out what is required; in a block it is whole."""
    parse_args = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *args: Any) -> NoReturn:
        for action in self._actions if inline else ():
            action.required = False
        parse_args(self, *args)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(Taken):
        main(shlex.split(command, comments=True))
