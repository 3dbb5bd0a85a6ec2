"""What goes wrong between a client and its server, all of it as one exception."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

BUSY_STATUSES = frozenset({429, 503})
PASSING_CODES = frozenset(
    {"queue_full", "draining", "model_loading", "out_of_memory", "connection_failed", "connection_lost"}
)


class ApiError(Exception):
    """A request that came to nothing; `str()` is one line for people.

    `status` is None where the failure has no HTTP status: no connection, or an error after a stream had begun.
    `code` is the server's, or one of ours: `connection_failed`, `connection_lost`, `timeout`, `bad_response`.
    `retry_after_s` is how long the server asks to be left alone, where it says so.
    """

    def __init__(
        self,
        status: int | None,
        code: str | None,
        param: str | None,
        message: str,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, param, message, request_id, retry_after_s)
        self.status = status
        self.code = code
        self.param = param
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the fault may pass by itself, so that the same request may succeed later.

        All of 429 and 503 is: a full queue empties, a model loads, memory is freed, and behind a load balancer
        another server may answer for one that shuts down.
        """
        return self.status in BUSY_STATUSES or self.code in PASSING_CODES

    def __str__(self) -> str:
        """The message on one line."""
        return " ".join(self.message.split())


@contextmanager
def connection_errors(base_url: str) -> Iterator[None]:
    """Say in one line of ours what httpx says about a connection."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        message = f"cannot connect to {base_url}; is the server running?"
        raise ApiError(None, "connection_failed", None, message) from error
    except httpx.TimeoutException as error:
        raise ApiError(None, "timeout", None, f"{base_url} did not answer in time") from error
    except httpx.RequestError as error:
        raise ApiError(None, "connection_lost", None, f"the connection to {base_url} broke off") from error


@contextmanager
def shape_errors(request_id: str | None) -> Iterator[None]:
    """Say in one line of ours that a reply could not be read."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = "the reply is not in the API's shape; is this address a quietserve server?"
        raise ApiError(None, "bad_response", None, message, request_id) from error


def read_error(response: httpx.Response) -> ApiError:
    """The error that a reply without success tells of, whatever its body is."""
    request_id = response.headers.get("x-request-id")
    retry_after_s = parse_retry_after(response.headers.get("retry-after"), response.headers.get("date"))
    try:
        error = json.loads(response.content)["error"]
        return build_error(response.status_code, error, request_id, retry_after_s)
    except (LookupError, TypeError, ValueError, AttributeError):
        message = f"the server answered with HTTP status {response.status_code} and no error object"
        return ApiError(response.status_code, None, None, message, request_id, retry_after_s)


def build_error(status: int | None, error: Any, request_id: str | None, retry_after_s: float | None = None) -> ApiError:
    """From the API's error object."""
    message = str(error["message"])
    return ApiError(status, error.get("code"), error.get("param"), message, request_id, retry_after_s)


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds from a `Retry-After` header, which holds them or an HTTP date; None where it says nothing sensible.

    A date is compared with the reply's own `Date` where there is one, so that clocks need not agree.
    """
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return float(value)
    until = _parse_date(value)
    if until is None:
        return None
    now = _parse_date(date) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _parse_date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
