import json
import resource

import pytest
import torch
from torch import nn

from quietserve.model.training.loop import (
    DivergedError,
    Loop,
    LoopConfig,
    decay_linearly,
    make_optimizer,
    progress_bar,
    step_rng,
    write_aside,
)
from quietserve.model.training.processes import Processes


def make_loop(folder, recipe=None, **config) -> Loop:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    config = LoopConfig(**{"steps": 12, "seed": 7, "log_every": 1, "save_every": 4, **config})
    optimizer, processes = make_optimizer(model, 0.1), Processes(cpu=True)
    return Loop(model, optimizer, lambda k: decay_linearly(k, 12, 0.01, 2), config, folder, recipe or {}, processes)


def work_of(loop: Loop, die_at: int | None = None, nan_at: int | None = None):
    def work(step: int):
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.tensor([step_rng(7, step).random() for _ in range(20)]).view(5, 4)
        loss = (loop.model(x) - torch.randn(5, 1)).square().mean()
        loss = loss * (float("nan") if step == nan_at else 1)
        loss.backward()
        return {"loss": loss.item(), "drawn": float(x.sum())}

    return work


def weights(loop: Loop) -> list[torch.Tensor]:
    return [value.clone() for value in loop.model.state_dict().values()]


@pytest.mark.parametrize("die_at", [4, 6, 11])
def test_a_killed_run_continued_is_the_uninterrupted_run(tmp_path, die_at):
    whole = make_loop(tmp_path / "whole")
    whole.run(work_of(whole))
    killed = make_loop(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        killed.run(work_of(killed, die_at=die_at))
    torch.manual_seed(99)
    resumed = make_loop(tmp_path / "killed")
    assert resumed.resume()
    assert resumed.step == die_at // 4 * 4
    resumed.run(work_of(resumed))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "killed/log.jsonl").read_text()


def test_there_is_nothing_to_resume_in_a_new_folder(tmp_path):
    assert not make_loop(tmp_path / "new").resume()


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), OSError("No space left on device")])
def test_a_run_killed_while_saving_leaves_the_state_before(tmp_path, monkeypatch, reason):
    loop = make_loop(tmp_path)
    loop.run(work_of(loop))
    before = (tmp_path / "state.pt").read_bytes()

    def die(state, path):
        path.write_bytes(b"half")
        raise reason

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(type(reason)):
        loop.save()
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_loss_that_is_no_number_stops_at_its_step_and_spares_the_weights(tmp_path):
    loop = make_loop(tmp_path)
    with pytest.raises(DivergedError, match="step 9"):
        loop.run(work_of(loop, nan_at=9))
    assert all(value.isfinite().all() for value in weights(loop))
    again = make_loop(tmp_path)
    assert again.resume()
    assert again.step == 8


def test_a_state_of_another_recipe_is_refused_by_name(tmp_path):
    loop = make_loop(tmp_path, {"width": 64, "lr": 1.0})
    loop.run(work_of(loop))
    with pytest.raises(ValueError, match="width 64, not 96"):
        make_loop(tmp_path, {"width": 96, "lr": 1.0}).resume()


def test_a_broken_state_is_refused_by_its_file(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state\.pt is not a saved training state"):
        make_loop(tmp_path).resume()


def test_starting_afresh_never_throws_a_state_away(tmp_path):
    """Without --resume an earlier run's state used to be deleted."""
    loop = make_loop(tmp_path)
    loop.run(work_of(loop))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"state\.pt is an earlier run's: --resume goes on with it"):
        make_loop(tmp_path).start_afresh()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "state.pt").unlink()
    make_loop(tmp_path).start_afresh()
    assert not list(tmp_path.iterdir()), "a log alone is of a run that saved nothing"


def test_the_log_has_a_line_of_numbers_for_every_step(tmp_path):
    loop = make_loop(tmp_path)
    loop.run(work_of(loop))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert set(lines[0]) == {"step", "loss", "drawn", "norm", "lr"}


def test_the_rate_rises_stays_and_falls_from_half_way():
    rates = [decay_linearly(k, 100, 1.0, 10) for k in range(100)]
    assert rates[0] == 0.1
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == 0.5
    assert 0 < rates[-1] <= 0.02


def test_named_parameters_learn_faster_and_only_matrices_decay(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    groups = make_optimizer(model, 0.1, {"1.": 6.0}).param_groups
    facts = {(group["lr_scale"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert facts == {(1.0, 0.1): 1, (1.0, 0.0): 1, (6.0, 0.1): 1, (6.0, 0.0): 1}


def test_a_state_of_another_shape_is_refused_by_its_tensor(tmp_path):
    loop = make_loop(tmp_path)
    loop.run(work_of(loop))
    other = make_loop(tmp_path)
    other.model[2] = nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"tensor '2.bias' has shape \[1\], not \[2\]"):
        other.resume()
    other.model[2] = nn.Identity()
    with pytest.raises(ValueError, match=r"tensor '2.bias' is not expected"):
        other.resume()


def test_what_a_full_disk_leaves_is_the_file_before(tmp_path):
    """A real one: writes beyond a limit fail (Python ignores the signal that comes with it)."""
    path = tmp_path / "state.pt"
    write_aside(path, lambda file: torch.save(torch.zeros(8), file))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"state\.pt could not be written: .*; what was there is whole"):
            write_aside(path, lambda file: torch.save(torch.zeros(100_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_nobody_watches_progress_is_lines(capsys) -> None:
    """A log of a run in the background was one line of all its states, each written over the one before."""
    with progress_bar(total=3, unit="step") as bar:
        for _ in range(3):
            bar.update()
    *states, last = capsys.readouterr().err.splitlines()
    assert "3/3" in last
    assert all("step/s" in line and "\r" not in line for line in (*states, last))
