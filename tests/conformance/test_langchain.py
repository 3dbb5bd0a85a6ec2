"""LangChain's two models: they send every field they have a value for, nulls among them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

from questions import ANSWER, BLURTED, DEEP, HOLDER, MODEL, PROMPT, QUICK, STORY, SWAPS


@pytest.fixture(scope="module")
def told(url: str) -> Iterator[dict[str, Any]]:
    """What every model is made with; the HTTP client because LangChain never closes its own."""
    with httpx.Client() as client:
        yield {
            "base_url": f"{url}/v1",
            "api_key": "none",
            "temperature": 0,
            "max_retries": 0,
            "http_client": client,
        }


def test_chat_is_invoked(told: dict[str, Any]) -> None:
    said = ChatOpenAI(model=DEEP, max_completion_tokens=8, **told).invoke(STORY)
    assert said.content == ANSWER
    assert said.response_metadata["finish_reason"] == "stop"
    assert said.response_metadata["model_name"] == DEEP
    hidden = said.usage_metadata["output_token_details"]["reasoning"]
    assert said.usage_metadata["output_tokens"] == hidden + 2 > 2


def test_chat_takes_our_fields_and_nulls(told: dict[str, Any]) -> None:
    own = {"thought_depth": 12, "top_k": None, "stop": None, "logit_bias": None, "n": None, "thought_mode": None}
    assert ChatOpenAI(model=MODEL, extra_body=own, **told).invoke([HumanMessage(STORY)]).content == ANSWER


def test_chat_streams(told: dict[str, Any]) -> None:
    pieces = list(ChatOpenAI(model=DEEP, stream_usage=True, **told).stream(STORY))
    whole = sum(pieces[1:], pieces[0])
    assert whole.content == ANSWER
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["output_token_details"]["reasoning"] > 0
    plain = list(ChatOpenAI(model=DEEP, stream_usage=False, **told).stream(STORY))
    assert "".join(piece.content for piece in plain) == ANSWER
    assert not any(piece.usage_metadata for piece in plain)


def test_chat_in_batches_and_from_asyncio(told: dict[str, Any]) -> None:
    async def ask() -> tuple[Any, str]:
        async with httpx.AsyncClient() as client:
            chat = ChatOpenAI(model=DEEP, http_async_client=client, **told)
            whole = await chat.ainvoke(STORY)
            return whole.content, "".join([piece.content async for piece in chat.astream(SWAPS)])

    batch = ChatOpenAI(model=DEEP, **told).batch([STORY, SWAPS, STORY])
    assert [said.content for said in batch] == [ANSWER, HOLDER, ANSWER]
    assert asyncio.run(ask()) == (ANSWER, HOLDER)


def test_chat_in_a_chain(told: dict[str, Any]) -> None:
    question = f"A dial is at {{start}}. {STORY.partition('. ')[2]}"
    prompt = ChatPromptTemplate([("system", "Be brief."), ("user", question)])
    chain = prompt | ChatOpenAI(model=DEEP, **told) | StrOutputParser()
    assert chain.batch([{"start": "2"}, {"start": "4"}]) == [ANSWER, " 2"]


def test_chat_draws_several(told: dict[str, Any]) -> None:
    chat = ChatOpenAI(model=QUICK, n=4, seed=3, logprobs=True, top_logprobs=2, **told | {"temperature": 1})
    (drawn,) = chat.generate([[SystemMessage("Be brief."), HumanMessage(STORY)]]).generations
    assert len(drawn) == 4
    assert {len(token["top_logprobs"]) for token in drawn[0].message.response_metadata["logprobs"]["content"]} == {2}


def test_completions_are_invoked(told: dict[str, Any]) -> None:
    assert OpenAI(model=DEEP, max_tokens=4, **told).invoke(PROMPT) == ANSWER
    assert OpenAI(model=MODEL, extra_body={"thought_depth": 0}, **told).invoke(PROMPT) == BLURTED
    assert "".join(OpenAI(model=DEEP, **told).stream(PROMPT)) == ANSWER


def test_completions_from_asyncio(told: dict[str, Any]) -> None:
    async def ask() -> str:
        async with httpx.AsyncClient() as client:
            return await OpenAI(model=DEEP, http_async_client=client, **told).ainvoke(PROMPT, stop=["\n"])

    assert asyncio.run(ask()) == ANSWER


def test_completions_in_batches(told: dict[str, Any]) -> None:
    """One request holds them all: LangChain sends a list of prompts."""
    swaps = f"Question: {SWAPS}\nAnswer:"
    assert OpenAI(model=DEEP, **told).batch([PROMPT, swaps, PROMPT]) == [ANSWER, HOLDER, ANSWER]
    drawn = OpenAI(model=DEEP, n=2, best_of=2, **told | {"temperature": 0.5}).generate([PROMPT, swaps])
    assert [len(generations) for generations in drawn.generations] == [2, 2]
    assert drawn.llm_output["token_usage"]["completion_tokens"] > 8


def test_refusals_reach_the_chain(told: dict[str, Any]) -> None:
    chat = ChatOpenAI(model=DEEP, **told)
    with pytest.raises(openai.BadRequestError, match="thought_depth"):
        chat.invoke(STORY, extra_body={"thought_depth": 1000})
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat.bind_tools([{"name": "turn", "description": "", "parameters": {}}]).invoke(STORY)
