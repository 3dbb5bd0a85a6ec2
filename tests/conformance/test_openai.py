"""The openai SDK, through every door that it has to completions and chat."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from questions import ANSWER, BLURTED, DEEP, MODEL, PROMPT, QUICK, STORY, SWAPS
from quietserve.model.training.tasks.swaps import PEOPLE

MESSAGES: Any = [{"role": "user", "content": STORY}]


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("model", "answer"), [(QUICK, BLURTED), (DEEP, ANSWER)])
def test_a_preset_thinks_as_its_name_says(sdk: openai.OpenAI, model: str, answer: str) -> None:
    said = sdk.completions.create(model=model, prompt=PROMPT, temperature=0)
    assert (said.choices[0].text, said.model) == (answer, model)
    chatted = sdk.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    assert (chatted.choices[0].message.content, chatted.model) == (answer, model)


def test_thoughts_through_extra_body(sdk: openai.OpenAI) -> None:
    own = {"thought_depth": 12, "include_reasoning": True, "return_thoughts": True}
    said = sdk.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, extra_body=own)
    choice, usage = said.choices[0], said.usage
    assert choice.message.content == ANSWER
    assert choice.message.model_extra["reasoning"].startswith("Monday 6 Tuesday 3 Wednesday 6")
    assert choice.message.model_extra["reasoning_content"] == choice.message.model_extra["reasoning"]
    hidden = sum(len(thought["token_ids"]) for thought in choice.model_extra["thoughts"])
    assert usage.completion_tokens_details.reasoning_tokens == hidden > 0
    assert usage.completion_tokens == hidden + 2, "the answer and the end of the text"


def test_reasoning_effort_is_a_depth(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
    blurted, thought = (sdk.chat.completions.create(**asked, reasoning_effort=effort) for effort in ("none", "xhigh"))
    assert [blurted.choices[0].message.content, thought.choices[0].message.content] == [BLURTED, ANSWER]


def test_a_completion_streams_what_it_says_whole(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": DEEP, "prompt": "Question: A dial", "max_tokens": 24, "seed": 5}
    whole = sdk.completions.create(**asked)
    pieces = list(sdk.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert len(whole.choices[0].text) > 10
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices[0].finish_reason] == ["length"]
    assert not any(piece.usage for piece in pieces)


def test_a_streamed_chat_ends_with_its_usage_where_asked(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": DEEP, "messages": MESSAGES, "temperature": 0}
    whole = sdk.chat.completions.create(**asked)
    pieces = list(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == ANSWER
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert (pieces[-1].choices, pieces[-1].usage) == ([], whole.usage)
    assert len({piece.id for piece in pieces}) == 1


def test_the_streaming_helper_puts_the_pieces_together(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": DEEP, "messages": MESSAGES, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    with sdk.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done", "logprobs.content.done"} <= kinds
    assert final.choices[0].message.content == ANSWER
    assert final.choices[0].finish_reason == "stop"
    assert [len(token.top_logprobs) for token in final.choices[0].logprobs.content] == [2, 2]


def test_asked_all_at_once_from_asyncio(url: str) -> None:
    prompts = [PROMPT.replace("at 2", f"at {start}") for start in range(10)]

    async def ask(client: openai.AsyncOpenAI, prompt: str) -> str:
        said = await client.completions.create(model=DEEP, prompt=prompt, temperature=0)
        return said.choices[0].text

    async def stream(client: openai.AsyncOpenAI, prompt: str) -> str:
        pieces: AsyncIterator[Any] = await client.completions.create(
            model=DEEP, prompt=prompt, temperature=0, stream=True
        )
        return "".join([piece.choices[0].text async for piece in pieces])

    async def together() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return [await asyncio.gather(*(way(client, prompt) for prompt in prompts)) for way in (ask, stream)]

    whole, streamed = asyncio.run(together())
    right = [f" {2 * (9 - (start + 4)) % 10}" for start in range(10)]
    assert whole == streamed
    assert sum(said == answer for said, answer in zip(whole, right, strict=True)) >= 9


def test_many_choices(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": QUICK, "prompt": [PROMPT, f"Question: {SWAPS}\nAnswer:"], "n": 8, "seed": 7}
    said = sdk.completions.create(**asked)
    assert [choice.index for choice in said.choices] == list(range(16))
    assert len({choice.text for choice in said.choices[:8]}) > 1
    assert {choice.text.strip() for choice in said.choices[8:]} <= set(PEOPLE)
    again = sdk.completions.create(**asked)
    assert [choice.text for choice in again.choices] == [choice.text for choice in said.choices]


def test_logprobs(sdk: openai.OpenAI) -> None:
    told = sdk.completions.create(model=DEEP, prompt=PROMPT, temperature=0, logprobs=5).choices[0].logprobs
    assert told.tokens == [ANSWER, "<|endoftext|>"]
    assert [len(top) for top in told.top_logprobs] == [5, 5]
    assert told.token_logprobs == [max(top.values()) for top in told.top_logprobs], "equal to the last bit"
    asked: Any = {"model": DEEP, "messages": MESSAGES, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    chatted = sdk.chat.completions.create(**asked).choices[0].logprobs.content
    assert [token.token for token in chatted] == told.tokens
    assert [token.logprob for token in chatted] == pytest.approx(told.token_logprobs, abs=1e-4)
    assert bytes(chatted[0].bytes).decode() == ANSWER


def test_token_ids_are_prompts_too(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": DEEP, "temperature": 0}
    said = sdk.completions.create(**asked, prompt=PROMPT, extra_body={"return_token_ids": True}).choices[0]
    ids = said.model_extra["prompt_token_ids"]
    (one,) = sdk.completions.create(**asked, prompt=ids).choices
    many = sdk.completions.create(**asked, prompt=[ids, ids[:-9], ids]).choices
    assert one.text == many[0].text == many[2].text == said.text == ANSWER
    scored = sdk.completions.create(**asked, prompt=ids, echo=True, logprobs=1, max_tokens=1).choices[0]
    assert scored.text == PROMPT + ANSWER
    assert len(scored.logprobs.token_logprobs) == len(ids) + 1


def test_stops_limits_and_text_parts(sdk: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": STORY}]}]
    asked: Any = {"model": DEEP, "messages": parts, "temperature": 0}
    assert sdk.chat.completions.create(**asked).choices[0].message.content == ANSWER
    limited = sdk.chat.completions.create(**asked, max_completion_tokens=1).choices[0]
    assert (limited.message.content, limited.finish_reason) == (ANSWER, "length")
    stopped = sdk.chat.completions.create(**asked, stop=["6", "9"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (" ", "stop")


def test_raw_responses_have_a_request_id(sdk: openai.OpenAI) -> None:
    raw = sdk.completions.with_raw_response.create(
        model=QUICK, prompt=PROMPT, temperature=0, extra_headers={"x-request-id": "mine-7"}
    )
    assert (raw.headers["x-request-id"], raw.request_id) == ("mine-7", "mine-7")
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].text == BLURTED
    asked: Any = {"model": QUICK, "messages": MESSAGES, "stream": True}
    with sdk.chat.completions.with_streaming_response.create(**asked) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert list(streamed.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_a_connection_that_is_kept_costs_nothing(sdk: openai.OpenAI) -> None:
    """Where a reply waits for the client to acknowledge its head, each one takes 40 ms."""

    def ask() -> float:
        begun = time.perf_counter()
        sdk.models.retrieve(MODEL)
        return time.perf_counter() - begun

    assert min(ask() for _ in range(20)) < 0.03


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL, QUICK, DEEP]
    assert sdk.models.retrieve(DEEP).model_extra["parent"] == MODEL


@pytest.mark.parametrize(
    ("asked", "error", "param", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model", "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"extra_body": {"thought_depth": 99}}, openai.BadRequestError, "thought_depth", "invalid_value"),
        ({"extra_body": {"tools": [{}]}}, openai.BadRequestError, "tools", "unsupported_parameter"),
        ({"extra_body": {"prompt": None}}, openai.BadRequestError, "prompt", "missing_required_parameter"),
        ({"prompt": "dial " * 1100}, openai.BadRequestError, "prompt", "context_length_exceeded"),
        ({"suffix": "the end"}, openai.BadRequestError, "suffix", "unsupported_parameter"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors_are_the_sdks_own(
    sdk: openai.OpenAI, asked: dict[str, Any], error: type[openai.APIStatusError], param: str, code: str
) -> None:
    with pytest.raises(error) as caught:
        sdk.completions.create(**({"model": MODEL, "prompt": PROMPT} | asked))
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id
    assert caught.value.body["message"]


def test_what_is_not_here_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.embeddings.create(model=MODEL, input="x")


def test_a_client_may_give_up(sdk: openai.OpenAI) -> None:
    endless: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        sdk.completions.create(**endless, timeout=0.2)
    with sdk.completions.create(**endless, stream=True) as stream:
        assert next(iter(stream)).choices
