"""What the documentation takes from the code when it is built: flags, metrics and the help of every command.

A line `<!-- from the code: WHAT -->` of a page is replaced by what `TABLES` makes of WHAT. No page that is built may fetch anything
from elsewhere, so that all of them can be read without a network.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from unittest.mock import patch

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from quietserve.clients.command import SUMMARIES, main
from quietserve.model.training.__main__ import METHODS
from quietserve.server.flags import Flag, boolean
from quietserve.server.metrics import Metrics
from quietserve.server.settings import Settings

MARK = re.compile(r"^<!-- from the code: (.+?) -->$", re.MULTILINE)
FETCHED = re.compile(r"""<(?:(?:script|img|iframe|source)\b[^>]*?\bsrc|link\b[^>]*?\bhref)=["']?(?:https?:)?//[^>]*>""")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page. Raises KeyError for a mark that names nothing we know."""
    return MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def on_post_page(output: str, page: Page, **_: object) -> None:
    """Called for every page when it is HTML. Raises PluginError for one that would fetch something."""
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_path} would fetch from elsewhere: {fetched[0]}")


def serve_flags() -> str:
    """Of each flag of `quietserve serve` how it is typed, what it does and its default."""
    rows = ["| flag | | default |", "|---|---|---|"]
    for field in fields(Settings):
        told: Flag = field.metadata["flag"]
        text, _, default = told.help.partition(" (default: ")
        default = default.removesuffix(")") or _default(field.default)
        rows.append(f"| {_typed(field.name, told)} | {_cell(text)} | {_cell(default)} |")
    return "\n".join(rows)


def _typed(name: str, told: Flag) -> str:
    if told.positional:
        return f"`{name.upper()}`"
    option = name.replace("_", "-")
    if told.parse is boolean:
        return f"`--{option}`, `--no-{option}`"
    return f"`--{option} {told.metavar or 'X'}`" + (", repeatable" if told.many else "")


def _default(value: object) -> str:
    return "" if value in (None, ()) else {True: "yes", False: "no"}.get(value, f"`{value}`")  # type: ignore[call-overload]


def metrics() -> str:
    """Of each metric family its name, its kind, its labels and what it tells."""
    told = Metrics("any")
    told.describe_model("none", "float32", "cpu", 0, 0)
    rows = ["| metric | kind | labels | |", "|---|---|---|---|", *sorted(_families(told))]
    return "\n".join(rows)


def _families(told: Metrics) -> Iterator[str]:
    for family in told._families.values():
        (described,) = family.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        yield f"| `{name}` | {described.type} | {labels} | {_cell(described.documentation)} |"


def commands() -> str:
    """The help of every command, under a heading of its own."""
    names = [[name] for name in SUMMARIES if name not in ("check-config", "train")]  # which have none of their own
    names += [["train", method] for method in METHODS]
    return "\n\n".join(f"## {' '.join(name)}\n\n```text\n{_help(name)}\n```" for name in names)


def _help(command: list[str]) -> str:
    said = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100"}), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return said.getvalue().strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


TABLES: dict[str, Callable[[], str]] = {"serve flags": serve_flags, "metrics": metrics, "commands": commands}
