"""More answers drawn than returned: the likeliest are kept, the others paid for and told of."""

from statistics import fmean

import pytest
from fake_engine import Client, FakeEngine, events

from quietserve.model.progress import Token
from quietserve.server.ballots import Answer, Ballot


def test_the_likeliest_answers_are_returned_best_first(client: Client, engine: FakeEngine) -> None:
    asked = {"seed": 4, "logprobs": 0}
    engine.answer = lambda attempt: "x" * (1 + attempt.params.seed % 29)
    every = client.complete(**asked, n=5)["choices"]
    engine.tickets.clear()

    def score(choice: dict) -> float:
        return fmean(choice["logprobs"]["token_logprobs"])

    best = sorted(every, key=score, reverse=True)[:2]
    reply = client.complete(**asked, best_of=5, n=2)
    assert [choice["text"] for choice in reply["choices"]] == [choice["text"] for choice in best]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    lost = [choice for choice in every if choice not in best]
    discarded = sum(len(choice["logprobs"]["tokens"]) for choice in lost)
    assert reply["usage"]["completion_tokens_details"]["discarded_tokens"] == discarded > 0
    assert [ticket.kept for ticket in engine.tickets] == [choice in best for choice in every]


def test_each_prompt_has_its_own(client: Client, engine: FakeEngine) -> None:
    engine.answer = lambda attempt: chr(attempt.prompt[0]) * (1 + attempt.params.seed % 50)
    reply = client.complete(prompt=["a", "b"], best_of=4, n=2, seed=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"][0] for choice in reply["choices"][:2]}) == 1
    for pair in (reply["choices"][:2], reply["choices"][2:]):
        assert len(pair[0]["text"]) <= len(pair[1]["text"])


def test_a_stream_holds_the_same_when_it_is_decided(client: Client) -> None:
    asked = {"best_of": 4, "n": 2, "seed": 5, "return_thoughts": True, "logprobs": 1}
    whole = client.complete(**asked)
    *chunks, usage = client.complete(**asked, stream=True, stream_options={"include_usage": True})
    assert [chunk["choices"][0] for chunk in chunks] == whole["choices"]
    assert usage["usage"] == whole["usage"]


def test_logprobs_are_told_only_to_who_asked(client: Client) -> None:
    assert client.complete(best_of=3)["choices"][0]["logprobs"] is None
    assert client.chat(best_of=3)["choices"][0]["logprobs"] is None


def test_an_answer_that_never_began_is_not_the_best() -> None:
    """Its mean log-probability used to be 0, which no answer with a token reaches."""
    assert Answer().score < Answer(tokens=[Token(1, logprob=-9999.0)]).score


def test_what_else_was_in_the_batch_does_not_choose_among_equals() -> None:
    """Which of several equal answers came back, with other thoughts, changed from one run of a seeded request to the next."""
    ballot = Ballot(4, None)
    for answer, noise in zip(ballot.answers, (0.0, 8e-7, -3e-7, 1.0), strict=True):
        answer.tokens = [Token(1, logprob=-1.3 + noise), Token(2, logprob=-0.2)]
    assert [index for index, _ in ballot.ranking()] == [3, 0, 1, 2]


@pytest.mark.parametrize("thought_temperature", [0, 1])
def test_sampled_thoughts_are_random_enough(client: Client, thought_temperature: float) -> None:
    asked = {"prompt": "x", "best_of": 2, "temperature": 0, "thought_temperature": thought_temperature}
    assert client.post("/v1/completions", asked).status_code == (200 if thought_temperature else 400)


def test_a_client_that_leaves_keeps_none(client: Client, engine: FakeEngine) -> None:
    engine.failure = ConnectionError("gone")
    client.post("/v1/completions", {"prompt": "x", "best_of": 3})
    assert [ticket.kept for ticket in engine.tickets] == [False] * 3


def test_a_stream_is_kept_alive_while_nothing_is_decided(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quietserve.server.streaming.SILENCE_S", 0.01)
    engine.pace_s = 0.01
    told = client.post("/v1/completions", {"prompt": "x", "best_of": 2, "stream": True, "max_tokens": 9}).text
    assert ": keep-alive\n\n" in told
    assert ": 2 of 2 answers\n\n" in told
    assert len(events(told)) == 1
