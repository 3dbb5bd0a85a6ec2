"""The objective: its one big forward against thinking a thought at a time, and its gradient against REINFORCE by hand."""

import random
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.backbone import causal
from quietserve.model.quiet_model import QuietModel
from quietserve.model.training import logprobs
from quietserve.model.training import objective as objective_module
from quietserve.model.training.batches import Batch, pad
from quietserve.model.training.documents import make_batch
from quietserve.model.training.logprobs import ENDS, NOTHING, log_likelihood
from quietserve.model.training.objective import Objective, Sampled, ThinkingConfig
from quietserve.model.training.thinker import ThinkerConfig, open_thinker
from reference import Reference


def thinker(stops: str = "abcdefgh") -> QuietModel:
    return tiny.quiet_model(stops=stops).requires_grad_(True)


def texts(lengths: tuple[int, ...] = (9, 5, 7)) -> Batch:
    rng = random.Random(3)
    rows = [[rng.randrange(3, 259) for _ in range(n)] for n in lengths]
    return pad(rows, [[0.0] + [1.0] * (n - 1) for n in lengths], pad_id=0)


@pytest.mark.parametrize("positions", [2, None])
def test_losses_and_rewards_are_what_thinking_step_by_step_gives(positions: int | None) -> None:
    objective = Objective(thinker(), ThinkingConfig(positions=positions, thoughts=2))
    batch = texts()
    sampled = objective.sample(batch, [1, 2, 3], depth=4)
    slow = Reference(objective.model.requires_grad_(False))
    sums = objective(batch, sampled)
    base = [[nll_after(slow, row[:i], None, row[i]) for i in range(1, len(row))] for row in real_rows(batch)]
    mixed_total = 0.0
    for b, row in enumerate(real_rows(batch)):
        for m in range(sampled.positions_BM.shape[1]):
            at = int(sampled.positions_BM[b, m])
            if at < 0:
                assert not sampled.real_BMS[b, m].any()
                continue
            thought = [token for token in sampled.choices_BML[b, m].tolist() if token >= 0]
            gains = 0.0
            for s in range(3):
                assert bool(sampled.real_BMS[b, m, s]) == (at + 1 + s < len(row))
                if at + 1 + s < len(row):
                    mixed = nll_after(slow, row[: at + 1 + s], (at, thought), row[at + 1 + s])
                    mixed_total += mixed
                    gains += base[b][at + s] - mixed
            assert float(sums.rewards_BM[b, m]) == pytest.approx(gains, abs=2e-3)
    assert float(sums.losses_3[0]) == pytest.approx(sum(map(sum, base)), rel=1e-3)
    assert float(sums.losses_3[1]) == pytest.approx(mixed_total, rel=1e-3)


def real_rows(batch: Batch) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(batch.ids_BT, batch.lengths().tolist(), strict=True)]


def nll_after(slow: Reference, text: list[int], thought: tuple[int, list[int]] | None, target: int) -> float:
    """Loss of the token behind a text; a thought stands behind one of its positions, and the rest was read after it."""
    model, embed = slow.model, slow.lm.get_input_embeddings()
    hidden = slow.hidden(embed(torch.tensor(text)))
    if thought:
        at, tokens = thought
        parts = [embed(torch.tensor(text[: at + 1])), model.start_embedding[None]]
        parts += [embed(torch.tensor(tokens))] if tokens else []
        parts += [model.end_embedding[None], embed(torch.tensor(text[at + 1 :], dtype=torch.long))]
        hidden, _ = model.mix(hidden, slow.hidden(torch.cat(parts)))
    return -float(model.logits(hidden).log_softmax(-1)[target])


def test_the_policys_gradient_is_reinforce_by_hand() -> None:
    """Minus advantage times the gradient of each choice's log-probability, found one thought at a time."""
    config = ThinkingConfig(positions=2, thoughts=3, reinforce_temperature=3.0)
    objective = Objective(thinker(), config)
    batch = texts()
    sampled = objective.sample(batch, [1, 2, 3], depth=4)
    assert (sampled.choices_BML == ENDS).any(), "no thought ended itself"
    sums = objective(batch, sampled)
    found = torch.autograd.grad(sums.losses_3[2], objective.model.start_embedding)[0]
    slow, total = Reference(objective.model), torch.zeros(())
    for b, row in enumerate(real_rows(batch)):
        rewards = sums.rewards_BM[b].view(-1, 3)
        for m in range(6):
            others = [float(rewards[m // 3, p]) for p in range(3) if p != m % 3]
            advantage = float(sums.rewards_BM[b, m]) - sum(others) / 2
            prefix = row[: int(sampled.positions_BM[b, m]) + 1]
            total = total - advantage * choices_logprob(slow, prefix, sampled.choices_BML[b, m].tolist(), 3.0)
    expected = torch.autograd.grad(total, slow.model.start_embedding)[0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-2)
    assert found.abs().max() > 0.01


def choices_logprob(slow: Reference, prefix: list[int], choices: list[int], temperature: float) -> torch.Tensor:
    model, embed = slow.model, slow.lm.get_input_embeddings()
    read, total = torch.cat([embed(torch.tensor(prefix)), model.start_embedding[None]]), torch.zeros(())
    for choice in choices:
        if choice == NOTHING:
            break
        hidden = slow.lm.base_model(inputs_embeds=read[None], use_cache=False).last_hidden_state[0, -1]
        probs = (model.logits(hidden) / temperature).softmax(-1)
        total = total + (probs[sorted(model.stop_ids)].sum() if choice == ENDS else probs[choice]).log()
        if choice != ENDS:
            read = torch.cat([read, embed(torch.tensor([choice]))])
    return total


@settings(max_examples=10, deadline=None)
@given(st.permutations([0, 1, 2]), st.integers(1, 2))
def test_a_text_thinks_the_same_in_any_company(order: list[int], cut: int) -> None:
    objective = Objective(thinker(), ThinkingConfig(positions=2, thoughts=2))
    batch, keys = texts(), [11, 12, 13]
    whole = objective.sample(batch, keys, depth=3)
    for part in (order[:cut], order[cut:]):
        found = objective.sample(batch.take(torch.tensor(part)), [keys[i] for i in part], depth=3)
        assert torch.equal(found.positions_BM, whole.positions_BM[part])
        length = found.choices_BML.shape[-1]
        assert torch.equal(found.choices_BML, whole.choices_BML[part][..., :length])


def test_thoughts_in_turns_are_thoughts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ThinkingConfig(positions=None, thoughts=3)
    whole = Objective(thinker(), config).sample(texts(), [1, 2, 3], depth=4)
    monkeypatch.setattr(objective_module, "LANES", 5)
    monkeypatch.setattr(objective_module, "AT_ONCE", 1)
    parts = Objective(thinker(), config).sample(texts(), [1, 2, 3], depth=4)
    assert (whole.choices_BML >= 0).sum() > 50
    for field in fields(Sampled):
        assert torch.equal(getattr(whole, field.name), getattr(parts, field.name)), field.name


def test_positions_are_drawn_in_proportion_to_their_loss() -> None:
    objective = Objective(thinker(), ThinkingConfig(positions=1, thoughts=2))
    batch = texts((5,))
    with torch.no_grad():
        hidden = objective.model(batch.ids_BT, torch.arange(5)[None], causal)
        logprobs = objective.model.logits(hidden[0, :-1]).log_softmax(-1)
    loss = -logprobs.gather(1, batch.ids_BT[0, 1:, None]).squeeze(1)
    many = Batch(batch.ids_BT.expand(3000, -1), batch.weights_BT.expand(3000, -1))
    where = objective._choose_positions(hidden.expand(3000, -1, -1), many, range(3000))[:, 0]
    shares = torch.bincount(where, minlength=4)[:4] / 3000
    torch.testing.assert_close(shares, loss / loss.sum(), atol=0.03, rtol=0)


def test_a_text_that_is_too_short_leaves_its_thoughts_out() -> None:
    objective = Objective(thinker(), ThinkingConfig(positions=3, thoughts=2))
    sampled = objective.sample(texts((2, 6)), [1, 2], depth=2)
    assert (sampled.positions_BM[0] >= 0).sum() == 2, "one position, two thoughts"
    assert (sampled.positions_BM[1] >= 0).all()
    counts = objective.count(texts((2, 6)), sampled)
    assert counts[2] == 8
    sums = objective(texts((2, 6)), sampled)
    assert sums.losses_3.isfinite().all()
    sums.losses_3.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_a_pause_is_one_token_to_the_full_depth() -> None:
    objective = Objective(thinker(), ThinkingConfig(arm="pause", positions=1, thoughts=2, pause_token=77))
    sampled = objective.sample(texts(), [1, 2, 3], depth=3)
    assert (sampled.choices_BML == 77).all()
    assert sampled.choices_BML.shape[-1] == 3
    assert objective(texts(), sampled).losses_3[2] == 0


def test_logits_in_parts_are_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = thinker("ab")
    hidden = torch.randn(23, model.backbone.hidden_size, requires_grad=True)
    targets = torch.tensor([ENDS, *range(3, 25)])

    def judge() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found, entropy = log_likelihood(model, hidden, targets, temperature=2.0)
        return found, entropy, torch.autograd.grad(found.sum(), hidden)[0]

    whole = judge()
    logits = model.logits(hidden) / 2.0
    probs = logits.softmax(-1)
    torch.testing.assert_close(whole[0][1:], logits.log_softmax(-1)[range(1, 23), targets[1:]])
    torch.testing.assert_close(whole[0][0], probs[0, sorted(model.stop_ids)].sum().log())
    torch.testing.assert_close(whole[1], -(probs * probs.clamp(min=1e-30).log()).sum(-1))
    monkeypatch.setattr(logprobs, "MAX_LOGITS", 5 * 259)
    for a, b in zip(whole, judge(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_problems_text_counts_its_question_little(base: Path) -> None:
    """Positions fall where the loss that counts is: behind the question, mostly."""
    loaded = open_thinker(base, ThinkerConfig(depth=4))
    objective = Objective(loaded.model, ThinkingConfig(positions=1, thoughts=2))
    batch = make_batch(loaded.tokens.tokenizer, random.Random(1), 32, {"direct": 1.0}, [1, 2])
    sampled = objective.sample(batch, range(32), depth=2)
    behind = batch.lengths() - 1 - sampled.positions_BM[:, 0]
    assert (behind <= 2).float().mean() > 0.4
