"""Items of an evaluation: what is read from files and from families, what counts as the right answer, and clear refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training.evaluation.family_items import NUM_DISTRACTORS, draw_items
from quietserve.model.training.tasks import FAMILIES, is_held_out
from quietserve.model.training.tasks.files import EXAMPLES, read_items
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.multiple_choice import MultipleChoice
from quietserve.model.training.tasks.numeric import Numeric, normalise

WORDING = Wording()
NUMBER = {"question": "How many?", "answer": "It is 70 + 2.\n#### 72"}
FLAT = {"question": "Where?", "choices": {"label": ["A", "B"], "text": ["a zoo", "a tree"]}, "answerKey": "B"}
NESTED = {
    "answerKey": "B",
    "question": {"stem": "Where?", "choices": [{"label": "A", "text": "a zoo"}, {"label": "B", "text": "a tree"}]},
}


def write(folder: Path, *records: Any) -> Path:
    file = folder / "task.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return file


def test_both_shapes_of_choices_are_one_item(tmp_path: Path) -> None:
    nested, flat = read_items(write(tmp_path, NESTED, "", FLAT), WORDING)
    assert nested.source.endswith("task.jsonl:1")
    assert flat.source.endswith("task.jsonl:3")
    for item in (nested, flat):
        assert item.prompt == "Q: Where?\n(A) a zoo\n(B) a tree\nA:"
        assert item.answer == "B"
        assert item.choices == ("A", "B")
        assert item.document == item.prompt + " B"
        assert item.reasoning_stop == ("\nQ:",)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_where_json_lines_end(tmp_path: Path, end: str) -> None:
    """Files that do not escape these were once cut in the middle of a text, and refused as no JSON."""
    record = {"question": f"How{end}many?", "answer": "#### 72"}
    lines = (json.dumps(record, ensure_ascii=False), json.dumps(FLAT, ensure_ascii=False))
    file = tmp_path / "task.jsonl"
    for newline in ("\n", "\r\n"):
        file.write_text(newline.join(lines), encoding="utf-8", newline="")
        spoken, other = read_items(file, WORDING)
        assert spoken.question == f"How{end}many?"
        assert other.source.endswith("task.jsonl:2")


def test_a_number_is_asked_for_and_read(tmp_path: Path) -> None:
    (item,) = read_items(write(tmp_path, NUMBER), Wording("Question: {question}\nAnswer:", "{question} Think."))
    assert item.prompt == "Question: How many?\nAnswer:"
    assert item.reasoning_prompt == "How many? Think."
    assert item.reasoning_stop == ()
    assert (item.answer, item.choices) == ("72", None)
    assert item.document == item.prompt + " It is 70 + 2.\n#### 72"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 72", "72"),
        ("70 and then 72.", "72"),
        ("#### $1,420\nQ: next 5", "1420"),
        ("first #### 3, then #### 4 or 5", "4"),
        ("so 5-3", "3"),
        ("it is -3 degrees", "-3"),
        ("72.50 dollars", "72.5"),
        ("1,2 and 3,4", "4"),
        ("#### none, or 4?", "4"),
        ("5 ####", "5"),
        ("#### Step 2: add\nso 12", "12"),
        ("no number", None),
    ],
)
def test_which_number_a_text_comes_to(text: str, number: str | None) -> None:
    assert Numeric("", "", "", "", WORDING).extract(text) == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_a_number_has_one_spelling(value: int, zeros: int) -> None:
    plain, tail = str(value), "." + "0" * zeros if zeros else ""
    for spelled in (plain, f"{value:,}", f"{plain}{tail}"):
        assert normalise(spelled) == plain
    assert Numeric("", "", "", plain, WORDING).verify(f"That makes {value:,}{tail}.")


CHOICE = MultipleChoice("", "", {"A": "dog", "B": "hot dog stand", "C": "cat"}, "A", WORDING)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" B", "B"),
        (" (B) hot dog stand", "B"),
        ("C. cat", "C"),
        (" Cat.", "C"),
        ("hot dog stand", "B"),
        ("Dogs bark, so the answer is (A).", "A"),
        ("It is not (C), but (B)", "B"),
        ("A cat meows", "C"),  # an article, not a label
        ("a mouse", None),
        ("dog or cat", None),
        ("", None),
    ],
)
def test_which_choice_a_text_comes_to(text: str, label: str | None) -> None:
    assert CHOICE.extract(text) == label
    assert CHOICE.verify(text) == (label == "A")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "not readable as JSON: "),
        ("[1]", "holds list, not an object"),
        ({"text": "?"}, "has neither `question` and `answer` (GSM8K) nor `question`, `choices` and `answerKey` "),
        ({"question": "?", "answer": "72"}, "`answer` must end in #### and a number, as in '#### 72'; it ends in '72'"),
        ({"question": "?", "answer": "#### many"}, "`answer` must end in #### and a number"),
        ({"question": 1, "answer": "#### 1"}, "`question` and `answer` must both be texts"),
        (FLAT | {"answerKey": ""}, "`answerKey` is ''; it must be among A, B"),
        (FLAT | {"answerKey": ["B"]}, "`answerKey` is ['B']; it must be among A, B"),
        (FLAT | {"question": None}, "`question`, or its `stem`, must be a text"),
        (FLAT | {"choices": {"label": ["A"], "text": []}}, "`choices` must be two or more different labels"),
        (FLAT | {"choices": {"label": ["A", "A"], "text": ["x", "y"]}}, "`choices` must be two or more different"),
        (FLAT | {"choices": {"label": ["A", "B"], "text": ["x", 3]}}, "`choices` must be two or more different"),
        (FLAT | {"choices": None}, "`choices` must be two or more different"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, record: Any, reason: str) -> None:
    file = write(tmp_path, NUMBER, record)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:2: {reason}')}[^\n]*$"):
        read_items(file, WORDING)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    for name, reason in [("none", "No such file"), ("latin", "it is not UTF-8 text"), ("", "Is a directory")]:
        with pytest.raises(ValueError, match=f"cannot be read: {reason}"):
            read_items(tmp_path / name, WORDING)
    with pytest.raises(ValueError, match="holds no items"):
        read_items(write(tmp_path, "", " "), WORDING)


@pytest.mark.parametrize("template", ["Answer:", "{question} ", "{question}\n"])
def test_a_template_must_hold_the_question(template: str) -> None:
    with pytest.raises(ValueError, match=r"--template is .*it must hold {question} and not end in white space"):
        Wording(template)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_examples_are_what_they_claim(file: Path) -> None:
    items = read_items(file, WORDING)
    assert len(items) == 20
    for item in items:
        assert item.verify(" " + item.answer)
        assert item.choices is not None or item.extract(item.document) == item.answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_items_are_fresh_and_have_choices(family: str) -> None:
    items = draw_items(family, 20, seed=3)
    assert items == draw_items(family, 20, seed=3)
    assert items != draw_items(family, 20, seed=4)
    for item in items:
        assert is_held_out(item.problem.question)
        assert item.verify(f" {item.answer}")
        right = [choice for choice in item.choices if item.verify(choice)]
        assert right == [item.answer]
        wrong = [answer for answer in item.problem.answers if not item.verify(answer)]
        assert len(set(item.choices)) == len(item.choices) == 1 + min(NUM_DISTRACTORS, len(wrong))
        assert item.extract(item.reasoning) == item.answer
        assert item.extract(item.problem.working) is None
