"""The command: its arms and switches, its resumption, its arguments."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import killed_at, log_of, tensors
from transformers import AutoModelForCausalLM

import tiny
from quietserve.model import checkpoint
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.training import quiet_star
from quietserve.model.training.thinker import ThinkerConfig, open_thinker
from quietserve.model.training.trainer import Trainer

SMALL = [
    "--batch",
    "4",
    "--depths",
    "2",
    "4",
    "--positions",
    "2",
    "--thoughts",
    "2",
    "--save-every",
    "2",
    "--log-every",
    "1",
]
TEXT = "\n\n".join(f"Paragraph {n} says that {n} and {n + 1} are {2 * n + 1}." for n in range(40))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any language model: a random one with a tokenizer of bytes."""
    return tiny.save(tmp_path_factory.mktemp("plain") / "lm", quiet=None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text(TEXT)
    return file


def test_a_base_opens_with_the_dash_for_markers_and_no_weight_on_thoughts(base: Path) -> None:
    loaded = open_thinker(base, ThinkerConfig(depth=4))
    model, vocab = loaded.model, loaded.tokens.tokenizer.get_vocab()
    dash = model.backbone.embed(torch.tensor(vocab["\u0120---"]))
    assert torch.equal(model.start_embedding, dash)
    assert torch.equal(model.end_embedding, dash)
    assert model.stop_ids == {vocab["\u0120---"], vocab["<|endoftext|>"]}
    assert model.quiet is not None
    assert model.quiet.thought_stop_tokens == ("\u0120---", "<|endoftext|>")
    hidden = torch.randn(5, model.backbone.hidden_size)
    mixed, weight = model.mix(hidden, torch.randn_like(hidden))
    assert torch.equal(mixed, hidden)
    assert not weight.any()


@pytest.mark.parametrize("arm", quiet_star.ARMS)
def test_every_arm_trains_and_writes_a_checkpoint_that_loads(arm: str, base: Path, tmp_path: Path) -> None:
    flags = ["--base", str(base), "--out", str(tmp_path / arm), "--steps", "2", "--arm", arm, *SMALL]
    assert quiet_star.main(flags) == 0
    assert checkpoint.load(tmp_path / arm).model.can_think
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / arm / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before), "nothing was learned"
    assert {"step", "loss", "base_nll", "norm", "lr"} <= log_of(tmp_path / arm)[-1].keys()


@pytest.mark.parametrize(
    "switches",
    [
        [],
        ["--streaming"],
        ["--no-packing"],
        ["--positions", "all"],
        ["--gradient-checkpointing"],
        ["--tensorboard"],
        ["--lora", "4"],
        ["--lora", "4", "--quantization", "bnb-4bit"],
        ["--dtype", "bfloat16"],
    ],
    ids=" ".join,
)
def test_any_model_learns_to_think_over_any_text(
    switches: list[str], plain: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--base", str(plain), "--data", str(corpus), "--length", "24", "--out", str(out), "--steps", "2", *SMALL]
    assert quiet_star.main([*flags, *switches]) == 0
    loaded = checkpoint.load(out)
    assert loaded.tokens.markers.keys() == {"<|startthought|>", "<|endthought|>"}
    assert not [name for name, _ in loaded.model.named_parameters() if "lora" in name]
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 64, 4))
    assert generate(decoder, [loaded.tokens.encode("One")], [SamplingParams(max_tokens=3, thought_depth=4)])[0].tokens
    stock = AutoModelForCausalLM.from_pretrained(out)
    assert stock.config.architectures == ["LlamaForCausalLM"]
    assert log_of(out)[-1]["entropy"] > 0
    told = [json.loads(line) for line in (out / "thoughts.jsonl").read_text().splitlines()]
    assert told[0].keys() == {"step", "text", "thought", "next", "reward"}
    assert any((out / "tensorboard").glob("*")) == ("--tensorboard" in switches)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, on reading
def test_adapters_are_kept_as_peft_reads_them(plain: Path, corpus: Path, tmp_path: Path) -> None:
    """And what is served is the base with them in it."""
    from peft import PeftModel

    out = tmp_path / "out"
    flags = ["--base", str(plain), "--data", str(corpus), "--length", "24", "--out", str(out), "--steps", "2"]
    assert quiet_star.main([*flags, *SMALL, "--lora", "2", "--lora-targets", "q_proj", "v_proj", "--lr", "0.05"]) == 0
    lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plain), out / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted, merged = lm(ids).logits, AutoModelForCausalLM.from_pretrained(out)(ids).logits
        before = lm.unload()(ids).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, merged, atol=1e-3)


@pytest.mark.parametrize("data", ["problems", "text"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    data: str, base: Path, plain: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = ["--base", str(base)]
    if data == "text":
        what = ["--base", str(plain), "--data", str(corpus), "--length", "24"]

    def run(folder: str, *flags: str) -> int:
        return quiet_star.main([*what, "--out", str(tmp_path / folder), "--steps", "6", *SMALL, *flags])

    assert run("whole") == 0
    with killed_at(4, Trainer, monkeypatch):
        run("parts")
    assert run("parts", "--resume") == 0
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    for name in ("log.jsonl", "thoughts.jsonl"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--arm", "magic"], "--arm is magic; it must be one of quiet-star, no-reinforce, pause, continued"),
        (["--thoughts", "1"], "--thoughts is 1; it must be 2 or more"),
        (["--depths", "0"], "--depths is 0; it must be 1 or more"),
        (["--families", "chess"], "--families is chess; it must be among "),
        (["--beta", "-1"], "--beta is -1.0; it must be 0 or more"),
        (["--positions", "some"], "--positions is some; it must be a whole number from 1, or all"),
        (["--quantization", "bnb-4bit"], "--quantization is bnb-4bit; it must be none, or there must be --lora"),
        (["--data", "/none.txt"], "/none.txt: cannot be read as a data set"),
    ],
)
def test_bad_arguments_are_one_line(
    flags: list[str], reason: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet_star.main(["--base", str(base), "--out", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"quietserve train quiet-star: {reason}")


def test_a_window_must_leave_room_for_a_thought(
    plain: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", str(plain), "--out", str(tmp_path), "--data", str(corpus), "--length", "510", *SMALL]
    assert quiet_star.main(flags) == 2
    assert "--length is 510; it must be between 2 and 503" in capsys.readouterr().err


def test_a_layer_that_is_not_there_is_one_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base", str(plain), "--out", str(tmp_path), "--lora", "2", "--lora-targets", "wheels", *SMALL]
    assert quiet_star.main(flags) == 2
    assert "wheels" in capsys.readouterr().err


def test_a_base_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet_star.main(["--base", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err


def test_problems_need_a_base_that_knows_the_dash(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet_star.main(["--base", str(plain), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, "and no progress bar of loading it"
    assert "--data problems" in told[0]


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", str(base), "--out", str(tmp_path / "out"), "--steps", "3", "--lr", "1e30", *SMALL]
    assert quiet_star.main(flags) == 1
    assert "at step" in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()
