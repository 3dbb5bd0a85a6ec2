"""What a text comes to, and which of two spellings mean the same."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model import answers
from quietserve.model.answers import FINDERS, finder, normalise

_PIECES = [
    *("answer", "Option", "option", "choice", "the", " is", ":", "must be", "\\boxed", "\\fbox", "\\text", "\\mathbf"),
    *("{", "}", "(", ")", "\\", "*", ".", " ", "\n", "'", "A", "B", "I", "Z", "x", "1"),
]
_pieced = st.lists(st.sampled_from(_PIECES), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        ("full_text", "  + 9  - 1 ", "+ 9  - 1"),
        ("full_text", " \n", None),
        ("last_number", "3 cats and -2 dogs", "-2"),
        ("last_number", "it is 7-3", "3"),
        ("last_number", "so\n#### 1,234.50 euros of 9", "1,234.50"),
        ("last_number", "about 3/4", "3/4"),
        ("last_number", "none", None),
        ("last_number", "9 \n#### none", "9"),
        ("last_number", "#### Step 3: add\nso it is 12", "12"),
        ("last_number", "about .5", ".5"),
        ("last_number", "x = \u22125", "\u22125"),
        ("last_number", "GPT-4", "4"),
        ("last_number", "1.5e-3", "1.5e-3"),
        ("last_number", "2 1/2", "2 1/2"),
        ("boxed", r"\boxed{1} or rather \boxed{\frac{1}{2}}.", "1/2"),
        ("boxed", r"\boxed{\dfrac12}", "1/2"),
        ("boxed", r"$\boxed{\text{Anna and Bo}}$", "Anna and Bo"),
        ("boxed", r"\fbox{x^{2}+\left(1\right)}", "x^{2}+(1)"),
        ("boxed", r"\boxed{45^\circ}", "45"),
        ("boxed", r"\boxed{\$3,000}", "3,000"),
        ("boxed", r"\boxed{2\frac{1}{2}}", "2 1/2"),
        ("boxed", r"\boxed{-\dfrac{1}{2}}", "- 1/2"),
        ("boxed", r"\boxed{\frac{-1}{2}}", "-1/2"),
        ("boxed", r"\boxed{10{,}000}", "10,000"),
        ("boxed", r"\boxed{(1, 2)}", "(1,2)"),
        ("boxed", r"\boxed{x \rightarrow 1}", r"x \rightarrow 1"),
        ("boxed", r"\boxed{\text{(A)}}", "A"),
        ("boxed", r"\boxed{5} as in \boxed{", "5"),
        ("boxed", r"\boxed{3", None),
        ("boxed", r"\boxed{}", None),
        ("boxed", "3", None),
        ("choice", "The answer is (B).", "B"),
        ("choice", "Answer: **C** because", "C"),
        ("choice", "answer is A. No: the answer is D", "D"),
        ("choice", "A", "A"),
        ("choice", "C) a dog", "C"),
        ("choice", "A dog", None),
        ("choice", "Answer: I believe it is (B).", "B"),
        ("choice", "The answer is A lot simpler: (C)", "C"),
        ("choice", "I, for one, think the answer must be B", "B"),
        ("choice", "The answer is B. This answer is correct.", "B"),
        ("choice", "**Answer**: B", "B"),
        ("choice", r"The answer is $\boxed{B}$.", "B"),
        ("choice", "The correct option is C", "C"),
        ("choice", "B is correct", "B"),
        ("choice", "Between (A) and (D), (D)", "D"),
        (r"re:is (\w+)", "is one, is two", "two"),
        (r"re:\d+", "1 22 333", "333"),
        (r"re:(\d+)|(x)", "1 x", None),
        ("re:nothing", "something", None),
    ],
)
def test_what_is_found(pattern: str, text: str, answer: str | None) -> None:
    assert finder(pattern)(text) == answer


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("best", "'best' is no pattern; there are full_text, last_number, boxed, choice, and re:"),
        ("re:(a", "missing )"),
        ("re:(?=a)", "invalid perl operator"),
        ("re:" + "a" * 501, "it may have 1 to 500"),
        ("re:", "it may have 1 to 500"),
        ("re:\ud800", "is no expression"),
    ],
)
def test_patterns_that_there_are_not(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        finder(pattern)


def test_an_expression_that_would_take_for_ever_elsewhere_does_not_here() -> None:
    """Python's own engine tries every way to cut this text in two, and each of those again."""
    assert finder("re:(a+)+$")("a" * 20_000 + "b") is None


def test_an_expression_reads_the_end_of_a_text() -> None:
    """As many searches as letters, each to the end of the text, once took seven seconds for sixty thousand."""
    assert finder("re:a.*z|a")("a" * 1_000_000) == "a"
    assert finder(r"re:x\d")("x1" + " " * 5000) is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("boxed", "\\boxed{" * 100_000),
        ("boxed", "\\boxed{" * 50_000 + "}{" * 50_000),
        ("choice", "option:" * 100_000 + "x"),
        ("choice", "choice: " * 100_000 + "A x"),
        ("choice", "answer: A   " * 50_000 + "x"),
        ("last_number", "#### " * 100_000),
        ("last_number", "1,111" * 100_000 + "x"),
    ],
)
def test_a_long_text_is_read_in_one_pass(pattern: str, text: str) -> None:
    """Each of many open boxes was once followed to the end of the text: a few kilobytes took seconds, these took hours."""
    finder(pattern)(text)


@given(_pieced)
def test_a_box_is_what_following_each_to_its_end_finds(text: str) -> None:
    def obvious() -> str | None:
        for start in reversed([box.end() for box in answers._BOX.finditer(text)]):
            open_braces = 1
            for end in range(start, len(text)):
                open_braces += (text[end] == "{") - (text[end] == "}")
                if not open_braces:
                    return answers._plain(text[start:end])
        return None

    assert FINDERS["boxed"](text) == obvious()


@given(_pieced)
def test_a_claim_is_what_reading_on_from_each_finds(text: str) -> None:
    whole = re.compile(
        r"(?:\W|\\boxed|\\text|\\mathbf|option\b|choice\b|the\b)*(?:([B-HJ-Z])(?![\w'])|([AI])(?=\W*$|[.:;)*}\]\n]))"
    )
    read = [whole.match(text, claim.end()) for claim in answers._CLAIM.finditer(text)]
    labels = [label[1] or label[2] for label in read if label]
    assert answers._find_claimed(text) == (labels[-1] if labels else None)


@pytest.mark.parametrize(
    "spellings",
    [
        ("0.5", "1/2", ".50", "2/4", "+0.5"),
        ("1000", "1,000.00", "$1000", "1000.", "1e3", "1.0E+3"),
        ("-0.002", "-2e-3"),
        ("0", "-0", "0.0", "0/7"),
        ("-0.125", "-1/8", "-.125"),
        ("1/3", "2/6"),
        ("2.5", "2 1/2", "5/2"),
        ("-5", "\u22125", "-5.0"),
        ("two words", " two   words "),
    ],
)
def test_equal_answers_have_one_spelling(spellings: tuple[str, ...]) -> None:
    assert {normalise(spelling) for spelling in spellings} == {spellings[0]}


@pytest.mark.parametrize(
    "text",
    [
        "12,34",
        "1/0",
        "1/2/3",
        "1e9999",
        "e5",
        "1/2e3",
        "3 4",
        "x2",
        "9" * 5000,
        "1/" + "9" * 500,
        "Anna",
        "e.g.",
        "-",
        "",
    ],
)
def test_what_is_no_number_stays(text: str) -> None:
    assert normalise(text) == text


@given(st.fractions(max_denominator=10**6))
def test_a_spelling_has_the_value(value: Fraction) -> None:
    spelled = normalise(f"{value.numerator}/{value.denominator}")
    assert Fraction(spelled) == value
    assert normalise(spelled) == spelled


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_a_decimal_is_spelled_as_its_fraction(value: object) -> None:
    fraction = Fraction(str(value))
    assert normalise(str(value)) == normalise(f"{fraction.numerator}/{fraction.denominator}")


@given(st.text(), st.sampled_from(sorted(FINDERS)))
def test_any_text_is_read(text: str, pattern: str) -> None:
    found = FINDERS[pattern](text)
    assert found is None or found.strip()
    if found is not None:
        assert normalise(normalise(found)) == normalise(found)
