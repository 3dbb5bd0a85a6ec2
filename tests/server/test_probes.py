"""Probes over HTTP: one readout a token, whole, streamed, voted and corrected; what there is, and what there is not."""

import asyncio
from typing import Any

import pytest
import test_engine
import torch
from fake_engine import Client, FakeEngine

import tiny
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.probe import Probe, ProbeConfig, ProbeNet, probe_config
from quietserve.server.engine import Engine
from quietserve.server.metrics import Metrics
from quietserve.server.presets import parse_preset
from quietserve.server.scheduler import Attempt
from quietserve.server.service import Service

WAY = ProbeConfig("direction", ("N", "E", "S", "W"), 32, 259, 2, (0, 1, 2))
WALL = ProbeConfig("obstacle", ("free", "wall"), 32, 259, 2, (2,), offset=1)
ASKED = {"probes": ["karel.way", "karel.wall"]}


@pytest.fixture(autouse=True)
def probes(engine: FakeEngine) -> None:
    engine.probes = {"karel.way": WAY, "karel.wall": WALL}


def expected(
    engine: FakeEngine, text: str, first: int = 0, names: tuple[str, ...] = ("karel.way", "karel.wall")
) -> Any:
    """What the fake engine's probes say of a text and its end."""
    told = []
    for position, id_ in enumerate([*engine.tokens.encode(text), 256], first):
        readouts = {name: engine.readout(name, id_) for name in names}
        said = {name: r and {"class": r.class_, "probability": r.probability} for name, r in readouts.items()}
        told.append({"position": position, "token": engine.tokens.token_text(id_), "readouts": said})
    return told


def test_one_entry_a_token(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: "go on"
    (choice,) = client.complete(**ASKED)["choices"]
    assert choice["probes"] == expected(engine, "go on")
    assert choice["probes"][1] == {
        "position": 1,
        "token": "o",
        "readouts": {"karel.way": {"class": "S", "probability": 0.578}, "karel.wall": None},
    }
    (choice,) = client.chat(probes=["karel.wall"])["choices"]
    assert choice["probes"] == expected(engine, "go on", names=("karel.wall",))
    for body in ({}, {"probes": []}, {"probes": None}):
        assert "probes" not in client.complete(**body)["choices"][0]


@pytest.mark.parametrize("ask", ["complete", "chat"])
def test_a_stream_joins_to_the_whole(client: Client, engine: FakeEngine, ask: str) -> None:
    body = ASKED | {"seed": 5, "return_thoughts": True, "thought_depth": 3, "n": 2}
    whole = getattr(client, ask)(**body)["choices"]
    chunks = getattr(client, ask)(**body, stream=True)
    for index, choice in enumerate(whole):
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        assert [told for part in parts for told in part["probes"]] == choice["probes"]
        assert [told["position"] for told in choice["probes"]] == list(range(len(choice["probes"])))


def test_a_token_without_text_is_told_of(client: Client, engine: FakeEngine) -> None:
    """Half of a letter says nothing yet, and its readout does not wait."""
    engine.answer = lambda attempt: "Ä"
    first, *_ = client.complete(**ASKED, stream=True)
    assert (first["choices"][0]["text"], len(first["choices"][0]["probes"])) == ("", 1)


def test_only_what_is_generated_is_read(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: "x"
    (choice,) = client.complete(**ASKED, echo=True, logprobs=1)["choices"]
    assert choice["probes"] == expected(engine, "x")
    (choice,) = client.complete(**ASKED, echo=True, logprobs=1, max_tokens=0)["choices"]
    assert choice["probes"] == []


def test_drafts_are_read_too(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: "b" if attempt.prompt[-1] == ord(" ") else "aa"
    asked = {**ASKED, "self_correction_turns": 1, "return_drafts": True, "self_correction_prompt": "again"}
    (choice,) = client.complete(**asked)["choices"]
    (draft,) = choice["self_correction"]["turns"]
    assert draft["probes"] == expected(engine, draft["text"])
    assert choice["probes"] == expected(engine, choice["text"])


def test_the_answer_that_won_is_read(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: f"it is {attempt.params.seed % 3}"
    voted = {"best_of": 8, "voting": "majority", "answer_pattern": "last_number", "seed": 3}
    (choice,) = client.complete(**ASKED, **voted)["choices"]
    assert choice["probes"] == expected(engine, choice["text"])


def test_a_model_tells_which_it_has(client: Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    layers = {"layers": [0, 1, 2], "offset": 0}
    way = {"name": "karel.way", "property": "direction", "classes": ["N", "E", "S", "W"], **layers}
    wall = {"name": "karel.wall", "property": "obstacle", "classes": ["free", "wall"], "layers": [2], "offset": 1}
    assert model["capabilities"]["probes"] == [way, wall]


def test_one_that_is_not_there(client: Client) -> None:
    error = client.post("/v1/completions", {"prompt": "x", "probes": ["karel.way", "karel.cat"]}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "probes")
    assert error["message"] == "probes has 'karel.cat'; this model has karel.way, karel.wall."


def test_a_preset_may_ask_for_them(client: Client, engine: FakeEngine, service: Service) -> None:
    service.presets["seen"] = parse_preset('seen={"probes": ["karel.way"], "max_tokens": 1}')
    (choice,) = client.complete(model="seen")["choices"]
    assert [list(told["readouts"]) for told in choice["probes"]][:1] == [["karel.way"]]
    assert "probes" not in client.complete(model="seen", probes=[])["choices"][0]


def test_they_are_on_the_books(metrics: Metrics) -> None:
    metrics.describe_probes(["karel.way", "karel.wall"])
    metrics.read("karel.way", 8)
    text = metrics.render().decode()
    assert 'quietserve_probe_readouts_total{model_name="fake",probe="karel.way"} 8.0' in text
    assert 'quietserve_probe_readouts_total{model_name="fake",probe="karel.wall"} 0.0' in text


def test_an_engine_counts_what_probes_said() -> None:
    """Of all turns, and nothing of tokens that a probe has nothing to say of."""
    torch.manual_seed(0)
    loaded = Loaded(tiny.quiet_model(), test_engine.TOKENS, "tiny")
    config = probe_config(loaded, property="way", classes=("a", "b"))
    probes = {"all": Probe(config, ProbeNet(config)), "some": Probe(config, ProbeNet(config), frozenset(range(130)))}
    params = SamplingParams(max_tokens=9, thought_depth=2, ignore_eos=True, probes=("all", "some"))
    tokens: list[Any] = []

    async def work(engine: Engine, books: test_engine.Books) -> None:
        attempts = [Attempt((9, 8, 7), params), Attempt((9, 8), params, draft_params=(params,), bridge=(5, 6))]
        tickets = engine.submit(attempts)
        results = await asyncio.gather(*(read(engine, ticket) for ticket in tickets))
        tokens.extend(token for result in results for token in result)
        tokens.extend(tickets[1].drafts[0].tokens)

    async def read(engine: Engine, ticket: Any) -> list[Any]:
        return [token async for news in engine.results(ticket) for token in news.tokens]

    books = test_engine.run(work, loaded.model, probes=probes)
    assert len(tokens) == books.readouts["all"] == 27
    assert books.readouts["some"] == sum(token.id < 130 for token in tokens)
    assert all((dict(token.probes)["some"] is not None) == (token.id < 130) for token in tokens)
