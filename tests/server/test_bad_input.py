"""Every bad request gets one clear line in an error object, and nothing reaches the engine."""

import json
from typing import Any

import pytest
from fake_engine import Client, FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietserve.server import schemas
from quietserve.server.schemas import ChatRequest, CompletionRequest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
UNSUPPORTED = "unsupported_parameter"

# body of a completion, code, param, words of the message
BAD = [
    ({"prompt": None}, "missing_required_parameter", "prompt", "prompt is required"),
    ({"prompt": []}, "invalid_value", "prompt", "must be a string, a list of strings"),
    ({"prompt": ""}, "invalid_value", "prompt", "empty"),
    ({"prompt": ["a", 1]}, "invalid_value", "prompt", "must be a string, a list of strings"),
    ({"prompt": [1, True]}, "invalid_value", "prompt", "must be a string, a list of strings"),
    ({"prompt": [999]}, "invalid_value", "prompt", "token id 999 is out of range; ids are 0 to 258"),
    ({"prompt": [257]}, "invalid_value", "prompt", "token id 257 is a thought marker"),
    ({"prompt": "a \ud800"}, "invalid_value", "prompt", "half of a surrogate pair"),
    ({"prompt": "a <|startthought|>"}, "invalid_value", "prompt", "thought marker '<|startthought|>'"),
    (
        {"prompt": "p" * 190, "max_tokens": 16},
        "context_length_exceeded",
        "prompt",
        "maximum context length is 200 tokens",
    ),
    (  # it said that 200 tokens are one too many for a context of 200
        {"prompt": "p" * 200},
        "context_length_exceeded",
        "prompt",
        "you requested 201 tokens (200 in the prompt, at least 1 in the completion)",
    ),
    (
        {"prompt": "p" * 200, "max_tokens": 2},
        "context_length_exceeded",
        "prompt",
        "202 tokens (200 in the prompt, 2 in",
    ),
    ({"max_tokens": "5"}, "invalid_value", "max_tokens", "max_tokens must be a valid integer"),
    ({"max_tokens": True}, "invalid_value", "max_tokens", "max_tokens must be a valid integer"),
    ({"max_tokens": 1e300}, "invalid_value", "max_tokens", "less than or equal to 2147483647"),
    ({"max_tokens": 2**31 - 1}, "context_length_exceeded", "prompt", "Please reduce"),
    ({"max_tokens": 10**4299}, "invalid_value", "max_tokens", "less than or equal to 2147483647"),
    ({"top_k": 10**400}, "invalid_value", "top_k", "less than or equal to 2147483647"),
    ({"stop_token_ids": [5] * 1025}, "invalid_value", "stop_token_ids", "at most 1024 items"),
    ({f"thought_temperature_{i}": 1 for i in range(65)}, UNSUPPORTED, "thought_temperature_0", "more than 64 unknown"),
    ({"prompt": [1.5]}, "invalid_value", "prompt", "must be a string, a list of strings"),
    ({"max_tokens": 1.5}, "invalid_value", "max_tokens", "max_tokens must be a valid integer"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "only with echo"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": 4, "min_tokens": 5}, "invalid_value", "min_tokens", "must be at most max_tokens, 4"),
    ({"prompt": ["a"] * 20, "n": 16}, "invalid_value", None, "asks for 320 answers; this server holds 272"),
    ({"temperature": 2.1}, "invalid_value", "temperature", "less than or equal to 2"),
    ({"temperature": "1"}, "invalid_value", "temperature", "must be a valid number"),
    ({"top_p": 0}, "invalid_value", "top_p", "greater than 0"),
    ({"n": 0}, "invalid_value", "n", "greater than or equal to 1"),
    ({"n": 17}, "invalid_value", "n", "n is 17; it must be between 1 and 16"),
    ({"n": 1025}, "invalid_value", "n", "less than or equal to 1024"),
    ({"seed": 10**19 + 1}, "invalid_value", "seed", "seed must be"),
    ({"logprobs": 21}, "invalid_value", "logprobs", "less than or equal to 20"),
    ({"logprobs": True}, "invalid_value", "logprobs", "must be a valid integer"),
    ({"stop": ["x"] * 17}, "invalid_value", "stop", "at most 16 strings"),
    ({"stop": ""}, "invalid_value", "stop", "none of them empty"),
    ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias", "a map from token ids to biases"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "invalid_value", "logit_bias", "at most 1024"),
    ({"metadata": {str(i): "" for i in range(17)}}, "invalid_value", "metadata", "at most 16"),
    ({"logit_bias": {"999": 1}}, "invalid_value", "logit_bias", "ids are 0 to 258"),
    ({"logit_bias": {"257": 1}}, "invalid_value", "logit_bias", "thought marker"),
    ({"stop_token_ids": [999]}, "invalid_value", "stop_token_ids", "ids are 0 to 258"),
    ({"allowed_token_ids": []}, "invalid_value", "allowed_token_ids", "at least 1 item"),
    ({"allowed_token_ids": [5] * 1025}, "invalid_value", "allowed_token_ids", "at most 1024 items"),
    ({"allowed_token_ids": [5, 259]}, "invalid_value", "allowed_token_ids", "has id 259; ids are 0 to 258"),
    ({"allowed_token_ids": [5, 258]}, "invalid_value", "allowed_token_ids", "has id 258, which is a thought marker"),
    ({"allowed_token_ids": [256], "min_tokens": 1}, "invalid_value", "allowed_token_ids", "min_tokens or ignore_eos"),
    ({"allowed_token_ids": [256], "ignore_eos": True}, "invalid_value", "allowed_token_ids", "that may be chosen"),
    ({"allowed_token_ids": "a"}, "invalid_value", "allowed_token_ids", "must be a valid list"),
    ({"allow_token_ids": [5]}, UNSUPPORTED, "allow_token_ids", "did you mean 'allowed_token_ids'?"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options", "stream to true"),
    ({"stream": True, "prompt_logprobs": 1}, "invalid_value", "prompt_logprobs", "cannot carry"),
    ({"thought_depth": 17}, "invalid_value", "thought_depth", "depth 17; it must be between 0 and 16"),
    ({"thought_depth": -1}, "invalid_value", "thought_depth", "greater than or equal to 0"),
    ({"thought_depth": True}, "invalid_value", "thought_depth", "must be a valid integer"),
    ({"thought_temperature": 3}, "invalid_value", "thought_temperature", "less than or equal to 2"),
    ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort", "must be 'none', 'minimal'"),
    (
        {"chat_template_kwargs": {"enable_thinkin": 1}},
        UNSUPPORTED,
        "chat_template_kwargs.enable_thinkin",
        "did you mean 'enable_thinking'?",
    ),
    ({"thought_dept": 4}, UNSUPPORTED, "thought_dept", "did you mean 'thought_depth'?"),
    ({"messages": []}, UNSUPPORTED, "messages", "this endpoint does not have this field"),
    ({"\ud800\n" + "k" * 99: 4}, UNSUPPORTED, "'\\ud800\\n" + "k" * 62 + "'", "no field has such a name"),
    ({"model": "other"}, "model_not_found", "model", "The model 'other' does not exist"),
    ({"suffix": "s"}, UNSUPPORTED, "suffix", "suffix"),
    ({"num_thoughts": 0}, "invalid_value", "num_thoughts", "greater than or equal to 1"),
    ({"num_thoughts": True}, "invalid_value", "num_thoughts", "must be a valid integer"),
    ({"num_thoughts": 9}, "invalid_value", "num_thoughts", "num_thoughts is 9; it must be between 1 and 8"),
    (
        {"num_thoughts": 2, "thought_temperature": 0},
        "invalid_value",
        "num_thoughts",
        "at thought_temperature 0 all thoughts are the same",
    ),
    # Each of these was accepted, and nothing came of it.
    ({"num_thoughts": 4, "thought_depth": 0}, "invalid_value", "num_thoughts", "at thought_depth 0 there are none"),
    ({"num_thoughts": 4, "thought_mode": "off"}, "invalid_value", "num_thoughts", "at thought_depth 0 there are none"),
    ({"return_drafts": True}, "invalid_value", "return_drafts", "only a request with self_correction_turns"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "invalid_value",
        "stream_options.continuous_usage_stats",
        "only a stream with include_usage",
    ),
    ({"thought_mode": "on"}, "invalid_value", "thought_mode", "must be 'fixed', 'adaptive' or 'off'"),
    ({"thought_mode": "off", "thought_depth": 4}, "invalid_value", "thought_mode", "but thought_depth is 4"),
    ({"thought_threshold": 0.3}, "invalid_value", "thought_threshold", "only thought_mode 'adaptive'"),
    (
        {"thought_mode": "adaptive", "thought_threshold": -1},
        "invalid_value",
        "thought_threshold",
        "greater than or equal to 0",
    ),
    ({"thinking_token_budget": -2}, "invalid_value", "thinking_token_budget", "greater than or equal to -1"),
    ({"timeout_s": 0}, "invalid_value", "timeout_s", "greater than 0"),
    ({"n": 3, "best_of": 2}, "invalid_value", "best_of", "best_of is 2; it must be at least n, 3"),
    ({"best_of": 17}, "invalid_value", "best_of", "best_of is 17; it must be between 1 and 16"),
    (
        {"best_of": 2, "temperature": 0, "thought_depth": 0},
        "invalid_value",
        "best_of",
        "at temperature 0 all are the same",
    ),
    ({"self_correction_turns": 3}, "invalid_value", "self_correction_turns", "must be between 0 and 2"),
    ({"self_correction_turns": -1}, "invalid_value", "self_correction_turns", "greater than or equal to 0"),
    ({"self_correction_prompt": "Again."}, "invalid_value", "self_correction_prompt", "with self_correction_turns"),
    (
        {"self_correction_turns": 1, "self_correction_prompt": " \n"},
        "invalid_value",
        "self_correction_prompt",
        "must be a string that is not blank",
    ),
    (
        {"self_correction_turns": 1, "self_correction_prompt": "x <|startthought|>"},
        "invalid_value",
        "self_correction_prompt",
        "thought marker",
    ),
    ({"self_correction_turns": 1, "echo": True}, "invalid_value", "echo", "cannot echo its prompt"),
    (
        {"self_correction_turns": 1, "prompt_logprobs": 0},
        "invalid_value",
        "prompt_logprobs",
        "cannot carry prompt_logprobs",
    ),
    ({"return_drafts": 1}, "invalid_value", "return_drafts", "boolean"),
    ({"voting": "best"}, "invalid_value", "voting", "'none', 'majority', 'likelihood' or 'ranker'"),
    ({"voting": "majority"}, "invalid_value", "best_of", "must be 2 or more"),
    ({"voting": "majority", "n": 3}, "invalid_value", "best_of", "must be 2 or more"),
    ({"voting": "majority", "best_of": 2, "ranker": "logprob"}, "invalid_value", "ranker", "only voting 'ranker'"),
    (
        {"voting": "ranker", "best_of": 2, "ranker": "mine"},
        "invalid_value",
        "ranker",
        "this model has min_logprob, logprob",
    ),
    ({"best_of": 2, "answer_pattern": "boxed"}, "invalid_value", "answer_pattern", "only a request with voting"),
    ({"return_samples": True}, "invalid_value", "return_samples", "only a request with voting"),
    (
        {"voting": "majority", "best_of": 2, "answer_pattern": "last"},
        "invalid_value",
        "answer_pattern",
        "there are full_text, last_number",
    ),
    (
        {"voting": "majority", "best_of": 2, "answer_pattern": "re:(a"},
        "invalid_value",
        "answer_pattern",
        "missing )",
    ),
    (
        {"voting": "majority", "best_of": 2, "prompt": ["a", "b"], "return_samples": True},
        "invalid_value",
        "return_samples",
        "one prompt",
    ),
    (
        {"voting": "majority", "best_of": 2, "temperature": 0, "thought_depth": 0},
        "invalid_value",
        "best_of",
        "raise it",
    ),
    ({"probes": ["p"]}, "invalid_value", "probes", "probes has 'p'; this model has none; --probe loads one"),
    ({"probes": "p"}, "invalid_value", "probes", "must be a list of at most 16 names of probes, all different"),
    ({"probes": ["p", "p"]}, "invalid_value", "probes", "all different"),
    ({"probes": [str(i) for i in range(17)]}, "invalid_value", "probes", "at most 16"),
    ({"probes": [1]}, "invalid_value", "probes", "a list of at most 16 names"),
    ({"tools": [{}]}, UNSUPPORTED, "tools", "tools"),
    ({"functions": [{}]}, UNSUPPORTED, "functions", "functions"),
    ({"response_format": {"type": "json_object"}}, UNSUPPORTED, "response_format", "supports only {'type': 'text'}"),
]


def refused(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(("body", "code", "param", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_completions(client: Client, engine: FakeEngine, body: dict, code: str, param: str, words: str) -> None:
    content = json.dumps({"model": "fake", "prompt": "p", **body})
    reply = client.request("POST", COMPLETIONS, content=content, headers={"content-type": "application/json"})
    error = refused(reply, 404 if code == "model_not_found" else 400)
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert not engine.tickets


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hello"}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, UNSUPPORTED, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "<|endthought|>"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "context_length_exceeded", "messages"),
        ({"logprobs": 3}, "invalid_value", "logprobs"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"echo": True}, UNSUPPORTED, "echo"),
        ({"prompt": "x"}, UNSUPPORTED, "prompt"),
    ],
    ids=str,
)
def test_bad_chats(client: Client, body: dict, code: str, param: str) -> None:
    error = refused(client.post(CHAT, {"messages": [{"role": "user", "content": "x"}], **body}), 400)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("path", "key", "pieces", "words"),
    [
        (CHAT, "messages", [{"role": "user", "content": "x"}] * 4097, "there may be 4096"),
        (
            CHAT,
            "messages",
            [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2048}] * 2,
            "there may be 4096",
        ),
        ("/tokenize", "messages", [{"role": "user", "content": "x"}] * 4097, "there may be 4096"),
        (
            CHAT,
            "messages",
            [{"role": "user", "content": "x", f"key {i}": 1} for i in range(65)],
            "more than 64 unknown",
        ),
        ("/v1/vote", "candidates", [{"text": "x", f"key {i}": 1} for i in range(65)], "more than 64 unknown"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_more_pieces_than_are_looked_through(client: Client, path: str, key: str, pieces: list, words: str) -> None:
    """A body of sixteen mebibytes of small messages once took eight seconds to check, in which no other request got on."""
    error = refused(client.post(path, {key: pieces}), 400)
    assert words in error["message"]
    assert error["param"] == key


def test_an_unknown_field_of_every_message_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 64 unknown fields of each message was once compared with all that there are."""
    compared, compare = [], schemas.difflib.get_close_matches
    monkeypatch.setattr(
        schemas.difflib,
        "get_close_matches",
        lambda key, *rest, **how: compared.append(key) or compare(key, *rest, **how),
    )
    message = {"role": "user", "content": [{"type": "text", "text": "x", "once in a part": 1}], "once in a message": 1}
    request = ChatRequest.model_validate({"messages": [message] * 100})
    assert sorted(compared) == ["once in a message", "once in a part"]
    assert request.ignored()[-2:] == ["messages[99].'once in a message'", "messages[99].content[0].'once in a part'"]


@pytest.mark.parametrize("deep", [2, 300, 700, 950])
def test_lists_in_lists_in_lists(client: Client, deep: int) -> None:
    """A validator of ours used to follow them down until the interpreter's stack was full."""
    nested = "[" * deep + "1" + "]" * deep
    for path, key in ((COMPLETIONS, "stop_token_ids"), ("/detokenize", "tokens"), (COMPLETIONS, "prompt")):
        content = f'{{"prompt": "x", "{key}": {nested}}}' if path == COMPLETIONS else f'{{"{key}": {nested}}}'
        reply = client.request("POST", path, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == (200 if (deep, key) == (2, "prompt") else 400)


@pytest.mark.parametrize(
    "content",
    ["", "{", "nul", b"\xff\xfe\x00", "[" * 100_000, '{"n": ' + "9" * 5000 + "}", "[]", '"text"', "3", "null"],
    ids=lambda content: repr(content[:12]),
)
def test_bodies_that_are_no_object(client: Client, content: str | bytes) -> None:
    reply = client.request("POST", COMPLETIONS, content=content, headers={"content-type": "application/json"})
    error = refused(reply, 400)
    assert error["code"] in ("invalid_json", "invalid_value")
    assert "JSON" in error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_other_content_types(client: Client, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    refused(client.request("POST", COMPLETIONS, content='{"prompt": "x"}', headers=headers), 415)


def test_bodies_that_are_too_large(client: Client) -> None:
    async def pieces():
        for _ in range(17):
            yield b" " * 2**20

    headers = {"content-type": "application/json"}
    for content in (b" " * (17 * 2**20), pieces()):
        error = refused(client.request("POST", COMPLETIONS, content=content, headers=headers), 413)
        assert error["code"] == "request_too_large"


def test_unknown_routes_and_methods(client: Client) -> None:
    assert refused(client.get("/nothing/here"), 404)["code"] == "not_found"
    assert refused(client.get("/v1/completions/"), 404)["code"] == "not_found"
    assert refused(client.get("/v1/models/a/b"), 404)["code"] == "model_not_found"
    for method in ("PUT", "DELETE", "TRACE", "FROB"):
        reply = client.request(method, COMPLETIONS)
        assert refused(reply, 405)["code"] == "method_not_allowed"
        assert reply.headers["allow"] == "POST"


def test_a_model_that_cannot_think_says_so(client: Client, engine: FakeEngine) -> None:
    engine.max_thought_depth, engine.quiet = 0, None
    error = refused(client.post(COMPLETIONS, {"prompt": "x", "thought_depth": 2}), 400)
    assert "this model cannot think" in error["message"]
    assert error["param"] == "thought_depth"


def test_no_input_is_quoted_back(client: Client) -> None:
    reply = client.post(COMPLETIONS, {"prompt": {"secret": "Rumpelstilzchen"}, "stop": 7})
    assert "Rumpelstilzchen" not in reply.text


NAMES = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<|startthought|>", "\ud800", "user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["role", "content", "type", "text", "65"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
GOOD = {"prompt": "abc", "messages": [{"role": "user", "content": "abc"}]}


@pytest.mark.parametrize(("path", "required"), [(COMPLETIONS, "prompt"), (CHAT, "messages")])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    body=VALUES | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=4), sane=st.booleans()
)
def test_no_json_breaks_it(client: Client, path: str, required: str, body: Any, sane: bool) -> None:
    if sane and isinstance(body, dict):
        body = {required: GOOD[required], **body}
    reply = client.request("POST", path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        refused(reply, reply.status_code)
