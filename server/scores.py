"""Answers that a client has, judged by a trained ranker."""

import asyncio
from typing import TYPE_CHECKING

from ..model.tokens import PromptError
from ..model.voting import Entry
from .errors import ContextLengthError, InvalidRequestError, RequestTimeoutError
from .pipeline import Pipeline, as_template_reads, check_length
from .replies import ScoreItem, ScoreReply, ScoreUsage
from .scheduler import EngineClosedError, QueueFullError
from .schemas import ScoreRequest

if TYPE_CHECKING:
    from .engine import Engine

MAX_SCORED = 2**18  # tokens of one request
MAX_WAITING = 4096  # answers; with more before it, a request is refused


async def score(pipeline: Pipeline, request: ScoreRequest, model: str) -> ScoreReply:
    """How likely each candidate is to be right. Raises ApiError, QueueFullError, EngineError and EngineClosedError."""
    if pipeline.draining:
        raise EngineClosedError
    engine, limit = pipeline.engine, pipeline.timeout_s
    ranker = _choose(engine, request.ranker)
    try:
        async with asyncio.timeout(limit):
            entries, num_tokens = await asyncio.to_thread(_read, engine, request)
            if (waiting := engine.num_unranked) > MAX_WAITING:
                raise QueueFullError(f"{waiting} answers wait for a ranker")
            scores = await engine.rank(ranker, entries)
    except TimeoutError:
        raise RequestTimeoutError(f"The request took longer than the {limit:g} seconds that it has.") from None
    data = [ScoreItem(index=index, score=score) for index, score in enumerate(scores)]
    usage = ScoreUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
    return ScoreReply(model=model, ranker=ranker, data=data, usage=usage)


def _choose(engine: "Engine", name: str | None) -> str:
    if not engine.rankers:
        raise InvalidRequestError("This model has no trained ranker; --ranker loads one.", param="ranker")
    if name is not None and name not in engine.rankers:
        known = ", ".join(engine.rankers)
        raise InvalidRequestError(f"ranker is {name[:50]!r}; trained ones here are {known}.", param="ranker")
    return name or engine.rankers[0]


def _read(engine: "Engine", request: ScoreRequest) -> tuple[list[Entry], int]:
    """Candidates as rankers read them, and the tokens of all. Raises ApiError for what does not fit."""
    tokens = engine.tokens
    try:
        if request.messages is not None:
            text = tokens.render_text([as_template_reads(message) for message in request.messages])
        else:
            text = request.prompt or ""
        check_length(engine, text, "prompt" if request.messages is None else "messages")
        prompt = tuple(tokens.encode(text, special=request.messages is None))
    except PromptError as error:
        raise InvalidRequestError(str(error), param="prompt" if request.messages is None else "messages") from error
    check_length(engine, max(request.candidates, key=len), "candidates")
    try:
        lengths = [len(prompt) + len(tokens.encode(text, special=False)) for text in request.candidates]
    except PromptError as error:
        raise InvalidRequestError(str(error), param="candidates") from error
    if (longest := max(lengths)) > engine.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {engine.max_model_len} tokens. However, question and candidate "
            f"have {longest}.",
            param="candidates",
        )
    if (total := sum(lengths)) > MAX_SCORED:
        raise InvalidRequestError(
            f"All candidates, each with the question, have {total} tokens; {MAX_SCORED} may be scored at once.",
            param="candidates",
        )
    return [Entry(prompt, text) for text in request.candidates], total
