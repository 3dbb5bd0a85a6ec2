"""The log: one line an event, with the request it belongs to, and nothing of what users wrote.

An exception is told by its kind and by where it was raised. Its message is told too where only numbers can be in it, which
is everywhere but in what reads requests.
"""

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")

_INPUT_READERS = ("quietserve.server.app", "quietserve.server.streaming", "uvicorn.error", "asyncio")
# Who have nothing to tell an operator.
_QUIET = ("uvicorn", "httpx", "httpcore", "filelock", "huggingface_hub", "urllib3")


def configure(level: str, form: str) -> None:
    """Send the log of everything in this process to standard error; `form` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if level != "debug":
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, who, for which request, what."""
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items() if value is not None)
        failed = _failure(record)
        parts = [
            f"{_moment(record)} {record.levelname} {record.name.removeprefix('quietserve.')}:",
            f"[{_request(record)}]" if _request(record) else "",
            _line(record.getMessage()),
            fields,
            f"({failed['error']}: {failed['reason']}; {failed['where']})" if failed else "",
        ]
        return " ".join(part for part in parts if part)


class JsonLines(logging.Formatter):
    """For machines: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The same, as JSON."""
        told = {"time": _moment(record), "level": record.levelname.lower(), "logger": record.name}
        if _request(record):
            told["request_id"] = _request(record)
        told["message"] = record.getMessage()
        return json.dumps(told | _fields(record) | _failure(record), default=str)


def where(error: BaseException) -> str:
    """The innermost places that an exception came through, newest first: files by their name, no text."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " < ".join(f"{frame.name} ({_file(frame.filename)}:{frame.lineno})" for frame in reversed(frames))


def _failure(record: logging.LogRecord) -> dict[str, str]:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {}
    message = "(not shown)" if record.name.startswith(_INPUT_READERS) else _line(str(error))
    return {"error": type(error).__name__, "reason": message, "where": where(error)}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _request(record: logging.LogRecord) -> str:
    return getattr(record, "request_id", "") or request_id.get()


def _moment(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _line(text: str) -> str:
    return " ".join(text.split())


def _file(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
