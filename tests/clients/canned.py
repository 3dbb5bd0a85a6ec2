"""Replies in the contract's shape, as a server would write them."""

import json
from typing import Any

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
