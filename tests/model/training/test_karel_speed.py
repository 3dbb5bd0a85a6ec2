"""The command that times Karel's interpreter: its shape, not its figures."""

import json
from pathlib import Path

from quietserve.model.training.tasks.karel import speed


def test_every_task_is_timed(tmp_path: Path) -> None:
    file = tmp_path / "speeds.json"
    assert speed.main(["--programs", "20", "--rounds", "2", "--json", str(file)]) == 0
    told = json.loads(file.read_text())["prompts_per_second"]
    assert set(told) == {"karel-4x4", "karel-5x5", "karel-6x6"}
    for ways in told.values():
        assert set(ways) == {"run", "solves"}
        assert all(0 < found["least"] <= found["median"] <= found["most"] for found in ways.values())
