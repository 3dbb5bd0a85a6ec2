"""`quietserve chat`: ask a running server in the terminal, and watch it think."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from .client import DEFAULT_URL, ApiError, Client

HELP = """\
/depth N    think at most N tokens before each visible one; 0 does not think; /depth alone shows it
/thoughts   show the thoughts in brackets, or stop showing them
/help       this list
/quit       leave, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass
class Chat:
    """A conversation in the terminal; `history` holds the turns to send along, None sends each question alone."""

    client: Client
    model: str
    depth: int | None = None
    show_thoughts: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    history: list[dict[str, str]] | None = None

    def ask(self, question: str) -> None:
        """Print the answer as it comes; raises `ApiError`."""
        messages = [*(self.history or []), {"role": "user", "content": question}]
        deltas = self.client.stream_chat(
            messages,
            model=self.model,
            thought_depth=self.depth,
            include_reasoning=self.show_thoughts or None,
            **self.params,
        )
        pieces: list[str] = []
        try:
            with closing(deltas):
                for delta in deltas:
                    pieces.append(delta.text)
                    self._write(delta.reasoning, delta.text)
        finally:
            if pieces:
                print()
        if self.history is not None:
            self.history = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def loop(self) -> None:
        """Answer line after line until the input ends or `/quit`."""
        while (line := _read_line()) is not None:
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self.obey(line)
                elif line:
                    self.ask(line)
            except KeyboardInterrupt:
                continue
            except (ApiError, argparse.ArgumentTypeError) as error:
                print(f"error: {error}", file=sys.stderr)

    def obey(self, line: str) -> None:
        """Carry out one of the commands of `HELP`."""
        match line.split():
            case ["/depth"]:
                print(f"thought depth: {'as the server has it' if self.depth is None else self.depth}")
            case ["/depth", depth]:
                self.depth = parse_depth(depth)
            case ["/thoughts"]:
                self.show_thoughts = not self.show_thoughts
                print(f"thoughts are {'shown' if self.show_thoughts else 'hidden'}")
            case ["/help"]:
                print(HELP)
            case _:
                print(f"error: no command {line!r}; /help lists them", file=sys.stderr)

    def _write(self, reasoning: str, text: str) -> None:
        if reasoning and self.show_thoughts:
            thought = f"[{_printable(reasoning).strip()}]"
            sys.stdout.write(f"\x1b[2m{thought}\x1b[0m" if sys.stdout.isatty() else thought)
        sys.stdout.write(_printable(text))
        sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Answer one question, or a terminal full of them; 1 if the server cannot be asked."""
    args = _parser().parse_args(argv)
    try:
        with Client(args.url) as client:
            chat = Chat(
                client,
                model=args.model or _first_model(client),
                depth=args.depth,
                show_thoughts=args.show_thoughts,
                params={"temperature": args.temperature, "seed": args.seed},
                history=[] if args.history else None,
            )
            if args.question is not None:
                chat.ask(args.question)
            else:
                _greet(chat)
                chat.loop()
    except (ApiError, ValueError) as error:
        print(f"quietserve chat: {error}", file=sys.stderr)
        return 1
    return 0


def parse_depth(text: str) -> int:
    """A thought depth as typed; the server knows its own maximum."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a thought depth is a whole number from 0 up, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietserve chat",
        description="Ask a running server: one question given here, or as many as you type.",
        epilog="An API key is read from the environment's QUIETSERVE_API_KEY, where other users cannot see it.",
    )
    parser.add_argument("question", nargs="?", help="answer this and exit")
    parser.add_argument("--url", help=f"the server's address (the environment's QUIETSERVE_URL, or {DEFAULT_URL})")
    parser.add_argument("--model", help="the model to ask (the first one served)")
    parser.add_argument("--depth", type=parse_depth, metavar="N", help="thought depth (the server's default)")
    parser.add_argument("--show-thoughts", action="store_true", help="show the thoughts in brackets")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0, the default, always takes the likeliest token"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument("--history", action="store_true", help="send the earlier questions and answers along")
    return parser


def _first_model(client: Client) -> str:
    models = client.models()
    if not models:
        raise ApiError(None, None, None, f"{client.base_url} serves no model")
    return models[0].id


def _greet(chat: Chat) -> None:
    if sys.stdin.isatty():
        with suppress(ImportError):  # absent on some systems; where it is, input() edits lines and remembers them
            import readline  # noqa: F401
        print(f"{chat.model} at {chat.client.base_url}; /help lists the commands, Ctrl-D leaves")


def _read_line() -> str | None:
    """The next line without the space around it, None at the end of the input or at Ctrl-C."""
    interactive = sys.stdin.isatty()
    try:
        return input("> " if interactive else "").strip()
    except (EOFError, KeyboardInterrupt):
        if interactive:
            print()
        return None


def _printable(text: str) -> str:
    """The text without control characters, which could command the terminal."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


if __name__ == "__main__":
    sys.exit(main())
