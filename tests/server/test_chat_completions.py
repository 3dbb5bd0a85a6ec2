"""POST /v1/chat/completions."""

import pytest
from fake_engine import Client, FakeEngine, says


def prompt_of(engine: FakeEngine) -> str:
    return engine.tokens.decode(engine.tickets[-1].attempt.prompt)


def test_a_reply_has_the_shape_clients_know(client: Client, engine: FakeEngine) -> None:
    reply = client.chat(seed=1, thought_depth=0)
    (choice,) = reply["choices"]
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content"}
    assert prompt_of(engine) == "user: Say\n> "


def test_content_may_be_parts_and_echoed_replies_pass(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("ok")
    message = client.chat(include_reasoning=True)["choices"][0]["message"]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    history = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {**message, "tool_calls": None, "refusal": None},
        {"role": "user", "content": ""},
    ]
    client.chat(messages=history)
    assert prompt_of(engine) == "system: Be brief.\nuser: one\ntwo\nassistant: ok\nuser: \n> "


def test_max_tokens_is_by_default_what_fits(client: Client, engine: FakeEngine) -> None:
    client.chat()
    attempt = engine.tickets[0].attempt
    assert attempt.params.max_tokens + len(attempt.prompt) == engine.max_model_len


def test_logprobs_are_a_list_of_tokens(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("aé")
    content = client.chat(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "a"
    assert content[0]["bytes"] == [97]
    assert content[0]["top_logprobs"][0] == {"token": "a", "logprob": content[0]["logprob"], "bytes": [97]}
    assert content[1]["bytes"] is None, "half a character"
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2, 2]
    assert client.chat(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_reasoning_and_token_ids(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("abcd")
    reply = client.chat(include_reasoning=True, return_token_ids=True, prompt_logprobs=0, thought_depth=3)
    message = reply["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "hm 0\nhm 3"
    assert reply["prompt_token_ids"] == engine.tokens.encode("user: Say\n> ")
    assert len(reply["prompt_logprobs"]) == len(reply["prompt_token_ids"])


@pytest.mark.parametrize("extra", [{}, {"n": 2, "logprobs": True, "include_reasoning": True, "return_thoughts": True}])
def test_a_stream_joins_to_the_reply(client: Client, extra: dict) -> None:
    whole = client.chat(seed=7, **extra)
    chunks = client.chat(seed=7, stream=True, **extra)
    assert all("usage" not in chunk for chunk in chunks), "a usage nobody asked for crashes some clients"
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert [piece["delta"].get("role") for piece in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        assert choice["message"]["content"] == "".join(piece["delta"]["content"] for piece in pieces)
        for name in ("reasoning", "reasoning_content"):
            told = "".join(piece["delta"].get(name, "") for piece in pieces)
            assert told == choice["message"].get(name, "")
        assert [t for piece in pieces for t in piece.get("thoughts", [])] == choice.get("thoughts", [])
        if choice["logprobs"]:
            told = [entry for piece in pieces for entry in piece["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]


def test_choices_of_a_stream_interleave(client: Client) -> None:
    indices = [chunk["choices"][0]["index"] for chunk in client.chat(n=2, stream=True)]
    assert indices[:6].count(0) == indices[:6].count(1) == 3


def test_usage_ends_a_stream_that_asks_for_it(client: Client) -> None:
    *chunks, last = client.chat(stream=True, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        ({}, 8),
        ({"thought_depth": 0}, 0),
        ({"thought_depth": 16}, 16),
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "low"}, 2),
        ({"reasoning_effort": "max"}, 16),
        ({"reasoning_effort": "high", "thought_depth": 3}, 3),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 8),
        ({"chat_template_kwargs": {"enable_thinking": False}, "thought_depth": 5}, 5),
    ],
)
def test_how_deep_it_thinks(client: Client, engine: FakeEngine, body: dict, depth: int) -> None:
    client.chat(**body)
    assert engine.tickets[0].attempt.params.thought_depth == depth
    assert engine.tickets[0].attempt.params.thought_temperature == 0.5


def test_thoughts_have_a_temperature_of_their_own(client: Client, engine: FakeEngine) -> None:
    client.chat(thought_temperature=0, temperature=2)
    params = engine.tickets[0].attempt.params
    assert (params.thought_temperature, params.temperature) == (0, 2)
