"""schemathesis, which reads /openapi.json and sends what it allows and what it forbids, and checks what comes back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
HOOKS = HERE / "scripts" / "schemathesis_hooks.py"
COMMAND = [Path(sys.executable).with_name("st"), "--config-file", HERE / "schemathesis.toml", "run"]


def fuzz(url: str, folder: Path, *flags: str) -> None:
    settled = ["--generation-deterministic"] if os.environ.get("CI") else ["--generation-database", "none"]
    command = [*COMMAND, f"{url}/openapi.json", "--no-color", *settled, *flags]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_the_server_keeps_to_its_schema(small_url: str, tmp_path: Path) -> None:
    fuzz(small_url, tmp_path, "--phases", "fuzzing", "--max-examples", "15")


@pytest.mark.slow
def test_the_server_keeps_to_its_schema_in_every_corner(small_url: str, tmp_path: Path) -> None:
    fuzz(small_url, tmp_path, "--max-examples", "100", "--continue-on-failure")
