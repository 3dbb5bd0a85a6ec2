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


def turns(*texts: str) -> list[Turn]:
    """One sample of every item."""
    return [Turn([1], Generation(text=text, tokens=[Token(1), Token(2)]), right="7" in text) for text in texts]


def item(answer: str) -> Numeric:
    return Numeric("file:1", "?", f"#### {answer}", answer, Wording())


def test_twice_as_many_first_answers_vote_against_the_corrected_ones() -> None:
    items = [item("7"), item("8")]
    firsts = [turns("5", "8"), turns("7", "8"), turns("7", "9"), turns("5", "9"), turns("7", "7")]
    seconds = [turns("7", "9"), turns("so it is 7.0", "9"), turns("1", "8")]
    one, right = budget._point(items, firsts, seconds, 1, seed=1)
    assert one["parallel"]["value"] == 0.5, "of equals the first: 5 and 8"
    assert (one["corrected"]["value"], right) == (0.5, [True, False])
    assert one["ahead"]["value"] == 0
    assert one["parallel"]["tokens"] == one["corrected"]["tokens"] == 4, "the budgets are equal"
    assert (one["parallel"]["any"], one["corrected"]["any"]) == (0.5, 0.5)
    two, _ = budget._point(items, firsts, seconds, 2, seed=1)
    assert (two["parallel"]["value"], two["corrected"]["value"]) == (0.5, 0.5), "5 and 8; equal numbers are one answer"


def test_any_checkpoint_votes(tmp_path: Path) -> None:
    checkpoint.save(tiny.quiet_model(), tiny.tokenizer(), tmp_path)
    loaded = checkpoint.load(tmp_path)
    settings = {"n": 2, "seed": 1, "tasks": ["signed-sum"], "metrics": ["budget"], "max_tokens": 3}
    reports = [evaluate(loaded, [0], **settings) for _ in range(2)]
    assert reports[0] == reports[1]
    cell = reports[0]["tasks"]["signed-sum"]["budget"]["0"]
    assert [point["k"] for point in cell["curve"]] == [1, 2, 4, 8, 16]
    assert cell["value"] == cell["curve"][-1]["corrected"]["value"]
