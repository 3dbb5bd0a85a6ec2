"""All systems decode the same text: that they do the same work is what makes their speeds comparable."""

import pytest
import torch

from quietserve.model.bench.acceptance import calibrate
from quietserve.model.bench.cell import Setup, Unavailable
from quietserve.model.bench.systems import PLAIN, SYSTEMS, THINKING
from quietserve.model.bench.timings import Timings, figures
from quietserve.model.config import SamplingParams
from reference import Reference

DEPTH = 3


def decode(name: str, setup: Setup, num_tokens: int = 6) -> Timings:
    try:
        system = SYSTEMS[name](setup)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        return system.run(setup.draw_prompts(0), setup.cell.depth, num_tokens)
    finally:
        system.close()


def reference(setup: Setup, depth: int) -> list[list[int]]:
    slow = Reference(setup.subject.model, setup.subject.lm)
    params = [
        SamplingParams(max_tokens=7, temperature=setup.cell.temperature, seed=seed, thought_depth=depth)
        for seed in range(setup.cell.batch)
    ]
    prompts = setup.draw_prompts(0)
    return [slow.generate(prompt, each, frozenset())[0] for prompt, each in zip(prompts, params, strict=True)]


@pytest.mark.parametrize("name", THINKING)
def test_thinking_systems_decode_what_the_reference_does(name, setup_of, subject):
    calibrate(subject, DEPTH, 0.7)
    timings = decode(name, setup := setup_of(DEPTH))
    wanted = reference(setup, 0 if name == "plain" else DEPTH)
    assert max(map(len, timings.tokens)) >= 7  # a first token, and the six that were asked for
    for tokens, right in zip(timings.tokens, wanted, strict=True):
        assert tokens[:7] == right[: len(tokens)]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_systems_decode_what_the_reference_does(name, setup_of):
    timings = decode(name, setup := setup_of(0))
    for tokens, right in zip(timings.tokens, reference(setup, 0), strict=True):
        assert tokens[:7] == right[: len(tokens)]
    assert max(map(len, timings.tokens)) >= 7  # of the one that is ahead: llama.cpp's others may lag on a busy machine
    assert all(timings.tokens)


@pytest.mark.parametrize(("name", "forwards"), [("recompute", DEPTH + 2), ("sequential", DEPTH + 1)])
def test_forwards_of_a_token(name, forwards, setup_of, subject):
    calibrate(subject, DEPTH, 0.7)
    assert figures(decode(name, setup_of(DEPTH))).forwards_per_token == pytest.approx(forwards, abs=0.1)


@pytest.mark.parametrize("name", ["transformers", "transformers-cb", "llama.cpp"])
def test_a_run_may_be_cut_and_the_next_one_is_whole(name, setup_of):
    """A request that is given up must not go on in the next run's batch."""
    setup = setup_of(0)
    try:
        system = SYSTEMS[name](setup)
    except Unavailable as reason:
        pytest.skip(str(reason))
    prompts = setup.draw_prompts(0)
    first = system.run(prompts, 0, 1)
    second = system.run(prompts, 0, 6)
    system.close()
    assert min(map(len, first.tokens)) >= 1
    for tokens, right in zip(second.tokens, reference(setup, 0), strict=True):
        assert tokens[:7] == right[: len(tokens)]


def test_a_slow_recompute_is_cut_amid_a_token(setup_of):
    timings = decode("recompute", setup_of(DEPTH, max_s=1e-9))
    result = figures(timings)
    assert timings.tokens == [[], []]
    assert result.extrapolated
    assert result.forwards_per_token == DEPTH + 2


def test_recompute_refuses_thoughts_that_end_themselves(setup_of, subject, monkeypatch):
    monkeypatch.setattr(subject.model, "stop_ids", frozenset({5}))
    with pytest.raises(Unavailable, match="may end themselves"):
        SYSTEMS["recompute"](setup_of(DEPTH))


def test_peers_leave_the_model_as_it_was(setup_of, subject):
    ids = torch.arange(8)[None]
    before = subject.model.backbone.lm.config._attn_implementation, subject.lm(ids).logits
    for name in ("transformers", "transformers-cb"):
        decode(name, setup_of(0))
    assert subject.model.backbone.lm.config._attn_implementation == before[0]
    assert torch.equal(subject.lm(ids).logits, before[1])
