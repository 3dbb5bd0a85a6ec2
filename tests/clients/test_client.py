"""Every test runs against both clients: they differ in how bytes travel, and in nothing else."""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.clients.client import (
    ApiError,
    AsyncClient,
    Call,
    Client,
    Delta,
    StreamReader,
    Thought,
    Usage,
    chat_call,
    streamed,
)

Handler = Callable[[httpx.Request], httpx.Response]

THOUGHT = {
    "position": 0,
    "token": "8",
    "thought": "3 up 5",
    "token_ids": [7, 9, 4],
    "mixing_weight": 0.75,
    "thought_index": 0,
}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 6,
    "total_tokens": 17,
    "completion_tokens_details": {"reasoning_tokens": 4, "draft_tokens": 0, "discarded_tokens": 0},
}
MESSAGE = {"role": "assistant", "content": "8", "reasoning": "3 up 5", "reasoning_content": "3 up 5"}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "tiny",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "thoughts": [THOUGHT]}],
    "usage": USAGE,
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "tiny",
    "choices": [
        {"index": 0, "text": " 8", "finish_reason": "length", "logprobs": None},
        {"index": 1, "text": " 9", "finish_reason": "stop", "logprobs": None},
    ],
    "usage": USAGE,
}


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **extra}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [choice]}


CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "é\u2028", "reasoning": "3 up 5"}, thoughts=[THOUGHT]),
    chunk({"content": "8"}),
    chunk({}, "stop"),
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [], "usage": USAGE},
]


def events(*bodies: Any, end: str = "data: [DONE]\n\n") -> bytes:
    """A stream as the server writes it: comments between the events, characters beyond ASCII left as they are."""
    written = [f": keep-alive\n\ndata: {json.dumps(body, ensure_ascii=False)}\n\n" for body in bodies]
    return ("".join(written) + end).encode()


def answering(body: Any = None, status: int = 200, content: bytes | None = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    options = {"json": body} if content is None else {"content": content}
    return lambda _: httpx.Response(status, headers=named, **options)


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Runs one method of a client against a handler and gives its result, a stream as a list."""

    def call_blocking(handler: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
        with Client(transport=httpx.MockTransport(handler)) as client:
            result = getattr(client, method)(*args, **kwargs)
            return list(result) if method.startswith("stream") else result

    async def call_async(handler: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
            result = getattr(client, method)(*args, **kwargs)
            return [delta async for delta in result] if method.startswith("stream") else await result

    if request.param == "sync":
        return call_blocking
    return lambda *args, **kwargs: asyncio.run(call_async(*args, **kwargs))


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
    assert deltas == [Delta(1, " 8", None, "", (), None, body)]


@given(st.lists(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_a_stream_reads_the_same_however_it_is_cut(cuts, newline):
    content = events(*CHUNKS).replace(b"\n", newline)
    reader = StreamReader(streamed(chat_call("hi", None, {})), httpx.Response(200))
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[start:end] for start, end in pairwise(edges)]
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    reader.finish()
    assert "".join(delta.text for delta in deltas) == "é\u20288"


def test_an_event_may_span_data_lines():
    reader = StreamReader(streamed(chat_call("hi", None, {})), httpx.Response(200))
    assert len(list(reader.feed(b'event: x\ndata: {"choices":\ndata: []}\n\n'))) == 1


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


def test_models(call):
    listed = [
        {"id": "tiny", "max_model_len": 256, "capabilities": {"thinking": True, "max_thought_depth": 16}},
        {"id": "plain", "parent": "tiny"},
    ]
    models = call(answering({"object": "list", "data": listed}), "models")
    assert [(model.id, model.max_model_len, model.max_thought_depth) for model in models] == [
        ("tiny", 256, 16),
        ("plain", None, None),
    ]


def test_ready(call):
    loading = {"error": {"message": "loading", "type": "server_error", "param": None, "code": "model_loading"}}
    assert call(answering({}), "ready") is True
    assert call(answering(loading, 503), "ready") is False
    with pytest.raises(ApiError, match="404"):
        call(answering(status=404, content=b""), "ready")


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
    with Client(fake_server.url) as client, pytest.raises(ApiError, match="is the server running"):
        client.models()
