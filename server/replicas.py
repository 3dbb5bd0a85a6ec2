"""Engines in several processes, on several cards or machines, behind one address: on Ray Serve.

    serve run quietserve.server.replicas:build flags="quiet-small --max-num-seqs 8" min_replicas=2

A replica is the whole application of `app.py` in a process of Ray's. The ingress in front only carries: a request goes to the
replica whose cache is likely to hold its beginning, and what comes back goes to the client. A reply of which nothing was told is
begun anew elsewhere when its replica dies; a stream of which something was told ends in an error event.
"""
# pyright: reportMissingImports=false

import asyncio
import math
import shlex
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from starlette.types import ASGIApp, Message

from ..model.parallel import Processes
from .app import create_app
from .ingress import Asked, BeginningRouter, Head, Ingress
from .loading import load_pipelines, make_service
from .logs import configure
from .settings import Settings

LAST_REPLIES_S = 10  # for an ingress, behind the last replica


class Scale(BaseModel):
    """What `serve run` and a manifest may say."""

    model_config = ConfigDict(extra="forbid")

    flags: str = Field(
        "", description="of `quietserve serve`, as they would be typed; --host and --port are the ingress's"
    )
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, description="at least min_replicas; more are started where slots are short")
    upscale_delay_s: float = Field(30, ge=0, description="for which slots must have been short")
    downscale_delay_s: float = Field(600, ge=0, description="for which fewer replicas must have had enough")
    num_ingresses: int = Field(1, ge=1, description="processes that carry")
    num_gpus: float = Field(0, ge=0, description="of each replica")
    num_cpus: float = Field(1, ge=0, description="of each replica")


def build(scale: Scale) -> Any:
    """The application, for `serve run` and manifests. Raises SettingsError for a flag that cannot be, and ValueError."""
    settings = Settings.from_args(shlex.split(scale.flags))
    engine = serve.deployment(Replica).options(
        name="engine",
        max_ongoing_requests=settings.max_num_seqs + settings.max_num_queued_reqs,
        max_queued_requests=max(1, settings.max_num_queued_reqs),
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=max(scale.min_replicas, scale.max_replicas),
            upscale_delay_s=scale.upscale_delay_s,
            downscale_delay_s=scale.downscale_delay_s,
            policy=AutoscalingPolicy(policy_function=num_replicas),
        ),
        ray_actor_options={"num_gpus": scale.num_gpus, "num_cpus": scale.num_cpus},
        request_router_config=RequestRouterConfig(request_router_class=BeginningRouter),
        max_constructor_retry_count=2,  # a checkpoint that cannot be loaded is none the third time
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
    )
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=scale.num_ingresses,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0},
        # It carries what replicas finish, and tells how those end that do not.
        graceful_shutdown_timeout_s=settings.shutdown_timeout + LAST_REPLIES_S,
    )
    return ingress.bind(engine.bind(scale.flags))


class Replica:
    """One engine, or one a model, and the application around it."""

    def __init__(self, flags: str) -> None:
        settings = Settings.from_args(shlex.split(flags))
        configure(settings.log_level, settings.log_format)
        self._service = make_service(settings)
        pipelines = load_pipelines(settings, self._service, Processes())
        for service, pipeline in zip(self._service.every, pipelines, strict=True):
            service.pipeline = pipeline
        self._max_waiting = settings.max_num_queued_reqs
        self._app = create_app(
            self._service,
            keys=settings.read_keys(),
            allowed_origins=settings.allowed_origins,
            playground=settings.playground,
        )

    async def answer(self, asked: Asked) -> AsyncIterator[Head | bytes]:
        """The head of a reply, and the pieces of a body that comes in pieces."""
        messages = run(self._app, asked)
        start = await anext(messages)
        streamed = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
        )
        bodies = (message["body"] async for message in messages if message.get("body"))
        if streamed:
            yield Head(start["status"], start["headers"], None)
            async for body in bodies:
                yield body
        else:
            yield Head(start["status"], start["headers"], b"".join([body async for body in bodies]))

    async def whole(self, asked: Asked) -> tuple[int, Head]:
        """The replica's rank, and its reply to what all are asked."""
        head: Any = await anext(self.answer(asked))
        return serve.get_replica_context().rank.rank, head

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises."""
        for service in self._service.every:
            if service.pipeline and not service.pipeline.engine.healthy:
                raise RuntimeError(f"the device thread of {service.model_name} has died")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray: the slots there are, and the answers that have one or wait for one."""
        engines = [service.pipeline.engine for service in self._service.every if service.pipeline]
        answers = sum(engine.num_running + engine.num_waiting for engine in engines)
        return {
            "slots": float(sum(engine.capacity - self._max_waiting for engine in engines)),
            "answers": float(answers),
        }


def num_replicas(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """As many replicas as have a slot for every answer that runs or waits."""
    told = context.aggregated_metrics or {}
    slots, answers = told.get("slots", {}), told.get("answers", {})
    if not slots:
        return context.target_num_replicas, {}
    return max(1, math.ceil(sum(answers.values()) / max(slots.values()))), {}


async def run(app: ASGIApp, asked: Asked) -> AsyncIterator[Message]:
    """What an application says to a request. Whoever stops listening has left: the application is told."""
    said: asyncio.Queue[Message | None] = asyncio.Queue()
    left, given = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": asked.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await app(_scope(asked), receive, said.put)
        finally:
            await said.put(None)

    working = asyncio.ensure_future(work())
    try:
        while (message := await said.get()) is not None:
            yield message
        await working
    finally:
        left.set()


def _scope(asked: Asked) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query,
        "root_path": "",
        "headers": asked.headers,
        "client": None,
        "server": None,
    }
