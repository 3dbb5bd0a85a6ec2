"""What a server is told when it starts. `quietserve check-config` prints what holds."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..model.bundled import DEFAULT
from ..model.voting import SELF_RANKERS
from .flags import FlagError, Told, boolean, flag, num_bytes, one_of, read_flags, seconds, whole
from .presets import Preset, parse_preset

_DESCRIPTION = "Serve a checkpoint over HTTP: OpenAI's API, with thoughts before every token."


class SettingsError(FlagError):
    """A setting that cannot be; the message is one line."""


@dataclass(frozen=True)
class NamedPath:
    """What requests call a ranker, a probe or a model, and where it lies."""

    name: str
    path: str

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.name}={self.path}"


def parse_ranker(text: str) -> NamedPath:
    """A ranker, written as `_named_path` reads it. Raises ValueError."""
    ranker = _named_path(text, "a ranker", "checker=runs/ranker")
    if ranker.name in SELF_RANKERS:
        raise ValueError(f"{ranker.name!r} is a ranker that needs no training; call this one otherwise")
    return ranker


def parse_model(text: str) -> NamedPath:
    """A further model, written in the same way. Raises ValueError."""
    return _named_path(text, "a further model", "karel=runs/karel")


def parse_probe(text: str) -> NamedPath:
    """A probe, written in the same way. Raises ValueError."""
    return _named_path(text, "a probe", "karel.direction=runs/probe")


def _named_path(text: str, what: str, example: str) -> NamedPath:
    """From NAME=PATH, or a path alone, whose last part is then the name."""
    if "=" not in text and (alone := text.strip()):
        return NamedPath(Path(alone).resolve().name, alone)
    name, _, path = (part.strip() for part in text.partition("="))
    if not name or not path:
        raise ValueError(f"{what} is written NAME=PATH or PATH, for example {example}")
    return NamedPath(name, path)


def _key(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise ValueError("a key is made of visible ASCII characters")  # and is not repeated here
    return text


def _origin(text: str) -> str:
    if text != "*" and not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is not an origin like https://example.org, nor *")
    return text.rstrip("/")


def _time_limit(text: str) -> float:
    if not (number := seconds(text)):
        raise ValueError(f"{text} would refuse every request; it must be above 0, and left out there is no limit")
    return number


@dataclass(frozen=True)
class Settings:
    """How to serve; each field is a flag."""

    model: str | None = flag(
        None, str, "a checkpoint: a folder, a name of the hub, or a bundled one (default: quiet-small)", positional=True
    )
    host: str = flag("127.0.0.1", str, "address to listen on")
    port: int = flag(8000, whole(0, 65535), "0 is any free port", metavar="N")
    config: str | None = flag(None, str, "a TOML file of flags, such as check-config prints", metavar="FILE")

    served_model_name: str | None = flag(
        None, str, "what requests call the model (default: the checkpoint's name)", metavar="NAME"
    )
    also: tuple[NamedPath, ...] = flag(
        (),
        parse_model,
        "serve a further checkpoint in the same process, that requests call by this name (default: the checkpoint's)",
        metavar="[NAME=]PATH",
        many=True,
    )
    model_preset: tuple[Preset, ...] = flag(
        (),
        parse_preset,
        "publish one more model name, whose requests have these defaults",
        metavar="NAME=JSON",
        many=True,
    )
    ranker: tuple[NamedPath, ...] = flag(
        (),
        parse_ranker,
        "load a trained ranker, a folder or a bundled one, that requests call by this name (default: its own)",
        metavar="[NAME=]PATH",
        many=True,
    )
    probe: tuple[NamedPath, ...] = flag(
        (),
        parse_probe,
        "load a probe of the model's states, a folder or a bundled one, that requests call by this name (default: its own)",
        metavar="[NAME=]PATH",
        many=True,
    )
    skip_bad_probes: bool = flag(False, boolean, "start without a probe that cannot be loaded")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", one_of("auto", "float32", "bfloat16", "float16"), "of the weights: auto, float32, bfloat16 or float16"
    )
    quantization: Literal["none", "half", "int8", "bnb-8bit", "bnb-4bit"] = flag(
        "none",
        one_of("none", "half", "int8", "bnb-8bit", "bnb-4bit"),
        "none; half or int8: on a CPU, hold the layers' weights so, which is faster and not lossless; "
        "bnb-8bit or bnb-4bit: bitsandbytes', which saves memory",
    )
    device: str = flag("auto", str, "auto, cpu, cuda, cuda:1 ...")
    num_threads: int | None = flag(
        None, whole(1, 1024), "CPU threads of a forward (default: 1 for a small model)", metavar="N"
    )
    cuda_graphs: bool = flag(True, boolean, "record the forwards of a GPU")

    max_model_len: int | None = flag(
        None,
        whole(1),
        "longest prompt and answer together, in tokens (default: the checkpoint's, up to 4096)",
        metavar="N",
    )
    max_num_seqs: int = flag(16, whole(1, 4096), "answers decoded at a time", metavar="N")
    max_num_queued_reqs: int = flag(256, whole(0), "answers that may wait for a place", metavar="N")
    kv_cache_memory_bytes: int | None = flag(
        None, num_bytes, "most memory for the cache, 4GiB for example: fewer answers at a time where they do not fit it"
    )
    max_num_batched_tokens: int = flag(
        256, whole(1), "prompt tokens read in one forward, so that a long prompt holds nobody up", metavar="N"
    )
    prefix_caching: bool = flag(True, boolean, "read what prompts have in common only once")

    default_thought_depth: int | None = flag(
        None, whole(0), "of requests that name none (default: as trained)", metavar="N"
    )
    max_thought_depth: int | None = flag(
        None, whole(0), "most that a request may ask for (default: as trained, at least 16)", metavar="N"
    )
    max_num_thoughts: int = flag(8, whole(1, 64), "most parallel thoughts that a request may ask for", metavar="N")
    max_best_of: int = flag(16, whole(1, 1024), "most answers to one prompt that a request may ask for", metavar="N")
    max_self_correction_turns: int = flag(
        2, whole(0, 16), "most times that a request may have an answer corrected; 0: never", metavar="N"
    )
    pipeline_depth: int | None = flag(
        None,
        whole(1, 65),
        "tokens of one answer that may be thought about at once; 1 is one after the other (default: chosen as it runs)",
        metavar="D",
    )

    api_key: tuple[str, ...] = flag(
        (),
        _key,
        "a key that requests must have; others can see a command line, so rather use --api-key-file",
        many=True,
        secret=True,
    )
    api_key_file: str | None = flag(None, str, "a file of keys, one a line", metavar="FILE")
    allowed_origins: tuple[str, ...] = flag(
        (), _origin, "an origin whose pages a browser lets ask this server; * is any (default: none)", many=True
    )
    playground: bool = flag(True, boolean, "a page to try everything on, at /")
    request_timeout: float | None = flag(
        None, _time_limit, "seconds that a request may take, unless it asks for less (default: no limit)", metavar="S"
    )
    shutdown_timeout: float = flag(30.0, seconds, "seconds that running answers are given at the end", metavar="S")
    metrics_compat: Literal["none", "vllm"] = flag(
        "none", one_of("none", "vllm"), "vllm: tell the metrics by vLLM's names too, for dashboards that know those"
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = flag(
        "info", one_of("critical", "error", "warning", "info", "debug"), "critical, error, warning, info or debug"
    )
    log_format: Literal["text", "json"] = flag("text", one_of("text", "json"), "text, or json: one object a line")

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> "Settings":
        """What a command line says, and the environment. Raises SettingsError, and SystemExit(0) after the help."""
        return read_settings(argv, environ).settings

    @property
    def name(self) -> str:
        """What requests call the first model."""
        return self.served_model_name or Path(self.model or DEFAULT).resolve().name

    def read_keys(self) -> tuple[str, ...]:
        """All keys that open the server; none: it is open to all. Raises SettingsError."""
        if self.api_key_file is None:
            return self.api_key
        try:
            lines = Path(self.api_key_file).read_text().splitlines()
            keys = tuple(_key(line.strip()) for line in lines if line.strip())
        except OSError as error:
            raise SettingsError(f"argument --api-key-file: {self.api_key_file}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"argument --api-key-file: {self.api_key_file}: {error}") from error
        if not keys:  # an open server is not what was asked for
            raise SettingsError(f"argument --api-key-file: {self.api_key_file} holds no key")
        return self.api_key + keys


def read_settings(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Told[Settings]:
    """The settings and where each was told. Raises SettingsError, and SystemExit(0) after printing the help."""
    environ = os.environ if environ is None else environ
    try:
        told = read_flags(Settings, argv, environ, "quietserve serve", _DESCRIPTION)
    except FlagError as error:
        raise SettingsError(str(error)) from error
    _check_names(told.settings)
    return told


def check_processes(settings: Settings, num_processes: int) -> None:
    """Raises SettingsError for a flag that does not go with a model which several processes hold together."""
    if num_processes > 1 and settings.also:
        raise SettingsError(f"argument --also: {num_processes} processes hold one model together; start others apart")
    if num_processes > 1 and settings.quantization != "none":
        raise SettingsError(
            f"argument --quantization: {settings.quantization} is for a whole model, and {num_processes} processes hold parts"
        )


def _check_names(settings: Settings) -> None:
    """Raises SettingsError where two things are called the same, and for a preset of a model that is not there."""
    models = [settings.name, *(model.name for model in settings.also)]
    for flag_name, kind, names in (
        ("also", "models", models),
        ("model-preset", "models", [*models, *(preset.name for preset in settings.model_preset)]),
        ("ranker", "rankers", [ranker.name for ranker in settings.ranker]),
        ("probe", "probes", [probe.name for probe in settings.probe]),
    ):
        if doubled := [name for name in names if names.count(name) > 1]:
            raise SettingsError(f"argument --{flag_name}: two {kind} are called {doubled[0]!r}")
    for preset in settings.model_preset:
        if preset.model is not None and preset.model not in models:
            known = ", ".join(map(repr, models))
            raise SettingsError(
                f"argument --model-preset: {preset.name}: model is {preset.model!r}; this server has {known}"
            )


def complain(command: str, error: Exception) -> None:
    """Say what is wrong, in one line."""
    print(f"quietserve {command}: {' '.join(str(error).split())}", file=sys.stderr)


def check_config(argv: Sequence[str] | None = None) -> int:
    """`quietserve check-config`: print what holds, as a file that --config reads; 2 where a setting cannot be."""
    try:
        told = read_settings(sys.argv[1:] if argv is None else argv)
        told.settings.read_keys()
    except SettingsError as error:
        complain("check-config", error)
        return 2
    for described in fields(Settings):
        value, secret = getattr(told.settings, described.name), described.metadata["flag"].secret
        if described.name != "config":
            print(f"{_line(described.name, value, secret):<40} # {told.origins[described.name]}")
    return 0


def _line(name: str, value: Any, secret: bool) -> str:
    if secret and value:
        return f"# {name}: {len(value)} not shown"
    if value is None or value == ():
        return f"# {name} ="
    texts = [item if isinstance(item, str) else str(item) for item in value] if isinstance(value, tuple) else value
    return f"{name} = {json.dumps(texts, ensure_ascii=False)}".replace("\x7f", "\\u007f")


if __name__ == "__main__":
    sys.exit(check_config())
