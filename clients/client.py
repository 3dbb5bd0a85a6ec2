"""A small client of a quietserve server: typed calls, blocking (`Client`) or asynchronous (`AsyncClient`).

    with Client() as client:
        reply = client.chat("The dial is at 3. ...", thought_depth=12)
        print(reply.text, reply.usage.reasoning_tokens)

What to send, how to read what comes back and when to try again are decided without input or output (`calls`,
`parsing`, `stream`, `retries`); `carriers` do the rest.
"""

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from .calls import (
    Message,
    Prompt,
    cancel_call,
    chat_call,
    complete_call,
    detokenize_call,
    models_call,
    ready_call,
    score_call,
    streamed,
    tokenize_call,
    vote_call,
)
from .carriers import DEFAULT_URL, AsyncCarrier, Carrier
from .errors import ApiError
from .replies import Choice, Delta, Model, Probed, Readout, Reply, Thought, Tokenization, Usage, Voting

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "AsyncClient",
    "Choice",
    "Client",
    "Delta",
    "Model",
    "Probed",
    "Readout",
    "Reply",
    "Thought",
    "Tokenization",
    "Usage",
    "Voting",
]


class Client(Carrier):
    """Talks to a server, blocking; a context manager that closes its connections.

    Every call takes the API's other parameters by name (`temperature=0`, `return_thoughts=True`), leaves out those that
    are None, and raises `ApiError`. What failed for a reason that may pass (`ApiError.retryable`) is sent again as long
    as no byte of a successful reply has come: after the time that the server asks for, or after a longer and longer one.

    Args:
        base_url: the server's address; None takes the environment's `QUIETSERVE_URL`, or else `DEFAULT_URL`.
        api_key: None takes the environment's `QUIETSERVE_API_KEY`, if there is one.
        read_timeout_s: bounds the wait for the next bytes, all retries before the first included; not the whole answer.
            None waits for ever. (A call's `timeout_s` is the API's: the server's deadline for the whole request.)
        max_retries: attempts after the first one.
        max_retry_wait_s: the longest wait before a retry; a server that asks for more is not asked again.
        transport: carries the bytes in place of the network.
        sleep: waits in place of the clock.
    """

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        thought_depth: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Reply:
        """Answer a conversation, or one question given as a string; `request_id` is a name to cancel it by."""
        return self._send(chat_call(messages, thought_depth, params, request_id))

    def complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, request_id: str | None = None, **params: Any
    ) -> Reply:
        """Continue a text, or each of a list of texts."""
        return self._send(complete_call(prompt, thought_depth, params, request_id))

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        thought_depth: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Generator[Delta, None, None]:
        """Answer a conversation piece by piece; closing the iterator early frees its place on the server."""
        return self._stream(streamed(chat_call(messages, thought_depth, params, request_id)))

    def stream_complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, request_id: str | None = None, **params: Any
    ) -> Generator[Delta, None, None]:
        """Continue a text piece by piece; closing the iterator early frees its place on the server."""
        return self._stream(streamed(complete_call(prompt, thought_depth, params, request_id)))

    def cancel(self, request_id: str) -> bool:
        """End a request of any client, which then gets what there is; false if no such request is running."""
        return self._send(cancel_call(request_id))

    def tokenize(self, text: str | Sequence[Message], **params: Any) -> Tokenization:
        """How a model reads a text, or a conversation."""
        return self._send(tokenize_call(text, params))

    def detokenize(self, ids: Sequence[int], **params: Any) -> str:
        """The text of token ids."""
        return self._send(detokenize_call(ids, params))

    def vote(self, candidates: Sequence[str | Mapping[str, Any]], **params: Any) -> Voting:
        """How answers vote that you have: texts, or mappings with a `text` and its `logprob`, `mean_logprob` or `score`."""
        return self._send(vote_call(candidates, params))

    def score(self, question: str | Sequence[Message], candidates: Sequence[str], **params: Any) -> tuple[float, ...]:
        """How likely a trained ranker holds each answer to a prompt, or to a conversation, to be right: 0 to 1."""
        return self._send(score_call(question, candidates, params))

    def models(self) -> tuple[Model, ...]:
        """The served models, the default one first."""
        return self._send(models_call())

    def ready(self) -> bool:
        """Whether the server takes work now: false while it loads its model or shuts down."""
        return self._send(ready_call())


class AsyncClient(AsyncCarrier):
    """`Client` for asyncio and trio: the same arguments, calls and errors."""

    async def chat(
        self,
        messages: str | Sequence[Message],
        *,
        thought_depth: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Reply:
        """Answer a conversation, or one question given as a string; `request_id` is a name to cancel it by."""
        return await self._send(chat_call(messages, thought_depth, params, request_id))

    async def complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, request_id: str | None = None, **params: Any
    ) -> Reply:
        """Continue a text, or each of a list of texts."""
        return await self._send(complete_call(prompt, thought_depth, params, request_id))

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        thought_depth: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> AsyncGenerator[Delta, None]:
        """Answer a conversation piece by piece; to stop early, iterate inside `contextlib.aclosing`."""
        return self._stream(streamed(chat_call(messages, thought_depth, params, request_id)))

    def stream_complete(
        self, prompt: Prompt, *, thought_depth: int | None = None, request_id: str | None = None, **params: Any
    ) -> AsyncGenerator[Delta, None]:
        """Continue a text piece by piece; to stop early, iterate inside `contextlib.aclosing`."""
        return self._stream(streamed(complete_call(prompt, thought_depth, params, request_id)))

    async def cancel(self, request_id: str) -> bool:
        """End a request of any client, which then gets what there is; false if no such request is running."""
        return await self._send(cancel_call(request_id))

    async def tokenize(self, text: str | Sequence[Message], **params: Any) -> Tokenization:
        """How a model reads a text, or a conversation."""
        return await self._send(tokenize_call(text, params))

    async def detokenize(self, ids: Sequence[int], **params: Any) -> str:
        """The text of token ids."""
        return await self._send(detokenize_call(ids, params))

    async def vote(self, candidates: Sequence[str | Mapping[str, Any]], **params: Any) -> Voting:
        """How answers vote that you have: texts, or mappings with a `text` and its `logprob`, `mean_logprob` or `score`."""
        return await self._send(vote_call(candidates, params))

    async def score(
        self, question: str | Sequence[Message], candidates: Sequence[str], **params: Any
    ) -> tuple[float, ...]:
        """How likely a trained ranker holds each answer to a prompt, or to a conversation, to be right: 0 to 1."""
        return await self._send(score_call(question, candidates, params))

    async def models(self) -> tuple[Model, ...]:
        """The served models, the default one first."""
        return await self._send(models_call())

    async def ready(self) -> bool:
        """Whether the server takes work now: false while it loads its model or shuts down."""
        return await self._send(ready_call())
