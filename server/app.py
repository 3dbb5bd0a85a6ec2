"""The ASGI application: routes, and around them what every reply has: an id, an error object, an entry in the books."""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import OPEN, KeyGuard
from .errors import EXPECTED, ContentTypeError, TooLargeError, as_api_error, error_response
from .logs import request_id as logged_request_id
from .metrics import Metrics
from .openapi import with_limits
from .page import FILES, page
from .routes import router
from .service import Service

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_LEFT = 499  # the status, nginx's, that the books give a client that left before its reply began
_CHATTER = OPEN | {"/metrics"}  # asked every few seconds by machines


def create_app(
    service: Service,
    *,
    keys: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    playground: bool = False,
) -> FastAPI:
    """The application of a service, and its playground; `keys` open it, pages of `allowed_origins` may ask it from a browser."""
    app = FastAPI(
        title="quietserve", version=version("quietserve"), docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    describe = app.openapi
    app.openapi = lambda: with_limits(describe(), service.limits())  # type: ignore[method-assign]
    app.include_router(router)
    if playground:
        app.include_router(page)
    for kind in EXPECTED:
        app.add_exception_handler(
            kind, lambda request, error: tell(error, _books_of(request, service), request.scope["path"])
        )
    # The last one added is the outermost.
    app.add_middleware(BodyGuard, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(KeyGuard, keys=keys, without=OPEN | FILES.keys() if playground else OPEN)
    app.add_middleware(Teller, metrics=service.metrics)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-ignored-params", "retry-after"],
        )
    app.add_middleware(Books, metrics=service.metrics)
    return app


def _books_of(request: Request, service: Service) -> Metrics:
    """Those of the model that it means, as far as that is known."""
    return getattr(request.state, "metrics", service.metrics)


def tell(error: Exception, metrics: Metrics, path: str) -> Response:
    """The reply to a request that failed; who only asks whether there is work to be had is not refused any."""
    told = as_api_error(error)
    if path not in OPEN:
        metrics.refused(told)
    return error_response(told)


class Books:
    """Gives every reply its `x-request-id`, counts it and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"
        if method == "HEAD":  # as GET: whoever sends it leaves the body out
            scope = {**scope, "method": "GET"}
        request_id, begin = _request_id(Headers(scope=scope).get("x-request-id", "")), time.monotonic()
        scope.setdefault("state", {})["request_id"] = request_id
        logged_request_id.set(request_id)
        status = _LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._enter(scope, method, status, time.monotonic() - begin)

    def _enter(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        """Into the books and the log; never the path as it was sent, which may hold anything."""
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.replied(route, method, status)
        run = scope["state"].get("run")
        fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        if model := scope["state"].get("model"):  # as the server calls it
            fields["model"] = model
        level = logging.DEBUG if route in _CHATTER else logging.INFO
        logger.log(level, "replied", extra={"fields": fields | (run.summary() if run else {})})


class Teller:
    """Turns exceptions that nobody inside turned into a reply: refusals of the guards, and faults of ours."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:
            if not isinstance(error, EXPECTED):
                logger.exception("a request failed")
            if begun:  # too late for another reply: the broken connection has to tell
                raise ConnectionAbortedError("the reply broke off") from None
            if scope["type"] == "http":
                await tell(error, self.metrics, scope["path"])(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})


class BodyGuard:
    """Refuses bodies that are too large or not JSON, before they are parsed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers, num_bytes = Headers(scope=scope), 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise self._too_large()
            return message

        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            raise self._too_large()
        has_body = length not in ("", "0") or "transfer-encoding" in headers
        if has_body and not _is_json(headers.get("content-type", "")):
            raise ContentTypeError("The content type must be application/json.")
        await self.app(scope, receive_limited, send)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"The body is larger than {self.max_bytes} bytes.")


def _request_id(offered: str) -> str:
    """The client's own where it is one that may be repeated in a header and a log."""
    return offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
