"""Answers drawn to be learned from: judged, resumed, from a checkpoint and from a server, on both sides of the split."""

import json
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import serving
from quietserve.model.training import pretrain, sample
from quietserve.model.training.evaluation.family_items import FamilyItem, draw_items
from quietserve.model.training.sampler import RESERVED
from quietserve.model.training.samples import Asked, Sample, append, read_samples, write_halves
from quietserve.model.training.tasks import problems
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.numeric import Numeric

FEW = ["--n", "40", "--samples", "3"]
CORRECTOR = ["--model", "score-small", "--tasks", "signed-sum"]


@contextmanager
def serve_saying(answer: Callable[[int], str], with_logprobs: bool = True) -> Iterator[str]:
    """The address of a server with OpenAI's completions and nothing else, whose answers are a function of their seed."""

    async def models() -> dict[str, Any]:
        return {"object": "list", "data": []}

    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        texts = [answer(body["seed"] + i) for i in range(body["n"])]
        assert body.get("thought_depth", 2) == 2
        told = [{"tokens": ["?"], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [0]} for _ in texts]
        told = told if with_logprobs else [None for _ in texts]
        choices = [{"index": i, "text": t, "finish_reason": "stop", "logprobs": told[i]} for i, t in enumerate(texts)]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": choices, "usage": usage}

    app = FastAPI()
    app.get("/v1/models")(models)
    app.post("/v1/completions")(complete)
    with serving.serve(app) as url:
        yield url


def draw(folder: Path, *flags: str) -> list[Asked]:
    assert sample.main(["--out", str(folder), *FEW, *flags]) == 0
    return read_samples(folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, *CORRECTOR)
    return folder


def test_right_ones_are_right_and_the_halves_hold_them(drawn: Path) -> None:
    asked = read_samples(drawn)
    assert len(asked) == len({one.question for one in asked}) == 40
    for one in asked:
        assert one.prompt == one.direct_prompt == f"Question: {one.question}\nAnswer:"
        for told in one.samples:
            left = told.text.split()[-1:] == ["0"]
            assert left or not told.right, "right ones leave nothing"
            assert told.min_logprob <= told.logprob / told.num_tokens <= 0
    pairs = {
        name: [json.loads(line) for line in (drawn / name).read_text().splitlines()]
        for name in ("positive.jsonl", "negative.jsonl")
    }
    right = [(one.prompt, told.text) for one in asked for told in one.samples if told.right]
    assert [(pair["prompt"], pair["completion"]) for pair in pairs["positive.jsonl"]] == right
    assert 0 < len(right) < 120
    assert len(right) + len(pairs["negative.jsonl"]) == 120


def test_a_killed_run_goes_on_as_if_it_had_not_been(drawn: Path, tmp_path: Path) -> None:
    whole = (drawn / "samples.jsonl").read_bytes()
    for name in ("sampling.json", "samples.jsonl"):
        (tmp_path / name).write_bytes((drawn / name).read_bytes())
    (tmp_path / "samples.jsonl").write_bytes(
        whole[: whole.index(b"\n") * 2 // 3 + whole.index(b"\n")]
    )  # a line and a half
    draw(tmp_path, *CORRECTOR, "--resume")
    assert (tmp_path / "samples.jsonl").read_bytes() == whole


def test_who_answers_nothing_is_in_neither_half(tmp_path: Path) -> None:
    some = [
        Sample("1", "1", True, -1.0, -1.0, 1),
        Sample("2", "2", False, -1.0, -1.0, 1),
        Sample("", None, False, -1.0, -1.0, 1),
    ]
    one = Asked("s", "q", "p", "d", "1", tuple(some))
    assert ([s.text for s in one.right], [s.text for s in one.wrong]) == (["1"], ["2"])
    append(tmp_path, [one])
    assert write_halves(tmp_path) == (1, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It reasons in the open."""
    folder = tmp_path_factory.mktemp("sampled") / "base"
    sizes = ["--width", "32", "--layers", "1", "--heads", "1", "--steps", "30", "--idle-steps", "0", "--batch", "16"]
    assert pretrain.main(["--out", str(folder), "--families", "dial", *sizes, "--direct", "0"]) == 0
    return folder


def test_chains_of_thought_are_asked_for_and_read(base: Path, tmp_path: Path) -> None:
    asked = draw(tmp_path / "chains", "--model", str(base), "--tasks", "dial")
    assert all(one.prompt == one.direct_prompt + " ---" for one in asked)
    told = [(one, s) for one in asked for s in one.samples]
    assert any(s.answer for _, s in told)
    assert all(s.text.rpartition(" --- ")[2].strip() == s.answer for _, s in told if s.answer and s.answer.isdigit())
    assert all(s.right == (s.answer == one.key) for one, s in told)
    direct = draw(tmp_path / "direct", "--model", str(base), "--tasks", "dial", "--direct")
    assert all(one.prompt == one.direct_prompt for one in direct)
    assert not any("---" in s.text for one in direct for s in one.samples), "it may not reason in the open"


@pytest.mark.parametrize("tasks", [("dial", "signed-sum"), ("signed-sum", "dial")])
def test_of_several_tasks_each_is_asked_as_if_alone(base: Path, tmp_path: Path, tasks: tuple[str, str]) -> None:
    """All once had the first one's numbers of steps, and a search might be reasoned about in the open beside another task."""
    asked = draw(tmp_path, "--model", str(base), "--tasks", *tasks)
    by_task = {name: asked[number::2] for number, name in enumerate(tasks)}
    assert all(one.source.startswith(f"{name}, ") for name, own in by_task.items() for one in own)
    assert {len(re.findall(r" on \w+day", one.question)) for one in by_task["dial"]} == set(range(1, 8))
    said = {name: [told.text for one in own for told in one.samples] for name, own in by_task.items()}
    assert any("---" in text for text in said["dial"])
    assert not any("---" in text for text in said["signed-sum"])


def test_the_split(tmp_path: Path) -> None:
    held = {one.question for one in draw(tmp_path / "held", *CORRECTOR, "--held-out", "--seed", "1")}
    assert held == {item.question for item in draw_items("signed-sum", 40, seed=1)}
    assert not held & {one.question for one in draw(tmp_path / "train", *CORRECTOR)}


def test_from_a_server(tmp_path: Path) -> None:
    """Any with OpenAI's completions: this one says one of three things, by its seed."""
    with serve_saying(lambda seed: [" Monday 1 --- 1", " --- 2", " hm"][seed % 3]) as url:
        flags = ["--url", url, "--tasks", "dial", "--samples", "20", "--n", "3", "--params", '{"thought_depth": 2}']
        asked = draw(tmp_path, *flags)
    told = [s for one in asked for s in one.samples]
    assert len(told) == 60, "more than one request asks for"
    assert {s.answer for s in told} == {"1", "2", None}
    assert all(s.right == (s.answer == one.key) for one in asked for s in one.samples)
    assert all(s.logprob < 0 for s in told)


@pytest.mark.parametrize("params", [{key: None} for key in RESERVED] + [{"n": 2, "top_p": 0.9, "seed": 1}])
def test_what_the_draw_sets_itself_is_no_parameter(
    params: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of these once ended in the traceback of a TypeError, when the server had already been asked for its models."""
    flags = ["--url", "http://127.0.0.1:9", "--tasks", "dial", "--params", json.dumps(params)]
    assert sample.main(["--out", str(tmp_path / "out"), *flags]) == 2
    keys = ", ".join(key for key in RESERVED if key in params)
    assert f"it must be without {keys}: the draw sets that itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "It is 2. #### 2"}\n{"question": "2 + 1?", "answer": "#### 3"}\n')
    with serve_saying(lambda seed: f"So {seed % 4}") as url:
        asked = draw(tmp_path / "out", "--url", url, "--tasks", str(file))
    assert [one.key for one in asked] == ["2", "3"]
    assert all(s.right == (s.answer == one.key) for one in asked for s in one.samples)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "0"], "--temperature is 0.0; it must be above 0 and at most 2"),
        (["--tasks", "nothing"], "--tasks is nothing; it must be among"),
        (["--samples", "0"], "--samples is 0; it must be 1 or more"),
        (["--depth", "4"], "--depth is 4; it must be 0: the model does not think"),
        (["--max-tokens", "2000"], "the model's context has room for 1024"),
        (["--params", '{"n": 2}'], "it is for a served model's requests"),
        (["--served-model", "a"], "--served-model is a; it must be left out: the model is a checkpoint"),
    ],
)
def test_what_cannot_be_drawn(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--out", str(tmp_path / "out"), *CORRECTOR, *FEW, *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--dtype", "auto"], ["--dtype", "float32"], ["--device", "cpu"]])
def test_a_served_models_weights_are_not_ours_to_put(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These were once taken and not read, as if a server had listened."""
    asked = ["--url", "http://127.0.0.1:9", "--tasks", "dial", *flags]
    assert sample.main(["--out", str(tmp_path / "out"), *asked]) == 2
    assert f"{flags[0]} is {flags[1]}; it must be left out: the model is a server's" in capsys.readouterr().err


def test_a_server_that_tells_no_log_probabilities_is_of_no_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answers once counted as certain, with a least log-probability of -Infinity, which is no JSON."""
    with serve_saying(lambda seed: " --- 1", with_logprobs=False) as url:
        assert sample.main(["--out", str(tmp_path), *FEW, "--url", url, "--tasks", "dial"]) == 2
    assert "the server sends no log-probabilities of its tokens" in capsys.readouterr().err
    assert not (tmp_path / "samples.jsonl").exists()


def test_what_is_there_is_not_lost(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (drawn / "samples.jsonl").read_bytes()
    assert sample.main(["--out", str(drawn), *CORRECTOR, *FEW]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert sample.main(["--out", str(drawn), *CORRECTOR, *FEW, "--resume", "--seed", "9"]) == 2
    assert "--seed is 9; what is in" in capsys.readouterr().err
    assert (drawn / "samples.jsonl").read_bytes() == before


def test_answers_of_another_model_of_the_server_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run once went on with whichever model of the server it was told of then, in the same file."""
    with serve_saying(lambda seed: " --- 1") as url:
        flags = ["--url", url, "--tasks", "dial"]
        draw(tmp_path, *flags, "--served-model", "one")
        before = (tmp_path / "samples.jsonl").read_bytes()
        for other in (["--served-model", "two"], []):
            assert sample.main(["--out", str(tmp_path), *FEW, *flags, *other, "--resume"]) == 2
            assert "was made with 'one'" in capsys.readouterr().err
        assert (tmp_path / "samples.jsonl").read_bytes() == before
        draw(tmp_path, *flags, "--served-model", "one", "--resume")


def test_folders_from_before_all_was_noted_go_on(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They say nothing of weights and of served models, and were made with the usual ones unless somebody says otherwise."""
    (tmp_path / "samples.jsonl").write_bytes((drawn / "samples.jsonl").read_bytes())
    noted = json.loads((drawn / "sampling.json").read_text())
    old = {key: value for key, value in noted.items() if key not in ("dtype", "served_model")}
    assert len(old) == len(noted) - 2
    (tmp_path / "sampling.json").write_text(json.dumps(old))
    draw(tmp_path, *CORRECTOR, "--resume")
    draw(tmp_path, *CORRECTOR, "--resume", "--dtype", "auto")
    assert (tmp_path / "samples.jsonl").read_bytes() == (drawn / "samples.jsonl").read_bytes()
    for folder in (drawn, tmp_path):
        assert sample.main(["--out", str(folder), *CORRECTOR, *FEW, "--resume", "--dtype", "bfloat16"]) == 2
        assert "--dtype is 'bfloat16'; what is in" in capsys.readouterr().err


def test_a_server_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said in one line, and binds nobody to that address."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    assert sample.main(["--out", str(tmp_path), "--url", "http://127.0.0.1:9", "--tasks", "dial", *FEW]) == 1
    assert "--url http://127.0.0.1:9: " in capsys.readouterr().err
    assert len(draw(tmp_path, *CORRECTOR, "--n", "2")) == 2


def test_with_more_questions_the_first_stay(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "It is 2. #### 2"}\n')
    flags = ["--model", "score-small", "--tasks", str(file), "signed-sum", "--samples", "1"]
    few, more = draw(tmp_path / "a", *flags, "--n", "3"), draw(tmp_path / "b", *flags, "--n", "6")
    assert [one.question for one in more][:3] == [one.question for one in few]
    assert few[0].key == "2"


def test_where_fewer_questions_are_asked_for_none_is_lost(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last ones were once taken away, and the answers of the others counted as those of the few."""
    for name in ("sampling.json", "samples.jsonl"):
        (tmp_path / name).write_bytes((drawn / name).read_bytes())
    draw(tmp_path, *CORRECTOR, "--n", "5", "--resume")
    assert capsys.readouterr().out.startswith("40 questions, 120 answers: ")
    assert (tmp_path / "samples.jsonl").read_bytes() == (drawn / "samples.jsonl").read_bytes()
    assert read_samples(tmp_path, 5) == read_samples(drawn)[:5]


def test_whatever_ends_an_answer_of_any_task_ends_all() -> None:
    ends = [FamilyItem(next(problems("train", ("dial",))), ()), Numeric("", "", "", "1", Wording())]
    assert sample._stop(Namespace(stop=None), ends) == ("\n", "\nQ:")
    assert sample._stop(Namespace(stop=("x",)), ends) == ("x",)


def test_files_that_hold_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train sample` makes it"):
        read_samples(tmp_path)
    for line in ("{}", "[1]", "nothing", '{"samples": [{}]}'):
        (tmp_path / "samples.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"samples\.jsonl:1: holds no question"):
            read_samples(tmp_path)
