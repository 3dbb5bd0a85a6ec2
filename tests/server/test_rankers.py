"""Trained rankers: votes that they weigh, answers of a client's own, and their place on the device thread."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import test_engine
import torch
from fake_engine import Client, FakeEngine

from quietserve.model.ranker import Ranker, RankerConfig
from quietserve.model.voting import Entry
from quietserve.server.engine import Engine
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline
from quietserve.server.scheduler import Attempt, EngineClosedError, EngineError

ASKED = {"best_of": 8, "voting": "ranker", "answer_pattern": "last_number", "seed": 3, "return_samples": True}


def length_matters(entry: Entry) -> float:
    return round(len(entry.text) % 7 / 7, 6)


@pytest.fixture(autouse=True)
def ranker(engine: FakeEngine) -> None:
    engine.answer = lambda attempt: f"{'hm ' * (attempt.params.seed % 5)}it is {attempt.params.seed % 3}"
    engine.judges = {"length": length_matters, "none": lambda entry: 0.0}


@pytest.mark.parametrize("seed", range(6))
def test_answers_weigh_what_it_says(client: Client, seed: int) -> None:
    reply = client.complete(**ASKED | {"seed": seed})
    told, weights = reply["voting"], dict.fromkeys("012", 0.0)
    for sample in told["samples"]:
        assert sample["score"] == length_matters(Entry((), sample["text"]))
        weights[sample["answer"]] += sample["score"]
    assert told["ranker"] == "length", "a trained one is the default"
    for group in told["groups"]:
        assert group["weight"] == pytest.approx(weights[group["answer"]] / sum(weights.values()))
    assert told["groups"][0]["weight"] == max(group["weight"] for group in told["groups"])
    best = told["groups"][0]["sample_indices"][0]
    assert reply["choices"][0]["text"] == told["samples"][best]["text"]
    assert reply["metrics"]["ranker_time_ms"] >= 0


def test_it_reads_the_prompt_as_the_model_does(client: Client, engine: FakeEngine) -> None:
    read: list[Entry] = []
    engine.judges = {"spy": lambda entry: (read.append(entry), 0.5)[1]}
    client.complete(**ASKED | {"prompt": ["one", "two"], "best_of": 3, "return_samples": False})
    assert [entry.prompt for entry in read] == [
        tuple(engine.tokens.encode(p)) for p in ("one", "two") for _ in range(3)
    ]
    client.chat(**ASKED | {"self_correction_turns": 1, "best_of": 2})
    (prompt,) = {entry.prompt for entry in read[6:]}
    assert engine.tokens.decode(list(prompt)) == "user: Say\n> ", "of the first turn: drafts are not the question"


def test_where_all_weigh_nothing_somebody_wins(client: Client) -> None:
    told = client.complete(**ASKED, ranker="none")["voting"]
    assert (told["ranker"], told["tie"], told["num_valid"]) == ("none", True, 8)


def test_the_untrained_ones_are_still_there(client: Client, engine: FakeEngine) -> None:
    assert "ranker_time_ms" not in client.complete(**ASKED, ranker="min_logprob")["metrics"]
    assert client.get("/v1/models").json()["data"][0]["capabilities"]["rankers"] == [
        "length",
        "none",
        "min_logprob",
        "logprob",
    ]
    reply = client.post("/v1/completions", {"prompt": "x", **ASKED, "ranker": "nobody"})
    assert reply.json()["error"]["message"] == "ranker is 'nobody'; this model has length, none, min_logprob, logprob."


@pytest.mark.parametrize("stream", [False, True])
def test_a_ranker_that_fails(client: Client, engine: FakeEngine, stream: bool) -> None:
    engine.rank_failure = EngineError("the model failed on this request")
    reply = client.post("/v1/completions", {"prompt": "x", **ASKED, "stream": stream})
    assert reply.status_code == (200 if stream else 500)
    assert '"code":"internal_error"' in reply.text
    assert not engine.running


def test_a_ranker_that_takes_too_long(client: Client, engine: FakeEngine) -> None:
    def slow(entry: Entry) -> float:
        time.sleep(0.1)
        return 0.5

    engine.judges, engine.pace_s = {"slow": slow}, 0.0
    engine.answer = lambda attempt: "1"

    async def stuck(ranker: str, entries: Sequence[Entry]) -> list[float]:
        await asyncio.sleep(60)
        return []

    engine.rank = stuck  # type: ignore[method-assign]
    reply = client.post("/v1/completions", {"prompt": "x", **ASKED, "timeout_s": 0.3})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")


class TestScore:
    def test_candidates_are_scored_in_their_order(self, client: Client, engine: FakeEngine) -> None:
        texts = ["a", "bb", "Ärger", ""]
        reply = client.post("/v1/score", {"prompt": "Say", "candidates": texts}).json()
        assert [item["score"] for item in reply["data"]] == [length_matters(Entry((), text)) for text in texts]
        assert [item["index"] for item in reply["data"]] == [0, 1, 2, 3]
        assert (reply["object"], reply["ranker"], reply["data"][0]["object"]) == ("list", "length", "score")
        assert reply["usage"]["prompt_tokens"] == 4 * 3 + 1 + 2 + 6
        assert (
            client.post("/v1/score", {"prompt": "Say", "candidates": ["x"], "ranker": "none"}).json()["ranker"]
            == "none"
        )

    def test_of_a_conversation(self, client: Client, engine: FakeEngine) -> None:
        body = {"messages": [{"role": "user", "content": "Say"}], "candidates": ["x"]}
        assert client.post("/v1/score", body).json()["usage"]["total_tokens"] == len("user: Say\n> ") + 1

    @pytest.mark.parametrize(
        ("body", "param", "words"),
        [
            ({}, "candidates", "required"),
            ({"candidates": ["x"]}, "prompt", "either a prompt or messages"),
            ({"prompt": "x", "candidates": []}, "candidates", "at least 1"),
            ({"prompt": "x", "candidates": ["<|startthought|>"]}, "candidates", "thought marker"),
            ({"prompt": "<|endthought|>", "candidates": ["x"]}, "prompt", "thought marker"),
            ({"prompt": "x" * 150, "candidates": ["x", "y" * 80]}, "candidates", "have 230"),
            ({"prompt": "x" * 199, "candidates": ["y"] * 1024 + ["z"]}, "candidates", "at most 1024"),
            (
                {"prompt": "x", "candidates": ["x"], "ranker": "min_logprob"},
                "ranker",
                "trained ones here are length, none",
            ),
        ],
    )
    def test_what_cannot_be_scored(self, client: Client, body: dict[str, Any], param: str, words: str) -> None:
        reply = client.post("/v1/score", body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param)
        assert words in error["message"]

    def test_not_more_than_can_be_read(self, client: Client, engine: FakeEngine) -> None:
        engine.max_model_len = 1000
        reply = client.post("/v1/score", {"prompt": "x" * 900, "candidates": ["y"] * 400})
        assert "360400 tokens; 262144 may be scored at once" in reply.json()["error"]["message"]

    def test_without_a_ranker(self, client: Client, engine: FakeEngine) -> None:
        engine.judges = {}
        reply = client.post("/v1/score", {"prompt": "x", "candidates": ["x"]})
        assert "--ranker loads one" in reply.json()["error"]["message"]

    def test_where_too_many_wait(self, client: Client, engine: FakeEngine) -> None:
        """Nothing else bounds what clients may ask to be scored."""
        engine.num_unranked = 4097
        reply = client.post("/v1/score", {"prompt": "x", "candidates": ["x"]})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")

    def test_a_client_that_left_is_not_waited_for(self, url: str, engine: FakeEngine) -> None:
        left = threading.Event()

        async def stuck(ranker: str, entries: Sequence[Entry]) -> list[float]:
            try:
                await asyncio.sleep(60)
            finally:
                left.set()
            return []

        engine.rank = stuck  # type: ignore[method-assign]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/score", json={"prompt": "x", "candidates": ["x"]}, timeout=0.3)
        assert left.wait(10)

    def test_while_it_drains(self, client: Client, pipeline: Pipeline) -> None:
        pipeline.draining = True
        assert client.post("/v1/score", {"prompt": "x", "candidates": ["x"]}).status_code == 503


class Slow:
    """A judge whose logit is the length; it can be held up, and refuses what is `bad`."""

    def __init__(self) -> None:
        self.begun, self.may_go, self.sizes = threading.Event(), threading.Event(), list[int]()
        self.may_go.set()

    def length(self, entry: Entry) -> int:
        return len(entry.text)

    def __call__(self, entries: Sequence[Entry]) -> torch.Tensor:
        self.begun.set()
        self.may_go.wait(10)
        self.sizes.append(len(entries))
        if any(entry.text == "bad" for entry in entries):
            raise RuntimeError("boom")
        return torch.tensor([float(len(entry.text)) for entry in entries])


def probability(text: str) -> float:
    return round(1 / (1 + math.exp(-len(text))), 6)


def run(work: Any, judge: Slow) -> test_engine.Books:
    return test_engine.run(
        work, rankers={"slow": Ranker(RankerConfig("states"), judge), "other": Ranker(RankerConfig("states"), Slow())}
    )


def test_the_device_thread_scores_between_forwards() -> None:
    judge = Slow()
    texts = ["x" * (number % 9) for number in range(150)]

    async def work(engine: Engine, books: test_engine.Books) -> None:
        (ticket,) = engine.submit([Attempt((9, 8, 7), test_engine.LONG)])
        scores = await asyncio.gather(*(engine.rank("slow", [Entry((1,), text) for text in texts]) for _ in range(2)))
        assert scores == [[probability(text) for text in texts]] * 2
        assert ticket.finish_reason is None, "the one that decodes goes on"
        engine.cancel(ticket)
        assert books.ranked_answers == 300

    run(work, judge)
    assert max(judge.sizes) <= 64


def test_one_that_fails_fails_alone() -> None:
    async def work(engine: Engine, books: test_engine.Books) -> None:
        bad = asyncio.create_task(engine.rank("slow", [Entry((), "bad")]))
        good = asyncio.create_task(engine.rank("other", [Entry((), "good")]))
        with pytest.raises(EngineError, match="failed on this request"):
            await bad
        assert await good == [probability("good")]
        assert await engine.rank("slow", [Entry((), "well")]) == [probability("well")]

    run(work, Slow())


def test_who_left_is_not_scored_and_closing_waits_for_the_rest() -> None:
    judge = Slow()

    async def work(engine: Engine, books: test_engine.Books) -> None:
        judge.may_go.clear()
        assert engine.num_unranked == 0
        first = asyncio.create_task(engine.rank("slow", [Entry((), "a")]))
        await asyncio.to_thread(judge.begun.wait, 10)
        left, last = (asyncio.create_task(engine.rank("slow", [Entry((), text)])) for text in ("left", "b"))
        await asyncio.sleep(0)
        assert engine.num_unranked == 2
        left.cancel()
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close, 10))
        await asyncio.sleep(0.05)
        judge.may_go.set()
        assert await asyncio.gather(first, last) == [[probability("a")], [probability("b")]]
        await closing
        with pytest.raises(EngineClosedError):
            await engine.rank("slow", [Entry((), "c")])

    run(work, judge)


def test_what_still_waits_at_the_end_is_told() -> None:
    judge = Slow()

    async def work(engine: Engine, books: test_engine.Books) -> None:
        judge.may_go.clear()
        first = asyncio.create_task(engine.rank("slow", [Entry((), "a")]))
        await asyncio.to_thread(judge.begun.wait, 10)
        second = asyncio.create_task(engine.rank("other", [Entry((), "b")]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close, 0))
        await asyncio.sleep(0.05)
        judge.may_go.set()
        await closing
        assert await first == [probability("a")]
        with pytest.raises(EngineError, match="stopped before"):
            await second

    run(work, judge)


def test_it_is_on_the_books(metrics: Metrics) -> None:
    metrics.ranked("length", 8, 0.25)
    text = metrics.render().decode()
    assert 'quietserve_ranked_answers_total{model_name="fake",ranker="length"} 8.0' in text
    assert 'quietserve_ranker_time_seconds_sum{model_name="fake",ranker="length"} 0.25' in text
