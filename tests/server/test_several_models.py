"""Several models in one server: each request goes to the one that it names, and so do its books."""

import asyncio
import logging
import signal
import threading
from typing import Any

import httpx
import pytest
import uvicorn
from fake_engine import Client, FakeEngine, byte_tokens, says

from quietserve.model.config import SamplingParams
from quietserve.model.probe import ProbeConfig
from quietserve.server.loading import make_service
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline
from quietserve.server.presets import Preset, parse_preset
from quietserve.server.process import LoadingServer
from quietserve.server.scheduler import Attempt, QueueFullError, Ticket
from quietserve.server.service import Service
from quietserve.server.settings import NamedPath, Settings, SettingsError, check_config

ASKED = {"prompt": "Say", "max_tokens": 64}


@pytest.fixture
def second(service: Service, metrics: Metrics) -> FakeEngine:
    """The engine of another model beside `fake`, which does not think; the first says "one"."""
    assert service.pipeline
    service.pipeline.engine.answer = says("one")  # type: ignore[attr-defined]
    engine = FakeEngine(byte_tokens(), says("two"), max_model_len=99, max_thought_depth=0, quiet=None)
    own = Service("karel", Metrics("karel", beside=metrics), pipeline=Pipeline(engine))  # type: ignore[arg-type]
    own.presets["walk"] = Preset("walk", {"max_tokens": 2}, "karel")
    service.presets["brief"] = Preset("brief", {"max_tokens": 1})
    service.others.append(own)
    return engine


@pytest.mark.parametrize(
    ("model", "text"), [(None, "one"), ("fake", "one"), ("brief", "o"), ("karel", "two"), ("walk", "tw")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_goes_to_the_model_it_names(
    client: Client, second: FakeEngine, model: str | None, text: str, stream: bool
) -> None:
    body = {"model": model, "stream": stream, **({"max_tokens": 64} if model in (None, "fake", "karel") else {})}
    for path, asked in (
        ("/v1/completions", {"prompt": "Say"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say"}]}),
    ):
        reply = client.post(path, asked | body)
        assert reply.status_code == 200, reply.text
        assert f'"model":"{model or "fake"}"' in reply.text
    replies = [client.post("/v1/completions", {"prompt": "Say"} | body | {"stream": False}).json()]
    assert replies[0]["choices"][0]["text"] == text


def test_each_has_its_own_limits_and_names(client: Client, second: FakeEngine) -> None:
    told = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: model["parent"] for name, model in told.items()} == {
        "fake": None,
        "brief": "fake",
        "karel": None,
        "walk": "karel",
    }
    assert (told["fake"]["max_model_len"], told["walk"]["max_model_len"]) == (200, 99)
    assert told["karel"]["capabilities"]["thinking"] is False
    assert client.get("/v1/models/karel").json() == told["karel"]
    error = client.post("/v1/completions", ASKED | {"model": "karel", "thought_depth": 3}).json()["error"]
    assert "this model cannot think" in error["message"]
    assert client.post("/v1/completions", ASKED | {"thought_depth": 3}).status_code == 200
    error = client.post("/v1/completions", ASKED | {"model": "kare"}).json()["error"]
    assert error["message"] == "The model 'kare' does not exist. This server has 'fake', 'brief', 'karel', 'walk'."
    schema = client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
    assert schema["thought_depth"]["anyOf"][0]["maximum"] == 16, "the largest of all"


def test_their_tokenizers(client: Client, second: FakeEngine) -> None:
    assert client.post("/tokenize", {"prompt": "a", "model": "karel"}).json()["max_model_len"] == 99
    assert client.post("/tokenize", {"prompt": "a"}).json()["max_model_len"] == 200
    assert client.post("/detokenize", {"tokens": [64], "model": "walk"}).status_code == 200
    assert client.get("/tokenizer_info").json() == client.get("/tokenizer_info?model=karel").json()
    assert client.get("/tokenizer_info?model=cat").status_code == 404


def test_rankers_are_each_models_own(client: Client, second: FakeEngine, engine: FakeEngine) -> None:
    second.judges = {"length": lambda entry: 0.5}
    body = {"prompt": "x", "candidates": ["a"]}
    assert client.post("/v1/score", body | {"model": "karel"}).json()["ranker"] == "length"
    assert "no trained ranker" in client.post("/v1/score", body).json()["error"]["message"]


def test_it_is_ready_when_all_are(client: Client, service: Service, second: FakeEngine) -> None:
    assert client.get("/ready").status_code == 200
    second.ready = False
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    second.healthy = False
    assert client.get("/health").status_code == 503
    service.others[0].pipeline = None
    assert client.get("/ready").json()["error"]["code"] == "model_loading"
    assert client.get("/health").status_code == 200
    assert client.post("/v1/completions", ASKED | {"model": "karel"}).json()["error"]["code"] == "model_loading"
    assert client.post("/v1/completions", ASKED).status_code == 200


def test_refusals_are_in_the_books_of_the_model_that_was_meant(
    client: Client, second: FakeEngine, metrics: Metrics
) -> None:
    second.refusal = QueueFullError("full")
    assert client.post("/v1/completions", ASKED | {"model": "walk"}).status_code == 503
    told = metrics.render().decode()
    assert 'requests_rejected_total{model_name="karel",reason="queue_full"} 1.0' in told
    assert 'requests_rejected_total{model_name="fake",reason="queue_full"} 0.0' in told
    assert told.count("# TYPE quietserve_requests_rejected_total counter") == 1
    assert told.count("quietserve_build_info{") == 1
    assert 'num_requests_running{model_name="karel"} 0.0' in told


def test_a_body_that_cannot_be_is_in_the_books_of_the_model_that_it_names(
    client: Client, second: FakeEngine, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to be in the first one's, being refused before anybody had asked which model it meant."""
    caplog.set_level(logging.INFO)
    for name in ("karel", "walk"):
        for path, asked in (("completions", ASKED), ("chat/completions", {"messages": []})):
            assert client.post(f"/v1/{path}", asked | {"model": name, "temperature": "hot"}).status_code == 400
    assert client.post("/v1/completions", ASKED | {"model": "cat", "temperature": "hot"}).status_code == 400
    told = metrics.render().decode()
    assert 'requests_rejected_total{model_name="karel",reason="invalid_value"} 4.0' in told
    assert 'requests_rejected_total{model_name="fake",reason="invalid_value"} 1.0' in told
    replied = [record.fields for record in caplog.records if record.getMessage() == "replied"]  # type: ignore[attr-defined]
    assert [fields.get("model") for fields in replied] == ["karel"] * 4 + [None]


def test_an_engine_that_has_stopped_is_named(client: Client, engine: FakeEngine, second: FakeEngine) -> None:
    """Of several, nobody could tell which."""
    second.close(0)
    for path in ("/health", "/ready"):
        assert client.get(path).json()["error"]["message"] == "The engine of 'karel' has stopped."
    engine.close(0)
    assert client.get("/health").json()["error"]["message"] == "The engine of 'fake' has stopped."


def test_a_model_speaks_of_what_is_its_own(client: Client, engine: FakeEngine, second: FakeEngine) -> None:
    """It used to say that the server had no probe, and no ranker, where the model beside it had some."""
    engine.judges = {"length": lambda entry: 0.5}
    engine.probes = {"way": ProbeConfig("way", ("a", "b"), 32, 259, 2, (0, 1))}
    asked = ASKED | {"model": "karel"}
    error = client.post("/v1/completions", asked | {"probes": ["way"]}).json()["error"]
    assert error["message"] == "probes has 'way'; this model has none; --probe loads one."
    error = client.post("/v1/completions", asked | {"voting": "ranker", "best_of": 2, "ranker": "length"}).json()[
        "error"
    ]
    assert error["message"] == "ranker is 'length'; this model has min_logprob, logprob."
    error = client.post("/v1/score", {"model": "karel", "prompt": "x", "candidates": ["a"]}).json()["error"]
    assert error["message"] == "This model has no trained ranker; --ranker loads one."


def test_what_each_runs_as(metrics: Metrics) -> None:
    other = Metrics("karel", beside=metrics)
    for own in (metrics, other):
        own.describe_model("none", "float32", "cpu", 5, 7)
        own.drain()
    told = metrics.render().decode()
    for name in ("fake", "karel"):
        assert f'kv_cache_bytes{{model_name="{name}"}} 7.0' in told
        assert f'draining{{model_name="{name}"}} 1.0' in told


def test_any_models_request_can_be_cancelled(url: str, second: FakeEngine, service: Service) -> None:
    second.pace_s, second.answer = 0.02, says("x" * 90)
    told: list[Any] = []
    asked = {"model": "karel", "prompt": "a", "max_tokens": 80}
    thread = threading.Thread(
        target=lambda: told.append(
            httpx.post(f"{url}/v1/completions", json=asked, headers={"x-request-id": "mine"}).json()
        )
    )
    thread.start()
    for _ in range(200):
        if httpx.post(f"{url}/v1/requests/mine/cancel").status_code == 200:
            break
    thread.join()
    assert told[0]["choices"][0]["finish_reason"] == "abort"


def test_it_leaves_when_all_are_idle(client: Client, service: Service, engine: FakeEngine, second: FakeEngine) -> None:
    loaded = [one.pipeline for one in service.every]
    server = LoadingServer(uvicorn.Config(client.app), service, 60, load=lambda: loaded)  # type: ignore[arg-type]
    second.running = [Ticket(Attempt((1,), SamplingParams()))]
    server.handle_exit(signal.SIGTERM, None)
    assert all(pipeline and pipeline.draining for pipeline in loaded)
    assert not asyncio.run(server.on_tick(1))
    second.running = []
    assert asyncio.run(server.on_tick(1))
    assert not engine.healthy
    assert not second.healthy


def settings(*argv: str) -> Settings:
    return Settings.from_args(["folder", *argv], {})


def test_what_has_no_name_is_called_as_its_folder_is() -> None:
    """A bundled ranker once had to be written `score-ranker=score-ranker`, and a bundled model not."""
    told = settings("--also", "runs/karel/", "--ranker", "score-ranker", "--probe", "runs/probes/turned")
    assert told.also == (NamedPath("karel", "runs/karel/"),)
    assert told.ranker == (NamedPath("score-ranker", "score-ranker"),)
    assert told.probe == (NamedPath("turned", "runs/probes/turned"),)


def test_presets_belong_to_a_model() -> None:
    """The first, unless they say otherwise."""
    told = settings(
        "--also", "karel=runs/k", "--model-preset", 'walk={"model": "karel", "n": 2}', "--model-preset", "brief={}"
    )
    service = make_service(told)
    assert [(one.model_name, list(one.presets)) for one in service.every] == [
        ("folder", ["brief"]),
        ("karel", ["walk"]),
    ]
    assert str(service.others[0].presets["walk"]) == 'walk={"model": "karel", "n": 2}'
    assert parse_preset('walk={"model": "karel", "n": 2}').defaults == {"n": 2}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--also", "a=x", "--also", "a=y"], "argument --also: two models are called 'a'"),
        (["--also", "a=x", "--model-preset", "a={}"], "argument --model-preset: two models are called 'a'"),
        (["--also", "a=x", "--served-model-name", "a"], "argument --also: two models are called 'a'"),
        (["--also", "=x"], "a further model is written NAME=PATH or PATH"),
        (["--also", " "], "a further model is written NAME=PATH or PATH"),
        (["--also", "folder=x"], "argument --also: two models are called 'folder'"),
        (["--also", "elsewhere/folder"], "argument --also: two models are called 'folder'"),
        (["--model-preset", "folder={}"], "argument --model-preset: two models are called 'folder'"),
        (
            ["--also", "k=x", "--model-preset", 'p={"model": "cat"}'],
            "argument --model-preset: p: model is 'cat'; this server has 'folder', 'k'",
        ),
        (["--model-preset", 'p={"model": ""}'], "p: model is ''; this server has 'folder'"),
        (["--model-preset", 'p={"model": 3}'], "p: model must be a string"),
    ],
)
def test_names_that_cannot_be(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of some, check-config said that they hold."""
    with pytest.raises(SettingsError, match=words):
        settings(*argv)
    assert check_config(["folder", *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_models_name_is_its_folders() -> None:
    assert [(model.name, model.path) for model in settings("--also", "runs/karel/", "--also", "k=b").also] == [
        ("karel", "runs/karel/"),
        ("k", "b"),
    ]
    spaced = Settings.from_args([], {"QUIETSERVE_ALSO": "  runs/karel \n k = b\n"}).also
    assert [(model.name, model.path) for model in spaced] == [("karel", "runs/karel"), ("k", "b")]
