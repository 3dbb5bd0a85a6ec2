"""Models of Karel programs: what is drawn for them, how they are measured, runs that go on, traces and the study."""

import contextlib
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_karel import Karel
from training_runs import log_of, tensors

from quietserve.model import checkpoint
from quietserve.model.tokens import Tokens
from quietserve.model.training import __main__ as train
from quietserve.model.training import karel, karel_study, karel_traces, report
from quietserve.model.training.evaluation import programs as evaluation
from quietserve.model.training.karel_table import markdown, phases, r_squared
from quietserve.model.training.karel_texts import (
    KarelTexts,
    Stage,
    build_words,
    form_of,
    held_out,
    parse_stage,
    prompt,
    write,
)
from quietserve.model.training.karel_traces import abstract_states
from quietserve.model.training.muon import Muon, orthogonalise
from quietserve.model.training.tasks import is_held_out
from quietserve.model.training.tasks.karel import compact, programs
from quietserve.model.training.tasks.karel.programs import NOTHING, OPS
from quietserve.model.training.traces import read_traces

STAGE = Stage(4, 2, 1, 3, 6)
TINY = ["--config", "ci", "--stages", "4:2:1-3:6", "5:2:2-3:4", "--width", "32", "--layers", "1", "--heads", "1"]
TINY += ["--batch", "32", "--evaluations", "2", "--n", "24", "--save-every", "4", "--warmup", "2"]


def run(folder: Path, *more: str) -> int:
    return train.main(["karel", "--out", str(folder), *TINY, *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("karel") / "run"
    assert run(folder) == 0
    return folder


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["compact", "drawing"])
def test_a_batch_holds_tasks_and_no_held_out_one(form: str) -> None:
    tokenizer = build_words(form, [4])  # type: ignore[arg-type]
    texts = KarelTexts(tokenizer, form, everything=False, num_programs=0, seed=3)  # type: ignore[arg-type]
    batch = texts.batch(STAGE, 0, 64)
    assert 48 <= len(batch) < 64, "one question in sixteen is kept for evaluation"
    unknown = set(tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz0123456789@#*=+-")))
    for ids, weights in zip(batch.ids_BT.tolist(), batch.weights_BT.tolist(), strict=True):
        text = tokenizer.decode(ids).partition("<|endoftext|>")[0]
        question, _, answer = text.removeprefix("Question: ").partition("\nAnswer:")
        assert not unknown & set(ids), "every word is one token"
        counted = [token for token, weight in zip(ids, weights, strict=True) if weight]
        assert tokenizer.decode(counted) == f"{answer}<|endoftext|>", "the loss is of the program and its end"
        if form == "compact":
            assert not is_held_out(question)
            before, after = compact.read(question)
            assert len(before) == 2
            ops_NL = programs.collect([programs.read(answer)] * 2)
            assert karel_traces.trace  # the interpreter under test elsewhere
            *_, last = karel_traces.trace(before, ops_NL)
            assert last.equals(after).all()


def test_batches_are_a_function_of_the_step() -> None:
    tokenizer = build_words("compact", [4])
    texts = KarelTexts(tokenizer, "compact", everything=False, num_programs=64, seed=0)
    one, two, again = (texts.batch(STAGE, step, 32).ids_BT for step in (0, 1, 2))
    assert one.shape != two.shape or not torch.equal(one, two)
    assert torch.equal(one, again), "64 programs are two batches"
    endless = KarelTexts(tokenizer, "compact", everything=False, num_programs=0, seed=0)
    assert not torch.equal(endless.batch(STAGE, 2, 32).ids_BT, one)
    whole = KarelTexts(tokenizer, "compact", everything=True, num_programs=0, seed=0).batch(STAGE, 0, 32)
    assert (whole.weights_BT[:, 1] == 1).all()


def test_a_batch_of_one_is_never_empty() -> None:
    """One text in sixteen is held out; a batch with no other ended the run."""
    texts = KarelTexts(build_words("compact", [4]), "compact", everything=False, num_programs=0, seed=0)
    assert all(len(texts.batch(STAGE, step, 1).ids_BT) == 1 for step in range(60))


def test_held_out_tasks_are_held_out() -> None:
    tasks = held_out(STAGE, 30, seed=1)
    assert len(tasks) == 30
    assert tasks.pairs == 2 * STAGE.pairs
    shown = tasks.shown(STAGE.pairs)
    assert all(map(is_held_out, shown.texts()))
    assert tasks.solves(tasks.ops_NL).all()
    assert held_out(STAGE, 30, seed=2).texts() != tasks.texts()
    assert held_out(STAGE, 10, seed=1).texts() == tasks.take(np.arange(10)).texts(), (
        "with more asked for, the first stay"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("4:3:3-6", "is no stage; it is written SIZE:PAIRS:SHORTEST-LONGEST:STEPS"),
        ("9:3:3-6:5", "sizes are 2 to 8"),
        ("4:0:3-6:5", "pairs 1 to 10"),
        ("4:3:6-3:5", "the shortest program has 1 operation or more"),
        ("4:3:0-3:5", "the shortest program has 1 operation or more"),
        ("4:3:3-6:0", "steps 1 or more"),
    ],
)
def test_stages_that_cannot_be(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_stage(text)


def test_a_stage_reads_as_it_is_told() -> None:
    assert parse_stage(str(STAGE)) == STAGE


# --- Muon ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_directions_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(rows, columns)))
    large = torch.linalg.svdvals(torch.randn(rows, columns))
    assert values.max() < 1.3
    assert values.shape == large.shape


def test_embeddings_and_vectors_take_the_other_step() -> None:
    lm = karel.build_model(build_words("compact", [4]), 32, 1, 1)
    groups = Muon(lm, weight_decay=0.1).param_groups
    names = {id(parameter): name for name, parameter in lm.named_parameters()}
    kinds = [{names[id(parameter)].split(".")[-2] for parameter in group["params"]} for group in groups]
    assert "embed_tokens" in kinds[1]
    assert {"q_proj", "down_proj"} <= kinds[0]
    assert groups[2]["weight_decay"] == 0


def test_muon_goes_down_and_resumes_from_its_state() -> None:
    def walk(layers: torch.nn.Module, optimizer: Muon, steps: int) -> float:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for step in range(steps):
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            loss = (layers(x) - x[:, :4].sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = Muon(layers)
    first = walk(layers, optimizer, 1)
    assert walk(layers, optimizer, 200) < first / 2
    twin = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    twin.load_state_dict(layers.state_dict())
    other = Muon(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert walk(layers, optimizer, 5) == walk(twin, other, 5)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_its_checkpoints_and_what_they_are_worth(model: Path) -> None:
    lines = [json.loads(line) for line in (model / karel.EVALUATIONS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10]
    assert [line["stage"] for line in lines] == ["4:2:1-3:6", "4:2:1-3:6", "5:2:2-3:4"]
    for line in lines:
        loaded = checkpoint.load(model / karel.CHECKPOINTS / f"{line['step']:06d}")
        stage = parse_stage(line["stage"])
        tasks = held_out(stage, 24, 1)
        asked = [prompt(text) for text in write(tasks.shown(2), "compact")]
        again = evaluation.measure(loaded, tasks, 2, asked)
        told = json.loads(json.dumps(again))
        assert told == {name: line[name] for name in told} | {"perplexity": pytest.approx(line["perplexity"])}
    last = tensors(model / karel.CHECKPOINTS / "000010")
    assert all(torch.equal(value, last[name]) for name, value in tensors(model).items())
    assert [line["step"] for line in log_of(model)] == [10]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = KarelTexts.batch

    def die(self: KarelTexts, stage: Stage, step: int, size: int) -> object:
        if step == 6:
            raise KeyboardInterrupt
        return drawn(self, stage, step, size)

    with monkeypatch.context() as patch:
        patch.setattr(KarelTexts, "batch", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert run(tmp_path) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert run(tmp_path, "--resume") == 0
    assert (tmp_path / karel.EVALUATIONS).read_text() == (model / karel.EVALUATIONS).read_text()
    own, others = tensors(tmp_path), tensors(model)
    assert all(torch.equal(value, others[name]) for name, value in own.items())


def test_a_run_goes_on_with_further_stages(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Larger worlds were once learned behind a finished run by writing another recipe into its state by hand."""
    assert run(tmp_path, "--stages", "4:2:1-3:6", "--evaluations", "1") == 0
    assert run(tmp_path, "--resume", "--stages", "5:2:2-3:4") == 2
    assert "the saved run had 4:2:1-3:6, behind which further ones may be" in capsys.readouterr().err
    assert run(tmp_path, "--resume") == 0
    own, others = tensors(tmp_path), tensors(model)
    assert all(torch.equal(value, others[name]) for name, value in own.items())
    lines = [json.loads(line) for line in (tmp_path / karel.EVALUATIONS).read_text().splitlines()]
    assert [(line["step"], line["stage"]) for line in lines] == [(0, "4:2:1-3:6"), (6, "4:2:1-3:6"), (10, "5:2:2-3:4")]
    assert run(tmp_path, "--resume", "--stages", "4:2:1-3:6") == 2, "not back to fewer"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stages", "4:3"], "is no stage"),
        (["--lr", "0"], "--lr is 0.0; it must be above 0"),
        (["--num-programs", "5"], "--num-programs is 5; it must be 0, or as many as a batch has, 32"),
        (["--batch", "0"], "--batch is 0; it must be 1 or more"),
        (["--heads", "3"], "--width is 32; it must be a multiple of --heads, 3"),
        (["--seed", "-1"], "--seed is -1; it must be 0 or more"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str) -> None:
    with contextlib.suppress(SystemExit):  # argparse leaves by itself
        assert run(tmp_path / "out", *flags) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adamw_and_the_papers_text(tmp_path: Path) -> None:
    assert run(tmp_path, "--optimizer", "adamw", "--form", "drawing", "--everything", "--num-programs", "64") == 0
    assert checkpoint.load(tmp_path).tokens.tokenizer.get_vocab().keys() >= {"Ġ__wall__", "__wall__", "Ġmove"}


@pytest.mark.slow
def test_the_shortest_config_learns_as_it_is(tmp_path: Path) -> None:
    assert train.main(["karel", "--config", "ci", "--out", str(tmp_path / "ci")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "ci" / karel.EVALUATIONS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 50, 100, 150, 200]
    assert lines[0]["accuracy"] < 0.1 < 0.25 < lines[-1]["accuracy"]
    assert lines[-1]["perplexity"] < lines[1]["perplexity"] < lines[0]["perplexity"]


# --- programs that a model writes ------------------------------------------------------------------------------------


def test_programs_are_operations_and_one_at_least(model: Path) -> None:
    loaded = checkpoint.load(model)
    asked = [prompt(text) for text in held_out(STAGE, 12, 1).shown(2).texts()]
    written = evaluation.generate_programs(loaded, asked, 7)
    assert all(1 <= len(ops) <= 7 for ops in written)
    assert {op for ops in written for op in ops} <= set(range(len(OPS)))


def test_perplexity_is_that_of_one_text_after_the_other(model: Path) -> None:
    loaded = checkpoint.load(model)
    tasks = held_out(STAGE, 9, 1)
    asked, answers = [prompt(t) for t in tasks.shown(2).texts()], list(map(programs.write, tasks.ops_NL))
    together = evaluation.perplexity(loaded, asked, answers)
    losses, count = 0.0, 0
    for question, answer in zip(asked, answers, strict=True):
        length = len(answer.split()) + 1
        losses += length * np.log(evaluation.perplexity(loaded, [question], [answer]))
        count += length
    assert together == pytest.approx(np.exp(losses / count), rel=1e-4)


def test_a_model_that_was_not_made_for_programs() -> None:
    with pytest.raises(
        ValueError, match="score-small was not made for Karel programs: its tokenizer has no token ' move'"
    ):
        evaluation.operation_ids(checkpoint.load("score-small"))


def test_a_model_is_asked_in_the_words_it_knows() -> None:
    """One that had learned from drawings was given compact text to be probed on, and read it byte by byte."""
    for form in ("compact", "drawing"):
        for size in (4, 6):
            assert form_of(Tokens(build_words(form, [4, 5, 6])), size) == form


# --- traces ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from(sorted(programs.MEANINGS)))
def test_labels_are_what_the_slow_robot_finds(seed: int, meaning: str) -> None:
    rng = np.random.default_rng(seed)
    tasks = held_out(STAGE, 4, seed).shown(2)
    written = [[op for op in ops if op != NOTHING] for ops in programs.draw(rng, range(1, 6), 4).tolist()]
    begin = karel_traces.first_worlds(tasks)
    for world, ops, told in zip(begin, written, abstract_states(begin, written, meaning), strict=True):
        before, _ = compact.read(compact.write(world, world))
        row, column = divmod(int(before.cells_N[0]), 6)
        walls = {(r - 1, c - 1) for r, c in np.argwhere(before.walls_NC[0].reshape(6, 6)).tolist()}
        faced = "NESW"[int(before.headings_N[0])]
        robot = Karel(4, (row - 1, column - 1), faced, walls)
        assert len(told) == len(ops)
        for op, kinds in zip(ops, told, strict=True):
            robot.do(OPS[programs.MEANINGS[meaning][op]])
            assert kinds["direction"] == robot.heading
            assert kinds["obstacle"] == ("yes" if robot.is_blocked() else "no")
            south, east = robot.robot[0] - row + 1, robot.robot[1] - column + 1
            assert kinds["position"] == f"{south:+d}{east:+d}"
            ahead, right = {"N": (-south, east), "E": (east, south), "S": (south, -east), "W": (-east, -south)}[faced]
            assert kinds["moved"] == f"{ahead:+d}{right:+d}"
            turns = ("NESW".index(robot.heading) - "NESW".index(faced)) % 4
            assert kinds["turned"] == ("not", "right", "round", "left")[turns]


def test_traces_are_written_and_read(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "traces.jsonl"
    args = ["karel-traces", "--model", str(model), "--out", str(file), "--n", "20"]
    assert train.main([*args, "--reference"]) == 0
    assert "1.000 of the programs are right" in capsys.readouterr().out
    loaded = checkpoint.load(model)
    for trace in read_traces(file, loaded.tokens):
        told = trace.labels["direction"]
        assert [trace.ids[token] in evaluation.operation_ids(loaded) for token, _ in told] == [True] * len(told)
        assert len(trace.ids) - 1 not in dict(told), "the state behind the last operation stands in the question"
        assert told[0][0] == loaded.tokens.decode(trace.ids).partition("Answer:")[0].count(" ") + 3
    assert train.main([*args, "--meaning", "nonsense"]) == 2
    assert "--meaning is nonsense; it must be one of original, flip" in capsys.readouterr().err
    assert train.main([*args, "--task", "karel-9x9"]) == 2


# --- the study -------------------------------------------------------------------------------------------------------


def test_a_run_as_a_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "run.png"
    assert report.main(["karel", str(model), "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    shutil.copytree(model, tmp_path / "again")
    two, results = ["karel", str(model), str(tmp_path / "again")], tmp_path / "two.json"
    assert report.main([*two, "--out", str(tmp_path / "two.png"), "--results", str(results)]) == 0
    measured = [json.loads(line) for line in (model / karel.EVALUATIONS).read_text().splitlines()]
    assert json.loads(results.read_text())["runs"] == {model.name: measured, "again": measured}
    assert report.main(["karel", str(model), str(model)]) == 2
    assert "it must be folders that are called differently" in capsys.readouterr().err
    assert report.main(["karel", str(tmp_path)]) == 2
    assert "evaluations.jsonl: cannot be read" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert report.main(["karel", str(model), "--evaluation", str(tmp_path / "other.json")]) == 2
    assert "is no report of `quietserve train karel-study --results`" in capsys.readouterr().err
    (tmp_path / "study.json").write_text('{"runs": [{"run": "seed-0"}], "versions": {}}')
    study = ["--evaluation", str(tmp_path / "study.json")]
    assert report.main(["karel", str(model), *study]) == 2
    assert "it must be among those of --evaluation: seed-0" in capsys.readouterr().err
    assert report.main(["karel", "seed-0", *study, "--results", str(results)]) == 2
    assert "--results is" in capsys.readouterr().err, "it was once not read"


def test_the_study_measures_every_checkpoint_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["karel-study", "--runs", str(model), "--out", str(tmp_path / "study"), "--n", "60", "--steps", "4"]
    args += ["--last-n", "80"]
    results = tmp_path / "karel.json"
    assert train.main([*args, "--results", str(results)]) == 0
    told = capsys.readouterr()
    assert "| linear, skill |" in told.out
    summary = json.loads(results.read_text())
    (found,) = summary["runs"]
    assert [each["step"] for each in found["over_training"]] == [10], "of the last stage"
    [at_last] = (each["probes"]["obstacle"]["texts"] for each in found["over_training"])
    assert (at_last, found["shapes"]["linear"]["obstacle"]["texts"]) == (12, 16), "a fifth of each"
    assert set(found["shapes"]) == {"linear", "1 hidden", "2 hidden"}
    assert set(found["meanings"]) == set(programs.MEANINGS)
    for gap, cell in found["gaps"].items():
        name, _, compared = gap.partition(", ")
        one, _, other = compared.partition(" over ")
        skill = {m: cells[name]["skill"] for m, cells in found["meanings"].items() if cells}
        skill["operations alone"] = found["meanings"][one][name]["tokens_alone"]["skill"]
        assert cell["value"] == pytest.approx(skill[one] - skill[other], abs=1e-6)
    assert "R^2" not in markdown({**summary, "runs": [found, found]}), (
        "one checkpoint each is no line; two runs ended there"
    )
    assert {"obstacle, original over operations alone", "obstacle, original over flip"} <= found["gaps"].keys()
    assert results.with_suffix(".png").stat().st_size > 10_000
    assert report.main(["karel", str(model), "--evaluation", str(results), "--out", str(tmp_path / "all.png")]) == 0
    assert train.main(args) == 0
    assert "done" not in capsys.readouterr().err, "what is finished is not done again"
    assert train.main([*args, "--n", "61"]) == 2
    assert train.main([*args, "--held", "0.3"]) == 2, "what was measured otherwise is not told as this"
    twice = ["karel-study", "--runs", str(model), str(model.parent / "." / model.name), "--out", str(tmp_path / "two")]
    assert train.main(twice) == 2
    assert "it must be folders that are called differently" in capsys.readouterr().err
    assert train.main(["karel-study", "--runs", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "is no run of `quietserve train karel`" in capsys.readouterr().err
    (tmp_path / karel.EVALUATIONS).touch()
    assert train.main(["karel-study", "--runs", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "nothing was measured yet" in capsys.readouterr().err


def test_a_study_of_programs_too_short_for_an_offset(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One operation has no second behind it: the study once ended there, after all else was measured, with nothing written."""
    short = held_out(parse_stage("5:2:1-1:4"), 60, 3).shown(2)
    monkeypatch.setattr(karel_study, "own", lambda loaded, tasks: short.ops_NL)
    monkeypatch.setattr(karel_study, "reference", lambda tasks: short.ops_NL)
    monkeypatch.setattr(karel_study, "held_out", lambda *_: short)
    results = tmp_path / "karel.json"
    args = ["karel-study", "--runs", str(model), "--out", str(tmp_path / "study"), "--n", "60", "--steps", "5"]
    assert train.main([*args, "--results", str(results)]) == 0
    [found] = json.loads(results.read_text())["runs"]
    assert found["offsets"]["-2"] == found["offsets"]["2"] == {}
    assert results.with_suffix(".png").stat().st_size > 10_000
    assert "| linear, skill |" in capsys.readouterr().out


def line(step: int, accuracy: float, top: float) -> dict[str, float]:
    return {"step": step, "accuracy": accuracy, "top": top}


def test_phases_and_the_fit() -> None:
    lines = [line(0, 0.05, 0.1), line(1, 0.1, 0.9), line(2, 0.2, 0.4), line(3, 0.4, 0.1), line(4, 0.9, 0.05)]
    assert phases(lines) == (2, 3)
    begun = [line(0, 0.05, 0.1), line(1, 0.1, 0.3), line(2, 0.2, 0.98), line(3, 0.3, 0.6), line(4, 0.5, 0.2)]
    assert phases(begun) == (4, 4), "what is varied before the babbling is noise, and not its end"
    probes = [{"step": n, "probes": {"content": content}} for n, content in enumerate([0.9, 0.5, 0.7, 1.1, 2.1])]
    assert r_squared({"evaluations": lines, "over_training": probes[1:]}, "content") == pytest.approx(1.0)
    assert r_squared({"evaluations": lines, "over_training": probes}, "content") < 0.9, "the first is off the line"
    probes[0]["probes"] = {}
    assert r_squared({"evaluations": lines, "over_training": probes}, "content") == pytest.approx(1.0)
    assert karel_study.OFFSETS == (-2, -1, 0, 1, 2)


# --- other methods on the same task ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        ["quiet-star", "--families", "karel-4x4", "--steps", "1", "--batch", "2", "--depths", "2"],
        [
            "score",
            "--tasks",
            "karel-4x4",
            "--stage1-steps",
            "0",
            "--stage2-steps",
            "1",
            "--problems",
            "2",
            "--rollouts",
            "2",
        ],
    ],
    ids=lambda method: method[0],
)
def test_karel_is_a_task_like_any_other(model: Path, tmp_path: Path, method: list[str]) -> None:
    assert train.main([*method, "--base", str(model), "--out", str(tmp_path / "out")]) == 0
    assert checkpoint.load(tmp_path / "out").model.can_think == (method[0] == "quiet-star")


def test_its_answers_vote_weighed_by_a_ranker(tmp_path: Path) -> None:
    """The bundled model, whose answers are right now and then."""
    args = ["--models", "karel-small", "--tasks", "karel-4x4", "--seeds", "0", "--rows", "states", "--n", "2"]
    args += ["--questions", "8", "--learned-samples", "4", "--sample=--temperature 1.5", "--ranker=--steps 2 --batch 2"]
    results = tmp_path / "votes.json"
    assert train.main(["ranker-study", "--out", str(tmp_path / "out"), *args, "--results", str(results)]) == 0
    (row,) = json.loads(results.read_text())["rows"]
    assert 0 < row["single"] < 1
    assert row["values"] > 1, "programs that differ are different answers"
    assert set(row["votes"]["16"]) >= {"majority", "ranker", "oracle"}
    prompts = [json.loads(one)["prompt"] for one in (tmp_path / "out/learned-0/samples.jsonl").read_text().splitlines()]
    assert all(prompt.startswith("Question: 4x4 @") for prompt in prompts)
