"""The objective's parts against loops that spell them out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.training.rewards import advantages, rewards


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
    base = torch.tensor([[[2.0, 1.0, 9.0], [2.0, 1.0, 9.0]]])
    mixed = torch.tensor([[[0.5, 1.5, 0.0], [2.0, 0.0, 0.0]]], requires_grad=True)
    found = rewards(base, mixed, torch.tensor([[[True, True, False]]]))
    assert found.tolist() == [[1.0, 1.0]]
    assert not found.requires_grad
