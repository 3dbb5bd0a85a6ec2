"""What can go wrong with a request, as its client sees it: every lower error ends as an `ApiError` here."""

from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..model.tokens import PromptError
from .complaints import UNSUPPORTED, Complaint, first_complaint
from .replies import ErrorBody, ErrorReply
from .scheduler import EngineClosedError, EngineError, QueueFullError


class ApiError(HTTPException):
    """A request that failed.

    It is Starlette's exception too: the only kind that passes through FastAPI's reading of a body unchanged.

    Args:
        message: for the client: one line, without paths, addresses, prompts or values of ours.
        param: the field at fault, where there is one.
        code: what a program can compare; the class has a default.
    """

    status = 500
    code = "internal_error"
    kind = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(self.status, message, headers)
        self.message = message
        self.param = param
        self.code = code or self.code


class InvalidRequestError(ApiError):
    """A field has a value that it may not have."""

    status, code, kind = 400, "invalid_value", "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """The prompt and the tokens asked for do not fit the model's context."""

    code = "context_length_exceeded"


class UnsupportedParameterError(InvalidRequestError):
    """A field, or a value of it, that this server does not honour."""

    code = UNSUPPORTED


class ApiKeyError(InvalidRequestError):
    """The key is missing, or is none of ours."""

    status, code, kind = 401, "invalid_api_key", "authentication_error"


class NotFoundError(InvalidRequestError):
    """No such route."""

    status, code = 404, "not_found"


class ModelNotFoundError(NotFoundError):
    """No model of that name is served."""

    code = "model_not_found"


class MethodNotAllowedError(InvalidRequestError):
    """The route exists, for other methods."""

    status, code = 405, "method_not_allowed"


class TooLargeError(InvalidRequestError):
    """The body is longer than the server reads."""

    status, code = 413, "request_too_large"


class ContentTypeError(InvalidRequestError):
    """The body is not declared as JSON."""

    status, code = 415, "unsupported_media_type"


class InternalError(ApiError):
    """Our fault."""


class RequestTimeoutError(ApiError):
    """It took longer than the request or the server allows."""

    status, code, kind = 504, "request_timeout", "timeout_error"


class UnavailableError(ApiError):
    """Not now; the same request may succeed later."""

    status, code = 503, "draining"

    def __init__(self, message: str, *, code: str, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after_s)})


# What requests and a busy server cause; anything else is a fault of ours.
EXPECTED = (HTTPException, RequestValidationError, PromptError, QueueFullError, EngineClosedError, EngineError)


def as_api_error(error: BaseException) -> ApiError:
    """The error a client is told about; one we know nothing of becomes a bare internal error."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _from_complaint(first_complaint(error.errors()))
        case HTTPException():
            return _from_http(error)
        case PromptError():
            return InvalidRequestError(_line(error))
        case QueueFullError():
            return UnavailableError("The queue is full. Try again later.", code="queue_full")
        case EngineClosedError():
            return UnavailableError("The server takes no new work.", code="draining", retry_after_s=5)
        case EngineError(code="out_of_memory" | "draining" as code):
            return UnavailableError(_line(error), code=code, retry_after_s=5)
        case EngineError():
            return InternalError(_line(error))
    return InternalError("The server failed to answer this request.")


def error_reply(error: ApiError) -> ErrorReply:
    """The body that tells a client."""
    return ErrorReply(error=ErrorBody(message=error.message, type=error.kind, param=error.param, code=error.code))


def error_response(error: ApiError) -> Response:
    """The whole HTTP reply."""
    body = error_reply(error).model_dump_json()
    return Response(body, error.status, error.headers, media_type="application/json")


def _from_complaint(told: Complaint) -> ApiError:
    kind = UnsupportedParameterError if told.code == UnsupportedParameterError.code else InvalidRequestError
    return kind(told.message, param=told.param, code=told.code)


def _from_http(error: HTTPException) -> ApiError:
    """From Starlette's routing, or from FastAPI's reading of the body."""
    match error.status_code:
        case 404:
            return NotFoundError("There is nothing at this address.")
        case 405:
            return MethodNotAllowedError("This address does not answer this method.", headers=error.headers)
        case 413:
            return TooLargeError("The body is too large.")
        case status if 400 <= status < 500:
            return InvalidRequestError("The body is not valid JSON.", code="invalid_json")
    return InternalError("The server failed to answer this request.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
