"""Every example of the documentation is run as it stands, on one server with all that is bundled, and says what its page says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from examples import ADDRESS, ALL_BUNDLED, EXAMPLES, PAGES, Example, assert_has, check
from serving import serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(*ALL_BUNDLED.split()) as address:
        yield address


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_an_example_says_what_the_page_says(example: Example, url: str) -> None:
    check(example, url)


def test_there_are_examples_and_the_page_of_the_api_has_one_for_each_endpoint_that_generates_or_counts() -> None:
    asked = {address for example in EXAMPLES for address in re.findall(rf"{ADDRESS}(/v1/[\w/]+)", example.text)}
    assert {"/v1/completions", "/v1/chat/completions", "/v1/vote", "/v1/score"} <= asked
    assert {example.place.partition(":")[0] for example in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize(
    ("whole", "part", "complaint"),
    [
        ({"a": [1, 2]}, {"a": [1]}, "has 2 items"),
        ({"a": 1}, {"b": 1}, "has no 'b'"),
        ({"a": {"b": 0.907}}, {"a": {"b": 0.91}}, "reply.a.b"),
        ({"a": " 6"}, {"a": "6"}, "reply.a"),
    ],
)
def test_what_is_not_there_is_found(whole: Any, part: Any, complaint: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        assert_has(whole, part, "reply")
