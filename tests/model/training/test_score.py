"""The command: its arms, what they read, its resumption, its arguments."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import killed_at, log_of, tensors

import tiny
from quietserve.model import checkpoint
from quietserve.model.training import attempts, score
from quietserve.model.training.credit import Credit
from quietserve.model.training.episodes import Episode
from quietserve.model.training.score import ARMS, KNOBS, stages
from quietserve.model.training.score_trainer import ScoreTrainer
from quietserve.model.training.stages import Stage

FEW = ["--problems", "3", "--rollouts", "2", "--max-tokens", "6", "--log-every", "1", "--save-every", "1"]
STEPS = ["--stage1-steps", "2", "--stage2-steps", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attempts") / "base"
    sizes = ["--width", "32", "--layers", "1", "--heads", "1"]
    assert (
        attempts.main(["--out", str(folder), "--steps", "40", "--batch", "8", "--instruction", "Again.", *sizes]) == 0
    )
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_is_served_as_it_is(base: Path, tmp_path: Path, arm: str) -> None:
    out = tmp_path / arm
    assert score.main(["--base", str(base), "--out", str(out), "--arm", arm, *STEPS, *FEW]) == 0
    assert [line["step"] for line in log_of(out)] == [1, 2, 3, 4]
    assert {"t1", "t2", "repaired", "broken", "changed"} <= log_of(out)[0].keys()
    assert ({"kl1", "kl2"} <= log_of(out)[0].keys()) == (arm not in ("pair-sft", "star")), "only where it was measured"
    loaded = checkpoint.load(out)
    assert loaded.correction is not None
    assert loaded.correction.instruction == "Again.", "the base's own"


def test_stages_are_the_papers() -> None:
    found = {arm: stages(arm, 3, 7, 10.0, 0.01, 0.1, 1.0) for arm in ARMS}
    assert all(sum(stage.steps for stage in each) == 10 for each in found.values())
    one, two = found["score"]
    assert (one.steps, one.credit.first, one.credit.second, one.anchors) == (3, 0.0, 1.0, (0.1, 0.01))
    assert (two.steps, two.credit, two.anchors) == (7, Credit(bonus=10.0), (0.01, 0.01))
    assert found["no-bonus"][1].credit == found["multi-turn"][0].credit == Credit()
    assert found["no-stage-1"][0].credit == Credit(bonus=10.0)
    assert found["scaled"][0].credit == Credit(second=11.0)
    assert found["single-turn"][0].credit == Credit(second=0.0)
    assert found["discounted"][1].credit == Credit(bonus=10.0, discount=1.0)
    assert [found[arm][0].imitate for arm in ("pair-sft", "star", "score")] == ["repairs", "right", None]


@pytest.mark.parametrize("arm", ARMS)
def test_every_knob_that_an_arm_reads_changes_it_and_no_other_does(arm: str) -> None:
    for knob in KNOBS:
        changed = stages(arm, 1, 1, **KNOBS) != stages(arm, 1, 1, **(KNOBS | {knob: 0.5}))
        assert changed == (knob in ARMS[arm]), knob


def test_a_killed_run_goes_on_bit_for_bit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--base", str(base), *STEPS, *FEW, "--from-base", "0.4", "--arm", "score"]
    assert score.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    with killed_at(2, ScoreTrainer, monkeypatch):
        score.main([*flags, "--out", str(tmp_path / "halves")])
    assert score.main([*flags, "--out", str(tmp_path / "halves"), "--resume"]) == 0
    whole, halves = (tensors(tmp_path / name) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halves")


def test_problems_may_be_taken_a_few_at_a_time(base: Path, tmp_path: Path) -> None:
    for name, more in (("all", []), ("few", ["--micro-batch", "2"])):
        assert score.main(["--base", str(base), "--out", str(tmp_path / name), *STEPS, *FEW, *more]) == 0
    one, two = (log_of(tmp_path / name) for name in ("all", "few"))
    for before, after in zip(one, two, strict=True):
        assert after == pytest.approx(before, abs=1e-4)


def test_before_its_first_update_a_policy_is_where_its_reference_is(base: Path, tmp_path: Path) -> None:
    assert score.main(["--base", str(base), "--out", str(tmp_path / "run"), *STEPS, *FEW]) == 0
    first = log_of(tmp_path / "run")[0]
    assert first["kl1"] == pytest.approx(0, abs=1e-6)
    assert first["kl2"] == pytest.approx(0, abs=1e-6)


def test_a_thinking_model_learns_through_its_thoughts(tmp_path: Path) -> None:
    base, out = tiny.save(tmp_path / "base"), tmp_path / "run"
    flags = ["--base", str(base), "--tasks", "dial", "--depth", "2", "--thinking", "last", "--instruction", "Again."]
    assert score.main([*flags, "--out", str(out), *STEPS, *FEW, "--alpha", "3"]) == 0
    loaded = checkpoint.load(out)
    assert loaded.correction is not None
    assert (loaded.correction.thinking, loaded.correction.instruction) == ("last", "Again.")
    assert loaded.model.quiet is not None
    assert loaded.model.quiet.thought_depth == 2, "it is served as it was trained"


def test_without_a_depth_a_thinking_model_does_not_think(tmp_path: Path) -> None:
    base, out = tiny.save(tmp_path / "base"), tmp_path / "run"
    flags = ["--base", str(base), "--tasks", "dial", "--depth", "0", "--instruction", "Again."]
    assert score.main([*flags, "--out", str(out), *STEPS, *FEW]) == 0
    correction = checkpoint.load(out).correction
    assert correction is not None
    assert correction.thinking == "none"


def test_a_base_that_cannot_think_may_learn_to_later(base: Path, tmp_path: Path) -> None:
    """It was written down that it does not think, and behind `quiet-star` no depth made it think when it corrected itself."""
    assert score.main(["--base", str(base), "--out", str(tmp_path / "run"), *STEPS, *FEW]) == 0
    correction = checkpoint.load(tmp_path / "run").correction
    assert correction is not None
    assert correction.depth(8, is_last=True) == 8


def test_a_policy_is_judged_at_the_temperature_it_played_at(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    class Watched(ScoreTrainer):
        def take_step(self, step: int) -> dict[str, float]:
            found.append((self.policy.temperature, self._player.temperature))
            return super().take_step(step)

    monkeypatch.setattr(score, "ScoreTrainer", Watched)
    flags = ["--base", str(base), "--out", str(tmp_path / "run"), "--temperature", "0.5", *STEPS, *FEW]
    assert score.main(flags) == 0
    assert set(found) == {(0.5, 0.5)}


def test_adapters_are_merged_and_files_are_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are measured from is the same weights without them: a large model need not be held twice."""
    held = []

    class Watched(ScoreTrainer):
        def save(self) -> None:
            models = (self._reference, self._loaded.model)
            held.extend({p.data_ptr() for p in model.backbone.parameters()} for model in models)
            super().save()

    monkeypatch.setattr(score, "ScoreTrainer", Watched)
    base, out, file = tiny.save(tmp_path / "base", quiet=None), tmp_path / "run", tmp_path / "gsm.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    flags = ["--base", str(base), "--tasks", str(file), "--lora", "2", "--divergence", "sampled"]
    assert score.main([*flags, "--out", str(out), *STEPS, *FEW]) == 0
    assert held[0] < held[1]
    assert (out / "adapter").is_dir()
    assert checkpoint.load(out).model.backbone.vocab_size == 259


def test_the_second_turn_learns_what_is_rewarded_and_the_first_stays(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An easy reward in place of the task's: the second attempt begins with a plus."""

    class Eager(score.ScoreTrainer):
        def _judge(self, groups: list[list[Episode]], stage: Stage) -> tuple[Tensor, dict[str, Tensor]]:
            for episode in (e for group in groups for e in group):
                for number, turn in enumerate(episode.turns):
                    object.__setattr__(turn, "right", number == 1 and turn.answer.text.startswith(" +"))
            return super()._judge(groups, stage)

    monkeypatch.setattr(score, "ScoreTrainer", Eager)
    flags = ["--stage1-steps", "30", "--stage2-steps", "0", "--problems", "6", "--rollouts", "4", "--max-tokens", "4"]
    flags += ["--lr", "3e-3", "--log-every", "1", "--beta1", "0.01", "--arm", "score"]
    moved = {}
    for beta2 in ("0", "1"):
        out = tmp_path / beta2
        assert score.main(["--base", str(base), "--out", str(out), *flags, "--beta2", beta2]) == 0
        log = log_of(out)
        early, late = (sum(line["t2"] for line in part) / 5 for part in (log[:5], log[-5:]))
        assert late > early + 0.2
        moved[beta2] = sum(line["kl1"] for line in log[-5:])
    assert moved["1"] < moved["0"] / 4, "what the second turn learns reaches the first, but for its anchor"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arm", "best"], "--arm is best; it must be one of score, single-turn"),
        (
            ["--arm", "multi-turn", "--alpha", "3"],
            "--alpha is 3.0; it must be left out: the arm multi-turn does not read it",
        ),
        (["--alpha", "-1"], "--alpha is -1.0; it must be 0 or more"),
        (["--rollouts", "1"], "--rollouts is 1; it must be 2 or more"),
        (
            ["--stage1-steps", "0", "--stage2-steps", "0"],
            "--stage2-steps is 0; it must be 1 or more with those of stage I",
        ),
        (["--from-base", "2"], "--from-base is 2.0; it must be between 0 and 1"),
        (["--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["--tasks", "chess"], "--tasks is chess; it must be among dial"),
        (["--tasks", "dial", "dial"], "--tasks is dial dial; it must be each of them once"),
        (["--stop", ""], "--stop is ; it must be texts that are not empty"),
        (["--depth", "4"], "--depth is 4; it must be 0: the base does not think"),
        (["--instruction", " "], "instruction is ' '; it must be a text that is not blank"),
        (["--quantization", "bnb-4bit"], "--quantization is bnb-4bit; it must be none, or there must be --lora"),
    ],
)
def test_arguments_that_cannot_be(
    base: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score.main(["--base", str(base), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.glob("run/*"))


def test_two_attempts_must_fit_the_context(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["--base", str(base), "--out", str(tmp_path), "--max-tokens", "50000", *STEPS]) == 2
    assert "the model's context has room for" in capsys.readouterr().err


def test_a_misspelt_flag_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        score.main(["--base", str(base), "--out", str(tmp_path), "--alfa", "3"])
