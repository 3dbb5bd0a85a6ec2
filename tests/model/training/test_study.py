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
    assert [report["row"] for report in summary["rows"]] == study.ROWS
    assert all(f"| {row} (1) |" in table for row in study.ROWS)
    assert all(f"| {name} |" in table for name in FAMILIES)
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    by_row = {report["row"]: report["tasks"] for report in summary["rows"]}
    for name in FAMILIES:
        own, *spoilt = (by_row[row][name]["generated"] for row in ("quiet-star", "swapped", "random"))
        assert {"reasons", "right"} <= own["3"].keys()
        assert by_row["quiet-star"][name]["perplexity"].keys() == {"0", "3"}
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
    parse = study._parser().parse_args
    same = ["--out", str(tmp_path), "--n", "9", "--depths", "0", "3"]
    begun = study._report(parse(same), "quiet-star", 2)
    assert begun["rows"] == {"quiet-star": {}, "swapped": {}, "random": {}}
    begun["rows"]["quiet-star"]["dial"] = {"generated": {}}
    file = study._report_file(parse(same), "quiet-star", 2)
    file.parent.mkdir()
    file.write_text(json.dumps(begun))
    assert study._report(parse(same), "quiet-star", 2) == begun, "what is measured stays"
    assert not study._report(parse([*same, "--problem-seed", "2"]), "quiet-star", 2)["rows"]["quiet-star"]
    assert not study._report(parse(same), "quiet-star", 1)["rows"]["quiet-star"]
