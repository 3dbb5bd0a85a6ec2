"""The comparison in one command: its rows, done once, and what they come to in pairs."""

import json
from pathlib import Path

import pytest

from quietserve.model.training import negative, negative_study, sample
from quietserve.model.training.evaluation import majority
from quietserve.model.training.negative_study import ROWS, flags_of
from quietserve.model.training.samples import Asked, Sample, append, write_halves

NEGATIVE = "--steps 1 --batch 2 --inner 2 --own-samples 1 --lr 0.01 --log-every 1"
ROWS_HERE = ["negative-only", "base", "fine-tune", "kd", "nat", "nce"]


def made_up(argv: list[str]) -> int:
    """In place of samples of a model that has learnt nothing: none of its would be right."""
    folder = Path(argv[argv.index("--out") + 1])
    folder.mkdir(parents=True)
    right, wrong = (Sample(f" b {n} --- {n}", str(n), n == 1, -1.0, -0.5, 5) for n in (1, 2))
    append(folder, [Asked("test", "?", "Question: ?\nAnswer: ---", "Question: ?\nAnswer:", "1", (right, wrong))] * 3)
    write_halves(folder)
    return 0


def test_every_row_is_measured_once_and_drawn(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "main", made_up)
    monkeypatch.setattr(majority, "longest_chain", lambda *_: 4)
    results = tmp_path / "rows.json"
    flags = ["--base", str(base), "--out", str(tmp_path / "study"), "--seeds", "0", "--n", "2", "--rows", *ROWS_HERE]
    flags += ["--results", str(results), "--negative", NEGATIVE]
    assert negative_study.main(flags) == 0
    table, summary = capsys.readouterr().out, json.loads(results.read_text())
    assert [report["row"] for report in summary["rows"]] == ROWS_HERE
    assert all(f"| {row} (1) |" in table for row in ROWS_HERE)
    assert all(len(report["right"]) == 2 and set(report["right"]) <= {"0", "1"} for report in summary["rows"])
    assert all(report["value"] == report["right"].count("1") / 2 for report in summary["rows"])
    assert {pair["rival"] for pair in summary["compared"] if pair["row"] == "nat"} == {
        *("base", "fine-tune", "kd", "negative-only")
    }
    assert [pair["rival"] for pair in summary["compared"] if pair["row"] == "nce"] == ["kd"]
    assert [pair["other"] for pair in summary["overlaps"]] == ["negative-only"]
    histories = {report["row"]: report["history"] for report in summary["rows"]}
    assert [line.keys() for line in histories["nat"]] == [{"step", "loss", "alpha_negative"}]
    assert not histories["base"]
    assert not histories["negative-only"]
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {"seeds", "n", "command", "versions", "families", "negative"} <= summary.keys()

    def never(argv: list[str]) -> int:
        raise AssertionError(f"done twice: {argv}")

    monkeypatch.setattr(sample, "main", never)
    monkeypatch.setattr(negative, "main", never)
    assert negative_study.main(flags) == 0
    assert json.loads(results.read_text()) == summary
    capsys.readouterr()
    assert negative_study.main([*flags, "--n", "1", "--rows", "kd"]) == 0
    assert {report["n"] for report in json.loads(results.read_text())["rows"]} == {1}
    assert negative_study.main([*flags, "--negative", "--lr 1"]) == 2
    assert "--negative is '--lr 1'; what is in" in capsys.readouterr().err


def test_samples_are_drawn_from_the_teacher(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(argv: list[str]) -> int:
        asked.append(argv)
        return 2

    monkeypatch.setattr(sample, "main", fail)
    flags = ["--base", str(base), "--teacher", "big-{seed}", "--out", str(tmp_path), "--sample=--n 5", "--threads", "3"]
    with pytest.raises(SystemExit) as ended:
        negative_study.main([*flags, "--seeds", "3", "--families", "chains", "dial"])
    assert ended.value.code == 2
    [argv] = asked
    assert argv[argv.index("--model") + 1] == "big-3"
    assert argv[argv.index("--threads") + 1] == "3", "each command once took its own default, and set it for the study"
    assert argv[argv.index("--seed") + 1] == "3"
    assert argv[-5:] == ["--tasks", "chains", "dial", "--n", "5"]
    assert "--resume" in argv


def test_a_knob_goes_to_the_arms_that_read_it() -> None:
    written = "--steps 3 --inner 4 --own-samples=2 --weight 0.5 --lora-targets q_proj k_proj --beta 0.1"
    common = ["--lora-targets", "q_proj", "k_proj"]
    assert flags_of("kd", written) == ["--steps", "3", *common]
    assert flags_of("nat", written) == ["--steps", "3", "--inner", "4", *common]
    assert flags_of("nce-constant", written) == ["--steps", "3", "--own-samples=2", *common, "--beta", "0.1"]


def test_students_come_behind_their_teacher() -> None:
    assert ROWS.index("nat") < min(ROWS.index(arm) for arm in negative.STUDENTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0", "0"], "--seeds is 0 0; it must be each of them once"),
        (["--families", "dial", "dial"], "--families is dial dial; it must be each of them once"),
        (["--n", "0"], "--n is 0; it must be 1 or more"),
        (["--results", "/none/rows.json"], "--results /none/rows.json: there is no such folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert negative_study.main(["--base", "none", "--out", str(tmp_path / "study"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
