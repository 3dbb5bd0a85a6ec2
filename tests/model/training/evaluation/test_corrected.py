"""How much better a second answer is, and whether it is a correction."""

from pathlib import Path

import pytest

import tiny
from quietserve.model import checkpoint
from quietserve.model.correction import CorrectionConfig
from quietserve.model.progress import Generation
from quietserve.model.training.episodes import Episode, Turn
from quietserve.model.training.evaluation import corrected
from quietserve.model.training.evaluation.evaluate import evaluate


def turn(text: str, right: bool) -> Turn:
    return Turn([1], Generation(text=text), right)


def episode(first: str, second: str, right: str) -> Episode:
    return Episode((turn(first, first == right), turn(second, second == right)))


def test_shares_of_all_and_of_those_that_were_wrong_or_right() -> None:
    episodes = [episode("a", "b", "b"), episode("a", "a", "b"), episode("b", "b", "b"), episode("b", "c", "b")]
    swapped = [turn("b", True), turn("c", False), turn("c", False), turn("c", False)]
    cell = corrected._summary(episodes, swapped, seed=1)
    assert (cell["t1"]["value"], cell["value"], cell["delta"]["value"]) == (0.5, 0.5, 0.0)
    assert (cell["repaired"], cell["broken"], cell["fix"], cell["break"]) == (0.25, 0.25, 0.5, 0.5)
    assert cell["changed"] == 0.5
    assert cell["gap"]["value"] == 0.25
    assert sum(cell["edits"]) == 4
    assert cell["edits"][-1] == 2, "two were left as they were"


def test_nobody_was_right_or_wrong() -> None:
    cell = corrected._summary([episode("a", "a", "b")], [turn("a", False)], seed=1)
    assert (cell["fix"], cell["break"]) == (0.0, 0.0)


@pytest.mark.parametrize("correction", [None, CorrectionConfig("Again.", "last")])
def test_any_checkpoint_can_be_asked_to_correct_itself(tmp_path: Path, correction: CorrectionConfig | None) -> None:
    checkpoint.save(tiny.quiet_model(), tiny.tokenizer(), tmp_path, correction=correction)
    loaded = checkpoint.load(tmp_path)
    reports = [evaluate(loaded, [0, 2], n=4, seed=1, tasks=["signed-sum"], metrics=["corrected"]) for _ in range(2)]
    assert reports[0] == reports[1]
    cells = reports[0]["tasks"]["signed-sum"]["corrected"]
    assert cells.keys() == {"0", "2"}
    assert all(cell["n"] == 4 for cell in cells.values())
    assert "gain" in cells["2"], "compared with depth 0 on the same problems"
