"""Votes of first answers and of corrected ones, side by side."""

from pathlib import Path

import tiny
from quietserve.model import checkpoint
from quietserve.model.progress import Generation, Token
from quietserve.model.training.episodes import Turn
from quietserve.model.training.evaluation import budget
from quietserve.model.training.evaluation.evaluate import evaluate
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.numeric import Numeric


def rounds(*told: str | tuple[float, str]) -> list[budget.Attempt]:
    """One sample of every item, with a ranker's score or without."""
    pairs = [(None, one) if isinstance(one, str) else one for one in told]
    return [budget.Attempt(turn(text), budget._said(item("?"), text), score) for score, text in pairs]


def turn(text: str) -> Turn:
    return Turn([1], Generation(text=text, tokens=[Token(1), Token(2)]), right="7" in text)


def item(answer: str) -> Numeric:
    return Numeric("file:1", "?", f"#### {answer}", answer, Wording())


def test_twice_as_many_first_answers_vote_against_the_corrected_ones() -> None:
    items = [item("7"), item("8")]
    firsts = [rounds("5", "8"), rounds("7", "8"), rounds("7", "9"), rounds("5", "9"), rounds("7", "7")]
    seconds = [rounds("7", "9"), rounds("so it is 7.0", "9"), rounds("1", "8")]
    one, right = budget._point(items, firsts, seconds, 1, seed=1)
    assert one["parallel"]["value"] == 0.5, "of equals the first: 5 and 8"
    assert (one["corrected"]["value"], right) == (0.5, [True, False])
    assert one["ahead"]["value"] == 0
    assert one["parallel"]["tokens"] == one["corrected"]["tokens"] == 4, "the budgets are equal"
    assert (one["parallel"]["any"], one["corrected"]["any"]) == (0.5, 0.5)
    two, _ = budget._point(items, firsts, seconds, 2, seed=1)
    assert (two["parallel"]["value"], two["corrected"]["value"]) == (0.5, 0.5), "5 and 8; equal numbers are one answer"
    assert "ranked" not in two["corrected"], "nobody weighed them"


def test_of_equal_answers_the_likelier_wins_as_in_serving() -> None:
    """The first used to win, so that reports had less of a majority of few answers than the server's users: .22 for .48 of four."""
    items, less, more = [item("7")], turn("5"), turn("7")
    less.answer.tokens[:] = [Token(1, -2.0), Token(2, -2.0)]
    more.answer.tokens[:] = [Token(1, -1.0), Token(2, -1.0)]
    firsts = [[budget.Attempt(one, one.answer.text)] for one in (less, more)]
    point, right = budget._point(items, firsts, firsts[:1], 1, seed=1)
    assert (point["parallel"]["value"], right) == (1, [False])


def test_a_ranker_weighs_the_same_answers() -> None:
    items = [item("7")]
    firsts = [rounds((0.1, "5")), rounds((0.1, "5")), rounds((0.9, "7")), rounds((0.1, "5"))]
    seconds = [rounds((0.3, "7")), rounds((0.9, "7.0"))]
    point, _ = budget._point(items, firsts, seconds, 2, seed=1)
    assert (point["parallel"]["value"], point["parallel"]["ranked"]["value"]) == (0, 1), "three of little weight"
    assert point["corrected"]["ranked"]["value"] == 1
    point, _ = budget._point(items, [rounds((0.6, "5"))] * 2, [rounds((0.6, "5"))], 1, seed=1)
    assert point["parallel"]["ranked"]["value"] == point["corrected"]["ranked"]["value"] == 0


def test_any_checkpoint_votes(tmp_path: Path) -> None:
    checkpoint.save(tiny.quiet_model(), tiny.tokenizer(), tmp_path)
    loaded = checkpoint.load(tmp_path)
    settings = {"n": 2, "seed": 1, "tasks": ["signed-sum"], "metrics": ["budget"], "max_tokens": 3}
    reports = [evaluate(loaded, [0], **settings) for _ in range(2)]
    assert reports[0] == reports[1]
    cell = reports[0]["tasks"]["signed-sum"]["budget"]["0"]
    assert [point["k"] for point in cell["curve"]] == [1, 2, 4, 8, 16]
    (few,) = evaluate(loaded, [0], **settings, pairs=3)["tasks"]["signed-sum"]["budget"].values()
    assert few["curve"] == cell["curve"][:2], "the first answers are the same ones"
    assert cell["value"] == cell["curve"][-1]["corrected"]["value"]
