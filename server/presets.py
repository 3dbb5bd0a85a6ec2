"""Presets: further names of the served model, whose requests have other defaults.

They are for clients that cannot send our fields: `--model-preset 'deep={"thought_depth": 16}'`, and a request for the model
`deep` thinks 16 tokens deep unless it says otherwise. Of several served models, the preset's "model" says which it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from .complaints import first_complaint
from .schemas import ChatRequest, CompletionRequest, GenerationRequest

# A preset is a way to decode, not a question or a way to send the answer.
FIELDS = GenerationRequest.model_fields.keys() - {"model", "stream", "stream_options", "user", "metadata"}

# Ways to say the same thing: a request that uses one is not to find the preset's word for it in another.
_LIMITS = {"max_tokens", "max_completion_tokens"}
_DEPTHS = {"thought_depth", "reasoning_effort", "chat_template_kwargs"}
_VOTING = {"voting", "ranker", "answer_pattern", "return_samples"}
_CORRECTION = {"self_correction_turns", "self_correction_prompt", "return_drafts"}


@dataclass(frozen=True)
class Preset:
    """A model name and its defaults."""

    name: str
    defaults: Mapping[str, Any]
    model: str | None = None  # of several that are served; None: the first

    def __str__(self) -> str:
        """As on the command line."""
        own = {} if self.model is None else {"model": self.model}
        return f"{self.name}={json.dumps(own | dict(self.defaults))}"

    def fill(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body with the defaults that it does not overrule."""
        overruled = _said(body) | _overruled(body, self.defaults)
        return body | {key: value for key, value in self.defaults.items() if key not in overruled}


def _said(body: Mapping[str, Any]) -> set[str]:
    return {key for key, value in body.items() if value is not None}


def _overruled(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> set[str]:
    """Fields of a preset that contradict what a request says in other fields."""
    return _overruled_lengths(body, defaults) | _overruled_thinking(body, defaults) | _overruled_answers(body, defaults)


def _overruled_lengths(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> set[str]:
    if not _said(body) & _LIMITS:
        return set()
    return _LIMITS | ({"min_tokens"} if _exceeds(defaults.get("min_tokens"), _limit(body)) else set())


def _overruled_thinking(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> set[str]:
    said, overruled = _said(body), set()
    kwargs = body.get("chat_template_kwargs")
    thinks = kwargs.get("enable_thinking") if isinstance(kwargs, dict) else None
    if said & {"thought_depth", "reasoning_effort"} or thinks is False:
        overruled |= _DEPTHS
    if said & {"thought_depth", "reasoning_effort"} or thinks:
        overruled |= {"thought_mode"} if defaults.get("thought_mode") == "off" else set()
    if "thought_mode" in said:
        overruled |= {"thought_depth"} if body["thought_mode"] == "off" else set()
        overruled |= {"thought_threshold"} if body["thought_mode"] != "adaptive" else set()
    if body.get("thought_temperature") == 0 or _is_plain(body, thinks):
        overruled |= {"num_thoughts"}  # all would be the same, or there are none
    return overruled


def _overruled_answers(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> set[str]:
    said, overruled = _said(body), set()
    if body.get("echo") or "prompt_logprobs" in said or body.get("self_correction_turns") == 0:
        overruled |= _CORRECTION
    if body.get("stream") or body.get("self_correction_turns"):
        overruled |= {"prompt_logprobs"}
    if _exceeds(body.get("n"), defaults.get("best_of")) or 0 in (body.get("temperature"), _limit(body)):
        overruled |= {"best_of"} | _VOTING  # there would be fewer answers than are to be returned, or all the same
    if body.get("best_of") == 1 or body.get("voting") == "none":
        overruled |= _VOTING
    elif "voting" in said and body["voting"] != "ranker":
        overruled |= {"ranker"}
    if _has_several(body.get("prompt")):
        overruled |= {"return_samples"}
    return overruled


def _is_plain(body: Mapping[str, Any], thinks: Any) -> bool:
    """It asks for no thoughts; a depth, where there is one, counts before the other ways to say so."""
    if body.get("thought_mode") == "off" or "thought_depth" in _said(body):
        return body.get("thought_mode") == "off" or body["thought_depth"] == 0
    return thinks is False or body.get("reasoning_effort") == "none"


def _limit(body: Mapping[str, Any]) -> Any:
    """The most tokens that a body asks for, under whichever name, as it stands there: nothing has checked it yet."""
    completion = body.get("max_completion_tokens")
    return body.get("max_tokens") if completion is None else completion


def _exceeds(value: Any, other: Any) -> bool:
    """Both are numbers, of which 8.0 is one too, as everywhere in a request, and the first is greater."""
    return isinstance(value, int | float) and isinstance(other, int | float) and value > other


def _has_several(prompt: Any) -> bool:
    return isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int | float)


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
    model = defaults.pop("model", None)
    if not isinstance(model, str | None):
        raise ValueError(f"{name}: model must be a string, the name of a served model")
    if strange := sorted(defaults.keys() - FIELDS):
        raise ValueError(f"{name}: {strange[0]!r} is not a field that a preset may hold")
    for kind, asked in (
        (CompletionRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    ):
        try:
            kind.model_validate(asked | defaults)
        except ValidationError as error:
            raise ValueError(f"{name}: {first_complaint(error.errors()).message}") from None
    return Preset(name.strip(), defaults, model)
