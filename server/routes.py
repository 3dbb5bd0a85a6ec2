"""The endpoints."""

import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .choices import ChatWriter, CompletionWriter, Writer
from .errors import ModelNotFoundError, UnavailableError
from .metrics import CONTENT_TYPE, Metrics
from .pipeline import GenerationRequest, Pipeline, Run
from .replies import Capabilities, ChatReply, CompletionReply, ErrorReply, ModelList, ModelReply
from .schemas import ChatRequest, CompletionRequest
from .streaming import EventStream, unless_disconnected

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}
STARTED = int(time.time())

router = APIRouter(responses=ERRORS)


@router.post("/v1/completions", response_model=CompletionReply)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or more prompts."""
    run = _start(request, body)
    tokens = _pipeline(request).engine.tokens
    return await _reply(request, CompletionWriter(body, run, tokens, _model_name(request), request.state.request_id))


@router.post("/v1/chat/completions", response_model=ChatReply)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    run = _start(request, body)
    tokens = _pipeline(request).engine.tokens
    return await _reply(request, ChatWriter(body, run, tokens, _model_name(request), request.state.request_id))


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """What is served."""
    return ModelList(data=[_describe_model(request)])


@router.get("/v1/models/{model_id:path}")
async def model(model_id: str, request: Request) -> ModelReply:
    """One served model."""
    _check_model(request, model_id)
    return _describe_model(request)


@router.get("/health")
@router.get("/ping")
@router.post("/ping")
async def health(request: Request) -> dict[str, str]:
    """The process is alive, draining or not."""
    if not _pipeline(request).engine.healthy:
        raise UnavailableError("The engine has stopped.", code="internal_error")
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """New work is taken."""
    pipeline = _pipeline(request)
    if pipeline.draining:
        raise UnavailableError("The server is shutting down.", code="draining", retry_after_s=5)
    if not pipeline.engine.ready:
        raise UnavailableError("The model is not ready.", code="model_loading")
    return {"status": "ready"}


@router.get("/version")
async def server_version() -> dict[str, str]:
    """The version of the server."""
    return {"version": version("quietserve")}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    books: Metrics = request.app.state.metrics
    return Response(books.render(), headers={"Content-Type": CONTENT_TYPE})


def _start(request: Request, body: GenerationRequest) -> Run:
    if body.model is not None:
        _check_model(request, body.model)
    return _pipeline(request).start(body)


async def _reply(request: Request, writer: Writer[Any, Any, Any]) -> Response:
    if writer.request.stream:
        return EventStream(writer)
    with writer.run:
        try:
            answers = await unless_disconnected(request.receive, writer.run.answers())
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
    return Response(writer.whole(answers).model_dump_json(exclude_unset=True), media_type=JSONResponse.media_type)


def _pipeline(request: Request) -> Pipeline:
    return request.app.state.pipeline


def _model_name(request: Request) -> str:
    return request.app.state.model_name


def _check_model(request: Request, name: str) -> None:
    if name != _model_name(request):
        raise ModelNotFoundError(
            f"The model {name[:100]!r} does not exist. This server has {_model_name(request)!r}.", param="model"
        )


def _describe_model(request: Request) -> ModelReply:
    engine = _pipeline(request).engine
    depth = engine.max_thought_depth
    capabilities = Capabilities(
        thinking=depth > 0, max_thought_depth=depth, self_correction=False, rankers=[], probes=[]
    )
    return ModelReply(
        id=_model_name(request),
        created=STARTED,
        parent=None,
        max_model_len=engine.max_model_len,
        capabilities=capabilities,
    )
