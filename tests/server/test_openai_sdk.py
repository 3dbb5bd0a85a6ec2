"""The openai SDK against a real server on the loopback."""

from collections.abc import Iterator

import openai
import pytest
from fake_engine import FakeEngine, says


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_chat(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "Say"}]
    extra = {"thought_depth": 4, "include_reasoning": True, "return_thoughts": True}
    whole = sdk.chat.completions.create(model="fake", messages=messages, seed=3, extra_body=extra)
    answer = whole.choices[0].message.content
    assert answer
    assert whole.choices[0].message.reasoning_content.startswith("hm 0")
    assert whole.usage.completion_tokens_details.reasoning_tokens > 0

    stream = sdk.chat.completions.create(
        model="fake", messages=messages, seed=3, extra_body=extra, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert chunks[-1].usage == whole.usage


def test_completions(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = says("abc")
    whole = sdk.completions.create(model="fake", prompt=["a", "b"], echo=True, logprobs=1)
    assert [choice.text for choice in whole.choices] == ["aabc", "babc"]
    stream = sdk.completions.create(model="fake", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["fake"]
    assert sdk.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.models.retrieve("a/b")


def test_errors_reach_the_user(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="must be between 0 and 16") as caught:
        sdk.completions.create(model="fake", prompt="x", extra_body={"thought_depth": 99})
    assert caught.value.param == "thought_depth"
    assert caught.value.request_id
    engine.failure = RuntimeError("boom")
    with pytest.raises(openai.APIError, match="failed to answer"):
        list(sdk.completions.create(model="fake", prompt="x", stream=True))


def test_sixteen_at_once_get_what_each_gets_alone(url: str, sdk: openai.OpenAI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> str:
        return sdk.completions.create(model="fake", prompt="x", seed=seed, max_tokens=40).choices[0].text

    alone = [ask(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone
