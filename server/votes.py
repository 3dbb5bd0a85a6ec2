"""Votes as replies tell of them."""

import math
from typing import Any

from ..model.answers import finder, normalise
from ..model.voting import Candidate, Group, Strategy, Verdict, vote
from .ballots import Ballot, Voting
from .replies import GroupReply, SampleReply, VotingReply
from .schemas import DEFAULT_PATTERN, VoteRequest


def describe_ballot(ballot: Ballot, voting: Voting, with_samples: bool) -> VotingReply:
    """What the answers to a prompt came to, and where it is asked for, each of them."""
    assert ballot.verdict is not None, "they have voted"
    fields: dict[str, Any] = {"ranker": voting.ranker} if voting.ranker else {}
    if with_samples:
        fields["samples"] = [_sample(ballot, voting, ballot.candidates[index]) for index in sorted(ballot.candidates)]
    return describe_verdict(ballot.verdict, voting.strategy, **fields)


def describe_verdict(verdict: Verdict, strategy: Strategy, **fields: Any) -> VotingReply:
    """A vote in numbers."""
    return VotingReply(
        strategy=strategy,
        num_samples=verdict.num_valid + len(verdict.abstained),
        num_valid=verdict.num_valid,
        agreement=verdict.agreement,
        tie=verdict.tie,
        groups=[describe_group(group, strategy) for group in verdict.groups],
        **fields,
    )


def describe_group(group: Group, strategy: Strategy) -> GroupReply:
    """Those who gave one answer."""
    scored = {"score": group.members[0].score} if strategy == "ranker" else {}
    indices = [member.index for member in group.members]
    return GroupReply(answer=group.answer, count=len(indices), weight=group.weight, sample_indices=indices, **scored)


def count(body: VoteRequest) -> VotingReply:
    """The vote of a client's own candidates."""
    find = finder(body.answer_pattern or DEFAULT_PATTERN)
    candidates = []
    for index, told in enumerate(body.candidates):
        found = find(told.text)
        logprob = -math.inf if told.logprob is None else told.logprob
        likely = logprob if told.mean_logprob is None else told.mean_logprob
        answer = None if found is None else normalise(found)
        candidates.append(Candidate(index, answer, logprob, likely, told.score or 0.0))
    return describe_verdict(vote(candidates, body.voting), body.voting)


def _sample(ballot: Ballot, voting: Voting, candidate: Candidate) -> SampleReply:
    answer = ballot.answers[candidate.index]
    return SampleReply(
        index=candidate.index,
        answer=candidate.answer,
        text=answer.text,
        finish_reason=answer.finish_reason,  # type: ignore[arg-type]
        num_tokens=len(answer.tokens),
        logprob=_finite(candidate.logprob),
        mean_logprob=_finite(candidate.mean_logprob),
        **({"score": candidate.score} if voting.ranker else {}),
    )


def _finite(logprob: float) -> float | None:
    return logprob if math.isfinite(logprob) else None
