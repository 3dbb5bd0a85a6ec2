"""Replies of servers newer and older than this client; what is not there yet is read from the contract's examples."""

import pytest
from canned import CHAT, CHUNKS, COMPLETION, THOUGHT, USAGE

from quietserve.clients.errors import ApiError, shape_errors
from quietserve.clients.parsing import parse_event, parse_reply
from quietserve.clients.replies import Metrics, Probed, Readout, SelfCorrection, TokenLogprob, Turn, Usage, Vote, Voting

GROUPS = [
    {"answer": "8", "count": 2, "weight": 1.5, "score": 0.75, "sample_indices": [0, 2]},
    {"answer": "9", "count": 1, "weight": 0.5, "score": 0.25, "sample_indices": [1]},
]
VOTING = {
    "strategy": "ranker",
    "ranker": "asc",
    "num_samples": 4,
    "num_valid": 3,
    "agreement": 0.667,
    "tie": False,
    "groups": GROUPS,
    "samples": [
        {"index": 0, "text": "it is 8", "answer": "8"},
        {"index": 3, "message": {"content": "no idea"}, "answer": None},
    ],
}
METRICS = {
    "queue_time_ms": 1.0,
    "time_to_first_token_ms": 20.5,
    "time_to_first_output_token_ms": 31.0,
    "generation_time_ms": 80.0,
    "thought_time_ms": 60.0,
    "tokens_per_second": 25.0,
    "forwards_per_token": 1.4,
    "acceptance_rate": 0.9,
}
DRAFTS = [
    {"text": "7", "finish_reason": "length", "num_tokens": 2},
    {"text": "8", "finish_reason": "stop", "num_tokens": 1, "thoughts": [THOUGHT]},
]
CORRECTION = {"turns_run": 2, "changed": True, "turns": DRAFTS}


def one_choice(**extra):
    return parse_reply({**CHAT, "choices": [{**CHAT["choices"][0], **extra}]}, None).choices[0]


def test_probes():
    told = {"position": 0, "token": " a", "readouts": {"way": {"class": "N", "probability": 0.75}, "wall": None}}
    expected = (Probed(0, " a", {"way": Readout("N", 0.75), "wall": None}),)
    assert one_choice(probes=[told]).probes == expected
    reply = parse_reply({**CHAT, "choices": [{**CHAT["choices"][0], "probes": [told]}]}, None)
    assert reply.probes == expected
    correction = {**CORRECTION, "turns": [{**DRAFTS[0], "probes": [told]}, DRAFTS[1]]}
    first, second = one_choice(self_correction=correction).self_correction.turns
    assert (first.probes, second.probes, one_choice().probes) == (expected, (), ())


def test_usage_details():
    details = {"reasoning_tokens": 4, "draft_tokens": 2, "discarded_tokens": 7}
    usage = parse_reply({**CHAT, "usage": {**USAGE, "completion_tokens_details": details}}, None).usage
    assert usage == Usage(11, 6, 17, reasoning_tokens=4, draft_tokens=2, discarded_tokens=7)


@pytest.mark.parametrize("details", [None, {}, {"reasoning_tokens": None}])
def test_usage_without_details(details):
    assert parse_reply({**CHAT, "usage": {**USAGE, "completion_tokens_details": details}}, None).usage == Usage(
        11, 6, 17
    )


def test_metrics():
    assert parse_reply({**CHAT, "metrics": METRICS}, None).metrics == Metrics(**METRICS)
    assert parse_reply({**CHAT, "metrics": {"queue_time_ms": 3, "new": 1}}, None).metrics == Metrics(queue_time_ms=3)
    assert parse_reply(CHAT, None).metrics is None


def test_warnings():
    assert parse_reply({**CHAT, "warnings": ["unknown key: x"]}, None).warnings == ("unknown key: x",)
    assert parse_reply(CHAT, None).warnings == ()


def test_self_correction():
    correction = one_choice(self_correction=CORRECTION).self_correction
    thoughts = one_choice().thoughts
    assert correction == SelfCorrection(2, True, (Turn("7", "length", 2, (), {}), Turn("8", "stop", 1, thoughts, {})))
    untold = {"turns_run": 1, "changed": False}
    assert one_choice(self_correction=untold).self_correction == SelfCorrection(1, False, ())
    assert one_choice().self_correction is None


def test_votes():
    assert one_choice(vote=GROUPS[0]).vote == Vote("8", 2, 1.5, 0.75, (0, 2))
    assert one_choice(vote={"answer": "8"}).vote == Vote("8", None, None, None, ())
    assert one_choice().vote is None


def test_voting():
    voting = parse_reply({**CHAT, "voting": VOTING}, None).voting
    assert voting is not None
    assert (voting.strategy, voting.ranker, voting.num_samples, voting.num_valid) == ("ranker", "asc", 4, 3)
    assert (voting.agreement, voting.tie) == (0.667, False)
    assert [(group.answer, group.sample_indices) for group in voting.groups] == [("8", (0, 2)), ("9", (1,))]
    assert [(sample.index, sample.text, sample.answer) for sample in voting.samples] == [
        (0, "it is 8", "8"),
        (3, "no idea", None),
    ]


def test_voting_that_says_little():
    assert parse_reply({**CHAT, "voting": {"strategy": "majority"}}, None).voting == Voting(
        "majority", None, None, None, None, False, (), ()
    )


def test_a_stream_tells_the_same():
    last = {**CHUNKS[3], "metrics": METRICS, "voting": VOTING, "warnings": ["w"]}
    last["choices"] = [{**last["choices"][0], "vote": GROUPS[0], "self_correction": CORRECTION}]
    (delta,) = parse_event(last, "req-1")
    assert (delta.metrics, delta.warnings, delta.request_id) == (Metrics(**METRICS), ("w",), "req-1")
    assert delta.voting == parse_reply({**CHAT, "voting": VOTING}, None).voting
    assert (delta.vote, delta.self_correction) == (
        one_choice(vote=GROUPS[0]).vote,
        one_choice(self_correction=CORRECTION).self_correction,
    )


def test_log_probabilities_of_a_chat():
    top = [{"token": "8", "logprob": -0.1, "bytes": [56]}, {"token": "9", "logprob": -2.5, "bytes": [57]}]
    logprobs = {"content": [{"token": "8", "logprob": -0.1, "bytes": [56], "top_logprobs": top}]}
    assert one_choice(logprobs=logprobs).logprobs == (TokenLogprob("8", -0.1, (("8", -0.1), ("9", -2.5))),)
    assert one_choice(logprobs=None).logprobs == ()


@pytest.mark.parametrize("tops", [None, [None, {"b": -0.5}]])
def test_log_probabilities_of_a_text(tops):
    told = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": tops, "text_offset": [0, 1]}
    body = {**COMPLETION, "choices": [{**COMPLETION["choices"][0], "logprobs": told}]}
    assert parse_reply(body, None).choices[0].logprobs == (
        TokenLogprob("a", None, ()),
        TokenLogprob("b", -0.5, (("b", -0.5),) if tops else ()),
    )


@pytest.mark.parametrize(
    "extra", [{"metrics": [1]}, {"voting": {"groups": [1]}}, {"voting": {"samples": 3}}, {"warnings": 3}]
)
def test_another_shape_is_an_error(extra):
    with pytest.raises(ApiError, match="not in the API's shape"), shape_errors(None):
        parse_reply({**CHAT, **extra}, None)
