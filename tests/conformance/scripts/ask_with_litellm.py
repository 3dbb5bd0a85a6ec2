"""Asks a server through LiteLLM in each of its ways. Arguments: the server's address, and a question. Prints JSON."""

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches a list of prices

import litellm

litellm.telemetry = False


def main(url: str, question: str) -> None:
    told = {"api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "num_retries": 0}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": question}], **told}
    thinking = {"extra_body": {"thought_depth": 12, "include_reasoning": True}}
    heard = {
        "openai": whole(litellm.completion("openai/quiet-small", **asked, **thinking)),
        "vllm": whole(litellm.completion("hosted_vllm/quiet-small", **asked, **thinking)),
        "preset": whole(litellm.completion("openai/quiet-depth-0", **asked)),
        "effort": whole(litellm.completion("hosted_vllm/quiet-small", reasoning_effort="xhigh", **asked)),
        "stream": pieces(list(litellm.completion("openai/quiet-small", stream=True, **asked, **thinking))),
        "usage": usage(asked),
        "async": asyncio.run(ask_async(asked | thinking)),
        "text": litellm.text_completion(
            model="text-completion-openai/quiet-depth-12", prompt=f"Question: {question}\nAnswer:", **told
        )
        .choices[0]
        .text,
        "errors": {
            "model": error("openai/no-such-model", **asked),
            "depth": error("openai/quiet-small", extra_body={"thought_depth": 99}, **asked),
            "length": error(
                "openai/quiet-small", **asked | {"messages": [{"role": "user", "content": "dial " * 1100}]}
            ),
        },
    }
    print(json.dumps(heard))


def whole(reply: Any) -> dict[str, Any]:
    message = reply.choices[0].message
    thoughts = getattr(message, "reasoning_content", None)
    return {"content": message.content, "thoughts": thoughts, "finish": reply.choices[0].finish_reason}


def pieces(chunks: list[Any]) -> dict[str, Any]:
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    return {
        "content": "".join(delta.content or "" for delta in deltas),
        "thoughts": "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "finish": chunks[-1].choices[0].finish_reason,
    }


def usage(asked: dict[str, Any]) -> list[int]:
    """Tokens of the prompt and of the answer: of a whole reply, and of a stream's end."""
    *_, last = litellm.completion("openai/quiet-depth-0", stream=True, stream_options={"include_usage": True}, **asked)
    told = (litellm.completion("openai/quiet-depth-0", **asked).usage, last.usage)
    return [count for each in told for count in (each.prompt_tokens, each.completion_tokens)]


async def ask_async(asked: dict[str, Any]) -> list[dict[str, Any]]:
    replies = await asyncio.gather(*(litellm.acompletion("openai/quiet-small", **asked) for _ in range(4)))
    stream = await litellm.acompletion("openai/quiet-small", stream=True, **asked)
    return [*map(whole, replies), pieces([chunk async for chunk in stream])]


def error(model: str, **asked: Any) -> str:
    try:
        litellm.completion(model, **asked)
    except Exception as caught:  # whichever it is: its name is what is asked for
        return type(caught).__name__
    return "none"


main(*sys.argv[1:])
