"""From the JSON of a reply to its values. Anything in another shape raises, and `shape_errors` tells the caller."""

from dataclasses import fields
from typing import Any

from .replies import (
    Capabilities,
    Choice,
    Delta,
    Metrics,
    Model,
    Probe,
    Probed,
    Readout,
    Reply,
    Sample,
    SelfCorrection,
    Thought,
    Tokenization,
    TokenLogprob,
    Turn,
    Usage,
    Vote,
    Voting,
)


def parse_reply(body: Any, request_id: str | None) -> Reply:
    """A whole reply of completions or chat."""
    choices = tuple(Choice(finish_reason=raw["finish_reason"], **_parse_piece(raw)) for raw in body["choices"])
    if not choices:
        raise ValueError("no choices")
    usage = parse_usage(body["usage"])
    return Reply(model=body["model"], choices=choices, usage=usage, **_parse_around(body, request_id))


def parse_event(body: Any, request_id: str | None) -> tuple[Delta, ...]:
    """One event of a stream; that of the usage has no choices, and becomes a delta that adds nothing to the first."""
    choices: list[Any] = body["choices"] or [{"index": 0}]
    usage = parse_usage(body["usage"]) if body.get("usage") else None
    around = _parse_around(body, request_id)
    return tuple(
        Delta(finish_reason=raw.get("finish_reason"), usage=usage, **_parse_piece(raw), **around) for raw in choices
    )


def parse_models(body: Any, _: str | None) -> tuple[Model, ...]:
    """The reply of `/v1/models`."""
    return tuple(_parse_model(raw) for raw in body["data"])


def parse_tokenization(body: Any, _: str | None) -> Tokenization:
    """The reply of `/tokenize`."""
    return Tokenization(tuple(body["tokens"]), tuple(body.get("token_strs") or ()), body.get("max_model_len"))


def parse_detokenized(body: Any, _: str | None) -> str:
    """The reply of `/detokenize`."""
    return str(body["prompt"])


def parse_vote(body: Any, _: str | None) -> Voting:
    """The reply of `/v1/vote`."""
    return _parse_voting(body)


def parse_scores(body: Any, _: str | None) -> tuple[float, ...]:
    """The reply of `/v1/score`, in the order of the candidates."""
    return tuple(item["score"] for item in sorted(body["data"], key=lambda item: item["index"]))


def parse_usage(raw: Any) -> Usage:
    """The token counts of a reply."""
    details = raw.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=raw["prompt_tokens"],
        completion_tokens=raw["completion_tokens"],
        total_tokens=raw["total_tokens"],
        **{f"{kind}_tokens": details.get(f"{kind}_tokens") or 0 for kind in ("reasoning", "draft", "discarded")},
    )


def _parse_around(body: Any, request_id: str | None) -> dict[str, Any]:
    """What a reply, or an event, says beside its choices and its usage."""
    metrics, voting = body.get("metrics"), body.get("voting")
    return {
        "metrics": Metrics(**{name.name: metrics.get(name.name) for name in fields(Metrics)}) if metrics else None,
        "voting": _parse_voting(voting) if voting else None,
        "warnings": tuple(str(warning) for warning in body.get("warnings") or ()),
        "request_id": request_id,
        "raw": body,
    }


def _parse_piece(raw: Any) -> dict[str, Any]:
    """What an answer and a piece of one share; chat nests the text in `message` or `delta`, completions do not."""
    part = raw.get("message") or raw.get("delta") or raw
    correction, vote = raw.get("self_correction"), raw.get("vote")
    return {
        "index": raw["index"],
        "text": part.get("content") or part.get("text") or "",
        "reasoning": part.get("reasoning") or "",
        "thoughts": tuple(_parse_thought(thought) for thought in raw.get("thoughts") or ()),
        "probes": _parse_probed(raw),
        "logprobs": _parse_logprobs(raw.get("logprobs") or {}),
        "self_correction": _parse_correction(correction) if correction else None,
        "vote": _parse_vote(vote) if vote else None,
    }


def _parse_thought(raw: Any) -> Thought:
    return Thought(
        position=raw["position"],
        token=raw["token"],
        thought=raw["thought"],
        token_ids=tuple(raw["token_ids"]),
        mixing_weight=raw["mixing_weight"],
        thought_index=raw.get("thought_index", 0),
    )


def _parse_probed(raw: Any) -> tuple[Probed, ...]:
    return tuple(
        Probed(
            told["position"],
            told["token"],
            {name: _parse_readout(readout) if readout else None for name, readout in told["readouts"].items()},
        )
        for told in raw.get("probes") or ()
    )


def _parse_readout(raw: Any) -> Readout:
    return Readout(raw["class"], raw["probability"])


def _parse_logprobs(raw: Any) -> tuple[TokenLogprob, ...]:
    """From chat's list of objects, or from the four lists of completions."""
    if raw.get("content") is not None:
        return tuple(
            TokenLogprob(
                entry["token"],
                entry["logprob"],
                tuple((top["token"], top["logprob"]) for top in entry.get("top_logprobs") or ()),
            )
            for entry in raw["content"]
        )
    tokens = raw.get("tokens") or ()
    tops = raw.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(token, logprob, tuple((top or {}).items()))
        for token, logprob, top in zip(tokens, raw.get("token_logprobs") or (), tops, strict=True)
    )


def _parse_correction(raw: Any) -> SelfCorrection:
    turns = tuple(_parse_turn(turn) for turn in raw.get("turns") or ())
    return SelfCorrection(raw["turns_run"], raw["changed"], turns)


def _parse_turn(raw: Any) -> Turn:
    thoughts = tuple(_parse_thought(thought) for thought in raw.get("thoughts") or ())
    return Turn(raw["text"], raw["finish_reason"], raw["num_tokens"], thoughts, raw, _parse_probed(raw))


def _parse_voting(raw: Any) -> Voting:
    return Voting(
        strategy=raw.get("strategy"),
        ranker=raw.get("ranker"),
        num_samples=raw.get("num_samples"),
        num_valid=raw.get("num_valid"),
        agreement=raw.get("agreement"),
        tie=bool(raw.get("tie")),
        groups=tuple(_parse_vote(group) for group in raw.get("groups") or ()),
        samples=tuple(_parse_sample(sample) for sample in raw.get("samples") or ()),
    )


def _parse_vote(raw: Any) -> Vote:
    return Vote(
        answer=raw.get("answer"),
        count=raw.get("count"),
        weight=raw.get("weight"),
        score=raw.get("score"),
        sample_indices=tuple(raw.get("sample_indices") or ()),
    )


def _parse_sample(raw: Any) -> Sample:
    return Sample(raw.get("index"), _parse_text(raw), raw.get("answer"), raw)


def _parse_text(raw: Any) -> str:
    """The text of something that may be shaped like either endpoint's choice."""
    part = raw.get("message") or raw
    return part.get("content") or part.get("text") or ""


def _parse_model(raw: Any) -> Model:
    told = raw.get("capabilities") or {}
    capabilities = Capabilities(
        thinking=bool(told.get("thinking")),
        max_thought_depth=told.get("max_thought_depth"),
        self_correction=bool(told.get("self_correction")),
        rankers=tuple(told.get("rankers") or ()),
        probes=tuple(_parse_probe(probe) for probe in told.get("probes") or ()),
    )
    return Model(raw["id"], raw.get("parent"), raw.get("max_model_len"), capabilities, raw)


def _parse_probe(raw: Any) -> Probe:
    return Probe(raw["name"], raw["property"], tuple(raw["classes"]), tuple(raw["layers"]), raw["offset"])
