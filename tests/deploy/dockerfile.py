"""Reads a Dockerfile and a .dockerignore, as far as ours go."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Instruction:
    """One instruction: `rest` is all behind its word, with continued lines joined."""

    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """What stands behind it, flags included."""
        return shlex.split(self.rest)

    @property
    def exec_form(self) -> list[str]:
        """The command that runs without a shell; ValueError where it is written for one."""
        return json.loads(self.rest[self.rest.index("[") :])

    @property
    def copied(self) -> list[str]:
        """The sources of a COPY."""
        return [word for word in self.words if not word.startswith("--")][:-1]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The NAME=VALUE pairs of an ENV, ARG or LABEL."""
        return {name: expanded(value, variables) for name, _, value in (word.partition("=") for word in self.words)}


@dataclass(frozen=True)
class Stage:
    """A FROM and what follows it."""

    image: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.word == word]

    def last(self, word: str) -> Instruction:
        return self.all(word)[-1]


def parsed(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            stages.append(Stage(expanded(instruction.words[0], arguments)))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            arguments |= instruction.pairs({})
    return arguments, stages


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """With $NAME and ${NAME} replaced; an unknown one is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], ""), text)


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        yield Instruction(word.upper(), rest.strip())


def context(root: Path, ignore: str) -> list[str]:
    """The files under a folder that a build is sent."""
    patterns = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    # What lies in the hidden folders is not even looked at: environments and caches hold a hundred thousand files.
    tops = [path for path in root.iterdir() if not path.name.startswith(".")]
    paths = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
    return [name for path in paths if not _ignored(name := path.relative_to(root).as_posix(), patterns)]


def _ignored(name: str, patterns: Sequence[str]) -> bool:
    """The last pattern that matches the file or a folder around it decides."""
    around = [name, *map(str, PurePosixPath(name).parents)]
    ignored = False
    for pattern in patterns:
        matches = re.compile(_as_regex(pattern.removeprefix("!"))).fullmatch
        if any(map(matches, around)):
            ignored = not pattern.startswith("!")
    return ignored


def _as_regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
