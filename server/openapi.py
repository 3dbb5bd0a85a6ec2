"""The description of the API, with the limits of the server that runs."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any


def with_limits(description: dict[str, Any], limits: Mapping[str, int]) -> dict[str, Any]:
    """The same, where whole numbers in the fields of request bodies have their largest value, by the name of the field."""
    described = copy.deepcopy(description)
    for name, schema in described["components"]["schemas"].items():
        if name.endswith("Request"):
            for field in schema["properties"].keys() & limits:
                for number in _whole_numbers(schema["properties"][field]):
                    number["maximum"] = limits[field]
    return described


def _whole_numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict) and schema.get("type") == "integer":
        yield schema
    elif isinstance(schema, dict | list):
        for part in schema.values() if isinstance(schema, dict) else schema:
            yield from _whole_numbers(part)
