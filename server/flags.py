"""Flags of a command: each is a field of a dataclass, an environment variable and a line of a configuration file too.

What stands on the command line counts before the environment, that before the file, and that before the default.
"""

import argparse
import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

ENV_PREFIX = "QUIETSERVE_"
CONFIG = "config"  # the flag that names the file

# Kubernetes gives every pod the address of a service called "quietserve" as QUIETSERVE_PORT=tcp://10.0.0.1:8000.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")

T = TypeVar("T")


class FlagError(ValueError):
    """A flag that cannot be; the message is one line and names it as it was given."""


@dataclass(frozen=True)
class Flag:
    """How one field is told. `parse` turns text into its value and raises ValueError with what would be allowed."""

    parse: Callable[[str], Any]
    help: str
    metavar: str | None = None
    positional: bool = False
    many: bool = False  # may be given more than once; the field is a tuple
    secret: bool = False  # never shown


def flag(default: Any, parse: Callable[[str], Any], help: str, **more: Any) -> Any:  # noqa: A002
    """A field of a dataclass that is a flag; `more` as in `Flag`."""
    return field(default=default, metadata={"flag": Flag(parse, help, **more)})


@dataclass(frozen=True)
class Told(Generic[T]):
    """What holds, and where each field of it was told: "command line", "environment", a file's name, or "default"."""

    settings: T
    origins: Mapping[str, str]


def read_flags(kind: type[T], argv: Sequence[str], environ: Mapping[str, str], prog: str, description: str) -> Told[T]:
    """Gather the fields of `kind`. Raises FlagError, and SystemExit(0) after printing the help."""
    known = {f.name: f.metadata["flag"] for f in fields(kind)}  # type: ignore[arg-type]
    typed = vars(_parser(kind, prog, description).parse_args(argv))
    values, origins = dict(typed), dict.fromkeys(typed, "command line")
    for name, text in _from_environment(known, environ):
        if name not in values:
            values[name] = _parsed(known[name], _lines(known[name], text), ENV_PREFIX + name.upper())
            origins[name] = "environment"
    if file := values.get(CONFIG):
        for name, texts in _from_file(known, Path(file)):
            if name not in values:
                values[name], origins[name] = _parsed(known[name], texts, f"{file}: {name}"), str(file)
    values = {name: tuple(value) if known[name].many else value for name, value in values.items()}
    return Told(kind(**values), {name: origins.get(name, "default") for name in known})


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""
    allowed = f"{least} or more" if most is None else f"between {least} and {most}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if number < least or (most is not None and number > most):
            raise ValueError(f"{number} is out of range; it must be {allowed}")
        return number

    return parse


def seconds(text: str) -> float:
    """A parser of durations."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds") from None
    if not 0 <= number < 1e6:
        raise ValueError(f"{text} is out of range; it must be 0 or more")
    return number


def num_bytes(text: str) -> int:
    """A parser of sizes: a whole number, and KiB, MiB or GiB where it is not bytes."""
    found = re.fullmatch(r"(\d{1,15})\s*(KiB|MiB|GiB)?", text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with KiB, MiB or GiB")
    return int(found[1]) * {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]]


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"invalid choice: {text!r} (choose from {', '.join(choices)})")
        return text

    return parse


def boolean(text: str) -> bool:
    """A parser of yes and no."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


def _parser(kind: type[Any], prog: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.epilog = f"Every flag is also an environment variable, --max-num-seqs for example {ENV_PREFIX}MAX_NUM_SEQS."
    for described in fields(kind):
        _add_argument(parser, described)
    return parser


def _add_argument(parser: argparse.ArgumentParser, described: "Field[Any]") -> None:
    told: Flag = described.metadata["flag"]
    text, default = told.help.replace("%", "%%"), described.default
    if "(default" not in text and default not in (None, ()):
        text += f" (default: {'yes' if default is True else 'no' if default is False else default})"
    if told.positional:
        parser.add_argument(described.name, nargs="?", type=_checked(told), help=text)
    elif told.parse is boolean:
        parser.add_argument(_option(described.name), action=argparse.BooleanOptionalAction, help=text)
    else:
        action: Any = {"action": "append"} if told.many else {}
        parser.add_argument(
            _option(described.name), metavar=told.metavar or "X", type=_checked(told), help=text, **action
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _checked(told: Flag) -> Callable[[str], Any]:
    """What `parse` complains of, argparse is to tell word for word."""

    def parse(text: str) -> Any:
        try:
            return told.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _parsed(told: Flag, texts: Sequence[str], where: str) -> Any:
    try:
        values = [told.parse(text) for text in texts]
    except ValueError as error:
        raise FlagError(f"{where}: {error}") from None
    return values if told.many else values[0]


def _lines(told: Flag, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()] if told.many else [text]


def _from_environment(known: Mapping[str, Flag], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable, text in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or not text.strip() or _SERVICE_LINK.match(text):
            continue
        if name in known:
            yield name, text
        elif near := _near(name, known, 0.85):  # other names there may be somebody else's
            raise FlagError(f"{variable}: there is no such flag; did you mean {ENV_PREFIX}{near.upper()}?")


def _from_file(known: Mapping[str, Flag], file: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        told = tomllib.loads(file.read_text())
    except OSError as error:
        raise FlagError(f"{file}: {error.strerror}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise FlagError(f"{file}: not readable as TOML: {error}") from error
    for key, value in told.items():
        name = key.replace("-", "_")
        if name not in known or name == CONFIG:
            near = _near(name, known, 0.6)
            raise FlagError(f"{file}: {key}: there is no such flag" + (f"; did you mean {near!r}?" if near else ""))
        yield name, [_text(item, f"{file}: {key}") for item in _items(known[name], value, f"{file}: {key}")]


def _items(told: Flag, value: Any, where: str) -> list[Any]:
    if not told.many:
        return [value]
    if not isinstance(value, list):
        raise FlagError(f"{where}: must be a list")
    return value


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise FlagError(f"{where}: must be a string, a number or true or false")
    return str(value)


def _near(name: str, known: Mapping[str, Flag], cutoff: float) -> str | None:
    found = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return found[0] if found else None
