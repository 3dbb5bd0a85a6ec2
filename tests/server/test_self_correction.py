"""Answers that the model is asked to correct: every turn is decoded as it would be offline, and only the last is the answer."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import torch
from fake_engine import MODEL, Client, FakeEngine, byte_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_disconnect import leave
from test_engine import TOKENS, Books, collect, run

import faults
from quietserve.model.config import SamplingParams
from quietserve.model.correction import INSTRUCTION, CorrectionConfig, bridge, next_prompt
from quietserve.model.decode import generate
from quietserve.model.progress import Generation
from quietserve.model.tokens import Tokens
from quietserve.server.app import create_app
from quietserve.server.engine import Engine
from quietserve.server.metrics import Metrics
from quietserve.server.pipeline import Pipeline, attempt_seed
from quietserve.server.presets import Preset
from quietserve.server.scheduler import Attempt, EngineError, QueueFullError, Ticket
from quietserve.server.service import Service

ASKED = {"self_correction_turns": 1, "self_correction_prompt": "Again.", "seed": 3}
BYTES = byte_tokens()
BRIDGE = "\nuser: Again.\n> "  # as the fake engine's template says it: an answer, this, the next one


def turn_of(attempt: Attempt) -> int:
    return BYTES.decode(attempt.prompt).count("Again.")


def revised(*texts: str) -> Callable[[Attempt], str]:
    """Says something else in each turn."""
    return lambda attempt: texts[turn_of(attempt)]


# --- what a reply says -----------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tokens: Tokens) -> FakeEngine:
    return FakeEngine(tokens, answer=revised("five", " six", " six\n"))


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("ask", ["complete", "chat"])
def test_only_the_last_turn_is_the_answer(client: Client, ask: str, turns: int) -> None:
    reply = getattr(client, ask)(**ASKED | {"self_correction_turns": turns, "thought_depth": 0, "max_tokens": 9})
    (choice,) = reply["choices"]
    text = choice["text"] if ask == "complete" else choice["message"]["content"]
    assert text == ("five", " six", " six\n")[turns]
    assert choice["self_correction"] == {"turns_run": turns, "changed": True}


@pytest.mark.parametrize(
    ("first", "last", "changed"), [("6", "6", False), ("6", " 6\n", False), ("6", "7", True), ("", "7", True)]
)
def test_white_space_is_no_change(client: Client, engine: FakeEngine, first: str, last: str, changed: bool) -> None:
    engine.answer = revised(first, last)
    assert client.complete(**ASKED)["choices"][0]["self_correction"]["changed"] is changed


def test_nothing_is_said_of_it_where_it_was_not_asked_for(client: Client) -> None:
    reply = client.complete(return_drafts=False, self_correction_turns=0)
    assert "self_correction" not in reply["choices"][0]


def test_drafts_are_told_to_who_asks(client: Client) -> None:
    asked = ASKED | {"self_correction_turns": 2, "return_drafts": True, "return_thoughts": True, "max_tokens": 4}
    (choice,) = client.complete(**asked)["choices"]
    told = choice["self_correction"]["turns"]
    assert [(turn["text"], turn["finish_reason"], turn["num_tokens"]) for turn in told] == [
        ("five", "length", 4),
        (" six", "length", 4),
    ]
    assert [thought["position"] for thought in told[0]["thoughts"]] == [0, 1, 2, 3]
    (plain,) = client.complete(**asked | {"return_thoughts": False})["choices"]
    assert "thoughts" not in plain["self_correction"]["turns"][0]


@pytest.mark.parametrize("body", [{}, {"n": 3}, {"best_of": 4, "n": 2}, {"prompt": ["a", "b"], "n": 2}], ids=str)
def test_a_stream_says_the_same_and_nothing_of_drafts(client: Client, engine: FakeEngine, body: dict) -> None:
    engine.answer = lambda attempt: f"turn {turn_of(attempt)} of {attempt.params.seed % 997}"
    asked = ASKED | {"return_drafts": True, "return_thoughts": True, "logprobs": 1} | body
    whole = client.complete(**asked)
    *chunks, usage = client.complete(**asked, stream=True, stream_options={"include_usage": True})
    for choice in whole["choices"]:
        told = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in told) == choice["text"]
        assert choice["text"].startswith("turn 1")
        assert [part for part in told if "self_correction" in part] == told[-1:]
        assert told[-1]["self_correction"] == choice["self_correction"]
        assert [thought for part in told for thought in part["thoughts"]] == choice["thoughts"]
    assert usage["usage"] == whole["usage"]


def test_usage_adds_up(client: Client, engine: FakeEngine) -> None:
    """Four samples of three turns; two samples are not returned, and their drafts are drafts as well."""
    engine.answer = lambda attempt: "x" * (1 + attempt.params.seed % 7)
    reply = client.complete(**ASKED | {"self_correction_turns": 2, "max_tokens": 9, "n": 2, "best_of": 4})
    usage, tickets = reply["usage"], engine.tickets
    details = usage["completion_tokens_details"]
    lengths = [[attempt_seed(3, sample, turn) % 7 + 2 for turn in range(3)] for sample in range(4)]
    assert details["draft_tokens"] == sum(sum(turns[:-1]) for turns in lengths)
    returned = [length[-1] for length, ticket in zip(lengths, tickets, strict=True) if ticket.kept]
    assert len(returned) == 2
    assert details["discarded_tokens"] == sum(turns[-1] for turns in lengths) - sum(returned)
    hidden = sum(1 for turns in lengths for length in turns for i in range(length) if i % 3 == 0)
    assert details["reasoning_tokens"] == hidden * len("hm 0")
    assert usage["completion_tokens"] == sum(details.values()) + sum(returned)
    assert usage["prompt_tokens"] == len("Say")


def test_each_turn_has_a_seed_of_its_own(client: Client, engine: FakeEngine) -> None:
    client.complete(**ASKED | {"n": 2, "self_correction_turns": 2, "max_tokens": 9})
    seeds = [[how.seed for how in (*t.attempt.draft_params, t.attempt.params)] for t in engine.tickets]
    assert seeds == [[attempt_seed(3, sample, turn) for turn in range(3)] for sample in range(2)]


@pytest.mark.parametrize(
    ("thinking", "asked", "depths"),
    [("every", 4, [4, 4, 4]), ("last", 4, [0, 0, 4]), ("none", 4, [0, 0, 0]), ("last", None, [0, 0, 8])],
)
def test_the_turns_think_as_the_checkpoint_learned(
    engine: FakeEngine, metrics: Metrics, thinking: Any, asked: int | None, depths: list[int]
) -> None:
    pipeline = Pipeline(engine, correction=CorrectionConfig("Once more.", thinking))
    client = Client(create_app(Service(MODEL, metrics, pipeline=pipeline)))
    client.complete(self_correction_turns=2, max_tokens=9, thought_depth=asked)
    attempt = engine.tickets[0].attempt
    assert [how.thought_depth for how in (*attempt.draft_params, attempt.params)] == depths
    assert BYTES.decode(attempt.bridge) == "\nuser: Once more.\n> "
    client.complete(thought_depth=asked)
    assert engine.tickets[1].attempt.params.thought_depth == (8 if asked is None else asked), "one turn is as ever"


# --- what may be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("stray", [0, 1])
def test_all_turns_must_fit(client: Client, engine: FakeEngine, turns: int, stray: int) -> None:
    room = engine.max_model_len - len("Say") - turns * len(BRIDGE)
    body = ASKED | {"prompt": "Say", "self_correction_turns": turns, "max_tokens": room // (turns + 1) + stray}
    reply = client.post("/v1/completions", body)
    assert reply.status_code == (400 if stray else 200)
    if stray:
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        most, wanted, prompt, completion, between, _ = map(int, re.findall(r"\d+", error["message"]))
        assert most == 200 < wanted == prompt + completion + between


def test_without_a_limit_a_chats_turns_share_the_room(client: Client, engine: FakeEngine) -> None:
    client.chat(**ASKED)
    attempt = engine.tickets[0].attempt
    room = engine.max_model_len - len(attempt.prompt) - len(BRIDGE)
    assert [how.max_tokens for how in (*attempt.draft_params, attempt.params)] == [room // 2] * 2


@pytest.mark.parametrize("most", [0, 1])
def test_a_server_says_how_often_it_corrects(engine: FakeEngine, metrics: Metrics, most: int) -> None:
    pipeline = Pipeline(engine, max_self_correction_turns=most)
    client = Client(create_app(Service(MODEL, metrics, pipeline=pipeline)))
    (model,) = client.get("/v1/models").json()["data"]
    assert model["capabilities"]["self_correction"] is (most > 0)
    reply = client.post("/v1/completions", {"prompt": "x", "self_correction_turns": most + 1})
    assert f"self_correction_turns is {most + 1}; it must be between 0 and {most}." in reply.text


def test_a_template_without_earlier_answers_cannot_correct(
    client: Client, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_questions = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokens.tokenizer, "chat_template", only_questions)
    reply = client.post("/v1/completions", {"prompt": "x", "self_correction_turns": 1})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "self_correction_turns")


@pytest.mark.parametrize(
    ("body", "turns"),
    [
        ({}, 1),
        ({"self_correction_turns": 0}, 0),
        ({"self_correction_turns": 2}, 2),
        ({"echo": True}, 0),
        ({"echo": False}, 1),
        ({"prompt_logprobs": 0}, 0),
    ],
    ids=str,
)
def test_a_preset_may_correct(client: Client, engine: FakeEngine, service: Service, body: dict, turns: int) -> None:
    service.presets["sure"] = Preset("sure", ASKED | {"return_drafts": True})
    client.complete(model="sure", max_tokens=9, **body)
    assert len(engine.tickets[0].attempt.draft_params) == turns


def test_a_presets_prompt_logprobs_give_way(client: Client, service: Service) -> None:
    service.presets["scored"] = Preset("scored", {"prompt_logprobs": 0})
    assert "self_correction" in client.complete(model="scored", **ASKED)["choices"][0]


# --- how a request may end -------------------------------------------------------------------------------------------


def slow(engine: FakeEngine, turn: int) -> None:
    """One turn takes long, the other is over at once."""
    engine.pace_s = 0.01
    texts = ["a", "b"]
    texts[turn] *= 60
    engine.answer = revised(*texts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("turn", [0, 1])
def test_leaving_in_any_turn(client: Client, engine: FakeEngine, turn: int, stream: bool) -> None:
    slow(engine, turn)
    asyncio.run(leave(client.app, {"prompt": "p", **ASKED, "n": 2, "max_tokens": 60, "stream": stream}, engine))
    assert [(ticket.cancelled, len(ticket.drafts)) for ticket in engine.tickets] == [("abort", turn)] * 2


@pytest.mark.parametrize("turn", [0, 1])
def test_a_deadline_in_any_turn(client: Client, engine: FakeEngine, turn: int) -> None:
    slow(engine, turn)
    reply = client.post("/v1/completions", {"prompt": "p", **ASKED, "max_tokens": 60, "timeout_s": 0.2})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")
    assert [(ticket.cancelled, len(ticket.drafts)) for ticket in engine.tickets] == [("timeout", turn)]
    assert not engine.running


@pytest.mark.parametrize("turn", [0, 1])
def test_a_cancelled_request_is_answered_with_the_turn_it_was_in(url: str, engine: FakeEngine, turn: int) -> None:
    slow(engine, turn)

    async def ask() -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=url) as client:
            body = {"prompt": "p", **ASKED, "max_tokens": 60}
            asked = asyncio.create_task(client.post("/v1/completions", json=body, headers={"x-request-id": "mine"}))
            while not engine.tickets or (len(engine.tickets[0].drafts), len(engine.tickets[0].answer.text)) < (turn, 2):
                await asyncio.sleep(0.005)
            assert (await client.post("/v1/requests/mine/cancel")).status_code == 200
            return (await asked).json()

    reply = asyncio.run(ask())
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "abort"
    assert re.fullmatch("b+" if turn else "a+", choice["text"])
    assert choice["self_correction"] == {"turns_run": turn, "changed": turn == 1}
    assert reply["usage"]["completion_tokens_details"]["draft_tokens"] == (2 if turn else 0)  # "a" and its end


# --- the device thread, with a real model ----------------------------------------------------------------------------

SHORT = SamplingParams(max_tokens=3, ignore_eos=True)
LONG = SamplingParams(max_tokens=300, ignore_eos=True)


def corrected(draft: SamplingParams = SHORT, last: SamplingParams = LONG, **more: Any) -> Attempt:
    return Attempt((5, 6), last, draft_params=(draft,), bridge=(7, 8), **more)


def alone(engine: Engine, attempt: Attempt) -> list[Generation]:
    """Every turn of an attempt, offline."""
    turns, prompt = [], list(attempt.prompt)
    for params in (*attempt.draft_params, attempt.params):
        turns += generate(engine._decoder, [prompt], params)
        prompt = next_prompt(prompt, ids(turns[-1]), TOKENS.eos_ids, attempt.bridge)
    return turns


def ids(generation: Generation) -> list[int]:
    return [token.id for token in generation.tokens]


async def until(ticket: Ticket, num_drafts: int) -> None:
    while len(ticket.drafts) < num_drafts or not ticket.num_output_tokens:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_many_turns_at_once_are_what_each_is_alone(prefix_caching: bool) -> None:
    def attempt(i: int) -> Attempt:
        turns = [SamplingParams(max_tokens=3 + i % 5, thought_depth=i % 4, seed=9 * i + turn) for turn in range(3)]
        return Attempt((9, 8, 7 + i), turns[-1], draft_params=tuple(turns[: i % 3]), bridge=(40, 41, i + 3))

    async def work(engine: Engine, books: Books) -> None:
        tickets = engine.submit([attempt(i) for i in range(12)])
        answers = await asyncio.gather(*(collect(engine, ticket) for ticket in tickets))
        for ticket, answer in zip(tickets, answers, strict=True):
            *drafts, last = alone(engine, ticket.attempt)
            assert ids(answer) == ids(last)
            assert [ids(draft) for draft in ticket.drafts] == [ids(draft) for draft in drafts]
            assert answer.text == last.text
            total = sum(turn.num_thought_tokens for turn in (*drafts, last))
            assert answer.num_thought_tokens == ticket.num_thought_tokens == total
            assert ticket.num_output_tokens == len(last.tokens)
            assert ticket.num_draft_tokens == sum(len(draft.tokens) for draft in drafts)

    assert len(run(work, max_num_seqs=5, prefix_caching=prefix_caching).ended) == 12


def test_a_correction_begins_though_the_queue_is_full_and_before_who_waits() -> None:
    async def work(engine: Engine, books: Books) -> None:
        first, waiting = engine.submit([corrected(last=SHORT), Attempt((5,), SHORT)])
        with pytest.raises(QueueFullError):
            engine.submit([Attempt((5,), SHORT)])
        await asyncio.gather(collect(engine, first), collect(engine, waiting))
        assert len(first.drafts) == 1
        assert (first.timing.finished or 0) <= (waiting.timing.started or 0)

    assert run(work, max_num_seqs=1, max_num_queued_reqs=1).ended == ["length"] * 2


@pytest.mark.parametrize("reason", ["abort", "timeout"])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_that_is_cancelled_is_the_last(turn: int, reason: str) -> None:
    async def work(engine: Engine, books: Books) -> None:
        (ticket,) = engine.submit([corrected() if turn else corrected(LONG, LONG)])
        await until(ticket, turn)
        engine.cancel(ticket, reason)
        answer = await collect(engine, ticket)
        assert answer.finish_reason == reason
        assert len(ticket.drafts) == turn
        assert 0 < len(answer.tokens) == ticket.num_output_tokens < 300

    assert run(work).ended == [reason]


@asynccontextmanager
async def broken(engine: Engine, error: Exception) -> AsyncIterator[None]:
    right = engine._decoder.model.run

    def run_rows(*_: Any) -> torch.Tensor:
        raise error

    engine._decoder.model.run = run_rows
    try:
        yield
    finally:
        engine._decoder.model.run = right


@pytest.mark.parametrize(
    ("error", "code"),
    [(torch.OutOfMemoryError("no"), "out_of_memory"), (RuntimeError("a bug of ours"), "internal_error")],
)
@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_whose_forward_fails_ends_the_ticket(turn: int, error: Exception, code: str) -> None:
    async def work(engine: Engine, books: Books) -> None:
        (ticket,) = engine.submit([corrected() if turn else corrected(LONG, LONG)])
        await until(ticket, turn)
        async with broken(engine, error):
            with pytest.raises(EngineError) as told:
                await collect(engine, ticket)
            assert told.value.code == code
        (after,) = engine.submit([corrected(last=SHORT)])
        assert len((await collect(engine, after)).tokens) == 3

    assert run(work).ended == ["error", "length"]


def test_a_turn_that_cannot_begin_ends_the_ticket() -> None:
    async def work(engine: Engine, books: Books) -> None:
        (ticket,) = engine.submit([corrected(last=SamplingParams(max_tokens=397))])
        with pytest.raises(EngineError, match="exceed the 400 that fit"):
            await collect(engine, ticket)

    assert run(work).ended == ["error"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_device_thread_dies_between_two_turns() -> None:
    async def work(engine: Engine, books: Books) -> None:
        def dies(*_: Any) -> bool:
            raise RuntimeError("a bug of ours")

        engine._correct = dies
        tickets = engine.submit([corrected()] * 6)
        for ticket in tickets:
            with pytest.raises(EngineError, match="stopped"):
                await collect(engine, ticket)

    assert run(work).ended == ["error"] * 6


def test_who_drains_waits_for_the_last_turn() -> None:
    async def work(engine: Engine, books: Books) -> None:
        (ticket,) = engine.submit([corrected(last=SHORT)])
        await asyncio.to_thread(engine.close, 20.0)
        assert len((await collect(engine, ticket)).tokens) == 3
        assert len(ticket.drafts) == 1

    assert run(work).ended == ["length"]


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim() -> Iterator[faults.Victim]:
    with faults.victim() as made:
        yield made


BODY: dict[str, Any] = {"prompt": "is all well?", "max_tokens": 12, "seed": 5, "thought_depth": 3}


@pytest.mark.parametrize(
    "body",
    [
        {"self_correction_turns": 1},
        {"self_correction_turns": 2, "thought_depth": 0},
        {"self_correction_turns": 2, "self_correction_prompt": "Sure?", "stop": ["e", "a"], "temperature": 0.7},
        {"self_correction_turns": 1, "temperature": 0, "thinking_token_budget": 9},
        {"self_correction_turns": 1, "stop_token_ids": list(range(60, 90))},
    ],
    ids=str,
)
def test_an_answer_over_http_is_two_calls_offline(victim: faults.Victim, body: dict[str, Any]) -> None:
    right, read = victim.engine._decoder.start, []

    def start(slot: int, prompt: Any, params: SamplingParams) -> Any:
        read.append(list(prompt))
        return right(slot, prompt, params)

    body = BODY | {"return_token_ids": True, "return_drafts": True} | body
    victim.engine._decoder.start = start  # type: ignore[method-assign]
    try:
        reply = victim.post(body).json()
    finally:
        victim.engine._decoder.start = right  # type: ignore[method-assign]
    faults.settled(victim.url)
    between = bridge(victim.engine.tokens, body.get("self_correction_prompt", INSTRUCTION))
    same = {
        key: body[key] for key in ("max_tokens", "temperature", "thought_depth", "thinking_token_budget") if key in body
    }
    stops = {"stop": tuple(body.get("stop", ())), "stop_token_ids": tuple(body.get("stop_token_ids", ()))}
    turns, prompt = [], victim.engine.tokens.encode(body["prompt"])
    for turn in range(body["self_correction_turns"] + 1):
        assert read[turn] == prompt
        params = SamplingParams(**same, **stops, seed=attempt_seed(5, 0, turn))
        turns += generate(victim.engine._decoder, [prompt], params)
        prompt = next_prompt(prompt, ids(turns[-1]), frozenset({0}), between)
    (choice,) = reply["choices"]
    assert (choice["text"], choice["token_ids"]) == (turns[-1].text, ids(turns[-1]))
    assert [draft["text"] for draft in choice["self_correction"]["turns"]] == [turn.text for turn in turns[:-1]]
    details = reply["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == sum(turn.num_thought_tokens for turn in turns)
    assert details["draft_tokens"] == sum(len(turn.tokens) for turn in turns[:-1])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.none() | st.integers(0, 9)), min_size=1, max_size=9))
def test_every_ticket_ends_once_whoever_leaves_when(
    victim: faults.Victim, traffic: list[tuple[int, int, int | None]]
) -> None:
    """Each is so many drafts, tokens a turn, and milliseconds until its client leaves."""
    engine = victim.engine

    async def follow(ticket: Ticket, leaves_after_ms: int | None) -> None:
        if leaves_after_ms is not None:
            await asyncio.sleep(leaves_after_ms / 1000)
            engine.cancel(ticket)
        answer = await collect(engine, ticket)
        assert len(answer.tokens) == ticket.num_output_tokens
        assert answer.finish_reason == ticket.finish_reason
        assert answer.num_thought_tokens == ticket.num_thought_tokens
        assert answer.finish_reason == "abort" or not ticket.is_draft

    async def run_all() -> None:
        turns = [[SamplingParams(max_tokens=size, thought_depth=2)] * (count + 1) for count, size, _ in traffic]
        tickets = engine.submit(
            [Attempt((5, 6), own[0], "chat", draft_params=tuple(own[1:]), bridge=(7,)) for own in turns]
        )
        await asyncio.gather(*map(follow, tickets, [leaves for *_, leaves in traffic]))

    asyncio.run(run_all())
    victim.check()


def test_the_books_balance(victim: faults.Victim) -> None:
    before, drafts = faults.settled(victim.url), 0

    def more(name: str, **labels: str) -> float:
        return books.total(name, **labels) - before.total(name, **labels)

    for body in ({"n": 3}, {"best_of": 3}, {"self_correction_turns": 2, "n": 2}):
        reply = victim.post(BODY | {"self_correction_turns": 1} | body).json()
        drafts += reply["usage"]["completion_tokens_details"]["draft_tokens"]
    books = faults.settled(victim.url)
    assert more("generation_tokens_total", kind="draft") == drafts > 0
    assert more("requests_finished_total") == more("e2e_request_latency_seconds_count", self_correction="on") == 8
    assert more("self_correction_total") == more("self_correction_time_seconds_count") == 8
    asyncio.run(faults.send_and_leave(victim.url, BODY | {"self_correction_turns": 1, "max_tokens": 150}, 0.1, False))
    books = faults.settled(victim.url)
    finished = more("requests_finished_total") - more("requests_finished_total", finished_reason="abort")
    assert more("self_correction_total") == more("self_correction_time_seconds_count") == finished
    victim.check()
