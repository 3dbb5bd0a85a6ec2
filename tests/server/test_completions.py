"""POST /v1/completions: what a reply says, and that a stream says the same."""

import threading
from typing import Any

import pytest
from fake_engine import EOS, Client, FakeEngine, says

from quietserve.server.choices import CompletionWriter


def test_a_reply_has_the_shape_clients_know(client: Client) -> None:
    reply = client.complete(seed=1, thought_depth=0)
    assert reply["object"] == "text_completion"
    assert reply["model"] == "fake"
    assert reply["id"].startswith("cmpl-")
    (choice,) = reply["choices"]
    assert choice["text"].startswith("Ärger ")
    assert choice["finish_reason"] == "stop"
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}


def test_usage_counts_every_decoded_token(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("abcdef")
    usage = client.complete(prompt="12345", n=2, thought_depth=4)["usage"]
    thoughts = 2 * (len("hm 0") + len("hm 3") + len("hm 6"))  # the third goes before the end of the text
    visible = 2 * len("abcdef$")
    assert usage == {
        "prompt_tokens": 5,
        "completion_tokens": visible + thoughts,
        "total_tokens": 5 + visible + thoughts,
        "completion_tokens_details": {"reasoning_tokens": thoughts, "draft_tokens": 0, "discarded_tokens": 0},
    }


def test_prompts_come_in_four_forms(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("x")
    ids = engine.tokens.encode("ab")
    for prompt, count in (("ab", 1), (["ab", "ab"], 2), (ids, 1), ([ids, ids, ids], 3)):
        reply = client.complete(prompt=prompt, echo=True)
        assert [choice["text"] for choice in reply["choices"]] == ["abx"] * count
        assert [choice["index"] for choice in reply["choices"]] == list(range(count))
        assert reply["usage"]["prompt_tokens"] == 2 * count


def test_null_is_unset(client: Client, engine: FakeEngine) -> None:
    fields = ("n", "temperature", "stop", "logprobs", "stream", "stream_options", "best_of", "suffix", "tools", "user")
    reply = client.complete(**dict.fromkeys(fields), num_thoughts=None, never_heard_of=None)
    assert len(reply["choices"]) == 1


def test_neutral_values_of_what_is_not_built_pass(client: Client) -> None:
    client.complete(
        n=2,
        best_of=2,
        num_thoughts=1,
        voting="none",
        thought_mode="fixed",
        self_correction_turns=0,
        thinking_token_budget=-1,
        response_format={"type": "text"},
        tools=[],
        user="u",
        metadata={"a": "b"},
    )


def test_stop_strings_are_cut_off(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("one two three")
    (choice,) = client.complete(stop=[" three", "two"])["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")


def test_max_tokens_is_16_by_default_and_bounds_visible_tokens(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("a" * 50)
    assert client.complete(max_tokens=None)["choices"][0]["text"] == "a" * 16
    assert client.complete(max_tokens=3)["choices"][0]["finish_reason"] == "length"
    assert client.complete(max_tokens=3, max_completion_tokens=4)["choices"][0]["text"] == "aaaa"
    assert client.complete(prompt="p" * 195, max_tokens=None)["choices"][0]["text"] == "a" * 5


def test_logprobs_name_the_chosen_token_with_the_same_number(client: Client) -> None:
    logprobs = client.complete(logprobs=1, max_tokens=12)["choices"][0]["logprobs"]
    assert all(len(column) == 12 for column in logprobs.values())
    for i, (token, logprob, top) in enumerate(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    ):
        assert top[token] == logprob
        assert (max(top.values()) == logprob) == (i % 4 != 3), "lm-eval tells greedy choices by this"


def test_logprobs_0_tells_of_the_chosen_token_alone(client: Client) -> None:
    top = client.complete(logprobs=0, max_tokens=4)["choices"][0]["logprobs"]["top_logprobs"]
    assert [len(entry) for entry in top] == [1, 1, 1, 1]


def test_echo_with_logprobs_scores_the_prompt(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("xyz")
    (choice,) = client.complete(prompt=engine.tokens.encode("abcd"), echo=True, logprobs=2, max_tokens=1)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "".join(logprobs["tokens"]) == "abcdx"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert engine.tickets[0].attempt.params.prompt_logprobs == 2


def test_echo_can_score_without_decoding(client: Client) -> None:
    reply = client.complete(prompt="abcd", echo=True, logprobs=1, max_tokens=0)
    assert reply["choices"][0]["text"] == "abcd"
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 4
    assert reply["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_have_the_shape_of_vllm(client: Client, engine: FakeEngine) -> None:
    (choice,) = client.complete(prompt="abcde", prompt_logprobs=1)["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    b, z, d = (str(id_) for id_ in engine.tokens.encode("bzd"))
    assert rest[0] == {b: {"logprob": -0.140625, "rank": 1, "decoded_token": "b"}}
    assert rest[2] == {  # this one was not the likeliest
        z: {"logprob": -0.0625, "rank": 1, "decoded_token": "z"},
        d: {"logprob": -2.171875, "rank": None, "decoded_token": "d"},
    }
    assert choice["logprobs"] is None


def test_token_ids_are_told_when_asked_for(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("hi")
    (choice,) = client.complete(prompt="ab", return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == engine.tokens.encode("ab")
    assert choice["token_ids"] == [*engine.tokens.encode("hi"), EOS]


def test_thoughts_tell_which_token_they_precede(client: Client, engine: FakeEngine) -> None:
    engine.answer = says("abcd")
    (choice,) = client.complete(return_thoughts=True, include_reasoning=True, thought_depth=2)["choices"]
    assert [thought["position"] for thought in choice["thoughts"]] == [0, 1, 2, 3, 4]
    assert choice["thoughts"][3] == {
        "position": 3,
        "token": "d",
        "thought": "hm 3",
        "token_ids": engine.tokens.encode("hm 3"),
        "mixing_weight": 0.25,
        "thought_index": 0,
    }
    assert choice["reasoning"] == choice["reasoning_content"] == "hm 0\nhm 3"


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3, "logprobs": 2, "return_thoughts": True, "include_reasoning": True},
        {"echo": True, "logprobs": 1, "return_token_ids": True},
        {"echo": True, "prompt": ["ab", "cd"], "n": 2},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"stop": "9", "thought_depth": 0},
    ],
    ids=str,
)
def test_a_stream_joins_to_the_reply(client: Client, extra: dict) -> None:
    whole = client.complete(seed=7, **extra)
    chunks = client.complete(seed=7, stream=True, stream_options={"include_usage": True}, **extra)
    *chunks, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        for name in ("text", "reasoning", "thoughts", "token_ids", "prompt_token_ids"):
            if name in choice:
                assert choice[name] == joined(piece[name] for piece in pieces if piece.get(name))
        if choice["logprobs"]:
            for name, column in choice["logprobs"].items():
                assert column == joined(piece["logprobs"][name] for piece in pieces)


def joined(pieces):
    first, *rest = pieces
    for piece in rest:
        first = first + piece
    return first


def test_the_seed_decides_and_only_the_seed(client: Client, engine: FakeEngine) -> None:
    def texts(**body) -> list[str]:
        return [choice["text"] for choice in client.complete(**body)["choices"]]

    assert texts(seed=5, n=3) == texts(seed=5, n=3)
    assert len(set(texts(seed=5, n=3))) == 3
    assert texts(seed=5, n=3)[:1] == texts(seed=5)
    assert texts(seed=5, prompt=["a", "b"])[1:] == texts(seed=5, prompt="b")
    assert texts(n=1) != texts(n=1)
    seeds = [ticket.attempt.params.seed for ticket in engine.tickets]
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("asked", [{}, {"best_of": 2, "stream": True}])
def test_a_long_reply_is_written_on_a_thread(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """What there is to tell of thousands of tokens once took seconds, in which no other request got an answer."""
    threads, choice, on_loop = [], CompletionWriter._choice, []
    monkeypatch.setattr(
        CompletionWriter, "_choice", lambda *told: threads.append(threading.current_thread()) or choice(*told)
    )
    engine.max_model_len = 1000
    for length in (10, 300):
        engine.answer = says("x" * length)
        client.complete(logprobs=2, max_tokens=400, **asked)
        on_loop.append(all(thread is threading.main_thread() for thread in threads))
        threads.clear()
    assert on_loop == [True, False]
