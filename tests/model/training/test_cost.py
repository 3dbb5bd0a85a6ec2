"""`quietserve train cost`: what it reports, what it gives up, and that its intervals are intervals."""

import json
from pathlib import Path
from typing import Any

import pytest

from quietserve.model.training import __main__ as train
from quietserve.model.training import cost, peaks
from quietserve.model.training.cost import measure_memory, middle
from quietserve.model.training.peaks import Place, peak_apart
from quietserve.model.training.steps import WAYS, Size

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SIZE = Size(batch=1, length=9, depth=2, thoughts=2, after=2, positions=2)
FLAGS = ["--length", "9", "--depth", "2", "--after", "2", "--repeats", "6", "--memory-lengths", "8", "16"]


def place(memory_limit: float = 8.0, time_limit: float = 60.0) -> Place:
    return Place(TINY, "float32", "cpu", 1, 0, memory_limit, time_limit)


def test_a_report_holds_every_way_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def weigh(place: Place, size: Size, way: str) -> dict[str, Any]:
        return {"given_up": "over 8 GiB"} if way == "public" else {"peak_bytes": size.length * size.thoughts * 2**20}

    monkeypatch.setitem(cost.SHAPES, "5M", TINY)
    monkeypatch.setattr(cost, "peak_apart", weigh)
    file = tmp_path / "quiet_star_cost.json"
    assert train.main(["cost", *FLAGS, "--out", str(file), "--png"]) == 0
    report = json.loads(file.read_text())
    assert report["command"] == ["quietserve", "train", "cost", *FLAGS, "--out", str(file), "--png"]
    assert {"torch", "transformers", "python"} <= report["machine"].keys()
    rows = report["speed"]["rows"]
    assert list(rows) == list(WAYS)
    assert [rows[way]["thoughts"] for way in WAYS] == [2 * 2 * 2, 2 * 8 * 2, 2 * 8 * 2]
    for row in rows.values():
        assert len(row["seconds"]) == 6
        assert row["tokens_per_s"]["ci95"][0] <= row["tokens_per_s"]["median"] <= row["tokens_per_s"]["ci95"][1]
    assert report["speed"]["ratios"].keys() == {"subsampled/all", "all/public", "subsampled/public"}
    assert len(report["memory"]) == 3 * 2 * 3
    assert file.with_suffix(".png").stat().st_size > 1000
    assert "not tried: over 8 GiB before" in capsys.readouterr().out


def test_what_is_too_much_is_not_tried_for_more() -> None:
    tried: list[tuple[str, int, int]] = []

    def weigh(place: Place, size: Size, way: str) -> dict[str, Any]:
        tried.append((way, size.length, size.thoughts))
        return {"given_up": "over 1 GiB"} if size.length * size.thoughts >= 64 else {"peak_bytes": 1}

    sizes = [Size(1, length, 2, thoughts, 2, 2) for thoughts in (2, 8) for length in (8, 16)]
    cells = measure_memory(place(), [sizes[0], sizes[2], sizes[1], sizes[3]], weigh)
    assert tried == [(way, length, thoughts) for way in WAYS for length, thoughts in [(8, 2), (8, 8), (16, 2)]]
    assert [cell.get("given_up", "") for cell in cells[:4]] == ["", "over 1 GiB", "", "not tried: over 1 GiB before"]


def test_a_process_of_its_own_is_stopped_at_the_limit() -> None:
    assert peak_apart(place(memory_limit=0.001), Size(4, 200, 2, 4, 2, 2), "public") == {"given_up": "over 0.001 GiB"}


def test_a_process_that_takes_too_long_is_stopped() -> None:
    assert peak_apart(place(time_limit=0.01), SIZE, "all") == {"given_up": "over 0.01 s"}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_weighed_above_what_was_held_before(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks._ProcessMemory, "limit", lambda self, gib: None)
    found = peaks.peak(place(), Size(4, 100, 3, 4, 2, 2), way)
    assert 0 <= found["peak_bytes"] < 2**30
    assert found["seconds"] > 0


def test_the_middle_of_values_and_its_interval() -> None:
    assert middle([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"median": 3.5, "ci95": [1.0, 6.0]}
    assert middle([float(i) for i in range(9)]) == {"median": 4.0, "ci95": [1.0, 7.0]}
    assert middle([float(i) for i in range(20)])["ci95"] == [5.0, 14.0]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--repeats", "5"], "--repeats is 5; it must be 6 or more"),
        (["--thoughts", "1"], "--thoughts is 1; it must be 2 or more"),
        (["--memory-limit", "0"], "--memory-limit is 0.0; it must be above 0"),
        (["--memory-lengths", "1"], "--memory-lengths is 1; it must be 2 or more each"),
        (["--png"], "--png draws beside --out"),
        (["--out", "/nowhere/x.json"], "there is no such folder"),
        (["--device", "nonsense"], "--device nonsense"),
    ],
)
def test_arguments_that_cannot_be_are_named(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["cost", *flags]) == 2
    assert told in capsys.readouterr().err
