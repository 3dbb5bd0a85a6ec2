"""The objective's parts against loops that spell them out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training.losses import advantages, choice_logprobs, mean_where, policy_loss, rewards


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_an_advantage_is_measured_against_the_other_thoughts(values: list[list[float]]) -> None:
    given_J4 = torch.tensor(values, dtype=torch.float64)
    found = advantages(given_J4)
    for j, row in enumerate(values):
        for p, value in enumerate(row):
            others = [v for q, v in enumerate(row) if q != p]
            assert float(found[j, p]) == pytest.approx(value - sum(others) / 3, abs=1e-9)
    assert torch.equal(advantages(given_J4, keep_negative=False), found.clamp(min=0))


def test_a_reward_counts_real_tokens_only_and_carries_no_gradient() -> None:
    base, mixed = (
        torch.tensor([[[2.0, 1.0, 9.0]]]),
        torch.tensor([[[[0.5, 1.5, 0.0], [2.0, 0.0, 0.0]]]], requires_grad=True),
    )
    found = rewards(base, mixed, torch.tensor([[[1.0, 1.0, 0.0]]]))
    assert found.tolist() == [[[1.0, 1.0]]]
    assert not found.requires_grad


def test_a_thoughts_choices_are_its_tokens_and_its_end() -> None:
    logits = torch.randn(3, 4, 6)
    logits[..., 5] = float("-inf")  # a marker
    tokens = torch.tensor([[1, 2, 5, 5], [3, 5, 5, 5], [1, 2, 3, 4]])  # padded with an id that cannot be chosen
    lengths, ended = torch.tensor([2, 1, 4]), torch.tensor([True, False, False])
    found = choice_logprobs(logits, tokens, lengths, ended, stops=[0, 4])
    p = logits.log_softmax(-1)
    end = torch.log(p[0, 2, 0].exp() + p[0, 2, 4].exp())
    expected = [[p[0, 0, 1], p[0, 1, 2], end, 0.0], [p[1, 0, 3], 0.0, 0.0, 0.0], [p[2, i, i + 1] for i in range(4)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_padding_gives_no_gradient_that_is_not_a_number() -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    masked = logits.masked_fill(torch.tensor([False, False, True]), float("-inf"))
    logprobs = choice_logprobs(masked, torch.tensor([[0, 2]]), torch.tensor([1]), torch.tensor([False]), stops=[])
    policy_loss(torch.tensor([1.0]), logprobs).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1].tolist() == [0.0, 0.0, 0.0]


def test_reinforce_raises_what_did_better() -> None:
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    chosen = choice_logprobs(logits, torch.tensor([[0], [1]]), torch.tensor([1, 1]), torch.tensor([False, False]), [])
    policy_loss(torch.tensor([1.0, -1.0]), chosen).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0] < 0 < logits.grad[1, 0, 1]  # downhill: the good choice up, the bad one down


def test_a_mean_over_nothing_is_nothing() -> None:
    assert float(mean_where(torch.ones(3), torch.zeros(3))) == 0.0
    assert float(mean_where(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))) == 2.0
