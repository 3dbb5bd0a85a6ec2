"""What to send, and how to read the reply to it: values and functions, without input or output."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from .errors import shape_errors
from .parsing import (
    parse_detokenized,
    parse_event,
    parse_models,
    parse_reply,
    parse_scores,
    parse_tokenization,
    parse_vote,
)
from .replies import Delta, Model, Reply, Tokenization, Voting

Message = Mapping[str, Any]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
T = TypeVar("T")

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how to read the reply.

    Args:
        parse: reads a successful reply, given its JSON and its request id.
        meanings: statuses without success that are an answer too, and which.
        request_id: to be known by; None leaves it to the server.
        streams: the reply is a stream of events, each of which `parse` reads.
    """

    method: str
    path: str
    parse: Callable[[Any, str | None], T]
    body: Mapping[str, Any] | None = None
    meanings: Mapping[int, T] = field(default_factory=dict)
    request_id: str | None = None
    streams: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError` for an id that a server would silently replace with its own."""
        if self.request_id is not None:
            _check_request_id(self.request_id)

    @property
    def headers(self) -> dict[str, str]:
        """The call's own, beside those that every call has."""
        return {} if self.request_id is None else {"x-request-id": self.request_id}

    def accepts(self, response: httpx.Response) -> bool:
        """Whether the reply is an answer, and not an error."""
        return response.is_success or response.status_code in self.meanings

    def read(self, response: httpx.Response) -> T:
        """The answer, of a reply that `accepts` has let through; raises `ApiError` for one out of shape."""
        if response.status_code in self.meanings:
            return self.meanings[response.status_code]
        request_id = response.headers.get("x-request-id")
        with shape_errors(request_id):
            return self.parse(json.loads(response.content), request_id)


def chat_call(
    messages: str | Sequence[Message],
    thought_depth: int | None,
    params: Mapping[str, Any],
    request_id: str | None = None,
) -> Call[Reply]:
    """Ask for an answer to a conversation; a string is one user's message."""
    body = _build_body({"messages": _as_messages(messages)}, thought_depth, params)
    return Call("POST", "/v1/chat/completions", parse_reply, body, request_id=request_id)


def complete_call(
    prompt: Prompt, thought_depth: int | None, params: Mapping[str, Any], request_id: str | None = None
) -> Call[Reply]:
    """Ask for the continuation of a text, of token ids, or of a list of either."""
    body = _build_body({"prompt": prompt}, thought_depth, params)
    return Call("POST", "/v1/completions", parse_reply, body, request_id=request_id)


def streamed(call: Call[Reply]) -> Call[tuple[Delta, ...]]:
    """The same call, answered piece by piece; its parser reads one event."""
    body = {**(call.body or {}), "stream": True}
    return Call(call.method, call.path, parse_event, body, request_id=call.request_id, streams=True)


def models_call() -> Call[tuple[Model, ...]]:
    """Ask which models are served."""
    return Call("GET", "/v1/models", parse_models)


def tokenize_call(text: str | Sequence[Message], params: Mapping[str, Any]) -> Call[Tokenization]:
    """Ask how a model reads a text, or a conversation."""
    body = {"prompt": text} if isinstance(text, str) else {"messages": _as_messages(text)}
    return Call("POST", "/tokenize", parse_tokenization, body | _given(params))


def detokenize_call(ids: Sequence[int], params: Mapping[str, Any]) -> Call[str]:
    """Ask for the text of token ids."""
    return Call("POST", "/detokenize", parse_detokenized, {"tokens": list(ids)} | _given(params))


def vote_call(candidates: Sequence[str | Mapping[str, Any]], params: Mapping[str, Any]) -> Call[Voting]:
    """Ask how answers vote."""
    return Call("POST", "/v1/vote", parse_vote, {"candidates": list(candidates)} | _given(params))


def score_call(
    question: str | Sequence[Message], candidates: Sequence[str], params: Mapping[str, Any]
) -> Call[tuple[float, ...]]:
    """Ask how likely answers to a question are to be right."""
    field = "prompt" if isinstance(question, str) else "messages"
    body = {field: question if isinstance(question, str) else list(question), "candidates": list(candidates)}
    return Call("POST", "/v1/score", parse_scores, body | _given(params))


def cancel_call(request_id: str) -> Call[bool]:
    """Ask to end a request; 404 says that there is none."""
    _check_request_id(request_id)
    return Call("POST", f"/v1/requests/{request_id}/cancel", lambda *_: True, meanings={404: False})


def ready_call() -> Call[bool]:
    """Ask whether new work is taken; 503 is a no."""
    return Call("GET", "/ready", lambda *_: True, meanings={503: False})


def _check_request_id(request_id: str) -> None:
    if not _REQUEST_ID.fullmatch(request_id):
        allowed = "1 to 128 letters, digits, '.', '_' and '-', the first a letter or a digit"
        raise ValueError(f"request_id {request_id!r} is not made of {allowed}")


def _build_body(body: dict[str, Any], thought_depth: int | None, params: Mapping[str, Any]) -> dict[str, Any]:
    if "stream" in params:
        raise TypeError("stream is not a parameter here: call stream_chat or stream_complete")
    return body | _given({**params, "thought_depth": thought_depth})


def _as_messages(messages: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
