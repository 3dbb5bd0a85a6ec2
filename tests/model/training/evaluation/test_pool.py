"""Reports of several checkpoints as one, against numbers worked out by hand."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from quietserve.model.training.evaluation import evaluate as module
from quietserve.model.training.evaluation.pool import interval, pool
from quietserve.model.training.evaluation.table import table

EVALUATE = ["--tasks", "signed-sum", "--metrics", "generated", "corrected", "budget", "perplexity", "--depths", "0,2"]
EVALUATE += ["--n", "3", "--pairs", "1", "--max-tokens", "3", "--temperature", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reports of two checkpoints that know nothing."""
    folder = tmp_path_factory.mktemp("pool")
    for seed in (0, 1):
        model = tiny.save(folder / f"model-{seed}", seed=seed)
        assert module.main([str(model), *EVALUATE, "--out", str(folder / f"{seed}.json")]) == 0
    return [folder / f"{seed}.json" for seed in (0, 1)]


def test_every_number_becomes_its_mean(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (json.loads(file.read_text()) for file in files)
    out = ["--out", str(tmp_path / "pooled.json"), "--png", str(tmp_path / "pooled.png")]
    assert module.main(["--pool", *map(str, files), *out]) == 0
    assert "means of 2 checkpoints" in capsys.readouterr().out
    pooled = json.loads((tmp_path / "pooled.json").read_text())
    assert pooled["model"] == ["model-0", "model-1"]
    assert pooled["commands"] == [first["command"], second["command"]]
    cells = [report["tasks"]["signed-sum"]["perplexity"]["2"] for report in (first, second, pooled)]
    one, other, mean = (cell["gain"]["value"] for cell in cells)
    assert one != other
    assert mean == pytest.approx((one + other) / 2)
    assert cells[2]["gain"]["sd"] == pytest.approx(abs(one - other) / 2**0.5)
    assert cells[2]["gain"]["each"] == [one, other]
    assert cells[2]["gain"]["each_ci95"] == [cell["gain"]["ci95"] for cell in cells[:2]]
    assert '"ci95"' not in json.dumps(pooled)
    assert (tmp_path / "pooled.png").stat().st_size > 10_000


def report(**more: Any) -> dict[str, Any]:
    cell = {"value": 0.5, "ci95": [0.4, 0.6], "n": 2, "tokens": 10, "forwards": 10, "acceptance": None}
    same = {"depths": [0], "n": 2, "seed": 1, "thought_temperature": 0, "samples": 8, "pairs": 8, "temperature": 1}
    tasks = {"sums": {"generated": {"0": cell}}}
    return {"model": "a", "tasks": tasks, "mean": {"0": 0.5}, "command": [], "versions": {}, **same, **more}


def test_what_is_a_whole_number_stays_one_and_what_is_unknown_of_one_is_unknown() -> None:
    other = copy.deepcopy(report())
    other["tasks"]["sums"]["generated"]["0"] |= {"value": 0.7, "acceptance": 0.9, "tokens": 11}
    cell = pool([report(), other])["tasks"]["sums"]["generated"]["0"]
    assert (cell["n"], cell["tokens"], cell["acceptance"]) == (2, 10.5, None)
    assert interval(cell) == pytest.approx((0.6 - 0.02**0.5, 0.6 + 0.02**0.5))
    assert re.search(r"sums +0.600 \[0.459 0.741\]", table(pool([report(), other])))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"n": 3}, "n 2 and 3"),
        ({"tasks": {"dial": {}}}, "tasks differ"),
        ({"tasks": {"sums": {"generated": {"4": {}}}}}, "tasks.sums.generated differ"),
    ],
)
def test_what_measured_something_else_is_refused(other: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pool([report(), report(**other)])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--pool", "{0}"], "--pool"),
        (["--pool", "{0}", "{folder}/none.json"], "cannot be read"),
        (["--pool", "{0}", "{folder}/model-0/config.json"], "is no report of"),
    ],
)
def test_files_that_cannot_be_pooled_are_named(
    argv: list[str], told: str, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main([each.format(files[0], folder=files[0].parent) for each in argv]) == 2
    assert told in capsys.readouterr().err
