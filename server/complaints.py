"""What pydantic finds wrong with a body, in our words. They never quote a value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNSUPPORTED = "unsupported_parameter"  # the schemas' own complaint: known, and not honoured


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong: the field, where there is one, and a code that a program can compare."""

    message: str
    param: str | None = None
    code: str = "invalid_value"


def first_complaint(found: Iterable[Mapping[str, Any]]) -> Complaint:
    """Of what a `ValidationError` holds, the first."""
    details = next(iter(found))
    kind, named = details["type"], details.get("ctx", {}).get("param")
    if kind == "json_invalid":
        return Complaint("The body is not valid JSON.", code="invalid_json")
    place = details["loc"][1:] if details["loc"][:1] == ("body",) else details["loc"]
    param = _path([*place, *([named] if named else [])])
    if not param:
        return Complaint("The body must be a JSON object.")
    if kind == "missing":
        return Complaint(f"{param} is required.", param, "missing_required_parameter")
    if kind == UNSUPPORTED:
        return Complaint(f"{param}: {details['msg']}", param, UNSUPPORTED)
    wanted = details["msg"].removeprefix("Input should be ")
    link = " must be " if wanted != details["msg"] else ": "
    return Complaint(param + link + wanted, param)


def _path(parts: Iterable[str | int]) -> str:
    """Where in the body, as one writes it: `messages[0].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
