"""What every reply has, the small endpoints, and errors that are not the client's."""

import asyncio
import re
import threading

import httpx
import pytest
from fake_engine import Client, FakeEngine, events

from quietserve.model.config import SamplingParams
from quietserve.server import errors
from quietserve.server.app import create_app
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline, attempt_seed
from quietserve.server.scheduler import Attempt, EngineClosedError, EngineError, QueueFullError
from quietserve.server.schemas import ChatRequest, CompletionRequest
from quietserve.server.service import Service

COMPLETIONS = "/v1/completions"


def test_models(client: Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/fake").json()
    assert model["id"] == "fake"
    assert model["parent"] is None
    assert model["max_model_len"] == 200
    assert model["capabilities"] == {
        "thinking": True,
        "max_thought_depth": 16,
        "max_num_thoughts": 8,
        "max_best_of": 16,
        "max_self_correction_turns": 2,
        "self_correction": True,
        "rankers": ["min_logprob", "logprob"],
        "probes": [],
    }


def test_small_endpoints(client: Client) -> None:
    for path in ("/health", "/ready", "/ping", "/version", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    assert client.request("POST", "/ping").status_code == 200
    assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/version").json()["version"])


def test_draining_refuses_new_work_and_stays_alive(client: Client, pipeline: Pipeline) -> None:
    pipeline.draining = True
    assert client.get("/health").status_code == 200
    for reply in (client.get("/ready"), client.post(COMPLETIONS, {"prompt": "x"})):
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "draining"
        assert int(reply.headers["retry-after"]) > 0


def test_a_dead_engine_is_not_healthy(client: Client, engine: FakeEngine) -> None:
    engine.healthy = engine.ready = False
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503
    assert client.post(COMPLETIONS, {"prompt": "x"}).status_code == 503


def test_a_request_id_is_taken_where_it_is_sane(client: Client) -> None:
    def told(offered: str) -> str:
        return client.get("/health", headers={"x-request-id": offered}).headers["x-request-id"]

    assert told("job-7.a_b") == "job-7.a_b"
    for offered in ("", "a b", "x" * 129, "<script>", "-rf"):
        assert re.fullmatch("[0-9a-f]{32}", told(offered))
    reply = client.post(COMPLETIONS, {"prompt": "x"}, headers={"x-request-id": "abc"})
    assert reply.json()["id"] == "cmpl-abc"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFullError("17 attempts"), 503, "queue_full"),
        (EngineClosedError("bye"), 503, "draining"),
        (EngineError("the model failed"), 500, "internal_error"),
        (RuntimeError("/secret/path"), 500, "internal_error"),
        (ValueError("/secret/path"), 500, "internal_error"),
    ],
)
def test_errors_of_the_engine(client: Client, engine: FakeEngine, error: Exception, status: int, code: str) -> None:
    engine.refusal = error
    reply = client.post(COMPLETIONS, {"prompt": "x", "stream": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"]
    assert ("retry-after" in reply.headers) == (status == 503)


def test_a_failure_on_the_way(client: Client, engine: FakeEngine) -> None:
    engine.failure = EngineError("the model failed on this request")
    reply = client.post(COMPLETIONS, {"prompt": "x", "n": 2})
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "the model failed on this request"
    assert not engine.running, "the other choice is cancelled"


@pytest.mark.parametrize("failure", [EngineError("the model failed"), RuntimeError("/secret")])
def test_a_failure_in_a_stream_is_an_event(client: Client, engine: FakeEngine, failure: Exception) -> None:
    engine.failure = failure
    *chunks, last = client.complete(stream=True, n=2)
    assert chunks
    assert last["error"]["code"] == "internal_error"
    assert "secret" not in last["error"]["message"]
    assert not engine.running


def test_every_error_has_a_code_of_its_own_or_its_parents() -> None:
    def family(kind: type[errors.ApiError]) -> list[type[errors.ApiError]]:
        return [kind, *(below for child in kind.__subclasses__() for below in family(child))]

    for kind in family(errors.ApiError):
        assert 400 <= kind.status < 600
        assert kind.code in kind.code.lower()
        assert kind.__doc__


def test_every_expected_error_is_mapped() -> None:
    for kind in errors.EXPECTED[2:]:
        assert errors.as_api_error(kind("why")).message != errors.as_api_error(RuntimeError("why")).message, kind


def test_attempt_seeds_never_change() -> None:
    """A seed that a client wrote down must give the same answer after an upgrade."""
    assert (attempt_seed(0, 0), attempt_seed(-7, 1, turn=1)) == (0x282047AD06AEB62B, 0x2CB1FE8FDA2EF44E)
    attempt_seed(10**19, 0)  # the largest that may be asked for
    assert len({attempt_seed(s, i, t) for s in (-1, 0, 1) for i in (0, 1) for t in (0, 1)}) == 12


def test_the_endpoint_is_told_for_the_books(client: Client, engine: FakeEngine) -> None:
    client.complete()
    client.chat()
    assert [ticket.attempt.endpoint for ticket in engine.tickets] == ["completions", "chat"]
    assert Attempt((1,), SamplingParams()).endpoint == ""


def test_what_is_unknown_is_ignored_and_told(client: Client) -> None:
    asked = {"prompt": "x", "frobnicate": 1, "priority": None, "чужой": 2, "stream_options": None}
    reply = client.post(COMPLETIONS, asked)
    assert reply.status_code == 200
    assert reply.headers["x-ignored-params"] == "frobnicate, '\\u0447\\u0443\\u0436\\u043e\\u0439'"
    assert reply.json()["warnings"][0] == "frobnicate is not a parameter of this server and was ignored"
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a", "cached": 1}], "refusal": "no"}]
    reply = client.post("/v1/chat/completions", {"messages": messages, "stream": True})
    assert reply.headers["x-ignored-params"] == "messages[0].refusal, messages[0].content[0].cached"
    assert "warnings" in events(reply.text)[-1]
    plain = client.post(COMPLETIONS, {"prompt": "x", "user": "me", "metadata": {"a": "b"}})
    assert "x-ignored-params" not in plain.headers
    assert "warnings" not in plain.json()


OTHERS = """store service_tier parallel_tool_calls modalities audio prediction verbosity prompt_cache_key safety_identifier
    use_beam_search length_penalty include_stop_str_in_output skip_special_tokens spaces_between_special_tokens priority
    truncate_prompt_tokens add_special_tokens guided_json structured_outputs request_id cache_salt bad_words
    add_generation_prompt continue_final_message chat_template documents drop_params headers api_key typical_p mirostat
    num_beams do_sample num_return_sequences no_repeat_ngram_size keep_alive options think grammar cache_prompt"""


@pytest.mark.parametrize("schema", [CompletionRequest, ChatRequest])
def test_what_other_servers_know_is_no_slip_of_the_pen(schema: type[CompletionRequest | ChatRequest]) -> None:
    some = {"prompt": "x"} if schema is CompletionRequest else {"messages": [{"role": "user", "content": "x"}]}
    asked = schema.model_validate(some | dict.fromkeys(OTHERS.split(), 1))
    assert sorted(asked.ignored()) == sorted(OTHERS.split())


def test_a_request_that_takes_too_long(client: Client, engine: FakeEngine, pipeline: Pipeline) -> None:
    engine.pace_s = 0.02
    reply = client.post(COMPLETIONS, {"prompt": "x", "timeout_s": 0.05})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")
    assert engine.tickets[0].finish_reason == "timeout"
    *chunks, last = client.complete(stream=True, timeout_s=0.3)
    assert last["error"]["code"] == "request_timeout"
    assert chunks
    pipeline._timeout_s = 0.05
    assert client.post(COMPLETIONS, {"prompt": "x", "timeout_s": 60}).status_code == 504, "the server's limit is less"
    told = client.get("/metrics").text
    assert 'requests_rejected_total{model_name="fake",reason="request_timeout"} 3.0' in told, "the streamed one too"
    assert not engine.running


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "x" * 4000}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", "x" * 4000]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 4000}]}, "messages"),
    ],
)
def test_a_text_that_cannot_fit_is_not_read(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict, param: str
) -> None:
    """Six prompts of a megabyte, each read to its end to be refused, once kept every other request waiting for seventeen seconds."""
    read = []
    monkeypatch.setattr(engine.tokens, "encode", lambda text, **how: read.append(text) or [1])
    reply = client.post(path, body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert re.search(
        r"maximum context length is 200 tokens\. However, you requested at least 25\d tokens", error["message"]
    )
    assert all(len(text) == 1 for text in read)


def test_a_request_whose_prompt_waits_to_be_read_is_in_time_too(
    client: Client, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time once began to count when its prompt had been read, however long those before it took."""
    may_go = threading.Event()
    monkeypatch.setattr(pipeline, "plan", lambda *told: may_go.wait(10))

    async def ask() -> None:
        with pytest.raises(errors.RequestTimeoutError, match=r"longer than the 0\.05 seconds"):
            await pipeline.prepare(CompletionRequest(prompt="x", timeout_s=0.05))
        may_go.set()

    asyncio.run(ask())


def test_a_request_is_ended_by_its_id(client: Client, engine: FakeEngine, pipeline: Pipeline) -> None:
    engine.pace_s = 0.02

    async def cancel(cancelled_id: str) -> tuple[int, dict]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            running = asyncio.create_task(
                http.post(COMPLETIONS, json={"prompt": "x", "n": 2}, headers={"x-request-id": "r-1"})
            )
            while "r-1" not in pipeline.runs:
                await asyncio.sleep(0.01)
            told = await http.post(f"/v1/requests/{cancelled_id}/cancel")
            if told.status_code != 200:
                running.cancel()
                return told.status_code, told.json()
            assert told.json() == {"id": "r-1", "cancelled": True}
            return 200, (await running).json()

    for name in ("r-1", "cmpl-r-1", "chatcmpl-r-1"):
        _, reply = asyncio.run(cancel(name))
        assert [choice["finish_reason"] for choice in reply["choices"]] == ["abort", "abort"]
    assert asyncio.run(cancel("r-2"))[0] == 404
    assert not pipeline.runs
    assert not engine.running


def test_a_request_may_be_called_like_a_reply(client: Client, pipeline: Pipeline, engine: FakeEngine) -> None:
    """Its id begins as the ids of our replies do: it is found by what it is called, not by what is left of that."""
    engine.pace_s = 0.02

    async def work() -> str:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            asked = http.post(COMPLETIONS, json={"prompt": "x"}, headers={"x-request-id": "cmpl-7"})
            running = asyncio.create_task(asked)
            while "cmpl-7" not in pipeline.runs:
                await asyncio.sleep(0.01)
            assert (await http.post("/v1/requests/cmpl-7/cancel")).status_code == 200
            return (await running).json()["choices"][0]["finish_reason"]

    assert asyncio.run(work()) == "abort"


def test_who_is_ended_because_another_failed_did_not_leave(client: Client, engine: FakeEngine) -> None:
    engine.failure = EngineError("the model failed")
    client.post(COMPLETIONS, {"prompt": "x", "n": 3})
    assert {ticket.finish_reason for ticket in engine.tickets} <= {"error"}


def test_a_server_that_still_loads_says_so(metrics: Metrics) -> None:
    client = Client(create_app(Service("fake", metrics)))
    assert client.get("/health").status_code == 200
    for reply in (client.get("/ready"), client.post(COMPLETIONS, {"prompt": "x"}), client.get("/v1/models")):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
        assert reply.headers["retry-after"]
    assert client.get("/metrics").status_code == 200


def test_a_probe_is_not_a_request_that_was_refused(metrics: Metrics) -> None:
    """While a model loaded, every poll of /ready once counted as a refused request."""
    client = Client(create_app(Service("fake", metrics)))
    for _ in range(5):
        assert client.get("/ready").status_code == 503
    assert client.post(COMPLETIONS, {"prompt": "x"}).status_code == 503
    told = client.get("/metrics").text
    assert 'requests_rejected_total{model_name="fake",reason="model_loading"} 1.0' in told
    assert 'http_requests_total{handler="/ready",method="GET",status="503"} 5.0' in told


def test_the_tokenizer_over_http(client: Client) -> None:
    told = client.post("/tokenize", {"prompt": "Ä!", "return_token_strs": True}).json()
    assert (told["count"], told["max_model_len"], len(told["tokens"])) == (3, 200, 3)
    assert client.post("/detokenize", {"tokens": told["tokens"]}).json() == {"prompt": "Ä!"}
    assert client.post("/tokenize", {"prompt": ""}).json()["tokens"] == []
    assert client.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    info = client.get("/tokenizer_info", headers={"content-type": "application/json"}).json()
    assert info["eos_token"] == "<eos>"
    assert info["bos_token"] is None
    (eos,) = client.post("/tokenize", {"prompt": "<eos>", "add_special_tokens": False}).json()["tokens"]
    assert client.post("/detokenize", {"tokens": [eos]}).json() == {"prompt": "<eos>"}
    chat = [{"role": "user", "content": "hi"}]
    counts = [
        client.post("/tokenize", {"messages": chat, "add_generation_prompt": generate}).json()["count"]
        for generate in (True, False)
    ]
    assert counts[0] == counts[1] + len("> ")
    for bad in (
        {},
        {"prompt": "x", "messages": chat},
        {"prompt": "<|startthought|>"},
        {"prompt": "x", "model": "other"},
    ):
        assert client.post("/tokenize", bad).status_code in (400, 404)
    assert client.post("/detokenize", {"tokens": [999]}).json()["error"]["code"] == "invalid_value"


def test_the_tokenizer_names_what_it_ignores_too(client: Client) -> None:
    """Alone of all that take a body, these two said nothing of what they did not know."""
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [65]})):
        assert "x-ignored-params" not in client.post(path, body).headers
        assert client.post(path, body | {"frobnicate": 1}).headers["x-ignored-params"] == "frobnicate"
    messages = [{"role": "user", "content": "hi", "refusal": "no"}]
    assert client.post("/tokenize", {"messages": messages}).headers["x-ignored-params"] == "messages[0].refusal"


def test_what_a_reply_tells_of_its_time(client: Client, engine: FakeEngine) -> None:
    reply = client.complete()
    assert reply["metrics"] == {"thought_time_ms": 0.0}, "the fake engine keeps no time"
    *chunks, last = client.complete(stream=True, n=2)
    assert "metrics" in last
    assert not any("metrics" in chunk for chunk in chunks)


def test_usage_in_every_event_where_it_is_asked_for(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = client.complete(stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert chunks[-1]["choices"] == []


def test_whole_numbers_may_be_written_with_a_point(client: Client, engine: FakeEngine) -> None:
    """JavaScript, Lua and R have one kind of number, and JSON too."""
    floats = {"max_tokens": 8.0, "n": 2.0, "thought_depth": 3.0, "seed": 4.0, "stop_token_ids": [5.0], "logprobs": 1.0}
    floats["allowed_token_ids"] = [6.0, 7]
    for prompt, ids in (([65.0, 66], [(65, 66)]), ([[65, 66.0], [67.0]], [(65, 66), (67,)])):
        engine.tickets.clear()
        assert client.post(COMPLETIONS, floats | {"prompt": prompt}).status_code == 200
        assert [ticket.attempt.prompt for ticket in engine.tickets[::2]] == ids
        params = engine.tickets[0].attempt.params
        assert (params.max_tokens, params.thought_depth, params.stop_token_ids) == (8, 3, (5,))
        assert params.allowed_token_ids == (6, 7)


def test_the_description_of_the_api_holds_this_servers_limits(client: Client, engine: FakeEngine) -> None:
    def field(name: str) -> dict:
        described = client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
        return described[name]["anyOf"][0]

    assert field("thought_depth") == {"type": "integer", "minimum": 0, "maximum": 16}
    assert field("n")["maximum"] == 16
    assert field("stop_token_ids")["items"]["maximum"] == field("allowed_token_ids")["items"]["maximum"] == 258
    engine.max_thought_depth = 3
    assert field("thought_depth")["maximum"] == 3
