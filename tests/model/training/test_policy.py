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


def slow_turns(slow: Reference, episode: Episode, gather: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Sums over each turn [2] of what `gather` makes of the logits behind which a choice was made, and the choice."""
    model, sums = slow.model, []
    for turn in episode.turns:
        text, total = list(turn.prompt), torch.zeros(())
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
    return torch.stack(sums)


def slow_logprob(model: QuietModel, temperature: float = 1.0) -> Callable[[Tensor, int], Tensor]:
    """Of a choice; -1 is the end of a thought, whichever way it is said."""

    def logprob(logits_V: Tensor, choice: int) -> Tensor:
        logprobs_V = (logits_V / temperature).log_softmax(-1)
        return logprobs_V[choice] if choice >= 0 else logprobs_V[sorted(model.stop_ids)].logsumexp(-1)

    return logprob


def slow_hidden(slow: Reference, rows: list[int]) -> Tensor:
    return slow.hidden(slow.model.embed(torch.tensor(rows)))


@pytest.mark.parametrize(("depth", "thinking"), [(0, "every"), (DEPTH, "every"), (DEPTH, "last")])
def test_every_choice_counts_as_likely_as_it_was(depth: int, thinking: str) -> None:
    model, episodes = played(depth, thinking)
    assert any(token.thoughts for e in episodes for token in e.turns[1].answer.tokens) == bool(depth)
    assert any(token.thoughts for e in episodes for token in e.turns[0].answer.tokens) == (
        thinking == "every" and depth > 0
    )
    with torch.no_grad():
        judged = Policy(model)(transcribe(episodes, depth), None)
        wanted = torch.stack([slow_turns(Reference(model), episode, slow_logprob(model)) for episode in episodes])
    assert torch.allclose(judged.logprob_BD, wanted, atol=2e-3)
    assert not judged.divergence_BD.any()


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_the_divergence_is_the_sum_of_each_choices_own(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, episodes = played(depth)
    other = tiny.quiet_model(seed=5, stops="abcdefgh")
    theirs: list[Tensor] = []

    def keep(logits_V: Tensor, _: int) -> Tensor:
        theirs.append(logits_V.log_softmax(-1))
        return torch.zeros(())

    def divergence(logits_V: Tensor, _: int) -> Tensor:
        ours_V, their_V = logits_V.log_softmax(-1), theirs.pop(0)
        real_V = ours_V > float("-inf")
        return (ours_V.exp() * (ours_V - their_V))[real_V].sum()

    told = transcribe(episodes, depth)
    with torch.no_grad():
        for episode in episodes:
            slow_turns(Reference(other), episode, keep)
        wanted = torch.stack([slow_turns(Reference(model), episode, divergence) for episode in episodes])
        exact, sampled = (Policy(model, how)(told, other) for how in ("exact", "sampled"))
        one, two = (Policy(each)(told, None).logprob_BD for each in (model, other))
    assert torch.allclose(exact.divergence_BD, wanted, rtol=1e-3)
    assert torch.allclose(sampled.divergence_BD, one - two, atol=1e-3)


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_logits_in_parts_are_the_same_and_so_are_gradients(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, episodes = played(depth)
    other, told = tiny.quiet_model(seed=5, stops="abcdefgh"), transcribe(episodes, depth)
    model.requires_grad_(True)
    found = []
    for most in (policy_module.MAX_LOGITS, 3 * 259):  # then three choices at a time
        monkeypatch.setattr(policy_module, "MAX_LOGITS", most)
        model.zero_grad()
        judged = Policy(model)(told, other)
        (judged.logprob_BD * torch.arange(6.0).view(3, 2) + judged.divergence_BD).sum().backward()
        found.append(
            (*(x.detach() for x in judged), *(p.grad.clone() for p in model.parameters() if p.grad is not None))
        )
    assert len(found[0]) == len(found[1]) > 10
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


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
    with torch.no_grad():
        judged = Policy(model, temperature=temperature)(transcribe(episodes, 0), None)
        logprob = slow_logprob(model, temperature)
        wanted = torch.stack([slow_turns(Reference(model), episode, logprob) for episode in episodes])
    assert torch.allclose(judged.logprob_BD, wanted, atol=2e-3)


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
    slow = Reference(model)
    weights = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 0.5]])
    (-(weights * Policy(model)(transcribe(episodes, DEPTH), None).logprob_BD).sum()).backward()
    for episode, (_, weight) in zip(episodes, weights.tolist(), strict=True):
        (-weight * slow_turns(slow, episode, slow_logprob(slow.model))[1]).backward()
    named = zip(model.named_parameters(), slow.model.parameters(), strict=True)
    grads = {name: (one.grad, two.grad) for (name, one), two in named}
    for name, (one, two) in grads.items():
        assert one is not None, name
        assert two is not None, name
        assert torch.allclose(one, two, rtol=1e-2, atol=1e-3 * float(two.abs().max())), name
    assert any(one.abs().max() > 1e-3 for name, (one, _) in grads.items() if "start_embedding" in name)
