"""The step as the public code writes it is the trainer's own: the same losses and the same gradients of the same thoughts."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from quietserve.model.training.batches import Batch, pad
from quietserve.model.training.objective import Objective, Sampled, ThinkingConfig
from quietserve.model.training.public_step import PublicStep


def texts(lengths: tuple[int, ...]) -> Batch:
    rng = random.Random(7)
    rows = [[rng.randrange(3, 259) for _ in range(n)] for n in lengths]
    return pad(rows, [[0.0, 1.0, 0.0] + [rng.choice([0.5, 1.0]) for _ in range(n - 3)] for n in lengths], pad_id=0)


def thought_of(sampled: Sampled, thoughts: int, length: int) -> Tensor:
    """What was thought behind every position, in the layout [texts * thoughts, positions, depth] of the public step."""
    by_lane = sampled.choices_BML.clamp(min=0).unflatten(1, (-1, thoughts)).transpose(1, 2).flatten(0, 1)
    spare = by_lane.new_full((len(by_lane), length - by_lane.shape[1], by_lane.shape[2]), 5)
    return torch.cat([by_lane, spare], dim=1)  # behind the last token there is nothing to foretell


@pytest.mark.parametrize(("depth", "after"), [(2, 3), (3, 2), (1, 1)])
def test_losses_and_gradients_are_the_trainers(depth: int, after: int) -> None:
    model = tiny.quiet_model().requires_grad_(True)
    config = ThinkingConfig(positions=None, thoughts=2, after=after, reinforce_temperature=3.0)
    objective, public = Objective(model, config), PublicStep(model, config)
    batch = texts((9, 6))
    sampled = objective.sample(batch, [1, 2], depth)
    ours, counts_3 = objective(batch, sampled).losses_3, objective.count(batch, sampled)
    theirs = public(batch, depth, thought_of(sampled, 2, batch.ids_BT.shape[1]))
    torch.testing.assert_close(theirs.counts_3, counts_3)
    torch.testing.assert_close(theirs.losses_3, ours, rtol=1e-4, atol=1e-3)
    assert ours.abs().min() > 1
    names, parameters = zip(*model.named_parameters(), strict=True)
    for ours_1, theirs_1 in zip(ours, theirs.losses_3, strict=True):
        gradients = [
            torch.autograd.grad(x, parameters, retain_graph=True, materialize_grads=True) for x in (ours_1, theirs_1)
        ]
        for name, own, other in zip(names, *gradients, strict=True):
            torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-4 * float(own.abs().max()) + 1e-6, msg=name)


class Recording(PublicStep):
    """Remembers what was chosen."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chosen: list[Tensor] = []

    def _choose(self, logits_NTV: Tensor, forced_NT: Tensor | None) -> Tensor:
        onehot = super()._choose(logits_NTV, forced_NT)
        self.chosen.append(onehot.argmax(-1))
        return onehot


def test_left_to_itself_it_draws_tokens_and_learns_from_them_as_if_they_were_given() -> None:
    model = tiny.quiet_model().requires_grad_(True)
    public = Recording(model, ThinkingConfig(positions=None, thoughts=2))
    batch, parameters = texts((8, 8)), list(model.parameters())
    torch.manual_seed(1)
    drawn = public(batch, depth=3)
    tokens = torch.stack(public.chosen, -1)
    assert len(tokens.unique()) > 50
    forced = public(batch, 3, tokens)
    torch.testing.assert_close(forced.losses_3, drawn.losses_3)
    gradients = [torch.autograd.grad(x.losses_3.sum(), parameters, materialize_grads=True) for x in (forced, drawn)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)
    torch.manual_seed(2)
    assert not torch.equal(public(batch, depth=3).losses_3, drawn.losses_3)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="may end themselves"):
        PublicStep(tiny.quiet_model(stops="ab"), ThinkingConfig(positions=None))
    with pytest.raises(ValueError, match="every position"):
        PublicStep(tiny.quiet_model(), ThinkingConfig(positions=2))
