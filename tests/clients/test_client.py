"""Every test runs against both clients: they differ in how bytes travel, and in nothing else."""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from typing import Any

import httpx
import pytest
from canned import CHAT, CHUNKS, COMPLETION, events

from quietserve.clients.calls import Call, chat_call
from quietserve.clients.client import ApiError, AsyncClient, Client, Delta, Thought, Tokenization, Usage
from quietserve.clients.replies import Probe

Handler = Callable[[httpx.Request], httpx.Response]


def answering(body: Any = None, status: int = 200, content: bytes | None = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    options = {"json": body} if content is None else {"content": content}
    return lambda _: httpx.Response(status, headers=named, **options)


class Caller:
    """Runs one method of a client against a handler and gives its result, a stream as a list; notes the waits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.waits: list[float] = []

    def __call__(
        self, handler: Handler, method: str, *args: Any, options: dict[str, Any] | None = None, **params: Any
    ) -> Any:
        settings = {"transport": httpx.MockTransport(handler), **(options or {})}
        if self.kind == "async":
            return asyncio.run(self.call_async(settings, method, *args, **params))
        with Client(sleep=self.waits.append, **settings) as client:
            result = getattr(client, method)(*args, **params)
            return list(result) if method.startswith("stream") else result

    async def call_async(self, settings: dict[str, Any], method: str, *args: Any, **params: Any) -> Any:
        async def sleep(wait_s: float) -> None:
            self.waits.append(wait_s)

        async with AsyncClient(sleep=sleep, **settings) as client:
            result = getattr(client, method)(*args, **params)
            return [delta async for delta in result] if method.startswith("stream") else await result


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


class Replies:
    """A handler that gives one reply after the other, raising those that are exceptions."""

    def __init__(self, *replies: httpx.Response | type[httpx.RequestError]) -> None:
        self.left = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.left.pop(0)
        if isinstance(reply, type):
            raise reply("broken", request=request)
        return reply


def test_chat_reads_the_whole_reply(call):
    reply = call(answering(CHAT), "chat", "The dial is at 3. Up 5?")
    assert (reply.text, reply.finish_reason, reply.reasoning, reply.model) == ("8", "stop", "3 up 5", "tiny")
    assert reply.thoughts == (Thought(0, "8", "3 up 5", (7, 9, 4), 0.75, 0),)
    assert reply.usage == Usage(prompt_tokens=11, completion_tokens=6, total_tokens=17, reasoning_tokens=4)
    assert reply.raw == CHAT
    assert hash(reply) == hash(reply)


def test_complete_reads_every_choice(call):
    reply = call(answering(COMPLETION), "complete", "3 + 5 =", n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in reply.choices] == [
        (0, " 8", "length"),
        (1, " 9", "stop"),
    ]
    assert (reply.text, reply.thoughts) == (" 8", ())


@pytest.mark.parametrize(
    ("method", "args", "path", "body"),
    [
        ("chat", ("hi",), "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("chat", ([{"role": "user", "content": "a"}],), "/v1/chat/completions", None),
        ("complete", ([[1, 2], [3]],), "/v1/completions", {"prompt": [[1, 2], [3]]}),
        ("stream_chat", ("hi",), "/v1/chat/completions", {"stream": True}),
        ("stream_complete", ("hi",), "/v1/completions", {"prompt": "hi", "stream": True}),
    ],
)
def test_what_is_sent(call, method, args, path, body):
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if method.startswith("stream"):
            return httpx.Response(200, content=events())
        return httpx.Response(200, json=CHAT if method == "chat" else COMPLETION)

    call(answer, method, *args, thought_depth=0, temperature=0.5, seed=None)
    sent = json.loads(seen[0].content)
    assert (seen[0].method, seen[0].url.path) == ("POST", path)
    assert sent.items() >= {"thought_depth": 0, "temperature": 0.5, **(body or {})}.items()
    assert "seed" not in sent
    assert ("stream" in sent) == method.startswith("stream")


def test_streams_by_way_of_their_own_methods(call):
    with pytest.raises(TypeError, match="stream_chat"):
        call(answering(CHAT), "chat", "hi", stream=True)


def test_stream_chat(call):
    deltas = call(answering(content=events(*CHUNKS)), "stream_chat", "hi")
    assert [delta.text for delta in deltas] == ["", "é\u2028", "8", "", ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "stop", None]
    assert (deltas[1].reasoning, deltas[1].thoughts[0].thought) == ("3 up 5", "3 up 5")
    assert deltas[4].usage is not None
    assert deltas[4].usage.reasoning_tokens == 4


def test_stream_complete(call):
    body = {"choices": [{"index": 1, "text": " 8", "finish_reason": None}]}
    deltas = call(answering(content=events(body)), "stream_complete", "3 + 5 =")
    assert deltas == [Delta(index=1, text=" 8")]
    assert deltas[0].raw == body


ERROR = {"message": "thought_depth 99 is above 16", "type": "invalid_request_error", "param": "thought_depth"}


@pytest.mark.parametrize("method", ["chat", "complete", "stream_chat", "stream_complete"])
def test_an_error_object_becomes_an_api_error(call, method):
    refuse = answering({"error": {**ERROR, "code": "invalid_value"}}, 400, x_request_id="req-7")
    with pytest.raises(ApiError, match="thought_depth 99 is above 16") as caught:
        call(refuse, method, "hi", thought_depth=99)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_value", "thought_depth")
    assert error.request_id == "req-7"


@pytest.mark.parametrize(
    "content", [b"<html>Bad gateway</html>", b"[]", b'{"error": "x"}', b'{"detail": "x"}', b"\xff"]
)
@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_an_error_without_an_error_object(call, method, content):
    with pytest.raises(ApiError, match="HTTP status 502") as caught:
        call(answering(status=502, content=content), method, "hi")
    assert (caught.value.status, caught.value.code) == (502, None)


def test_an_error_event_ends_the_stream(call):
    failed = {"error": {"message": "out of memory", "type": "server_error", "param": None, "code": "out_of_memory"}}
    with pytest.raises(ApiError, match="out of memory") as caught:
        call(answering(content=events(CHUNKS[1], failed), x_request_id="req-8"), "stream_chat", "hi")
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (None, "out_of_memory", "req-8")


def test_deltas_before_an_error_event_arrive():
    with Client(transport=httpx.MockTransport(answering(content=events(CHUNKS[2], {"error": ERROR})))) as client:
        deltas = client.stream_chat("hi")
        assert next(deltas).text == "8"
        with pytest.raises(ApiError):
            next(deltas)


def test_a_stream_without_its_end_is_an_error(call):
    with pytest.raises(ApiError, match="broke off") as caught:
        call(answering(content=events(*CHUNKS[:2], end="")), "stream_chat", "hi")
    assert caught.value.code == "connection_lost"


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [0]}', b"\xff"])
@pytest.mark.parametrize("method", ["chat", "complete"])
def test_a_reply_in_another_shape_is_an_error(call, method, content):
    with pytest.raises(ApiError, match="not in the API's shape") as caught:
        call(answering(content=content), method, "hi")
    assert caught.value.code == "bad_response"


@pytest.mark.parametrize("event", ["{", "[]", "0", '{"choices": [{}]}', "{}"])
def test_an_event_in_another_shape_is_an_error(call, event):
    with pytest.raises(ApiError, match="not in the API's shape"):
        call(answering(content=f"data: {event}\n\n".encode()), "stream_chat", "hi")


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (httpx.ConnectError, "connection_failed", "cannot connect to http://127.0.0.1:8000"),
        (httpx.ConnectTimeout, "connection_failed", "cannot connect"),
        (httpx.ReadTimeout, "timeout", "did not answer in time"),
        (httpx.ReadError, "connection_lost", "broke off"),
        (httpx.RemoteProtocolError, "connection_lost", "broke off"),
    ],
)
@pytest.mark.parametrize("method", ["chat", "stream_chat", "models", "ready"])
def test_connection_failures_are_one_line(call, method, raised, code, says):
    def fail(request: httpx.Request) -> httpx.Response:
        raise raised("[Errno 111]\nand more", request=request)

    with pytest.raises(ApiError, match=says) as caught:
        call(fail, method, *(["hi"] if "chat" in method else []))
    assert (caught.value.status, caught.value.code) == (None, code)
    assert "\n" not in str(caught.value)
    assert len(call.waits) == (2 if caught.value.retryable else 0)


def test_models(call):
    way = {"name": "karel.way", "property": "direction", "classes": ["N", "S"], "layers": [0, 1], "offset": -1}
    able = {"thinking": True, "max_thought_depth": 16, "self_correction": False, "rankers": ["asc"], "probes": [way]}
    listed = [{"id": "tiny", "max_model_len": 256, "capabilities": able}, {"id": "plain", "parent": "tiny"}]
    tiny, plain = call(answering({"object": "list", "data": listed}), "models")
    assert (tiny.id, tiny.parent, tiny.max_model_len, tiny.max_thought_depth) == ("tiny", None, 256, 16)
    assert (tiny.capabilities.thinking, tiny.capabilities.rankers) == (True, ("asc",))
    assert tiny.capabilities.probes == (Probe("karel.way", "direction", ("N", "S"), (0, 1), -1),)
    assert (plain.id, plain.parent, plain.max_model_len, plain.max_thought_depth) == ("plain", "tiny", None, None)


def test_ready(call):
    loading = {"error": {"message": "loading", "type": "server_error", "param": None, "code": "model_loading"}}
    assert call(answering({}), "ready") is True
    assert call(answering(loading, 503, retry_after="1"), "ready") is False
    assert call.waits == []
    with pytest.raises(ApiError, match="404"):
        call(answering(status=404, content=b""), "ready")


def test_tokenize_a_text(call):
    replies = Replies(httpx.Response(200, json={"count": 2, "max_model_len": 256, "tokens": [7, 8]}))
    assert call(replies, "tokenize", "a b", add_special_tokens=False) == Tokenization((7, 8), (), 256)
    assert replies.requests[0].url.path == "/tokenize"
    assert json.loads(replies.requests[0].content) == {"prompt": "a b", "add_special_tokens": False}


def test_tokenize_a_conversation(call):
    replies = Replies(httpx.Response(200, json={"count": 1, "tokens": [7], "token_strs": [" a"]}))
    messages = [{"role": "user", "content": "a"}]
    assert call(replies, "tokenize", messages, return_token_strs=True) == Tokenization((7,), (" a",), None)
    assert json.loads(replies.requests[0].content) == {"messages": messages, "return_token_strs": True}


def test_vote(call):
    voting = {"strategy": "majority", "num_samples": 2, "groups": [{"answer": "7", "count": 2}]}
    replies = Replies(httpx.Response(200, json=voting))
    told = call(replies, "vote", ["7", {"text": "7.0"}], answer_pattern="last_number")
    assert (told.num_samples, told.groups[0].answer) == (2, "7")
    assert replies.requests[0].url.path == "/v1/vote"
    asked = {"candidates": ["7", {"text": "7.0"}], "answer_pattern": "last_number"}
    assert json.loads(replies.requests[0].content) == asked


def test_detokenize(call):
    replies = Replies(httpx.Response(200, json={"prompt": "a b"}))
    assert call(replies, "detokenize", (7, 8)) == "a b"
    assert replies.requests[0].url.path == "/detokenize"
    assert json.loads(replies.requests[0].content) == {"tokens": [7, 8]}


def test_cancel(call):
    gone = {"error": {"message": "No such request.", "type": "x", "param": None, "code": "not_found"}}
    replies = Replies(httpx.Response(200, json={}), httpx.Response(404, json=gone))
    assert call(replies, "cancel", "job-1") is True
    assert call(replies, "cancel", "job-1") is False
    assert [(sent.method, sent.url.path) for sent in replies.requests] == [("POST", "/v1/requests/job-1/cancel")] * 2


@pytest.mark.parametrize(
    ("method", "args", "reply"),
    [
        ("chat", ("hi",), {"json": CHAT}),
        ("complete", ("hi",), {"json": COMPLETION}),
        ("stream_chat", ("hi",), {"content": events(*CHUNKS)}),
        ("stream_complete", ("hi",), {"content": events(*CHUNKS)}),
    ],
)
def test_a_request_may_have_an_id_of_its_own(call, method, args, reply):
    replies = Replies(httpx.Response(200, headers={"x-request-id": "job-1"}, **reply))
    result = call(replies, method, *args, request_id="job-1")
    assert {part.request_id for part in (result if isinstance(result, list) else [result])} == {"job-1"}
    assert replies.requests[0].headers["x-request-id"] == "job-1"
    assert "request_id" not in json.loads(replies.requests[0].content)


@pytest.mark.parametrize("request_id", ["", "a b", "é", "a\nb", "../models", ".", "-a", "a" * 129])
@pytest.mark.parametrize("method", ["chat", "cancel"])
def test_an_id_that_a_server_would_not_keep(call, method, request_id):
    args, params = (("hi",), {"request_id": request_id}) if method == "chat" else ((request_id,), {})
    with pytest.raises(ValueError, match="request_id"):
        call(Replies(), method, *args, **params)


def test_the_servers_deadline_is_a_parameter_like_others(call):
    replies = Replies(httpx.Response(200, json=CHAT))
    call(replies, "chat", "hi", timeout_s=5)
    assert json.loads(replies.requests[0].content)["timeout_s"] == 5


def test_how_long_the_client_waits(call):
    replies = Replies(httpx.Response(200, json=CHAT), httpx.Response(200, content=events(*CHUNKS)))
    for method in ("chat", "stream_chat"):
        call(replies, method, "hi", options={"read_timeout_s": 7})
    whole, stream = (sent.extensions["timeout"]["read"] for sent in replies.requests)
    assert 0 < whole <= 7  # what is left of it
    assert stream == 7


# --- trying again ----------------------------------------------------------------------------------------------------


def busy(status: int = 503, code: str = "queue_full", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": "Not now.", "type": "server_error", "param": None, "code": code}
    return httpx.Response(status, json={"error": error}, headers=named)


@pytest.mark.parametrize("method", ["chat", "stream_chat"])
@pytest.mark.parametrize("first", [busy(429), busy(503), httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError])
def test_what_may_pass_is_tried_again(call, method, first):
    first = first if isinstance(first, type) else httpx.Response(first.status_code, content=first.content)
    last = {"json": CHAT} if method == "chat" else {"content": events(*CHUNKS)}
    replies = Replies(first, httpx.Response(200, **last))
    result = call(replies, method, "hi", seed=3, request_id="job-1")
    assert "".join(part.text for part in (result if isinstance(result, list) else [result])).endswith("8")
    assert len(call.waits) == 1
    one, other = replies.requests
    assert (one.content, one.headers["x-request-id"]) == (other.content, other.headers["x-request-id"])


@pytest.mark.parametrize("code", ["queue_full", "draining", "model_loading", "out_of_memory"])
def test_after_the_last_attempt_the_error_is_told(call, code):
    replies = Replies(*[busy(code=code, retry_after="1", x_request_id=f"req-{i}") for i in range(3)])
    with pytest.raises(ApiError, match=r"Not now\.") as caught:
        call(replies, "chat", "hi")
    error = caught.value
    assert (error.code, error.retryable, error.retry_after_s, error.request_id) == (code, True, 1, "req-2")
    assert len(call.waits) == 2
    assert all(wait_s >= 1 for wait_s in call.waits)


@pytest.mark.parametrize("status", [400, 401, 404, 500, 504])
def test_what_will_not_pass_is_told_at_once(call, status):
    with pytest.raises(ApiError) as caught:
        call(Replies(busy(status, code="no")), "chat", "hi")
    assert not caught.value.retryable
    assert call.waits == []


def test_no_retries_where_none_are_wanted(call):
    with pytest.raises(ApiError):
        call(Replies(busy()), "chat", "hi", options={"max_retries": 0})


@pytest.mark.parametrize("options", [{"max_retry_wait_s": 19}, {"read_timeout_s": 19}])
def test_a_wait_that_is_too_long_is_not_begun(call, options):
    with pytest.raises(ApiError) as caught:
        call(Replies(busy(retry_after="20")), "chat", "hi", options=options)
    assert caught.value.retry_after_s == 20
    assert call.waits == []


@pytest.mark.parametrize("options", [{"max_retries": -1}, {"max_retry_wait_s": -1}, {"max_retry_wait_s": float("nan")}])
def test_a_patience_that_is_none(options):
    with pytest.raises(ValueError, match="below 0"):
        Client(**options)


def test_a_stream_that_has_begun_is_never_replayed(call):
    failed = {"error": {"message": "gone", "type": "server_error", "param": None, "code": "out_of_memory"}}
    for content in (events(failed), events(CHUNKS[1], end=""), b""):
        with pytest.raises(ApiError) as caught:
            call(Replies(httpx.Response(200, content=content)), "stream_chat", "hi")
        assert caught.value.retryable  # by who knows what has been done with the beginning
    assert call.waits == []


def test_a_reply_that_breaks_off_is_not_asked_for_again(call):
    class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self):
            yield b"{"
            raise httpx.ReadError("gone")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            raise httpx.ReadError("gone")

    with pytest.raises(ApiError, match="broke off"):
        call(Replies(httpx.Response(200, stream=Broken())), "chat", "hi")
    assert call.waits == []


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_address_and_key_from_the_environment(client_class, monkeypatch):
    assert client_class().base_url == "http://127.0.0.1:8000"
    monkeypatch.setenv("QUIETSERVE_URL", "http://host:1")
    assert client_class().base_url == "http://host:1"
    assert client_class("http://other:2").base_url == "http://other:2"


def test_key_from_the_environment(call, monkeypatch):
    monkeypatch.setenv("QUIETSERVE_API_KEY", "secret")
    replies = Replies(*[httpx.Response(200, json=CHAT) for _ in range(3)])
    for options in ({}, {"api_key": "other"}, {"api_key": ""}):
        call(replies, "chat", "hi", options=options)
    assert [sent.headers.get("authorization") for sent in replies.requests] == ["Bearer secret", "Bearer other", None]


@pytest.mark.parametrize("key", ["a\nb", "clé", "a\x00"])
def test_a_key_that_no_header_can_hold_is_not_repeated(key):
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Client(api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://host", "http://", "http://host:port", ""])
def test_an_address_that_is_none(client_class, url):
    with pytest.raises(ValueError, match="base_url"):
        client_class(url)


@pytest.mark.parametrize("url", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"])
def test_the_address_may_be_the_one_the_openai_sdks_take(url):
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=CHAT)

    with Client(url, api_key="secret", transport=httpx.MockTransport(answer)) as client:
        client.chat("hi")
    assert str(seen[0].url) == "http://host:1/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that would never end by itself, and knows whether the client has let go of it."""

    closed = False

    def __iter__(self):
        while True:
            yield events(CHUNKS[2], end="")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield events(CHUNKS[2], end="")

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def test_closing_the_iterator_lets_go_of_the_answer():
    body = Body()
    with Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=body))) as client:
        with closing(client.stream_chat("hi")) as deltas:
            assert next(deltas).text == "8"
            assert not body.closed
        assert body.closed


def test_closing_the_async_iterator_lets_go_of_the_answer():
    body = Body()

    async def leave_early() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=body))
        async with AsyncClient(transport=transport) as client:
            async with aclosing(client.stream_chat("hi")) as deltas:
                assert (await anext(deltas)).text == "8"
            assert body.closed

    asyncio.run(leave_early())


def test_an_api_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ApiError(400, "invalid_value", "seed", "seed is\nwrong", "req-1")))
    assert (error.status, error.code, error.param, error.request_id) == (400, "invalid_value", "seed", "req-1")
    assert str(error) == "seed is wrong"


def test_a_call_is_a_value():
    assert chat_call("hi", 4, {"seed": 1}) == chat_call([{"role": "user", "content": "hi"}], 4, {"seed": 1})
    assert isinstance(chat_call("hi", None, {}), Call)


def test_over_a_socket(fake_server):
    with Client(fake_server.url) as client:
        assert [model.id for model in client.models()] == ["tiny"]
        assert "".join(delta.text for delta in client.stream_chat("one two")) == "one two "
        with pytest.raises(ApiError, match="too deep"):
            client.chat("refuse")
        with pytest.raises(ApiError, match="broke off"):
            list(client.stream_chat("and break"))
        assert "".join(delta.text for delta in client.stream_chat("three")) == "three "


def test_over_a_socket_async(fake_server):
    async def ask() -> None:
        async with AsyncClient(fake_server.url) as client:
            texts = [delta.text async for delta in client.stream_chat("one two")]
            assert texts == ["one ", "two ", ""]
            with pytest.raises(ApiError, match="broke off"):
                [delta async for delta in client.stream_chat("and break")]

    asyncio.run(ask())


def test_nobody_listens(fake_server):
    fake_server.server_close()
    waits = []
    with Client(fake_server.url, sleep=waits.append) as client, pytest.raises(ApiError, match="is the server running"):
        client.models()
    assert len(waits) == 2
