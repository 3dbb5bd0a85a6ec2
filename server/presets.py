"""Presets: further names of the served model, whose requests have other defaults.

They are for clients that cannot send our fields: `--model-preset 'deep={"thought_depth": 16}'`, and a request for the model
`deep` thinks 16 tokens deep unless it says otherwise.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from .errors import from_complaint
from .schemas import ChatRequest, CompletionRequest, GenerationRequest

# A preset is a way to decode, not a question or a way to send the answer.
FIELDS = GenerationRequest.model_fields.keys() - {"model", "stream", "stream_options", "user", "metadata"}

# Ways to say the same thing: a request that uses one is not to find the preset's word for it in another.
_ALTERNATIVES = (
    {"max_tokens", "max_completion_tokens"},
    {"thought_depth", "reasoning_effort", "chat_template_kwargs"},
)


@dataclass(frozen=True)
class Preset:
    """A model name and its defaults."""

    name: str
    defaults: Mapping[str, Any]

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.name}={json.dumps(self.defaults)}"

    def fill(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body with the defaults that it does not overrule."""
        said = {key for key, value in body.items() if value is not None}
        overruled = said.union(*(same for same in _ALTERNATIVES if same & said))
        if body.get("thought_mode") == "off":
            overruled |= {"thought_depth", "thought_threshold"}
        elif body.get("thought_depth") and self.defaults.get("thought_mode") == "off":
            overruled |= {"thought_mode"}
        return body | {key: value for key, value in self.defaults.items() if key not in overruled}


def parse_preset(text: str) -> Preset:
    """A preset from NAME=JSON. Raises ValueError."""
    name, equals, written = text.partition("=")
    if not equals or not name.strip():
        raise ValueError('a preset is written NAME=JSON, for example deep={"thought_depth": 16}')
    try:
        defaults = json.loads(written)
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from None
    if not isinstance(defaults, dict):
        raise ValueError(f"{name}: must be a JSON object")
    if strange := sorted(defaults.keys() - FIELDS):
        raise ValueError(f"{name}: {strange[0]!r} is not a field that a preset may hold")
    for kind, asked in (
        (CompletionRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    ):
        try:
            kind.model_validate(asked | defaults)
        except ValidationError as error:
            raise ValueError(f"{name}: {from_complaint(error.errors()[0]).message}") from None
    return Preset(name.strip(), defaults)
