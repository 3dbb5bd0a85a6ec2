"""Further names of the model, whose requests have other defaults."""

import pytest
from fake_engine import Client, FakeEngine

from quietserve.server.presets import Preset
from quietserve.server.service import Service


@pytest.fixture(autouse=True)
def presets(service: Service) -> None:
    service.presets["deep"] = Preset("deep", {"thought_depth": 12, "max_tokens": 5, "stop": ["!"]})
    service.presets["off"] = Preset("off", {"thought_mode": "off"})
    service.presets["best"] = Preset("best", {"best_of": 4, "temperature": 0.8})
    service.presets["sure"] = Preset("sure", {"thought_mode": "adaptive", "thought_threshold": 0.5})


@pytest.mark.parametrize(
    ("body", "depth", "max_tokens"),
    [
        ({"model": "deep"}, 12, 5),
        ({"model": "fake"}, 8, 64),
        ({}, 8, 64),
        ({"model": "deep", "thought_depth": 3}, 3, 5),
        ({"model": "deep", "thought_depth": None, "max_tokens": None}, 12, 5),
        ({"model": "deep", "reasoning_effort": "low"}, 2, 5),
        ({"model": "deep", "chat_template_kwargs": {"enable_thinking": False}}, 0, 5),
        ({"model": "deep", "max_completion_tokens": 7}, 12, 7),
        ({"model": "deep", "thought_mode": "off"}, 0, 5),
        ({"model": "off"}, 0, 64),
        ({"model": "off", "thought_depth": 4}, 4, 64),
        ({"model": "off", "reasoning_effort": "high"}, 8, 64),
        ({"model": "off", "chat_template_kwargs": {"enable_thinking": True}}, 8, 64),
        ({"model": "deep", "chat_template_kwargs": {"enable_thinking": True}}, 12, 5),
        ({"model": "deep", "chat_template_kwargs": {}}, 12, 5),
        ({"model": "sure", "thought_mode": "fixed"}, 8, 64),
        ({"model": "best", "temperature": 0}, 8, 64),
        ({"model": "best", "n": 8}, 8, 64),
    ],
)
def test_what_a_request_says_counts_before_its_preset(
    client: Client, engine: FakeEngine, body: dict, depth: int, max_tokens: int
) -> None:
    asked = {
        "prompt": "Say",
        **({} if "max_completion_tokens" in body or body.get("model") == "deep" else {"max_tokens": 64}),
    }
    reply = client.post("/v1/completions", asked | body)
    assert reply.status_code == 200, reply.text
    params = engine.tickets[0].attempt.params
    assert (params.thought_depth, params.max_tokens) == (depth, max_tokens)
    assert reply.json()["model"] == body.get("model", "fake")


@pytest.mark.parametrize(
    ("defaults", "body", "num_answers"),
    [
        ({"best_of": 4, "voting": "majority", "return_samples": True}, {"prompt": ["a", "b"]}, 8),
        ({"best_of": 4, "voting": "majority", "return_samples": True}, {"prompt": [[65], [66]]}, 8),
        ({"min_tokens": 12}, {"max_tokens": 4}, 1),
        ({"min_tokens": 12}, {"max_tokens": 64, "max_completion_tokens": 4.0}, 1),
        ({"min_tokens": 12}, {"echo": True, "max_tokens": 0}, 1),
        ({"prompt_logprobs": 1}, {"stream": True}, 1),
        ({"thought_temperature": 0.7, "num_thoughts": 4}, {"thought_temperature": 0}, 1),
        ({"num_thoughts": 4}, {"thought_depth": 0}, 1),
        ({"num_thoughts": 4}, {"thought_mode": "off"}, 1),
        ({"num_thoughts": 4}, {"reasoning_effort": "none"}, 1),
        ({"num_thoughts": 4, "thought_depth": 8}, {"chat_template_kwargs": {"enable_thinking": False}}, 1),
        ({"self_correction_turns": 1, "return_drafts": True}, {"self_correction_turns": 0}, 1),
        ({"best_of": 4}, {"n": 8.0}, 8),
        ({"best_of": 4}, {"echo": True, "max_completion_tokens": 0}, 1),
    ],
    ids=str,
)
def test_a_request_is_not_refused_for_what_only_its_preset_says(
    client: Client, engine: FakeEngine, service: Service, defaults: dict, body: dict, num_answers: int
) -> None:
    """Each of these is an ordinary request, and was told that a field which it had not sent was wrong."""
    service.presets["mine"] = Preset("mine", defaults)
    reply = client.post("/v1/completions", {"model": "mine", "prompt": "Say"} | body)
    assert reply.status_code == 200, reply.text
    assert len(engine.tickets) == num_answers


def test_what_the_request_leaves_room_for_still_holds(client: Client, engine: FakeEngine, service: Service) -> None:
    defaults = {"min_tokens": 12, "num_thoughts": 4, "best_of": 2, "voting": "majority", "return_samples": True}
    service.presets["mine"] = Preset("mine", defaults)
    for prompt in ("Say", ["Say"], [65, 66]):
        thinks = {"thought_temperature": 0.5, "thought_depth": 3, "reasoning_effort": "none"}  # the depth counts first
        reply = client.complete(model="mine", prompt=prompt, max_tokens=12.0, **thinks)
        assert len(reply["voting"]["samples"]) == 2
    params = engine.tickets[0].attempt.params
    assert (params.min_tokens, params.num_thoughts) == (12, 4)


def test_what_goes_together_may_come_from_both(client: Client, engine: FakeEngine) -> None:
    client.chat(model="sure", thought_threshold=2.0)
    assert engine.tickets[0].attempt.params.thought_threshold == 2.0


def test_a_preset_may_be_a_grammar(client: Client, engine: FakeEngine, service: Service) -> None:
    service.presets["ops"] = Preset("ops", {"allowed_token_ids": [65, 66, 256], "min_tokens": 1})
    client.complete(model="ops")
    client.complete(model="ops", allowed_token_ids=[67])
    asked = [ticket.attempt.params for ticket in engine.tickets]
    assert [(p.allowed_token_ids, p.min_tokens) for p in asked] == [((65, 66, 256), 1), ((67,), 1)]


def test_presets_are_models(client: Client) -> None:
    told = {model["id"]: model["parent"] for model in client.get("/v1/models").json()["data"]}
    assert told == {"fake": None, "deep": "fake", "off": "fake", "best": "fake", "sure": "fake"}
    assert client.get("/v1/models/deep").json()["parent"] == "fake"
    reply = client.post("/v1/completions", {"prompt": "x", "model": "dee"})
    assert reply.status_code == 404
    assert "'fake', 'deep', 'off', 'best', 'sure'" in reply.json()["error"]["message"]
