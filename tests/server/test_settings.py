"""Flags: what they become, and one line for what they cannot be."""

import socket
from pathlib import Path

import pytest

from quietserve.server.__main__ import main
from quietserve.server.settings import Settings, SettingsError


def test_no_flag_is_the_defaults() -> None:
    assert Settings.from_args([]) == Settings()


def test_every_field_is_a_flag() -> None:
    flags = {
        "host": "::1",
        "port": "0",
        "served-model-name": "m",
        "dtype": "bfloat16",
        "quantization": "int8",
        "device": "cpu",
        "max-model-len": "64",
        "max-num-seqs": "2",
        "max-num-queued-reqs": "0",
        "default-thought-depth": "3",
        "max-thought-depth": "5",
        "max-num-thoughts": "4",
        "max-num-batched-tokens": "32",
        "pipeline-depth": "6",
        "num-threads": "7",
        "shutdown-timeout": "1.5",
        "log-level": "error",
    }
    argv = [part for name, value in flags.items() for part in (f"--{name}", value)] + [
        "--no-prefix-caching",
        "--no-cuda-graphs",
    ]
    told = Settings.from_args(["folder", *argv])
    assert told == Settings(
        "folder", "::1", 0, "m", "bfloat16", "int8", "cpu", 64, 2, 0, 3, 5, 4, 32, 6, False, False, 7, 1.5, "error"
    )
    assert all(value != getattr(Settings(), name) for name, value in vars(told).items())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "x"], "argument --port: 'x' is not a whole number"),
        (["--port", "65536"], "argument --port: 65536 is out of range; it must be between 0 and 65535"),
        (["--max-num-seqs", "0"], "argument --max-num-seqs: 0 is out of range"),
        (["--shutdown-timeout", "nan"], "argument --shutdown-timeout: nan is out of range"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--max-thought", "3"], "unrecognized arguments: --max-thought"),
        (["a", "b"], "unrecognized arguments: b"),
    ],
)
def test_bad_flags(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError):
        Settings.from_args(argv)
    assert complaint(argv, capsys).startswith(f"quietserve serve: {words}")


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing-here" in complaint([str(tmp_path / "nothing-here"), "--port", "0"], capsys)


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in complaint([str(tmp_path), "--port", str(port)], capsys)


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot use 'toaster'" in complaint([str(tmp_path), "--port", "0", "--device", "toaster"], capsys)


def complaint(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err
