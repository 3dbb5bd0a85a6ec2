"""The `quietserve` command: finds the subcommand among the installed entry points and loads no other."""

import difflib
import os
import signal
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points, version
from types import FrameType
from typing import NoReturn

SUMMARIES = {
    "serve": "serve a checkpoint over HTTP; the bundled one if none is named",
    "check-config": "print the settings that serve would have",
    "chat": "ask a running server in the terminal",
    "train": "make a checkpoint",
    "bench": "measure how fast it decodes, beside other ways of doing the same",
    "evaluate": "measure a checkpoint's accuracy at several thought depths",
    "convert": "write a checkpoint in another layout: ours, the public one, or a plain language model",
    "report": "draw a training run",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    # The first process of a container ignores what it has no handler for, and a subcommand may take long to import.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        exit_code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return exit_code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); what the interpreter flushes on its way out goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE


def _terminate(sig: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SystemExit(128 + sig)


def _dispatch(argv: list[str]) -> int:
    commands = {entry.name: entry for entry in entry_points(group="quietserve.commands")}
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(_usage(commands))
        return 0
    if name in ("-V", "--version"):
        print(f"quietserve {version('quietserve')}")
        return 0
    if name not in commands:
        print(_complaint(name, commands) if name else _usage(commands), file=sys.stderr)
        return 2
    return commands[name].load()(rest)


def _usage(names: Iterable[str]) -> str:
    known = [name for name in SUMMARIES if name in names]
    lines = [f"  {name:<14}{SUMMARIES.get(name, '')}".rstrip() for name in [*known, *sorted(set(names) - set(known))]]
    heading = (
        "usage: quietserve COMMAND [arguments]; --help after a command lists its own, --version prints the version"
    )
    return "\n".join([heading, "", *lines])


def _complaint(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "--help lists the commands"
    return f"quietserve: no command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
