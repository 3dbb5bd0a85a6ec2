"""Flags: what they become, and one line for what they cannot be."""

import json
import re
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from quietserve.server.__main__ import main
from quietserve.server.presets import Preset
from quietserve.server.settings import NamedPath, Settings, SettingsError, check_config, read_settings

# Each flag, as it is written and what it becomes; the defaults are others.
FLAGS: dict[str, tuple[str, Any]] = {
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "served-model-name": ("m", "m"),
    "model-preset": ('deep={"thought_depth": 12}', (Preset("deep", {"thought_depth": 12}),)),
    "ranker": ("checker=runs/ranker", (NamedPath("checker", "runs/ranker"),)),
    "also": ("karel=runs/karel", (NamedPath("karel", "runs/karel"),)),
    "probe": ("karel.direction=runs/probe", (NamedPath("karel.direction", "runs/probe"),)),
    "skip-bad-probes": ("true", True),
    "dtype": ("bfloat16", "bfloat16"),
    "quantization": ("bnb-8bit", "bnb-8bit"),
    "device": ("cpu", "cpu"),
    "num-threads": ("7", 7),
    "cuda-graphs": ("false", False),
    "max-model-len": ("64", 64),
    "max-num-seqs": ("2", 2),
    "max-num-queued-reqs": ("0", 0),
    "kv-cache-memory-bytes": ("3 MiB", 3 * 2**20),
    "max-num-batched-tokens": ("32", 32),
    "prefix-caching": ("off", False),
    "default-thought-depth": ("3", 3),
    "max-thought-depth": ("5", 5),
    "max-num-thoughts": ("4", 4),
    "max-best-of": ("9", 9),
    "max-self-correction-turns": ("1", 1),
    "pipeline-depth": ("6", 6),
    "api-key": ("secret", ("secret",)),
    "api-key-file": ("keys.txt", "keys.txt"),
    "allowed-origins": ("https://example.org/", ("https://example.org",)),
    "playground": ("no", False),
    "request-timeout": ("2.5", 2.5),
    "shutdown-timeout": ("1.5", 1.5),
    "metrics-compat": ("vllm", "vllm"),
    "log-level": ("error", "error"),
    "log-format": ("json", "json"),
}
VALUES = {name.replace("-", "_"): value for name, (_, value) in FLAGS.items()}


def settings(*argv: str, **environ: str) -> Settings:
    return Settings.from_args(argv, environ)


def test_no_flag_is_the_defaults() -> None:
    assert settings() == Settings()


def test_every_field_is_a_flag_an_environment_variable_and_a_line_of_a_file(tmp_path: Path) -> None:
    assert {f.name for f in fields(Settings)} == VALUES.keys() | {"model", "config"}
    assert all(value != getattr(Settings(), name) for name, value in VALUES.items())
    argv = [
        part
        for name, (text, value) in FLAGS.items()
        for part in ([f"--no-{name}"] if value is False else [f"--{name}"] if value is True else [f"--{name}", text])
    ]
    assert settings("folder", *argv) == Settings("folder", **VALUES)
    environ = {f"QUIETSERVE_{name.upper()}": FLAGS[name.replace("_", "-")][0] for name in VALUES}
    assert settings(**environ, QUIETSERVE_MODEL="folder") == Settings("folder", **VALUES)
    file = tmp_path / "all.toml"
    lines = [
        f"{name} = {json.dumps([text] if isinstance(value, tuple) else text)}" for name, (text, value) in FLAGS.items()
    ]
    file.write_text("\n".join(['model = "folder"', *lines]))
    assert settings("--config", str(file)) == Settings("folder", config=str(file), **VALUES)


def test_the_command_line_counts_before_the_environment_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("port = 1\nmax-num-seqs = 1\nprefix_caching = false\nshutdown_timeout = 1\napi_key = ['a', 'b']\n")
    environ = {"QUIETSERVE_PORT": "2", "QUIETSERVE_MAX_NUM_SEQS": "2", "QUIETSERVE_CONFIG": str(file)}
    told = read_settings(["--port", "3"], environ)
    assert (told.settings.port, told.settings.max_num_seqs, told.settings.shutdown_timeout) == (3, 2, 1.0)
    assert told.settings.api_key == ("a", "b")
    assert told.settings.prefix_caching is False
    origins = {name: told.origins[name] for name in ("port", "max_num_seqs", "shutdown_timeout", "host", "config")}
    assert list(origins.values()) == ["command line", "environment", str(file), "default", "environment"]


def test_what_check_config_prints_is_a_file_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--port", "81", "--no-prefix-caching", "--api-key", "s3cret", "--max-model-len", "99"]
    argv += [
        "--served-model-name",
        "a\x7f\u00e9\U0001f600",
        "--model-preset",
        'a={"stop": "\\n"}',
        "--model-preset",
        "b={}",
    ]
    assert check_config(argv) == 0
    printed = capsys.readouterr().out
    assert "s3cret" not in printed
    assert re.search(r"^port = 81 +# command line$", printed, re.MULTILINE)
    file = tmp_path / "printed.toml"
    file.write_text(printed)
    again = settings("--config", str(file))
    assert again == replace(settings(*argv), api_key=(), config=str(file))


def test_check_config_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_config(["--port", "x"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "quietserve check-config: argument --port: 'x' is not a whole number\n")


@pytest.mark.parametrize("none", ["0", "0.0", "-0"])
def test_no_time_at_all_is_no_limit_to_set(none: str) -> None:
    """Meant as no limit, it once made a server that refuses every request for having taken too long."""
    with pytest.raises(SettingsError, match=f"argument --request-timeout: {none} would .* left out there is no limit"):
        settings("--request-timeout", none)
    assert settings("--shutdown-timeout", none).shutdown_timeout == 0


def test_kubernetes_addresses_are_not_settings() -> None:
    """Every pod of a namespace with a service called quietserve has these variables; vLLM is known to trip over its own."""
    links = {
        "QUIETSERVE_PORT": "tcp://10.0.0.1:8000",
        "QUIETSERVE_SERVICE_HOST": "10.0.0.1",
        "QUIETSERVE_SERVICE_PORT": "8000",
        "QUIETSERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert settings(**links, QUIETSERVE_URL="http://x", QUIETSERVE_HOST="") == Settings()


def test_a_blank_variable_is_unset_and_opens_no_server(tmp_path: Path) -> None:
    """A secret that holds nothing but a newline used to overrule the keys of the file with none at all."""
    file = tmp_path / "keys.toml"
    file.write_text("api_key = ['real']\n")
    for blank in ("", " ", "\n", "\n \n"):
        assert settings("--config", str(file), QUIETSERVE_API_KEY=blank).read_keys() == ("real",)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"QUIETSERVE_PORT": "x"}, "QUIETSERVE_PORT: 'x' is not a whole number"),
        ({"QUIETSERVE_PREFIX_CACHING": "maybe"}, "QUIETSERVE_PREFIX_CACHING: 'maybe' is neither true nor false"),
        (
            {"QUIETSERVE_MAX_NUM_SEQ": "4"},
            "QUIETSERVE_MAX_NUM_SEQ: there is no such flag; did you mean QUIETSERVE_MAX_NUM",
        ),
        ({"QUIETSERVE_CONFIG": "/not/there.toml"}, "/not/there.toml: No such file"),
    ],
)
def test_bad_environments(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}"):
        settings(**environ)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 'x'", "port: 'x' is not a whole number"),
        ("prot = 1", "prot: there is no such flag; did you mean 'port'?"),
        ("port = [1]", "port: must be a string, a number or true or false"),
        ("api_key = 'a'", "api_key: must be a list"),
        ("config = 'other.toml'", "config: there is no such flag"),
        ("port 1", "not readable as TOML"),
        ("port = 1\nport = 2", "not readable as TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(words)) as told:
        settings("--config", str(file))
    assert str(told.value).startswith(str(file))


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    assert settings("--api-key", "zero", "--api-key-file", str(file)).read_keys() == ("zero", "one", "two")
    for text, words in (("\n", "holds no key"), ("se cret", "visible ASCII"), (None, "No such file")):
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError, match=words) as told:
            settings("--api-key-file", str(file)).read_keys()
        assert "cret" not in str(told.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "x"], "argument --port: 'x' is not a whole number"),
        (["--port", "65536"], "argument --port: 65536 is out of range; it must be between 0 and 65535"),
        (["--max-num-seqs", "0"], "argument --max-num-seqs: 0 is out of range"),
        (["--shutdown-timeout", "nan"], "argument --shutdown-timeout: nan is out of range"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8' (choose from auto"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--max-thought", "3"], "unrecognized arguments: --max-thought"),
        (["a", "b"], "unrecognized arguments: b"),
        (["--quantization", "int4"], "argument --quantization: invalid choice: 'int4' (choose from none, half"),
        (["--kv-cache-memory-bytes", "4GB"], "argument --kv-cache-memory-bytes: '4GB' is not a size; write bytes"),
        (["--allowed-origins", "example.org"], "argument --allowed-origins: 'example.org' is not an origin"),
        (["--api-key", "se cret"], "argument --api-key: a key is made of visible ASCII characters"),
        (["--model-preset", "deep"], "argument --model-preset: a preset is written NAME=JSON"),
        (["--model-preset", "deep={"], "argument --model-preset: deep: not JSON"),
        (["--model-preset", "deep=[]"], "argument --model-preset: deep: must be a JSON object"),
        (["--model-preset", 'deep={"prompt": "x"}'], "argument --model-preset: deep: 'prompt' is not a field"),
        (["--model-preset", 'deep={"n": "x"}'], "argument --model-preset: deep: n must be a valid integer"),
        (["--model-preset", "a={}", "--model-preset", "a={}"], "argument --model-preset: two models are called 'a'"),
    ],
)
def test_bad_flags(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError):
        Settings.from_args(argv)
    assert complaint(argv, capsys).startswith(f"quietserve serve: {words}")


@pytest.mark.parametrize(
    ("argv", "exit_code"), [(["--help"], 0), (["--prot", "1"], 2), (["--model-preset", "x={}"], 2)]
)
def test_who_asks_for_help_or_mistypes_does_not_wait_for_torch(argv: list[str], exit_code: int) -> None:
    """They did: everything that it takes to serve was imported first, for three seconds and more."""
    code = (
        "import sys; from quietserve.server.__main__ import main\n"
        f"try: code = main({[*argv, '--served-model-name', 'x']!r})\n"
        "except SystemExit as end: code = end.code\n"
        "print(); print(code, *sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    code_said, *modules = said.splitlines()[-1].split()
    assert code_said == str(exit_code)
    assert "quietserve.server.presets" in modules
    assert not {"torch", "transformers", "fastapi", "uvicorn", "quietserve.server.process"} & set(modules)


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing-here" in complaint([str(tmp_path / "nothing-here"), "--port", "0"], capsys)


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in complaint([str(tmp_path), "--port", str(port)], capsys)


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot use 'toaster'" in complaint([str(tmp_path), "--port", "0", "--device", "toaster"], capsys)


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ('deep={"thought_depth": 17}', "deep: thought_depth asks for depth 17; it must be between 0 and 16."),
        ('many={"n": 99}', "many: n is 99; it must be between 1 and 16."),
        ("checkpoint={}", "two models are called 'checkpoint'"),
    ],
)
def test_a_preset_that_this_model_cannot_serve(
    tmp_path: Path, preset: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save(tmp_path / "checkpoint")
    said = complaint([str(folder), "--port", "0", "--max-model-len", "99", "--model-preset", preset], capsys)
    assert f"argument --model-preset: {words}" in said


def test_a_cache_for_which_there_is_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.save(tmp_path / "checkpoint")
    said = complaint([str(folder), "--port", "0", "--kv-cache-memory-bytes", "1KiB"], capsys)
    assert "kv_cache_memory_bytes is 1024; one answer needs" in said


def complaint(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err
