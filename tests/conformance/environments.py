"""Environments of clients whose pins conflict with ours.

Each is made by the first test that needs it, from `requirements/<name>.txt`, and kept in a folder that git ignores.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venvs"


def run_script(environment: str, script: str, *arguments: str, **settings: Any) -> Any:
    """What `scripts/<script>.py` prints, JSON, when that environment's Python runs it. The settings are for `run`."""
    command = [made(environment) / "python", HERE / "scripts" / f"{script}.py", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **settings)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


def made(name: str) -> Path:
    """The folder of the environment's commands. It is made again when its requirements are other ones."""
    wanted = (HERE / "requirements" / f"{name}.txt").read_text()
    folder = ENVIRONMENTS / name
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        _make(folder, wanted.splitlines())
        stamp.write_text(wanted)
    return folder / "bin"


def _make(folder: Path, requirements: list[str]) -> None:
    """One requirement after the other, as they are written: torch, where it is one, has to come first and alone."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n")
    for requirement in requirements:
        install = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
        subprocess.run(install, check=True)
