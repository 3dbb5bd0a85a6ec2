"""The command that times Karel's interpreter: its shape, not its figures."""

import json
from pathlib import Path

import pytest

from quietserve.model.training.tasks.karel import speed


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--json", "nowhere/speeds.json"]) == 2
    assert "--json nowhere/speeds.json: there is no such folder" in capsys.readouterr().err


def test_every_task_is_timed(tmp_path: Path) -> None:
    file, picture = tmp_path / "speeds.json", tmp_path / "speeds.png"
    assert speed.main(["--programs", "20", "--rounds", "2", "--json", str(file), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(file.read_text())["prompts_per_second"]
    assert set(told) == {"karel-4x4", "karel-5x5", "karel-6x6"}
    for ways in told.values():
        assert set(ways) == {"run", "solves"}
        assert all(0 < found["least"] <= found["median"] <= found["most"] for found in ways.values())
