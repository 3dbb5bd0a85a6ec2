"""The comparison in one command: its rows, done once."""

import json
from pathlib import Path

import pytest

from quietserve.model.training import attempts, score, score_study

ATTEMPTS = "--steps 30 --batch 8 --width 32 --layers 1 --heads 1"
SCORE = "--stage1-steps 3 --stage2-steps 3 --problems 2 --rollouts 2 --max-tokens 4"


def test_every_row_is_measured_once_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, results = ["base", "self-refine", "score", "star"], tmp_path / "rows.json"
    flags = ["--out", str(tmp_path / "study"), "--seeds", "0", "--n", "3", "--rows", *rows, "--results", str(results)]
    flags += ["--voting", "score", "--attempts", ATTEMPTS, "--score", SCORE]
    assert score_study.main(flags) == 0
    table, summary = capsys.readouterr().out, json.loads(results.read_text())
    assert [report["row"] for report in summary["rows"]] == rows
    assert all(f"| {row} (1) |" in table for row in rows)
    assert [line[: line.index(" (")] for line in table.splitlines() if "answers (" in line or "ones (" in line] == [
        "| score, first answers",
        "| score, corrected ones",
    ]
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    histories = {report["row"]: [line["step"] for line in report["history"]] for report in summary["rows"]}
    assert {report["row"] for report in summary["rows"] if "budget" in report} == {"score"}
    assert results.with_name("rows_budget.png").read_bytes().startswith(b"\x89PNG")
    assert histories == {"base": [], "self-refine": [], "score": [5, 6], "star": []}
    assert {"t1", "delta", "gap", "fix", "break", "edits"} <= summary["rows"][0]["corrected"].keys()

    def never(argv: list[str]) -> int:
        raise AssertionError(f"done twice: {argv}")

    monkeypatch.setattr(attempts, "main", never)
    monkeypatch.setattr(score, "main", never)
    assert score_study.main(flags) == 0
    assert json.loads(results.read_text()) == summary
    capsys.readouterr()
    assert score_study.main([*flags, "--n", "4"]) == 0
    assert {report["n"] for report in json.loads(results.read_text())["rows"]} == {4}, (
        "reports of other settings do not count"
    )
    assert score_study.main([*flags, "--score", "--lr 1"]) == 2
    assert "--score is '--lr 1'; what is in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0", "0"], "--seeds is 0 0; it must be each of them once"),
        (["--n", "0"], "--n is 0; it must be 1 or more"),
        (["--results", "/none/rows.json"], "--results /none/rows.json: there is no such folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_study.main(["--out", str(tmp_path / "study"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_part_that_fails_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        score_study.main(["--out", str(tmp_path / "study"), "--attempts", "--steps 0"])
    assert ended.value.code == 2
