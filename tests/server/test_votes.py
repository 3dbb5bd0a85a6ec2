"""Answers that vote: what is returned, what is told of it, and when the rest need not be drawn."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, events

from quietserve.model.answers import finder, normalise
from quietserve.server.metrics import Metrics
from quietserve.server.presets import Preset
from quietserve.server.scheduler import Attempt, EngineError
from quietserve.server.service import Service

ASKED = {"best_of": 6, "voting": "majority", "answer_pattern": "last_number", "seed": 3}


def dice(attempt: Attempt) -> str:
    """A number from 0 to 3, in a text of its own length and spelling; or none."""
    seed = attempt.params.seed
    number = [f"{seed % 4}", f"{seed % 4}.0", f"${seed % 4}"][seed // 7 % 3]
    return "no idea" if seed % 5 == 0 else f"{'hm ' * (seed % 3)}it is {number}"


@pytest.fixture(autouse=True)
def rolls(engine: FakeEngine) -> None:
    engine.answer = dice


def every(client: Client, engine: FakeEngine, **asked: Any) -> list[str]:
    """The texts that are drawn for a request, in their order."""
    size = asked.get("best_of", 6)
    reply = client.complete(**{"seed": 3} | asked | {"n": size, "best_of": size, "voting": "none"})
    engine.tickets.clear()
    return [choice["text"] for choice in reply["choices"]]


@pytest.mark.parametrize("seed", range(8))
def test_the_answer_of_the_most_is_returned(client: Client, engine: FakeEngine, seed: int) -> None:
    texts = every(client, engine, seed=seed, best_of=9)
    find = finder("last_number")
    values = [None if (found := find(text)) is None else normalise(found) for text in texts]
    counts = Counter(value for value in values if value is not None)
    reply = client.complete(**ASKED | {"seed": seed, "best_of": 9, "return_samples": True})
    told, choice = reply["voting"], reply["choices"][0]
    assert [sample["text"] for sample in told["samples"]] == texts
    assert [sample.get("answer") for sample in told["samples"]] == values
    assert {group["answer"]: group["count"] for group in told["groups"]} == counts
    assert (told["strategy"], told["num_samples"], told["num_valid"]) == ("majority", 9, counts.total())
    winner = told["groups"][0]
    assert winner["count"] == max(counts.values())
    assert winner["sample_indices"] == [i for i, value in enumerate(values) if value == winner["answer"]]
    assert choice["text"] == texts[winner["sample_indices"][0]]
    assert choice["vote"] == winner
    assert told["agreement"] == pytest.approx(winner["count"] / counts.total())
    assert told["tie"] == (list(counts.values()).count(winner["count"]) > 1)
    assert [ticket.kept for ticket in engine.tickets].count(True) == 1


def test_several_choices_are_different_answers(client: Client, engine: FakeEngine) -> None:
    reply = client.complete(**ASKED, n=2)
    first, second = (choice["vote"]["answer"] for choice in reply["choices"])
    assert first != second
    groups = reply["voting"]["groups"]
    assert [group["answer"] for group in groups][:2] == [first, second]


def test_where_there_are_fewer_answers_than_choices_the_rest_follow(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: "7" if attempt.params.seed % 2 else "none"
    reply = client.complete(**ASKED, n=6)
    votes = [choice.get("vote", {}).get("answer") for choice in reply["choices"]]
    assert votes == sorted(votes, key=lambda answer: answer is None)
    assert {"7", None} == set(votes)


def test_nobody_has_an_answer(client: Client, engine: FakeEngine, metrics: Metrics) -> None:
    engine.answer = lambda attempt: "none"
    reply = client.complete(**ASKED)
    assert reply["choices"][0]["text"] == "none"
    assert "vote" not in reply["choices"][0]
    assert (reply["voting"]["num_valid"], reply["voting"]["agreement"], reply["voting"]["groups"]) == (0, 0, [])


def test_votes_that_cannot_change_the_winner_are_not_waited_for(client: Client, engine: FakeEngine) -> None:
    """The answer, and who gave it, are those of the whole vote."""
    engine.answer = lambda attempt: f"{'hm ' * (attempt.params.seed % 20)}{attempt.params.seed % 2}"
    engine.pace_s = 0.001
    num_outvoted = 0
    for seed in range(4):
        asked = {"best_of": 9, "voting": "majority", "answer_pattern": "last_number", "seed": seed, "max_tokens": 150}
        whole = client.complete(**asked, return_samples=True)
        engine.tickets.clear()
        early = client.complete(**asked)
        assert early["choices"][0]["text"] == whole["choices"][0]["text"]
        assert early["voting"]["groups"][0]["answer"] == whole["voting"]["groups"][0]["answer"]
        outvoted = [ticket for ticket in engine.tickets if ticket.finish_reason == "outvoted"]
        assert early["voting"]["num_samples"] == 9 - len(outvoted)
        assert whole["voting"]["num_samples"] == 9
        num_outvoted += len(outvoted)
    assert num_outvoted > 0


@pytest.mark.parametrize("voting", ["likelihood", "ranker"])
def test_other_votes_are_weighed(client: Client, engine: FakeEngine, voting: str) -> None:
    """Of two answers, as often given, the shorter is likelier as the fake engine has it."""
    engine.answer = lambda attempt: "1" if attempt.params.seed % 2 else "it is 2"
    for seed in range(4):
        reply = client.complete(**ASKED | {"voting": voting, "seed": seed, "return_samples": True})
        groups = {group["answer"]: group for group in reply["voting"]["groups"]}
        assert sum(group["weight"] for group in groups.values()) == pytest.approx(1)
        assert reply["voting"].get("ranker") == ("min_logprob" if voting == "ranker" else None)
        if len(groups) == 2:
            each = {answer: group["weight"] / group["count"] for answer, group in groups.items()}
            assert each["1"] > each["2"]
        assert all(("score" in sample) == (voting == "ranker") for sample in reply["voting"]["samples"])


def test_a_stream_holds_the_same_and_tells_how_far_it_has_got(client: Client) -> None:
    asked = {**ASKED, "return_samples": True}
    whole = client.complete(**asked)
    text = client.post("/v1/completions", {"prompt": "Say", "max_tokens": 64, "stream": True, **asked}).text
    *comments, last = [line for line in text.split("\n\n") if line.startswith(": ")]
    assert len(comments) == 5
    assert last == f": 6 of 6 answers, agreement {whole['voting']['agreement']:.2f}"
    (chunk,) = events(text)
    assert chunk["choices"] == whole["choices"]
    assert chunk["voting"] == whole["voting"]


def test_each_prompt_has_its_own_vote(client: Client, engine: FakeEngine) -> None:
    """A preset that votes serves clients that send many prompts at once."""
    engine.answer = lambda attempt: f"{attempt.prompt[0] % 7} {'hm ' * (attempt.params.seed % 9)}"
    reply = client.complete(**ASKED, prompt=["a", "b", "c"])
    said = [choice["text"].split()[0] for choice in reply["choices"]]
    assert [choice["vote"]["answer"] for choice in reply["choices"]] == said
    assert len(set(said)) == 3
    assert "voting" not in reply


def test_what_befalls_an_outvoted_answer_harms_nobody(client: Client, engine: FakeEngine) -> None:
    """The winner was known, and the request failed with a loser."""
    engine.answer = lambda attempt: "7"
    real = engine.results

    async def results(ticket: Any) -> Any:
        if ticket is not engine.tickets[-1]:
            async for progress in real(ticket):
                yield progress
            return
        while not ticket.cancelled:
            await asyncio.sleep(0.001)
        raise EngineError("too little memory", "out_of_memory")

    engine.results = results  # type: ignore[method-assign]
    assert client.complete(**ASKED)["choices"][0]["text"] == "7"
    engine.tickets.clear()
    refused = client.post("/v1/completions", {"prompt": "Say", **ASKED, "return_samples": True, "timeout_s": 0.2})
    assert refused.status_code == 504, "where all are asked for, all count"


def test_chat_votes_too(client: Client) -> None:
    reply = client.chat(**ASKED)
    assert reply["choices"][0]["vote"] == reply["voting"]["groups"][0]


def test_each_voter_is_corrected_first(client: Client, engine: FakeEngine) -> None:
    """The vote is of last turns; a draft has no part in it."""
    engine.answer = lambda attempt: "2" if len(attempt.prompt) > 10 else "1"  # the second turn's is longer
    asked = {**ASKED, "self_correction_turns": 1, "return_drafts": True, "return_samples": True}
    asked["max_tokens"] = 16
    reply = client.complete(**asked)
    assert [group["answer"] for group in reply["voting"]["groups"]] == ["2"]
    assert reply["voting"]["num_samples"] == 6
    corrected = reply["choices"][0]["self_correction"]
    assert (corrected["turns_run"], corrected["turns"][0]["text"]) == (1, "1")
    details = reply["usage"]["completion_tokens_details"]
    assert details["draft_tokens"] == 6 * corrected["turns"][0]["num_tokens"]


def test_a_cancelled_answer_abstains(client: Client, engine: FakeEngine) -> None:
    """It may end in the middle of a number."""
    engine.answer = lambda attempt: "12"
    cancelled = []
    engine.voted = lambda strategy, verdict: cancelled.append(verdict)  # type: ignore[method-assign]
    real = engine.results

    async def results(ticket: Any) -> Any:
        async for progress in real(ticket):
            yield progress
            if not ticket.finish_reason and ticket is engine.tickets[0]:
                engine.cancel(ticket)

    engine.results = results  # type: ignore[method-assign]
    reply = client.complete(**ASKED | {"return_samples": True})
    first, *rest = reply["voting"]["samples"]
    assert (first["answer"], first["finish_reason"]) == (None, "abort")
    assert {sample["answer"] for sample in rest} == {"12"}
    assert cancelled[0].num_valid == 5


def test_a_preset_votes(client: Client, service: Service, engine: FakeEngine) -> None:
    preset = {"best_of": 4, "voting": "ranker", "ranker": "logprob", "answer_pattern": "last_number"}
    service.presets["wise"] = Preset("wise", preset)
    assert client.complete(model="wise")["voting"]["ranker"] == "logprob"
    assert "voting" not in client.complete(model="wise", temperature=0)
    assert "voting" not in client.complete(model="wise", best_of=1)
    assert "voting" not in client.complete(model="wise", voting="none")
    told = client.complete(model="wise", voting="majority")["voting"]
    assert (told["strategy"], told["num_valid"] > 0) == ("majority", True)


class TestCandidatesOfAClient:
    """POST /v1/vote."""

    def test_texts_vote(self, client: Client) -> None:
        body = {"candidates": ["it is 0.5", "so 1/2", "2", "?"], "answer_pattern": "last_number"}
        told = client.post("/v1/vote", body).json()
        assert [(g["answer"], g["count"], g["sample_indices"]) for g in told["groups"]] == [
            ("0.5", 2, [0, 1]),
            ("2", 1, [2]),
        ]
        assert (told["num_samples"], told["num_valid"], told["tie"]) == (4, 3, False)
        assert "samples" not in told

    def test_weights_are_the_clients(self, client: Client) -> None:
        given = [("a", -3.0, 0.2), ("a", -3.0, 0.2), ("b", -1.0, 0.3)]
        candidates = [{"text": text, "logprob": logprob, "score": score} for text, logprob, score in given]
        for voting, winner in (("majority", "a"), ("likelihood", "b"), ("ranker", "a")):
            told = client.post("/v1/vote", {"candidates": candidates, "voting": voting}).json()
            assert told["groups"][0]["answer"] == winner

    def test_what_is_not_known_is_not_certain(self, client: Client) -> None:
        """Of a tie, a candidate without a log-probability was the likeliest there can be."""
        told = client.post("/v1/vote", {"candidates": [{"text": "a", "logprob": -0.1}, "b"], "x": 1})
        assert told.json()["groups"][0]["answer"] == "a"
        assert told.headers["x-ignored-params"] == "x"

    def test_a_tie_goes_to_the_likelier_token(self, client: Client) -> None:
        """As it does among answers that are drawn; a long answer's total is low however sure it is of each token."""
        long, short = {"text": "a", "logprob": -6.0}, {"text": "b", "logprob": -2.0}
        told = client.post("/v1/vote", {"candidates": [long, short]}).json()
        assert (told["groups"][0]["answer"], told["tie"]) == ("b", True), "all that is known"
        told = client.post("/v1/vote", {"candidates": [long | {"mean_logprob": -0.3}, short | {"mean_logprob": -0.4}]})
        assert told.json()["groups"][0]["answer"] == "a"

    @pytest.mark.parametrize("voting", ["majority", "likelihood", "ranker"])
    def test_samples_that_were_returned_vote_again_as_they_did(self, client: Client, voting: str) -> None:
        """Their total log-probability was not told, so that a vote by likelihood could not be counted again."""
        asked = (
            ASKED | {"voting": voting, "return_samples": True} | ({"ranker": "logprob"} if voting == "ranker" else {})
        )
        first = client.complete(**asked)["voting"]
        kept = ("text", "logprob", "mean_logprob", "score")
        candidates = [{name: one[name] for name in kept if name in one} for one in first["samples"]]
        body = {"candidates": candidates, "voting": voting, "answer_pattern": ASKED["answer_pattern"]}
        again = client.post("/v1/vote", body).json()
        assert again["groups"] == first["groups"]

    def test_half_a_character_cannot_vote(self, client: Client) -> None:
        headers = {"content-type": "application/json"}
        reply = client.request("POST", "/v1/vote", content=rb'{"candidates": ["\ud800"]}', headers=headers)
        assert reply.status_code == 400
        assert "half a character" in reply.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("body", "param", "words"),
        [
            ({}, "candidates", "required"),
            ({"candidates": []}, "candidates", "at least 1"),
            ({"candidates": ["a"], "voting": "likelihood"}, "candidates", "candidate 0 must have a logprob"),
            ({"candidates": [{"text": "a", "score": 2}]}, "candidates", "less than or equal to 1"),
            ({"candidates": ["a"], "answer_pattern": "re:["}, "answer_pattern", "no expression"),
            ({"candidates": [{"text": "a", "logprob": -1.7e308}]}, "candidates[0].logprob", "greater than or equal"),
            ({"candidates": ["a" * 2**19] * 3}, "candidates", "all texts together may have"),
            ({"candidates": ["a"], "ranker": "logprob"}, "ranker", "does not have this field"),
            ({"candidates": ["a"], "voting": "none"}, "voting", "'majority', 'likelihood' or 'ranker'"),
        ],
    )
    def test_what_cannot_vote(self, client: Client, body: dict, param: str, words: str) -> None:
        reply = client.post("/v1/vote", body)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"].startswith(param)
        assert words in reply.json()["error"]["message"]
