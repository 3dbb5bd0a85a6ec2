"""A run as a picture: what it is drawn from, and what cannot be drawn."""

import json
from pathlib import Path

import pytest

from quietserve.model.training import quiet_star, report
from quietserve.model.training.evaluation import evaluate


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    small = ["--batch", "2", "--depths", "3", "--positions", "1", "--thoughts", "2", "--log-every", "1"]
    assert quiet_star.main(["--base", str(base), "--out", str(out), "--steps", "3", *small]) == 0
    return out


def test_a_run_is_drawn_with_and_without_an_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["quiet-star", str(run), "--out", str(tmp_path / "plain.png")]) == 0
    plain = (tmp_path / "plain.png").read_bytes()
    flags = ["--tasks", "dial", "--metrics", "generated", "perplexity", "--depths", "0,2", "--n", "4"]
    assert evaluate.main([str(run), *flags, "--out", str(run / "evaluation.json")]) == 0
    capsys.readouterr()
    assert report.main(["quiet-star", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.png'}\n"
    whole = (run / "report.png").read_bytes()
    assert plain.startswith(b"\x89PNG")
    assert whole.startswith(b"\x89PNG")
    assert whole != plain


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (None, "", "log.jsonl: cannot be read as lines of JSON"),
        ("log.jsonl", "", "log.jsonl: has no line yet"),
        ("log.jsonl", "{half", "log.jsonl: cannot be read as lines of JSON"),
        ("evaluation.json", "{}", "evaluation.json: is no report of `quietserve evaluate`"),
        ("evaluation.json", "{half", "evaluation.json: cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    file: str | None, content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if file == "evaluation.json":
        (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    if file:
        (tmp_path / file).write_text(content)
    assert report.main(["quiet-star", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
