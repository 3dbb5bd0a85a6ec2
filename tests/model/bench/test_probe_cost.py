"""The benchmark of probes that read along: the same texts with any number of them, and ratios to none."""

import json
from pathlib import Path

import pytest

from quietserve.model.bench import probes, shapes

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FLAGS = ["--shape", "tiny", "--batch", "2", "--prompt", "9", "--tokens", "4", "--depth", "2", "--rounds", "2"]


@pytest.fixture(autouse=True)
def shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", SIZES)


def test_every_number_of_probes_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "probes.json", tmp_path / "probes.png"
    assert probes.main([*FLAGS, "--json", str(file), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert list(found["probes"]) == ["0", "1", "4"]
    none, *some = found["probes"].values()
    assert (none["ratio"], none["spread"]) == (1.0, [1.0, 1.0])
    assert all(0 < cell["spread"][0] <= cell["ratio"] <= cell["spread"][1] for cell in some)


def test_texts_that_differ_are_no_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probes.Draw, "timed", lambda self, count: ([str(count)], 1.0))
    assert probes.main(FLAGS) == 2
    assert "two ways gave different texts" in capsys.readouterr().err
