import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietserve.model.training import __main__ as train
from quietserve.model.training import pretrain

SIZES = {"steps": 6, "idle-steps": 2, "batch": 4, "width": 16, "layers": 1, "heads": 2, "save-every": 4, "warmup": 2}
TINY = [f"--{name}={size}" for name, size in SIZES.items()]


def run(folder, *more: str) -> int:
    return train.main(["pretrain", "--out", str(folder), *TINY, *more])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    assert run(folder) == 0
    return folder


def test_the_base_is_a_plain_hugging_face_folder(base):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl"} <= {file.name for file in base.iterdir()}
    assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer("Question: Where is the dial now?\nAnswer:", return_tensors="pt")
    assert model(**prompt).logits.isfinite().all()


def test_a_killed_run_goes_on_as_if_nothing_had_happened(base, tmp_path, monkeypatch):
    drawn = pretrain.make_batch

    def die(*args):
        if calls.append(0) or len(calls) == 6:
            raise KeyboardInterrupt
        return drawn(*args)

    calls: list[int] = []
    monkeypatch.setattr(pretrain, "make_batch", die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(pretrain, "make_batch", drawn)
    assert run(tmp_path, "--resume") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_another_seed_is_another_base(base, tmp_path):
    run(tmp_path, "--seed", "1")
    assert (tmp_path / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_the_continuation_opens_idle_talk():
    args = pretrain._parser().parse_args(["--out", "x", "--steps", "100"])
    shares, steps = pretrain.mixture_at(args, 0)
    assert steps == range(1, 2)
    assert shares == pytest.approx({"direct": 0.3, "notes": 0.525, "cut": 0.175})
    assert pretrain.mixture_at(args, 99)[1] == range(1, 8)
    shares, steps = pretrain.mixture_at(args, 100)
    assert steps == range(1, 8)
    assert shares == pytest.approx({"direct": 0.3, "notes": 0.1575, "cut": 0.0525, "idle": 0.49})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps is 0; it must be 1 or more"),
        (["--idle-steps", "-1"], "--idle-steps is -1"),
        (
            ["--curriculum", "0.1", "0.2", "0.4", "0.3", "0.5", "1"],
            "--curriculum is 0.1 0.2 0.4 0.3 0.5 1.0; it must be six shares that rise",
        ),
        (["--notes", "1.5"], "--notes is 1.5; it must be between 0 and 1"),
        (["--lr", "0"], "--lr is 0.0; it must be above 0"),
        (["--families", "chess"], "--families is chess; it must be among dial"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments, complaint, tmp_path, capsys):
    assert run(tmp_path / "none", *arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_run_of_another_recipe_is_not_continued(base, capsys):
    assert run(base, "--resume", "--lr", "0.5") == 2
    assert "lr" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_code_1_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "document_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    assert run(tmp_path) == 1
    assert "step 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["alchemy"]])
def test_an_unknown_method_lists_the_known(arguments, capsys):
    assert train.main(arguments) == 2
    assert "{pretrain,quiet-star" in capsys.readouterr().err


def test_help_costs_nothing(capsys):
    assert train.main(["--help"]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_the_log_tells_every_step_it_keeps(base):
    lines = [json.loads(line) for line in (base / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8
