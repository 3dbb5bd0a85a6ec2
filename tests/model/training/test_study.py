"""The comparison in one command: all its rows, done once."""

import json
from pathlib import Path

import pytest

from quietserve.model.training import pretrain, quiet_star, study
from quietserve.model.training.tasks import FAMILIES

PRETRAIN = "--steps 2 --idle-steps 1 --width 32 --layers 1 --heads 2 --batch 4"
QUIET_STAR = "--steps 1 --batch 2 --depths 3 --positions 1 --thoughts 2"


def test_every_row_is_measured_once_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = tmp_path / "study", tmp_path / "rows.json"
    flags = ["--out", str(out), "--seeds", "0", "--n", "9", "--depths", "0", "3", "--positions", "3"]
    flags += ["--results", str(results), "--pretrain", PRETRAIN, "--quiet-star", QUIET_STAR]
    assert study.main(flags) == 0
    table, summary = capsys.readouterr().out, json.loads(results.read_text())
    assert [report["row"] for report in summary["rows"]] == list(study.ROWS)
    assert all(f"| {row} (1) |" in table for row in study.ROWS)
    assert all(f"| {name} |" in table for name in FAMILIES)
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    by_row = {report["row"]: report["tasks"] for report in summary["rows"]}
    for name in FAMILIES:
        own, *spoilt = (by_row[row][name]["generated"] for row in ("quiet-star", "swapped", "random"))
        assert {"reasons", "right"} <= own["3"].keys()
        assert by_row["untrained"][name]["perplexity"].keys() == {"0", "3"}
        for other in spoilt:
            assert other["0"]["value"] == own["0"]["value"], "without thoughts there is nothing to exchange"
        assert by_row["random"][name]["generated"]["3"]["thought_tokens"] == own["3"]["thought_tokens"]

    def never(argv: list[str]) -> int:
        raise AssertionError(f"done twice: {argv}")

    monkeypatch.setattr(pretrain, "main", never)
    monkeypatch.setattr(quiet_star, "main", never)
    assert study.main(flags) == 0
    assert json.loads(results.read_text()) == summary


def test_a_measurement_of_other_problems_is_another_one(tmp_path: Path) -> None:
    report = {"n": 9, "seed": 1, "depths": [0, 3]}
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    parse = study._parser().parse_args
    same = ["--out", str(tmp_path), "--n", "9", "--depths", "0", "3"]
    assert study._is_done(parse(same), file)
    assert not study._is_done(parse([*same, "--problem-seed", "2"]), file)
    assert not study._is_done(parse(same), tmp_path / "none.json")
