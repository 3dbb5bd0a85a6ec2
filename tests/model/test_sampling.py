"""Sampling: the noise is a key's alone, the draws follow the probabilities, and the cuts cut where they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quietserve.model.config import SamplingParams
from quietserve.model.sampling import Draw, _adjust, gumbel, hash_key, sample, sample_thoughts, top_logprobs

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])


def kept(params: SamplingParams, logits: Tensor = LOGITS, draws: int = 400) -> set[int]:
    """The tokens that many draws give."""
    return set(sample(logits.expand(draws, -1), [Draw(params, range(i), 0) for i in range(draws)]))


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_keys_are_64_bit_and_their_order_counts(parts: list[int]) -> None:
    assert 0 <= hash_key(*parts) < 2**64
    if len(set(parts)) > 1:
        assert hash_key(*parts) != hash_key(*sorted(parts)) or parts == sorted(parts)


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 5000)), min_size=1, max_size=6))
def test_a_rows_noise_does_not_depend_on_its_neighbours(keys: list[tuple[int, int]]) -> None:
    together = gumbel(keys, torch.zeros(len(keys), 50))
    for key, row in zip(keys, together, strict=True):
        assert torch.equal(gumbel([key], torch.zeros(1, 50))[0], row)


def test_noise_is_gumbel() -> None:
    noise = gumbel([(7, i) for i in range(200)], torch.zeros(200, 500)).double().flatten()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    neighbours = torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1]
    assert abs(float(neighbours)) < 0.01


def test_draws_follow_the_probabilities() -> None:
    count = 20_000
    draws = sample(LOGITS.expand(count, -1), [Draw(SamplingParams(seed=3), range(i), 0) for i in range(count)])
    shares = torch.bincount(torch.tensor(draws), minlength=len(LOGITS)) / count
    torch.testing.assert_close(shares, LOGITS.softmax(-1), atol=0.012, rtol=0)


def test_cuts() -> None:
    assert kept(SamplingParams()) == {0, 1, 2, 3, 4, 5}
    assert kept(SamplingParams(top_k=2)) == {0, 1}
    probs = LOGITS.softmax(-1)
    assert kept(SamplingParams(top_p=float(probs[0]) - 0.01)) == {0}
    assert kept(SamplingParams(top_p=float(probs[:2].sum()) + 0.01)) == {0, 1, 2}
    assert kept(SamplingParams(min_p=float(probs[2] / probs[0]) - 0.01)) == {0, 1, 2}
    assert kept(SamplingParams(temperature=0)) == {0}
    assert kept(SamplingParams(top_k=1, temperature=2.0)) == {0}


@settings(max_examples=50)
@given(st.data())
def test_rows_of_a_batch_are_cut_each_by_its_own_parameters(data: st.DataObject) -> None:
    params = [
        SamplingParams(
            temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
            top_k=data.draw(st.integers(0, 4)),
            top_p=data.draw(st.sampled_from([0.3, 0.9, 1.0])),
            min_p=data.draw(st.sampled_from([0.0, 0.2])),
            seed=data.draw(st.integers(0, 99)),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    draws = [Draw(p, range(i), 0) for i, p in enumerate(params)]
    together = sample(LOGITS.expand(len(draws), -1), draws)
    assert together == [sample(LOGITS[None], [draw])[0] for draw in draws]


def test_penalties_and_bias() -> None:
    def greedy(**changes: object) -> int:
        params = SamplingParams(temperature=0, **{k: v for k, v in changes.items() if k not in ("prompt", "output")})
        prompt, output = changes.get("prompt", []), changes.get("output", [])
        return sample(LOGITS[None], [Draw(params, [*prompt, *output], len(prompt))])[0]

    assert greedy(presence_penalty=1.0, output=[0]) == 1
    assert greedy(presence_penalty=1.0, prompt=[0]) == 0  # presence and frequency count the output alone
    assert greedy(frequency_penalty=0.3, output=[0]) == 0
    assert greedy(frequency_penalty=0.3, output=[0, 0]) == 1
    assert greedy(repetition_penalty=1.9, prompt=[0]) == 1  # repetition counts the prompt too
    assert greedy(logit_bias={5: 100.0}) == 5


@given(st.dictionaries(st.integers(0, 5), st.floats(-100, 100), min_size=1))
def test_biases_are_added_each_to_its_logit(biases: dict[int, float]) -> None:
    wanted = LOGITS.clone()
    for token, bias in biases.items():
        wanted[token] += bias
    draw = Draw(SamplingParams(temperature=0, logit_bias=biases), [], 0)
    assert torch.equal(_adjust(LOGITS[None], [draw])[0], wanted)


def test_biases_are_put_on_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of the whole vocabulary was once gone through in Python for each row and token, on the thread that decodes for all."""
    params = SamplingParams(temperature=0, logit_bias={5: 100.0, 1: -1.0})
    made, make = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda values, **how: made.append(values) or make(values, **how))
    for _ in range(10):
        assert sample(LOGITS.expand(3, -1), [Draw(params, [], 0)] * 3) == [5, 5, 5]
    assert made == [[5, 1], [100.0, -1.0]]


def test_ends_are_held_back_until_min_tokens() -> None:
    def greedy(output: list[int], **changes: object) -> int:
        return sample(LOGITS[None], [Draw(SamplingParams(temperature=0, **changes), output, 0, frozenset({0}))])[0]

    assert greedy([], min_tokens=1) == 1
    assert greedy([4], min_tokens=1) == 0
    assert greedy([], ignore_eos=True) == 1
    assert greedy([], min_tokens=1, stop_token_ids=(1,)) == 2
    assert greedy([], ignore_eos=True, stop_token_ids=(1,)) == 1  # ignoring the end of the text is not ignoring a stop


def test_only_what_is_allowed_is_chosen() -> None:
    def greedy(output: list[int], **changes: object) -> int:
        return sample(LOGITS[None], [Draw(SamplingParams(temperature=0, **changes), output, 0, frozenset({0}))])[0]

    assert greedy([], allowed_token_ids=(4, 2)) == 2
    assert greedy([], allowed_token_ids=(4, 2), logit_bias={4: 100.0, 1: 100.0}) == 4
    assert greedy([], allowed_token_ids=(0, 3), min_tokens=1) == 3, "an op, or the end after at least one op"
    assert greedy([3], allowed_token_ids=(0, 3), min_tokens=1) == 0
    assert greedy([2], allowed_token_ids=(2, 2), repetition_penalty=1.9) == 2
    assert kept(SamplingParams(allowed_token_ids=(1, 3), top_k=4, top_p=0.99, min_p=0.001)) == {1, 3}


@pytest.mark.parametrize(
    ("changes", "nothing"),
    [
        ({}, False),
        ({"min_tokens": 1}, True),
        ({"ignore_eos": True}, True),
        ({"allowed_token_ids": (0, 5), "min_tokens": 1}, False),
        ({"allowed_token_ids": (0, 5), "min_tokens": 1, "stop_token_ids": (5,)}, True),
        ({"allowed_token_ids": (0, 5), "stop_token_ids": (5,)}, False),
        ({"allowed_token_ids": (), "min_tokens": 1}, False),
    ],
)
def test_allowed_ids_may_leave_nothing(changes: dict[str, object], nothing: bool) -> None:
    params = SamplingParams(**{"allowed_token_ids": (0,), **changes})
    assert params.leaves_nothing(frozenset({0})) == nothing


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    assert kept(SamplingParams(temperature=temperature)) == {0}


def test_thoughts_of_different_temperatures_share_a_batch() -> None:
    rows = LOGITS.expand(300, -1)
    keys = [(1, i, 2) for i in range(300)]
    mixed = sample_thoughts(rows, keys, [0.0, 1.0] * 150)
    assert set(mixed[::2]) == {0}
    assert mixed[1::2] == sample_thoughts(rows, keys, [1.0] * 300)[1::2]


def test_top_logprobs_hold_the_very_number_of_the_chosen_token() -> None:
    """lm-eval compares the two for float equality."""
    logprobs = torch.randn(100).log_softmax(-1)
    best = int(logprobs.argmax())
    value, top = top_logprobs(logprobs, best, 3)
    assert dict(top)[best] == value
    assert [v for _, v in top] == sorted((v for _, v in top), reverse=True)
    assert top_logprobs(logprobs, 5, 0)[1] == []
