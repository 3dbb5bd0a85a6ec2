"""Votes of answers with keys: every way against one written for reading, and the study's command."""

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training import rank_study
from quietserve.model.training.rank_votes import WAYS, measure_votes, votes
from quietserve.model.training.samples import Asked, Sample

ANSWER = st.sampled_from(["1", "2", "3", None])
TOLD = st.tuples(ANSWER, st.floats(-9, -0.5), st.integers(1, 9), st.floats(0.05, 0.95))
QUESTION = st.lists(TOLD, min_size=4, max_size=4)


def make(questions: list[list[tuple[str | None, float, int, float]]]) -> tuple[list[Asked], list[list[float]]]:
    asked, scores = [], []
    for number, told in enumerate(questions):
        samples = tuple(Sample(str(a), a, a == "2", logprob, logprob / n - 0.1, n) for a, logprob, n, _ in told)
        asked.append(Asked("s", f"q{number}", "p", "d", "2", samples))
        scores.append([score for *_, score in told])
    return asked, scores


def weighed(one: Asked, weights: list[float]) -> set[str]:
    """The answers of the greatest weight."""
    sums: dict[str, float] = defaultdict(float)
    for sample, weight in zip(one.samples, weights, strict=True):
        if sample.answer is not None:
            sums[sample.answer] += weight
    return {answer for answer, total in sums.items() if math.isclose(total, max(sums.values()), rel_tol=1e-6)}


@given(st.lists(QUESTION, min_size=1, max_size=5))
def test_every_way_is_what_it_says(questions: list[list[tuple[str | None, float, int, float]]]) -> None:
    asked, scores = make(questions)
    weights = {
        "majority": lambda one, own: [1.0] * len(own),
        "likelihood": lambda one, own: [math.exp(sample.logprob) for sample in one.samples],
        "min_logprob": lambda one, own: [math.exp(sample.min_logprob) for sample in one.samples],
        "ranker": lambda one, own: own,
        "one-plus": lambda one, own: [1 + score for score in own],
    }
    for way, weigh in weights.items():
        found = votes(asked, scores, way, 4, seed=0)
        for one, own, right in zip(asked, scores, found, strict=True):
            winners = weighed(one, weigh(one, own))
            assert right == ("2" in winners) or len(winners) > 1, way
    for one, own, right in zip(asked, scores, votes(asked, scores, "best-of-n", 4, seed=0), strict=True):
        best = max((score for sample, score in zip(one.samples, own, strict=True) if sample.answer), default=None)
        tops = {
            sample.answer for sample, score in zip(one.samples, own, strict=True) if sample.answer and score == best
        }
        assert right == ("2" in tops) or len(tops) > 1
    assert votes(asked, scores, "oracle", 4, seed=0) == [any(sample.right for sample in one.samples) for one in asked]


def test_the_first_ones_vote_and_chance_is_seeded() -> None:
    told = [("1", -1.0, 1, 0.9), ("2", -1.0, 1, 0.2), ("2", -1.0, 1, 0.2), ("2", -1.0, 1, 0.2)]
    asked, scores = make([told] * 40)
    assert votes(asked, scores, "majority", 1, seed=0) == [False] * 40
    assert votes(asked, scores, "majority", 4, seed=0) == [True] * 40
    assert votes(asked, scores, "ranker", 4, seed=0) == [False] * 40
    even = [("1", -1.0, 1, 0.9), ("1", -1.0, 1, 0.8), ("2", -1.0, 1, 0.2), ("2", -1.0, 1, 0.1)]
    asked, scores = make([even] * 40)
    for way in ("random", "shuffled"):
        drawn = votes(asked, scores, way, 4, seed=0)
        assert drawn == votes(asked, scores, way, 4, seed=0)
        assert len(set(drawn)) == 2
        assert drawn != votes(asked, scores, way, 4, seed=1)


def test_the_table_is_paired() -> None:
    told = [("1", -1.0, 1, 0.1), ("1", -1.0, 1, 0.1), ("2", -1.0, 1, 0.9), (None, -1.0, 1, 0.9)]
    cells = measure_votes(*make([told] * 50), sizes=[2, 4], seed=0)["4"]
    assert list(cells) == list(WAYS)
    assert (cells["majority"]["value"], cells["ranker"]["value"], cells["oracle"]["value"]) == (0, 1, 1)
    assert cells["ranker"]["gain"] == {"value": 1.0, "ci95": (1.0, 1.0), "mcnemar": pytest.approx(2 / 2**50)}


def test_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One small run of the command, repeated: what is there is not made again."""
    flags = ["--out", str(tmp_path / "out"), "--models", "score-small", "--tasks", "signed-sum", "--seeds", "0"]
    flags += ["--n", "8", "--questions", "16", "--learned-samples", "4", "--rows", "states", "pooled"]
    flags += ["--ranker", "--steps 8 --batch 16 --held 0.5", "--results", str(tmp_path / "ranker.json")]
    assert rank_study.main(flags) == 0
    said = capsys.readouterr().out
    assert "| states (1) |" in said
    assert "| oracle (1) |" in said
    report = json.loads((tmp_path / "ranker.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["states", "pooled"]
    assert report["rows"][0]["votes"].keys() == {"4", "8", "16", "32"}
    assert {"command", "versions", "n"} <= report.keys()
    assert (tmp_path / "ranker.png").stat().st_size > 10_000
    monkeypatch.setattr(rank_study.sample, "main", lambda argv: 1)
    monkeypatch.setattr(rank_study.rank, "main", lambda argv: 1)
    assert rank_study.main(flags) == 0
    assert capsys.readouterr().out == said.split("\n", said[: said.index("| ranker")].count("\n"))[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "a", "b", "--seeds", "0", "2"], "--models is a b; it must be one for all seeds"),
        (["--questions", "0"], "--questions is 0"),
        (["--tasks", "dial", "dial"], "--tasks"),
    ],
)
def test_a_study_that_cannot_be(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank_study.main(["--out", str(tmp_path), "--models", "score-small", "--tasks", "signed-sum", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_study_of_more_problems_draws_more_and_one_of_fewer_reads_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was stored was once measured, and reported as the number that was asked for."""
    monkeypatch.setattr(rank_study, "SIZES", (2,))
    monkeypatch.setattr(rank_study.rank, "main", lambda argv: 0)
    monkeypatch.setattr(rank_study, "_measure", lambda *told: {"asked": [one.question for one in told[2]]})
    monkeypatch.setattr(rank_study, "markdown", str)

    def measure(number: int) -> list[str]:
        flags = ["--out", str(tmp_path), "--models", "score-small", "--tasks", "signed-sum", "--seeds", "0"]
        flags += ["--questions", "4", "--learned-samples", "2", "--rows", "states", "--n", str(number)]
        assert rank_study.main(flags) == 0
        report = json.loads((tmp_path / "reports/states-0.json").read_text())
        assert report["n"] == len(report["asked"]) == number
        return report["asked"]

    forty = measure(40)
    stored = (tmp_path / "fresh-1-0/samples.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(rank_study.sample, "main", lambda argv: 1)
        assert measure(7) == forty[:7]
        assert measure(40) == forty
        assert (tmp_path / "fresh-1-0/samples.jsonl").read_bytes() == stored
    seventy = measure(70)
    assert seventy[:40] == forty
    assert len(set(seventy)) == 70
    assert (tmp_path / "fresh-1-0/samples.jsonl").read_bytes().splitlines()[:32] == stored.splitlines()[:32]


def test_answers_that_were_drawn_and_measured_are_used_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of 2,000 problems from before: nothing is drawn, learned or measured again."""
    for folder, number in (("learned-0", 3), ("fresh-1-0", 2000)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "samples.jsonl").write_text("{}\n" * number)
        (tmp_path / folder / "negative.jsonl").write_text("")
    (tmp_path / "reports").mkdir()
    report = {"row": "states", "training_seed": 0, "n": 2000, "seed": 1}
    (tmp_path / "reports/states-0.json").write_text(json.dumps(report))
    for module in (rank_study.sample, rank_study.rank):
        monkeypatch.setattr(module, "main", lambda argv: 1)
    monkeypatch.setattr(rank_study, "markdown", lambda summary: json.dumps(summary["rows"]))
    flags = ["--out", str(tmp_path), "--models", "gone", "--tasks", "signed-sum", "--seeds", "0"]
    assert rank_study.main([*flags, "--rows", "states", "--questions", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == [report]


def test_the_encoders_flags_go_to_rows_that_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier refuses them, and would end a study of all rows."""
    trained: dict[str, list[str]] = {}
    monkeypatch.setattr(rank_study.sample, "main", lambda argv: 0)
    monkeypatch.setattr(
        rank_study.rank, "main", lambda argv: trained.update({argv[argv.index("--out") + 1]: argv}) or 0
    )
    monkeypatch.setattr(rank_study, "_measure", lambda *told: {})
    monkeypatch.setattr(rank_study, "read_samples", lambda folder, most: [])
    monkeypatch.setattr(rank_study, "markdown", str)
    flags = ["--out", str(tmp_path), "--models", "score-small", "--tasks", "signed-sum", "--seeds", "0"]
    flags += ["--rows", "states", "pooled", "classifier", "--ranker=--width 16 --steps 8 --heads=2"]
    assert rank_study.main(flags) == 0
    states, pooled, classifier = (trained[str(tmp_path / f"{row}-0")] for row in ("states", "pooled", "classifier"))
    assert states[-5:] == ["--width", "16", "--steps", "8", "--heads=2"]
    assert pooled[-7:] == ["--width", "16", "--steps", "8", "--heads=2", "--layers", "0"]
    assert classifier[-6:] == ["--threads", "1", "--steps", "8", "--kind", "classifier"]


def test_rows_differ() -> None:
    assert all(a != b for a, b in itertools.combinations(rank_study.ROWS.values(), 2))
