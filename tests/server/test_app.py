"""What every reply has, the small endpoints, and errors that are not the client's."""

import re

import pytest
from fake_engine import Client, FakeEngine

from quietserve.model.config import SamplingParams
from quietserve.server import errors
from quietserve.server.pipeline import Pipeline, attempt_seed
from quietserve.server.scheduler import Attempt, EngineClosedError, EngineError, QueueFullError

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
        "self_correction": False,
        "rankers": [],
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
    assert len({attempt_seed(s, i, t) for s in (-1, 0, 1) for i in (0, 1) for t in (0, 1)}) == 12


def test_the_endpoint_is_told_for_the_books(client: Client, engine: FakeEngine) -> None:
    client.complete()
    client.chat()
    assert [ticket.attempt.endpoint for ticket in engine.tickets] == ["completions", "chat"]
    assert Attempt((1,), SamplingParams()).endpoint == ""
