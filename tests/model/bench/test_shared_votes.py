"""The benchmark of votes that share a prefill: every way gives the same texts, and its ratio is to the first."""

import json
from pathlib import Path

import pytest

import tiny
from quietserve.model.bench import votes


def test_all_ways_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = tiny.save(tmp_path / "tiny"), tmp_path / "votes.json"
    flags = ["--votes", "3", "--prompt", "20", "--tokens", "4", "--depth", "2", "--rounds", "2", "--json", str(file)]
    assert votes.main(["--model", str(model), *flags, "--plot", str(tmp_path / "votes.png")]) == 0
    assert (tmp_path / "votes.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert list(found["ways"]) == list(votes.WAYS)
    assert found["ways"]["together, shared"]["cpu"] == {"ratio": 1.0, "spread": [1.0, 1.0]}
    assert all(cell["wall"]["ratio"] > 0 for cell in found["ways"].values())


def test_ways_that_differ_are_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(votes.Draw, "texts", lambda self, way: [way])
    assert votes.main(["--model", str(tiny.save(tmp_path / "tiny")), "--prompt", "20", "--rounds", "1"]) == 2
    assert "two ways gave different texts" in capsys.readouterr().err


def test_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert votes.main(["--model", str(tiny.save(tmp_path / "tiny")), "--prompt", "500", "--tokens", "20"]) == 2
    assert "the model's context is 512" in capsys.readouterr().err


def test_files_are_looked_at_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(votes, "measure", lambda *_: pytest.fail("measured"))
    assert votes.main(["--plot", "nowhere/votes.png"]) == 2
    assert "--plot nowhere/votes.png: there is no such folder" in capsys.readouterr().err
    monkeypatch.setattr(votes.outcome, "available", lambda: False)
    assert votes.main(["--plot", "votes.png"]) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err
