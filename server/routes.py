"""The endpoints."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..model.probe import ProbeConfig
from .choices import ChatWriter, CompletionWriter, Writer
from .errors import NotFoundError, UnavailableError
from .metrics import CONTENT_TYPE
from .pipeline import Pipeline, as_template_reads
from .replies import (
    CancelReply,
    Capabilities,
    ChatReply,
    CompletionReply,
    DetokenizeReply,
    ErrorReply,
    ModelList,
    ModelReply,
    ProbeDescription,
    ScoreReply,
    TokenizeReply,
    VotingReply,
)
from .runs import GenerationRequest
from .schemas import Body, ChatRequest, CompletionRequest, DetokenizeRequest, ScoreRequest, TokenizeRequest, VoteRequest
from .scores import score as judged
from .service import Service
from .streaming import EventStream, apart_if_long, unless_disconnected
from .votes import count

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "The answer, whole or streamed.",
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}


class _PresetRequest(Request):
    """A request whose body is read with the defaults of the preset that it names."""

    async def json(self) -> Any:
        """The body."""
        body = await super().json()
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str) or name not in _service(self).names:
            return body
        preset = _means(self, name).presets.get(name)
        return preset.fill(body) if preset else body


class _PresetRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def handle_with_preset(request: Request) -> Response:
            return await handle(_PresetRequest(request.scope, request.receive))

        return handle_with_preset


router = APIRouter(responses=ERRORS)
generation = APIRouter(responses=ERRORS, route_class=_PresetRoute)


@generation.post("/v1/completions", response_model=CompletionReply, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or more prompts."""
    return await _answer(request, body, CompletionWriter)


@generation.post("/v1/chat/completions", response_model=ChatReply, responses=STREAMED)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    return await _answer(request, body, ChatWriter)


router.include_router(generation)


@router.post("/v1/requests/{request_id}/cancel")
async def cancel(request_id: str, request: Request) -> CancelReply:
    """End a request that runs, by its x-request-id or by the id of its reply; it is answered with what it has."""
    known = [service.ready_pipeline().runs for service in _service(request).every]
    for own_id in (request_id, request_id.removeprefix("cmpl-"), request_id.removeprefix("chatcmpl-")):
        if runs := [run for own in known for run in own.get(own_id, []) if run.num_unfinished]:
            for run in runs:
                run.cancel()
            return CancelReply(id=own_id)
    raise NotFoundError("No request of this id is running.")


@router.post("/v1/score", response_model=ScoreReply)
async def score(body: ScoreRequest, request: Request, response: Response) -> ScoreReply | Response:
    """How likely a trained ranker holds answers to one question to be right; nothing is generated."""
    service = _means(request, body.model)
    pipeline, name = service.ready_pipeline(), body.model or service.model_name
    _name_ignored(response, body)
    try:
        return await unless_disconnected(request.receive, judged(pipeline, body, name))
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it, and nothing more is scored


@router.post("/v1/vote", response_model_exclude_unset=True)
def vote(body: VoteRequest, request: Request, response: Response) -> VotingReply:
    """Count the votes of answers that a client has; nothing is generated."""
    _means(request, body.model)
    _name_ignored(response, body)
    return count(body)


@router.post("/tokenize")  # plain functions run on a thread of their own: a long text holds nobody up
def tokenize(body: TokenizeRequest, request: Request, response: Response) -> TokenizeReply:
    """The ids of a text, or of a conversation as the model reads it."""
    engine = _checked(request, body).engine
    _name_ignored(response, body)
    if body.messages is not None:
        messages = [as_template_reads(message) for message in body.messages]
        ids = engine.tokens.render(messages, add_generation_prompt=body.add_generation_prompt)
    else:
        ids = engine.tokens.encode(body.prompt or "", special=body.add_special_tokens)
    texts = [engine.tokens.token_text(id_) for id_ in ids] if body.return_token_strs else None
    return TokenizeReply(count=len(ids), max_model_len=engine.max_model_len, tokens=ids, token_strs=texts)


@router.post("/detokenize")
def detokenize(body: DetokenizeRequest, request: Request, response: Response) -> DetokenizeReply:
    """The text of ids, special ones by their name."""
    tokens = _checked(request, body).engine.tokens
    _name_ignored(response, body)
    return DetokenizeReply(prompt=tokens.decode(tokens.check(body.tokens), special=True))


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    """The tokenizer's class, its special tokens and its chat template; of several models, the first's or that of `model`."""
    return _means(request, model).ready_pipeline().engine.tokens.describe()


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """What is served."""
    return ModelList(data=[_describe_model(request, name) for name in _service(request).names])


@router.get("/v1/models/{model_id:path}")
async def model(model_id: str, request: Request) -> ModelReply:
    """One served model."""
    return _describe_model(request, model_id)


@router.get("/health")
@router.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
async def health(request: Request) -> dict[str, str]:
    """The process is alive, loading or draining too; some load balancers look for it at /ping."""
    for service in _service(request).every:
        if service.pipeline and not service.pipeline.engine.healthy:
            raise _stopped(service.model_name)
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """New work is taken."""
    pipelines = {service.model_name: service.ready_pipeline() for service in _service(request).every}
    if any(pipeline.draining for pipeline in pipelines.values()):
        raise UnavailableError("The server is shutting down.", code="draining", retry_after_s=5)
    for name, pipeline in pipelines.items():
        if not pipeline.engine.ready:
            raise _stopped(name)
    return {"status": "ready"}


@router.get("/version")
async def server_version() -> dict[str, str]:
    """The version of the server."""
    return {"version": version("quietserve")}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(_service(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _answer(request: Request, body: GenerationRequest, writer_of: type[Writer[Any, Any, Any]]) -> Response:
    service, request_id = _means(request, body.model), request.state.request_id
    name, pipeline = body.model or service.model_name, service.ready_pipeline()
    run = await pipeline.prepare(body, request_id)
    writer = writer_of(body, run, pipeline.engine.tokens, name, request_id)
    run.submit()
    request.state.run = run
    reply = EventStream(writer, service.metrics) if body.stream else await _whole(request, writer)
    _name_ignored(reply, body)
    return reply


def _name_ignored(reply: Response, body: Body) -> None:
    if ignored := body.ignored():
        reply.headers["x-ignored-params"] = ", ".join(ignored[:32])


async def _whole(request: Request, writer: Writer[Any, Any, Any]) -> Response:
    with writer.run:
        try:
            answers = await unless_disconnected(request.receive, writer.run.answers())
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
    written = await apart_if_long(lambda: _written(writer.whole(answers)), answers)
    return Response(written, media_type=JSONResponse.media_type)


def _written(reply: CompletionReply | ChatReply) -> str:
    """As JSON, choice by choice: while pydantic writes, no other thread runs."""
    rest = reply.model_dump_json(exclude_unset=True, exclude={"choices"})
    choices = ",".join(choice.model_dump_json(exclude_unset=True) for choice in reply.choices)
    return f'{rest[:-1]},"choices":[{choices}]}}'


def _service(request: Request) -> Service:
    return request.app.state.service


def _means(request: Request, name: str | None) -> Service:
    """Whose model it means, which the books and the log are told."""
    service = _service(request).find(name)
    request.state.metrics, request.state.model = service.metrics, service.model_name
    return service


def _stopped(model: str) -> UnavailableError:
    return UnavailableError(f"The engine of {model!r} has stopped.", code="internal_error")


def _checked(request: Request, body: Any) -> Pipeline:
    return _means(request, body.model).ready_pipeline()


def _describe_model(request: Request, name: str) -> ModelReply:
    service = _service(request).find(name)
    pipeline = service.ready_pipeline()
    engine, limits = pipeline.engine, pipeline.limits()
    capabilities = Capabilities(
        thinking=engine.max_thought_depth > 0,
        max_thought_depth=engine.max_thought_depth,
        max_num_thoughts=limits["num_thoughts"],
        max_best_of=limits["best_of"],
        max_self_correction_turns=limits["self_correction_turns"],
        self_correction=limits["self_correction_turns"] > 0,
        rankers=pipeline.rankers,
        probes=[_describe_probe(name, config) for name, config in engine.probes.items()],
    )
    return ModelReply(
        id=name,
        created=service.created,
        parent=None if name == service.model_name else service.model_name,
        max_model_len=engine.max_model_len,
        capabilities=capabilities,
    )


def _describe_probe(name: str, config: ProbeConfig) -> ProbeDescription:
    return ProbeDescription(
        name=name,
        property=config.property,
        classes=list(config.classes),
        layers=list(config.layers),
        offset=config.offset,
    )
