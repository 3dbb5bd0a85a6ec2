"""Training a ranker: what it learns, how its scores are judged, and questions that it has not seen."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model import checkpoint
from quietserve.model.ranker import load_ranker
from quietserve.model.training import rank
from quietserve.model.training.rank import ranking_loss, split
from quietserve.model.training.ranking import calibration_error, fit_calibration, pairwise
from quietserve.model.training.samples import Asked, Sample, append, read_samples
from quietserve.model.voting import Entry

FEW = ["--steps", "60", "--batch", "32", "--held", "0.4", "--lr", "3e-3"]
SMALL = ["--width", "16", "--layers", "1", "--heads", "2"]
SCORED = st.lists(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), max_size=6), max_size=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right answers begin with an a."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    append(folder, [make_asked(rng, number) for number in range(60)])
    return folder


def make_asked(rng: random.Random, number: int) -> Asked:
    texts = [rng.choice("ab") + rng.choice("xyz") for _ in range(6)]
    told = [Sample(text, text, text[0] == "a", -1.0, -1.0, 2) for text in texts]
    prompt = f"{number}"
    return Asked(prompt, prompt, prompt, prompt, "a", (*told, Sample("?", None, False, -1.0, -1.0, 1)))


@pytest.mark.parametrize("loss", ["bce", "cubic"])
@pytest.mark.parametrize("kind", ["states", "classifier"])
def test_it_learns_what_is_right(kind: str, loss: str, model: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--model", str(model), "--data", str(data), "--out", str(tmp_path), "--kind", kind, "--loss", loss, *FEW]
    assert rank.main([*flags, *(SMALL if kind == "states" else [])]) == 0
    loaded = checkpoint.load(model)
    ranker = load_ranker(tmp_path, loaded)
    assert ranker.config.measured["pairwise"]["value"] > 0.9
    assert ranker.config.measured["answers"] == 6 * ranker.config.measured["questions"], "who abstains is not ranked"
    right, wrong = ranker.score([Entry(tuple(loaded.tokens.encode("99")), text) for text in ("ax", "bx")])
    assert right > 0.7 > 0.3 > wrong


def test_a_killed_run_goes_on_bit_for_bit(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model", str(model), "--data", str(data), *FEW, *SMALL, "--steps", "6", "--save-every", "2"]
    assert rank.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    take = rank.Lessons.take
    with monkeypatch.context() as patch:
        patch.setattr(rank.Lessons, "take", lambda self, step: _die() if step == 3 else take(self, step))
        with pytest.raises(KeyboardInterrupt):
            rank.main([*flags, "--out", str(tmp_path / "killed")])
    assert rank.main([*flags, "--out", str(tmp_path / "killed"), "--resume"]) == 0
    whole, killed = ((tmp_path / name / "ranker.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_a_run_does_not_go_on_with_other_answers(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With more questions they are split anew, and some to measure with had been learned from: its accuracy was too good."""
    grown = tmp_path / "grown"
    grown.mkdir()
    append(grown, read_samples(data))
    flags = ["--model", str(model), "--data", str(grown), "--out", str(tmp_path / "out"), *FEW, *SMALL, "--steps", "2"]
    assert rank.main(flags) == 0
    append(grown, [make_asked(random.Random(1), number) for number in range(60, 90)])
    assert rank.main([*flags, "--resume"]) == 2
    assert "was saved with data" in capsys.readouterr().err


def test_answers_that_make_no_pairs_teach_probabilities_all_the_same(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It once trained to the end, and then failed to print that there is no pair to judge it by."""
    rng = random.Random(0)
    asked = [make_asked(rng, number) for number in range(40)]
    append(tmp_path, [replace(o, samples=tuple(o.right if n % 2 else o.wrong)) for n, o in enumerate(asked)])
    flags = ["--model", str(model), "--data", str(tmp_path), "--out", str(tmp_path / "out"), *FEW, *SMALL]
    assert rank.main([*flags, "--steps", "2"]) == 0
    assert "there are no pairs to judge by; calibration error" in capsys.readouterr().out
    assert rank.main([*flags, "--loss", "cubic", "--out", str(tmp_path / "cubic")]) == 2
    assert "--loss cubic learns from pairs, and no question has both" in capsys.readouterr().err


def _die() -> dict[str, float]:
    raise KeyboardInterrupt


@given(st.integers(3, 40), st.floats(0.1, 0.9), st.integers(0, 5))
def test_no_question_is_on_two_sides(number: int, held: float, seed: int) -> None:
    """The same one asked twice, as two folders may, stays together."""
    rng = random.Random(seed)
    texts = [Sample("x", "x", right, -1.0, -1.0, 1) for right in (True, False)]
    asked = [Asked("s", f"q{rng.randrange(number)}", "p", "d", "k", tuple(texts)) for _ in range(3 * number)]
    try:
        sides = split(asked, held, seed)
    except ValueError:
        return  # too few questions for three sides
    named = [{one.question for one in side} for side in sides]
    assert sum(map(len, sides)) == len(asked)
    assert all(not a & b for a, b in itertools.combinations(named, 2))


@given(SCORED)
def test_pairs_are_counted_one_by_one(questions: list[list[tuple[float, bool]]]) -> None:
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for scored in questions
        for a, is_right in scored
        for b, is_other in scored
        if is_right and not is_other
    ]
    found = pairwise(questions)
    assert found["pairs"] == len(wins)
    assert found["value"] == (pytest.approx(sum(wins) / len(wins)) if wins else None)


def test_calibration_is_found_again() -> None:
    rng = random.Random(1)
    logits = [rng.gauss(0, 3) for _ in range(4000)]
    right = [rng.random() < 1 / (1 + math.exp(-(logit / 2.5 + 0.7))) for logit in logits]
    temperature, bias = fit_calibration(logits, right)
    assert (temperature, bias) == (pytest.approx(2.5, rel=0.1), pytest.approx(0.7, abs=0.12))
    said = [(1 / (1 + math.exp(-(x / temperature + bias))), r) for x, r in zip(logits, right, strict=True)]
    raw = [(1 / (1 + math.exp(-x)), r) for x, r in zip(logits, right, strict=True)]
    assert calibration_error([said]) < 0.03 < calibration_error([raw])


def test_equal_scores_are_no_error_of_calibration() -> None:
    """Among equal scores the wrong answers once came first, and bins of nothing else made scores that are true look far off."""
    for order in (lambda said: said, reversed, sorted):
        assert calibration_error([list(order([(0.5, True), (0.5, False)] * 60))]) == pytest.approx(0)


@given(SCORED, st.randoms())
def test_no_order_of_answers_changes_the_calibration_error(
    questions: list[list[tuple[float, bool]]], rng: random.Random
) -> None:
    """Which of equal scores stands first is chance, and would count if scores alone were sorted."""
    told = [answer for scored in questions for answer in scored]
    shuffled = rng.sample(told, len(told))
    assert calibration_error([shuffled], 3) == pytest.approx(calibration_error([told], 3), nan_ok=True)


@given(st.dictionaries(st.floats(0, 1), st.booleans(), min_size=1, max_size=40), st.integers(1, 15))
def test_of_distinct_scores_bins_are_cut_where_they_fall(said: dict[float, bool], bins: int) -> None:
    """That equal scores are averaged changes nothing where there are none."""
    answers, parts = sorted(said.items()), min(bins, len(said))
    size, more = divmod(len(answers), parts)
    total = 0.0
    for part in range(parts):
        first = part * size + min(part, more)
        own = answers[first : first + size + (part < more)]
        total += abs(sum(score for score, _ in own) - sum(right for _, right in own))
    assert calibration_error([answers], bins) == pytest.approx(total / len(answers), abs=1e-9)


def test_scores_that_separate_all_are_not_sharpened_for_ever() -> None:
    temperature, bias = fit_calibration([-1.0, 1.0], [False, True])
    assert temperature > 0.01
    assert abs(bias) < 1


@settings(max_examples=20)
@given(st.floats(0.05, 0.95))
def test_the_papers_loss_is_least_where_its_logit_is_half(share: float) -> None:
    """Of answers that are right with probability p it is least at logit s = logit(p) / 2: no probability, but easily made one."""
    logits = torch.linspace(-2, 2, 161)
    ones = torch.ones(())
    losses = torch.stack(
        [
            share * ranking_loss(x[None], ones[None], "cubic")
            + (1 - share) * ranking_loss(x[None], 0 * ones[None], "cubic")
            for x in logits
        ]
    )
    best = logits[losses.argmin()].item()
    assert best == pytest.approx(math.log(share / (1 - share)) / 2, abs=0.03)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width", "9", "--heads", "2"], "--width is 9; it must be a multiple of --heads, 2"),
        (["--width", "9"], "--width is 9; it must be a multiple of --heads, 4"),
        (["--heads", "0"], "--heads is 0; it must be 1 or more"),
        (["--kind", "classifier", "--width", "64"], "--width is 64; it must be left out: the kind is classifier"),
        (["--kind", "classifier", "--layers", "0"], "--layers is 0; it must be left out: the kind is classifier"),
        (["--kind", "classifier", "--heads", "2"], "--heads is 2; it must be left out: the kind is classifier"),
        (["--held", "1"], "--held is 1.0; it must be above 0 and below 1"),
        (["--classifier", "x"], "left out: the kind is states"),
        (["--kind", "classifier", "--classifier", "./nothing-here"], "no model for sequence classification"),
    ],
)
def test_what_cannot_be_trained(
    flags: list[str], words: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank.main(["--model", str(model), "--data", str(data), "--out", str(tmp_path), *FEW, *flags]) == 2
    assert words in capsys.readouterr().err


def test_where_nothing_is_wrong_there_is_nothing_to_learn(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [Asked(o.source, o.question, o.prompt, o.direct_prompt, o.key, tuple(o.right)) for o in read_samples(data)]
    append(tmp_path, asked)
    assert rank.main(["--model", str(model), "--data", str(tmp_path), "--out", str(tmp_path / "out"), *FEW]) == 2
    assert "have no right answer, or no wrong one; draw more samples" in capsys.readouterr().err
