"""LiteLLM, which shows the thoughts that it finds in `reasoning_content`."""

from typing import Any

import pytest
from environments import run_script

from questions import ANSWER, BLURTED, STORY

pytestmark = pytest.mark.own_env

NOTES = "Monday 6 Tuesday 0 Wednesday 0"


@pytest.fixture(scope="module")
def heard(url: str) -> dict[str, Any]:
    return run_script("litellm", "ask_with_litellm", url, STORY)


@pytest.mark.parametrize("way", ["openai", "vllm", "stream"])
def test_it_hears_the_answer_and_the_thoughts(heard: dict[str, Any], way: str) -> None:
    assert (heard[way]["content"], heard[way]["finish"]) == (ANSWER, "stop")
    assert heard[way]["thoughts"].startswith(NOTES)


def test_many_at_once_and_streamed_from_asyncio(heard: dict[str, Any]) -> None:
    assert heard["async"] == [heard["openai"]] * 4 + [heard["stream"]]


def test_a_preset_an_effort_and_a_completion(heard: dict[str, Any]) -> None:
    assert (heard["preset"]["content"], heard["preset"]["thoughts"]) == (BLURTED, None)
    assert heard["effort"]["content"] == heard["text"] == ANSWER


def test_usage(heard: dict[str, Any]) -> None:
    prompt, answer = heard["usage"][:2]
    assert heard["usage"] == [prompt, answer] * 2
    assert prompt > 30
    assert answer == 2


def test_errors_are_litellms_own(heard: dict[str, Any]) -> None:
    kinds = {"model": "NotFoundError", "depth": "BadRequestError", "length": "ContextWindowExceededError"}
    assert heard["errors"] == kinds
