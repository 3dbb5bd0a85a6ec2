"""Two processes do what one does: the same losses, gradients' norms and weights, with copies of the weights or parts of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import killed_at, log_of, tensors

from quietserve.model.training import attempts, quiet_star, score
from quietserve.model.training.trainer import Trainer

pytestmark = pytest.mark.processes

STEPS = 4
THINKING = ["--steps", "4", "--batch", "4", "--depths", "2", "4", "--positions", "2", "--thoughts", "2"]
CORRECTING = ["--stage1-steps", "2", "--stage2-steps", "2", "--problems", "4", "--rollouts", "2", "--max-tokens", "6"]
KEPT = ["--save-every", "2", "--log-every", "1"]


@pytest.fixture
def corrector(tmp_path: Path) -> Path:
    """A base that has learned to write numbers, and no more."""
    sizes = ["--width", "32", "--layers", "1", "--heads", "2", "--steps", "40", "--batch", "8"]
    assert attempts.main(["--out", str(tmp_path / "corrector"), *sizes]) == 0
    return tmp_path / "corrector"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Questions that it answers by chance: some attempts are rewarded."""
    file = tmp_path / "numbers.jsonl"
    lines = [{"question": f"{n} + {n}?", "answer": f"#### {n}"} for n in range(1, 11)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_two_processes_do_what_one_does(
    base: Path, corrector: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both methods in one launch, which is most of the cost; and one run goes on where a single process was killed."""

    def think(folder: str, *flags: str) -> list[str]:
        return ["--base", str(base), "--out", str(tmp_path / folder), *THINKING, *KEPT, *flags]

    def correct(folder: str, *flags: str) -> list[str]:
        what = ["--base", str(corrector), "--tasks", str(task), "--from-base", "0.25"]
        return [*what, "--out", str(tmp_path / folder), *CORRECTING, *KEPT, *flags]

    assert quiet_star.main(think("one")) == 0
    assert quiet_star.main(think("adapted-one", "--lora", "2")) == 0
    assert score.main(correct("corrected-one")) == 0
    with killed_at(3, Trainer, monkeypatch):
        quiet_star.main(think("half"))
    in_two_processes(
        ["quiet-star", *think("copied")],
        ["quiet-star", *think("in-parts", "--micro-batch", "1")],
        ["quiet-star", *think("split", "--shard", "--micro-batch", "1")],
        ["quiet-star", *think("adapted", "--shard", "--lora", "2")],
        ["quiet-star", *think("half", "--resume")],
        ["score", *correct("corrected")],
        ["score", *correct("corrected-split", "--shard", "--micro-batch", "1")],
    )
    for folder in ("copied", "in-parts", "split", "half"):
        check_alike(tmp_path / "one", tmp_path / folder)
    check_alike(tmp_path / "adapted-one", tmp_path / "adapted")
    assert sum(line["t1"] + line["t2"] for line in log_of(tmp_path / "corrected-one")) > 0
    for folder in ("corrected", "corrected-split"):
        check_alike(tmp_path / "corrected-one", tmp_path / folder)


def check_alike(alone: Path, together: Path) -> None:
    one, two = log_of(alone), log_of(together)
    assert len(one) == len(two) == STEPS
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    found = tensors(together)
    for name, value in tensors(alone).items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-3)


def in_two_processes(*runs: list[str]) -> None:
    """One run after the other, as `torchrun` starts them, over the loopback."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launch, str(script), json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
