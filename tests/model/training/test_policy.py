"""Conversations as the trainer reads them: against one choice at a time, and against what credit is defined to be."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from quietserve.model import checkpoint
from quietserve.model.checkpoint import Loaded
from quietserve.model.correction import CorrectionConfig
from quietserve.model.quiet_model import QuietModel
from quietserve.model.thoughts import END, START
from quietserve.model.tokens import Tokens
from quietserve.model.training import policy as policy_module
from quietserve.model.training.credit import Credit, turn_advantages
from quietserve.model.training.episodes import Episode, Player
from quietserve.model.training.evaluation.family_items import FamilyItem, draw_items
from quietserve.model.training.policy import Judged, Policy
from quietserve.model.training.stages import Stage
from quietserve.model.training.tasks import Problem
from quietserve.model.training.transcripts import transcribe
from reference import Reference

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
ITEMS = [FamilyItem(Problem("dial", question, "7", "", 1), ()) for question in ("A?", "Which?", "Where is it now?")]
DEPTH = 3
grids = st.lists(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=4, max_size=4), min_size=1, max_size=3
)


def player(model: QuietModel, depth: int, thinking: str = "every", **changes: float) -> Player:
    correction = CorrectionConfig("Again.", thinking)  # type: ignore[arg-type]
    return Player(Loaded(model, TOKENS, "tiny"), correction, max_tokens=5, depth=depth, **changes)  # type: ignore[arg-type]


def played(depth: int, thinking: str = "every", seed: int = 0) -> tuple[QuietModel, list[Episode]]:
    model = tiny.quiet_model(stops="abcdefgh")
    return model, player(model, depth, thinking).play(ITEMS, [seed, seed + 1, seed + 2], model)


def slow_turns(model: QuietModel, episode: Episode, gather: Callable[[Tensor, int], float]) -> list[float]:
    """Sums over each turn of what `gather` makes of the logits behind which a choice was made, and the choice."""
    slow, sums = Reference(model), []
    for turn in episode.turns:
        text, total = list(turn.prompt), 0.0
        for token in turn.answer.tokens:
            hidden = slow_hidden(slow, text)
            if token.thoughts:
                thought = list(token.thoughts[0].token_ids)
                for k in range(len(thought) + (len(thought) < DEPTH)):
                    behind = slow_hidden(slow, [*text, START, *thought[:k]])
                    total += gather(model.logits(behind), thought[k] if k < len(thought) else -1)
                hidden, _ = model.mix(hidden, slow_hidden(slow, [*text, START, *thought, END]))
            total += gather(model.logits(hidden), token.id)
            text.append(token.id)
        sums.append(total)
    return sums


def slow_hidden(slow: Reference, rows: list[int]) -> Tensor:
    return slow.hidden(slow.model.embed(torch.tensor(rows)))


@pytest.mark.parametrize(("depth", "thinking"), [(0, "every"), (DEPTH, "every"), (DEPTH, "last")])
def test_every_choice_counts_as_likely_as_it_was(depth: int, thinking: str) -> None:
    model, episodes = played(depth, thinking)
    assert any(token.thoughts for e in episodes for token in e.turns[1].answer.tokens) == bool(depth)
    assert any(token.thoughts for e in episodes for token in e.turns[0].answer.tokens) == (
        thinking == "every" and depth > 0
    )

    def logprob(logits_V: Tensor, choice: int) -> float:
        logprobs_V = logits_V.log_softmax(-1)
        return float(logprobs_V[choice] if choice >= 0 else logprobs_V[sorted(model.stop_ids)].logsumexp(-1))

    with torch.no_grad():
        judged = Policy(model)(transcribe(episodes, depth), None)
        wanted = [slow_turns(model, episode, logprob) for episode in episodes]
    assert judged.logprob_BD.flatten().tolist() == pytest.approx(torch.tensor(wanted).flatten().tolist(), abs=2e-3)
    assert not judged.divergence_BD.any()


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_the_divergence_is_the_sum_of_each_choices_own(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, episodes = played(depth)
    other = tiny.quiet_model(seed=5, stops="abcdefgh")
    theirs: list[Tensor] = []
    for episode in episodes:
        slow_turns(other, episode, lambda logits_V, _: theirs.append(logits_V.log_softmax(-1)) or 0.0)
    waiting = iter(theirs)

    def divergence(logits_V: Tensor, _: int) -> float:
        ours_V, their_V = logits_V.log_softmax(-1), next(waiting)
        real_V = ours_V > float("-inf")
        return float((ours_V.exp() * (ours_V - their_V))[real_V].sum())

    told = transcribe(episodes, depth)
    with torch.no_grad():
        wanted = [slow_turns(model, episode, divergence) for episode in episodes]
        exact, sampled = (Policy(model, how)(told, other) for how in ("exact", "sampled"))
        one, two = (Policy(each)(told, None).logprob_BD for each in (model, other))
    assert exact.divergence_BD.flatten().tolist() == pytest.approx(torch.tensor(wanted).flatten().tolist(), rel=1e-3)
    assert sampled.divergence_BD.flatten().tolist() == pytest.approx((one - two).flatten().tolist(), abs=1e-3)
    monkeypatch.setattr(policy_module, "MAX_LOGITS", 3 * 259)  # three choices at a time
    parts = Policy(model)(told, other)
    assert parts.divergence_BD.flatten().tolist() == pytest.approx(exact.divergence_BD.flatten().tolist(), rel=1e-4)
    assert parts.logprob_BD.flatten().tolist() == pytest.approx(exact.logprob_BD.flatten().tolist(), rel=1e-4)


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_who_stands_beside_an_episode_does_not_matter(depth: int) -> None:
    """Public code scored left-padded batches without a mask, and counted every PAD behind an end as a token."""
    model, episodes = played(depth)
    together = Policy(model)(transcribe(episodes, depth), None).logprob_BD
    alone = [Policy(model)(transcribe([episode], depth), None).logprob_BD[0].tolist() for episode in episodes]
    assert together.flatten().tolist() == pytest.approx(torch.tensor(alone).flatten().tolist(), abs=1e-3)
    told = transcribe(episodes, depth)
    decided = sum(len(turn.answer.tokens) for episode in episodes for turn in episode.turns)
    assert int((told.at_BK >= 0).sum()) == decided


def test_the_second_attempt_reads_the_first_and_nothing_twice() -> None:
    """Public code trained second answers without the first in their context."""
    _, episodes = played(0)
    for first, second in (episode.turns for episode in episodes):
        kept = first.ids[:-1] if first.ids[-1] in TOKENS.eos_ids else first.ids
        assert second.prompt[: len(first.prompt) + len(kept)] == [*first.prompt, *kept]
        assert second.answer.counts.reused >= len(first.prompt)
    ids_BT = transcribe(episodes, 0).ids_BT
    for row, episode in zip(ids_BT.tolist(), episodes, strict=True):
        last = episode.turns[1]
        assert row[: len(last.prompt) + len(last.ids)] == [*last.prompt, *last.ids]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_what_was_sampled_at_a_temperature_is_scored_at_it(temperature: float) -> None:
    model, episodes = played(0)

    def logprob(logits_V: Tensor, choice: int) -> float:
        return float((logits_V / temperature).log_softmax(-1)[choice])

    with torch.no_grad():
        judged = Policy(model, temperature=temperature)(transcribe(episodes, 0), None)
        wanted = [slow_turns(model, episode, logprob) for episode in episodes]
    assert judged.logprob_BD.flatten().tolist() == pytest.approx(torch.tensor(wanted).flatten().tolist(), abs=2e-3)


@given(grids, st.floats(0, 20))
def test_without_a_discount_the_bonus_multiplies_and_subtracts(grid: list, alpha: float) -> None:
    """The shaped gradient's identity: (1 + alpha) times the second turn's own, less alpha times the first reward's."""
    rewards_NK2 = torch.tensor(grid, dtype=torch.float64)
    shaped = turn_advantages(Credit(bonus=alpha).returns(rewards_NK2))
    plain = turn_advantages(rewards_NK2)
    assert torch.allclose(shaped[..., 0], plain[..., 0])
    assert torch.allclose(shaped[..., 1], (1 + alpha) * plain[..., 1] - alpha * plain[..., 0])
    assert shaped.sum(1).abs().max() < 1e-9, "a baseline of the others' own mean favours nobody"


@given(grids, st.floats(2, 20))
def test_a_discount_pays_the_first_turn_for_failing(grid: list, alpha: float) -> None:
    rewards_NK2 = torch.tensor(grid, dtype=torch.float64)
    failing = rewards_NK2.clone()
    failing[..., 0] = 0.0
    credit = Credit(bonus=alpha, discount=1.0)
    gained = credit.returns(failing) - credit.returns(rewards_NK2)
    assert torch.allclose(gained[..., 0], (alpha - 1) * rewards_NK2[..., 0])


@given(grids)
def test_turns_weigh_what_their_arm_says(grid: list) -> None:
    rewards_NK2 = torch.tensor(grid, dtype=torch.float32)
    first, second = rewards_NK2.unbind(-1)
    zeros = torch.zeros_like(rewards_NK2)
    only_second = Stage(1, Credit(first=0.0)).weights(rewards_NK2, zeros)
    assert not only_second[..., 0].any(), "in stage I nothing rewards the first turn"
    assert torch.equal(Stage(1, Credit(second=0.0)).weights(rewards_NK2, zeros)[..., 1], zeros[..., 1])
    repairs = Stage(1, imitate="repairs").weights(rewards_NK2, zeros)
    assert torch.equal(repairs[..., 1], ((first == 0) & (second == 1)).float())
    assert torch.equal(Stage(1, imitate="right").weights(rewards_NK2, zeros)[..., 1], second)
    assert not repairs[..., 0].any()


def test_a_divergence_without_a_gradient_is_taken_from_the_reward() -> None:
    rewards_BD = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    judged = Judged(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([[3.0, 0.0], [1.0, 4.0]]))
    stage, own_BD = Stage(1, Credit(), anchors=(0.1, 0.5)), torch.ones(2, 2)
    returns = rewards_BD - torch.tensor([0.1, 0.5]) * judged.divergence_BD
    weights = turn_advantages(returns[None])[0]
    sampled = stage.loss(judged, rewards_BD, own_BD, 1, "sampled")
    assert float(sampled) == pytest.approx(float(-(weights * judged.logprob_BD).sum()))
    exact = stage.loss(judged, rewards_BD, own_BD, 1)
    anchored = (torch.tensor([0.1, 0.5]) * judged.divergence_BD).sum()
    plain = -(turn_advantages(rewards_BD[None])[0] * judged.logprob_BD).sum()
    assert float(exact) == pytest.approx(float(plain + anchored))


def test_a_first_attempt_by_the_base_is_not_credited_and_yet_an_anchor() -> None:
    """Or with all of them by the base, nothing would hold the first turn."""
    judged = Judged(torch.ones(2, 2), torch.ones(2, 2))
    rewards_BD = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    stage, theirs = Stage(1, Credit(first=3.0), anchors=(5.0, 0.0)), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    weights = turn_advantages(rewards_BD[None])[0]
    assert float(stage.loss(judged, rewards_BD, theirs, 1)) == pytest.approx(float(-weights[:, 1].sum()) + 2 * 5.0)


def test_a_chat_model_is_asked_as_in_a_chat() -> None:
    """Once the first prompt was bare text and the second had the template's marks: half a chat."""
    model, episodes = played(0)
    first, second = (TOKENS.decode(turn.prompt, special=True) for turn in episodes[0].turns)
    assert first == TOKENS.render_text([{"role": "user", "content": "A?"}])
    assert second.startswith(first)
    bare = tiny.tokenizer()
    bare.chat_template = None
    loaded = Loaded(model, Tokens(bare, eos_ids=[0], marker_tokens=tiny.SPECIAL[1:]), "tiny")
    one = Player(loaded, CorrectionConfig("Again."), max_tokens=5)
    assert one.prompts(ITEMS) == [loaded.tokens.encode(item.prompt) for item in ITEMS]


def test_a_bundled_family_reads_the_same_either_way() -> None:
    tokens = checkpoint.load("quiet-small").tokens
    for item in draw_items("dial", 20, 1):
        assert tokens.render([{"role": "user", "content": item.question}]) == tokens.encode(item.prompt)


def test_both_attempts_must_fit_the_context() -> None:
    model = tiny.quiet_model()
    room = model.backbone.max_positions
    with pytest.raises(ValueError, match=f"the model's context has room for {room - 5}"):
        Player(Loaded(model, TOKENS, "tiny"), CorrectionConfig("Again."), room, depth=3).play(ITEMS, [1, 2, 3], model)


def test_the_gradient_is_reinforce_by_hand() -> None:
    """Public code once rewarded without a gradient; and nothing that turn 2 is credited with may reach turn 1's tokens."""
    model, episodes = played(DEPTH)
    model.requires_grad_(True)
    policy, told = Policy(model), transcribe(episodes, DEPTH)
    weights = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 0.5]])
    (-(weights * policy(told, None).logprob_BD).sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for episode, (_, weight) in zip(episodes, weights.tolist(), strict=True):
        (-weight * policy(transcribe([episode], DEPTH), None).logprob_BD[0, 1]).backward()
    assert found.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=2e-3, rtol=1e-3), name  # type: ignore[arg-type]
    assert any(value.abs().max() > 1e-3 for name, value in found.items() if "start_embedding" in name)
