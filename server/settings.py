"""What a server is told when it starts: flags become `Settings`."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NoReturn, TypeVar

Number = TypeVar("Number", int, float)


class SettingsError(ValueError):
    """A flag that cannot be; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """How to serve; each field is a flag."""

    model: str | None = None  # a checkpoint folder; None is the bundled checkpoint
    host: str = "127.0.0.1"
    port: int = 8000  # 0 is any free one
    served_model_name: str | None = None  # None is the checkpoint's own name
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "half", "int8"] = "none"
    device: str = "auto"
    max_model_len: int | None = None  # None is what the checkpoint allows
    max_num_seqs: int = 16
    max_num_queued_reqs: int = 256
    default_thought_depth: int | None = None  # None is the depth the checkpoint was trained at
    max_thought_depth: int | None = None  # None is chosen from the trained depth
    max_num_thoughts: int = 8
    max_num_batched_tokens: int = 256
    pipeline_depth: int | None = None  # None is chosen for each forward
    prefix_caching: bool = True
    cuda_graphs: bool = True
    num_threads: int | None = None  # None is 1 for a small model, torch's default for others
    shutdown_timeout: float = 30.0  # seconds
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"

    @classmethod
    def from_args(cls, argv: Sequence[str]) -> "Settings":
        """Parse a command line. Raises SettingsError, and SystemExit(0) after printing the help."""
        return cls(**vars(_parser().parse_args(argv)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="quietserve serve",
        description="Serve a checkpoint over HTTP: OpenAI's API, with thoughts before every token.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", help="a checkpoint folder (default: the bundled checkpoint)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_whole(0, 65535), help="0 is any free port (default: 8000)")
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="what requests call the model (default: the checkpoint's name)"
    )
    parser.add_argument("--dtype", choices=_choices("dtype"), help="of the weights (default: auto)")
    parser.add_argument(
        "--quantization",
        choices=_choices("quantization"),
        help="on a CPU, hold the layers' weights in float16 or int8: faster, not lossless (default: none)",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument(
        "--max-model-len", metavar="N", type=_whole(1), help="longest prompt and answer together, in tokens"
    )
    parser.add_argument(
        "--max-num-seqs", metavar="N", type=_whole(1, 4096), help="answers decoded at a time (default: 16)"
    )
    parser.add_argument(
        "--max-num-queued-reqs", metavar="N", type=_whole(0), help="answers that may wait for a place (default: 256)"
    )
    parser.add_argument(
        "--default-thought-depth", metavar="N", type=_whole(0), help="of requests that name none (default: as trained)"
    )
    parser.add_argument("--max-thought-depth", metavar="N", type=_whole(0), help="most that a request may ask for")
    parser.add_argument(
        "--max-num-thoughts",
        metavar="N",
        type=_whole(1, 64),
        help="most parallel thoughts that a request may ask for (default: 8)",
    )
    parser.add_argument(
        "--max-num-batched-tokens",
        metavar="N",
        type=_whole(1),
        help="prompt tokens read in one forward, so that a long prompt holds nobody up (default: 256)",
    )
    parser.add_argument(
        "--pipeline-depth",
        metavar="D",
        type=_whole(1, 65),
        help="tokens of one answer that may be thought about at once; 1 is one after the other (default: chosen as it runs)",
    )
    parser.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="read what prompts have in common only once (default: yes)",
    )
    parser.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="record the forwards of a GPU (default: yes)",
    )
    parser.add_argument(
        "--num-threads",
        metavar="N",
        type=_whole(1, 1024),
        help="CPU threads of a forward (default: 1 for a small model)",
    )
    parser.add_argument(
        "--shutdown-timeout", metavar="S", type=_seconds, help="seconds that running answers are given (default: 30)"
    )
    parser.add_argument("--log-level", choices=_choices("log_level"), help="(default: info)")
    return parser


def _choices(name: str) -> tuple[str, ...]:
    (kind,) = (field.type for field in fields(Settings) if field.name == name)
    return kind.__args__  # type: ignore[union-attr]


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""
    allowed = f"{least} or more" if most is None else f"between {least} and {most}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{number} is out of range; it must be {allowed}")
        return number

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is out of range; it must be 0 or more")
    return seconds
