"""The trainer: its one big forward against the slow reference, its arms, its resumption, its arguments."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from quietserve.model import checkpoint
from quietserve.model.training import quiet_star
from quietserve.model.training.documents import make_batch
from quietserve.model.training.quiet_star import Sampled, open_base
from reference import Reference

SMALL = ["--batch", "3", "--depths", "2", "4", "--positions", "2", "--thoughts", "2", "--save-every", "2"]


def test_a_base_opens_with_the_dash_for_markers_and_no_weight_on_thoughts(base: Path) -> None:
    model, tokenizer = open_base(base, depth=4)
    dash = model.backbone.embed(torch.tensor(tokenizer.convert_tokens_to_ids("\u0120---")))
    assert torch.equal(model.start_embedding, dash)
    assert torch.equal(model.end_embedding, dash)
    hidden = torch.randn(5, model.backbone.hidden_size)
    mixed, weight = model.mix(hidden, torch.randn_like(hidden))
    assert torch.equal(mixed, hidden)
    assert not weight.any()


def test_the_loss_is_what_thinking_step_by_step_gives(base: Path) -> None:
    """Rewards and mixed losses of one batch, recomputed a thought at a time by the reference."""
    model, tokenizer = open_base(base, depth=4)
    torch.manual_seed(0)
    for parameter in tiny.thinking_parameters(model):
        torch.nn.init.normal_(parameter, std=0.3)
    batch = make_batch(tokenizer, random.Random(1), 3, {"direct": 1.0}, [1, 2])
    sampled = quiet_star.sample_thoughts(model, batch, 2, 2, depth=4, after=3, choose=quiet_star.draw_thoughts)
    base_BTH, own_BMGH = quiet_star.replay(model, batch.ids_BT, sampled.positions_BM, sampled.own_BMG)
    nll_BMS, real_BMS, weight_BMS = quiet_star._mixed_nll(model, batch, sampled, base_BTH, own_BMGH, 3)
    slow = Reference(model.requires_grad_(False))
    for b, text in enumerate(batch.ids_BT.tolist()):
        length = int((batch.weights_BT[b] > 0).sum()) + 1
        for m in range(4):
            check_thought(slow, text[:length], sampled, (b, m), nll_BMS, real_BMS, weight_BMS)


def check_thought(
    slow: Reference,
    text: list[int],
    sampled: Sampled,
    at: tuple[int, int],
    nll_BMS: torch.Tensor,
    real_BMS: torch.Tensor,
    weight_BMS: torch.Tensor,
) -> None:
    model, embed = slow.model, slow.lm.get_input_embeddings()
    position = int(sampled.positions_BM[at])
    thought = sampled.tokens_BML[at][: int(sampled.lengths_BM[at])]
    read = [
        embed(torch.tensor(text[: position + 1])),
        model.start_embedding[None],
        embed(thought),
        model.end_embedding[None],
    ]
    for s in range(3):
        target = position + 1 + s
        assert bool(real_BMS[(*at, s)]) == (target < len(text))
        if target >= len(text):
            return
        h_base = slow.hidden(embed(torch.tensor(text[:target])))
        mixed, weight = model.mix(h_base, slow.hidden(torch.cat(read)))
        expected = -float(model.logits(mixed).log_softmax(-1)[text[target]])
        assert float(nll_BMS[(*at, s)].detach()) == pytest.approx(expected, abs=1e-3)
        assert float(weight_BMS[(*at, s)].detach()) == pytest.approx(float(weight), abs=1e-3)
        read.append(embed(torch.tensor(text[target : target + 1])))


@pytest.mark.parametrize("arm", quiet_star.ARMS)
def test_every_arm_trains_and_writes_a_checkpoint_that_loads(arm: str, base: Path, tmp_path: Path) -> None:
    flags = ["--base", str(base), "--out", str(tmp_path / arm), "--steps", "2", "--arm", arm, *SMALL]
    assert quiet_star.main(flags) == 0
    loaded = checkpoint.load(tmp_path / arm)
    assert loaded.model.can_think
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / arm / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before), "nothing was learned"
    facts = json.loads((tmp_path / arm / "log.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "norm"} <= facts.keys()


def test_a_run_that_was_killed_goes_on_bit_for_bit(base: Path, tmp_path: Path) -> None:
    def run(folder: str, *flags: str) -> int:
        return quiet_star.main(["--base", str(base), "--out", str(tmp_path / folder), "--steps", "4", *SMALL, *flags])

    assert run("whole") == 0
    right = quiet_star.quiet_loss

    def killed(*args: object) -> object:
        killed.left -= 1
        if not killed.left:
            raise KeyboardInterrupt
        return right(*args)

    killed.left = 4
    quiet_star.quiet_loss = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    finally:
        quiet_star.quiet_loss = right
    assert run("parts", "--resume") == 0
    for name in ("model.safetensors", "quiet.safetensors"):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--arm", "magic"], "--arm is magic; it must be one of quiet-star, no-reinforce, pause, continued"),
        (["--thoughts", "1"], "--thoughts is 1; it must be 2 or more"),
        (["--depths", "0"], "--depths is 0; it must be 1 or more"),
        (["--families", "chess"], "--families is chess; it must be among dial, swaps, sums"),
        (["--beta", "-1"], "--beta is -1.0; it must be 0 or more"),
    ],
)
def test_bad_arguments_are_one_line(
    flags: list[str], reason: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet_star.main(["--base", str(base), "--out", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"quietserve train quiet-star: {reason}")


def test_a_base_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet_star.main(["--base", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "is not a checkpoint folder" in capsys.readouterr().err


def test_a_base_without_the_dash_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny.save(tmp_path / "other", quiet=None)
    assert quiet_star.main(["--base", str(other), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, "and no progress bar of loading it"
    assert "has no token '\u0120---'" in told[0]


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", str(base), "--out", str(tmp_path / "out"), "--steps", "3", "--lr", "1e30", *SMALL]
    assert quiet_star.main(flags) == 1
    assert "at step" in capsys.readouterr().err
