"""Conversion: to the public layout and back nothing is lost, a plain model is plain, and what cannot be is said in a line."""

import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

import tiny
from quietserve.model import checkpoint, convert
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import CheckpointError, Loaded
from quietserve.model.config import QuietConfig, SamplingParams
from quietserve.model.decode import Decoder, generate

TELLING = QuietConfig(2, 0.5, ("a", "<|endoftext|>"), "<begin>", "<end>", 1)  # all that the public layout cannot hold


def run(source: Path, out: Path, layout: str, *flags: str) -> Path:
    assert convert.main([str(source), str(out), "--layout", layout, *flags]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert convert.main([str(part) for part in argv]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("quietserve convert: ")
    return printed.err


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as they lie there."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def answers(loaded: Loaded) -> list[Any]:
    """Greedy tokens, and the thoughts before each."""
    engine = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 2, 40, 5))
    params = SamplingParams(max_tokens=4, temperature=0, thought_temperature=0, thought_depth=4, ignore_eos=True)
    results = generate(engine, [[40, 50, 60], [99, 98]], [params, params])
    return [[(token.id, [list(t.token_ids) for t in token.thoughts]) for token in result.tokens] for result in results]


def plain_logits(folder: Path) -> Tensor:
    """By the library alone."""
    lm, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return lm(torch.tensor([[5, 6, 7, 8]])).logits.detach()


def thinker(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    model = tiny.quiet_model(**settings)
    model.to(dtype)
    checkpoint.save(model, tiny.tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinker(tmp_path_factory.mktemp("source") / "thinker")


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinker whose markers have names of its own."""
    folder = thinker(tmp_path_factory.mktemp("telling") / "thinker", quiet=TELLING)
    for file in folder.glob("token*.json"):
        text = file.read_text().replace("<|startthought|>", "<begin>").replace("<|endthought|>", "<end>")
        file.write_text(text)
    return folder


# --- to the public layout and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "reads", "dtype"),
    [
        (3, "both", torch.float32),
        (3, "both", torch.bfloat16),
        (1, "both", torch.bfloat16),
        (3, "thought", torch.bfloat16),
        (1, "thought", torch.float32),
    ],
)
def test_to_public_and_back_nothing_changes(
    layers: Literal[1, 3], reads: Literal["both", "thought"], dtype: torch.dtype, tmp_path: Path
) -> None:
    quiet = QuietConfig(thought_depth=4, mixing_layers=layers, mixing_input=reads)
    ours = thinker(tmp_path / "ours", dtype, quiet=quiet, seed=layers)
    public = run(ours, tmp_path / "public", "public")
    back = run(public, tmp_path / "back", "quietserve")
    assert same(stored(ours), stored(back))
    for name in ("config.json", "quiet_config.json", "tokenizer.json"):
        assert json.loads((ours / name).read_text()) == json.loads((back / name).read_text())
    config = json.loads((public / "config.json").read_text())
    assert (config["use_complex_talk_head"], config["use_concat_talk_head"]) == (layers == 3, reads == "both")
    expected = answers(checkpoint.load(ours))
    assert any(thoughts for result in expected for _, thoughts in result)
    assert answers(checkpoint.load(public)) == expected


def test_the_public_layout_is_what_others_know(tmp_path: Path) -> None:
    """Names, shapes and fields as in `ezelikman/quietstar-8-ahead`."""
    base = tiny.config(MistralConfig, sliding_window=None)
    ours = thinker(tmp_path / "ours", torch.bfloat16, base=base, quiet=QuietConfig(thought_depth=5))
    public = run(ours, tmp_path / "public", "public")
    own, tensors = stored(ours), stored(public)
    extra = {
        name: list(value.shape) for name, value in tensors.items() if name not in load_file(ours / "model.safetensors")
    }
    assert extra == {
        "start_embedding": [2, 32],
        "end_embedding": [2, 32],
        "talk_head.0.0.weight": [32, 64],
        "talk_head.0.0.bias": [32],
        "talk_head.0.2.weight": [32, 32],
        "talk_head.0.2.bias": [32],
        "talk_head.0.4.weight": [1, 32],
    }
    assert torch.equal((tensors["start_embedding"][0] * 100).bfloat16(), own["start_embedding"])
    assert not tensors["end_embedding"][1].any()
    config = json.loads((public / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert config["max_thoughts"] == 10
    flags = {name: config[name] for name in config if "head" in name and name.startswith(("use_", "merged_"))}
    assert flags == {
        "use_concat_talk_head": True,
        "use_complex_talk_head": True,
        "use_weighted_talk_head": True,
        "use_complex_think_head": False,
        "merged_talk_heads": True,
        "merged_lm_and_talk_heads": False,
        "merged_lm_and_think_heads": True,
    }
    assert config["use_shallow_talk"] is False
    assert not list(public.glob("quiet*"))
    assert torch.equal(plain_logits(public), plain_logits(ours))


def test_many_files_hold_what_one_would(source: Path, tmp_path: Path) -> None:
    public = run(source, tmp_path / "public", "public", "--max-shard-size", "20KB", "--allow-loss")
    assert len(list(public.glob("model-*-of-*.safetensors"))) > 2
    weights = json.loads((public / "model.safetensors.index.json").read_text())["weight_map"]
    assert weights.keys() == stored(public).keys() > {"start_embedding", "talk_head.0.4.weight"}
    assert torch.equal(plain_logits(public), plain_logits(source))
    back = run(public, tmp_path / "back", "quietserve")
    assert same(stored(back), stored(source))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_survive(tied: bool, tmp_path: Path) -> None:
    ours = thinker(tmp_path / "ours", base=tiny.config(tie_word_embeddings=tied))
    public = run(ours, tmp_path / "public", "public")
    assert ("lm_head.weight" in stored(public)) != tied
    assert same(stored(run(public, tmp_path / "back", "quietserve")), stored(ours))


def test_what_the_public_layout_cannot_hold_is_refused(
    telling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, telling, tmp_path / "public", "--layout", "public")
    for loss in (
        "thought_stop_tokens ['a', '<|endoftext|>'] (becomes [])",
        "thought_temperature 0.5 (becomes 1.0)",
        "start_token '<begin>' (becomes '<|startthought|>')",
        "end_token '<end>' (becomes '<|endthought|>')",
    ):
        assert loss in said
    assert "--allow-loss leaves that out" in said
    assert not (tmp_path / "public").exists()
    loaded = checkpoint.load(telling)
    with pytest.raises(CheckpointError, match="not saved: the public layout has no place for thought_stop_tokens"):
        checkpoint.save(loaded.model, loaded.tokens.tokenizer, tmp_path / "public", layout="public")


def test_a_loss_that_is_allowed_is_named(telling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = run(telling, tmp_path / "public", "public", "--allow-loss")
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.err.splitlines()] == [
        ["lost:", name] for name in ("thought_stop_tokens", "thought_temperature", "start_token", "end_token")
    ]
    assert printed.out == f"{public}: public layout, float32\n"
    assert checkpoint.load(public).model.quiet == QuietConfig(thought_depth=2, mixing_layers=1)
    assert same(stored(run(public, tmp_path / "back", "quietserve")), stored(telling))


def test_markers_of_other_names_keep_their_ids(telling: Path, tmp_path: Path) -> None:
    public = run(telling, tmp_path / "public", "public", "--allow-loss")
    ours, theirs = checkpoint.load(telling).tokens, AutoTokenizer.from_pretrained(public)
    assert ours.markers == {"<begin>": 1, "<end>": 2}
    assert theirs.convert_tokens_to_ids(["<|startthought|>", "<|endthought|>"]) == [1, 2]
    assert theirs("x<|startthought|>y<|endthought|>")["input_ids"] == ours.tokenizer("x<begin>y<end>")["input_ids"]
    assert "<begin>" not in theirs.get_vocab()


def test_a_public_name_that_is_another_token(telling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(telling, tmp_path / "taken"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|startthought|>"])
    tokenizer.save_pretrained(folder)
    said = refusal(capsys, folder, tmp_path / "out", "--layout", "public", "--allow-loss")
    assert "the tokenizer has a token '<|startthought|>' already, which is not the marker" in said
    assert not (tmp_path / "out").exists()


# --- to a plain model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["quietserve", "public"])
def test_a_plain_model_is_the_base_and_nothing_more(through: str, source: Path, tmp_path: Path) -> None:
    middle = run(source, tmp_path / "middle", through, "--allow-loss")
    config = json.loads((middle / "config.json").read_text()) | {"auto_map": {"AutoConfig": "code.Config"}}
    (middle / "config.json").write_text(json.dumps(config))
    plain = run(middle, tmp_path / "plain", "plain")
    assert same(stored(plain), load_file(source / "model.safetensors"))
    assert json.loads((plain / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert {file.name for file in plain.iterdir()} == {file.name for file in source.iterdir()} - {
        "quiet.safetensors",
        "quiet_config.json",
    }
    lm, report = AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert not any(report.values())
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(lm(ids).logits, AutoModelForCausalLM.from_pretrained(source)(ids).logits)
    assert torch.equal(plain_logits(plain), tiny_logits(ids))
    assert not checkpoint.load(plain).model.can_think


def tiny_logits(ids: Tensor) -> Tensor:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny.config()).eval()(ids).logits.detach()


# --- dtypes ----------------------------------------------------------------------------------------------------------


def test_another_dtype_is_had_by_its_name(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = run(source, tmp_path / "half", "quietserve", "--dtype", "bfloat16")
    assert capsys.readouterr().out == f"{half}: quietserve layout, bfloat16\n"
    assert same(stored(half), {name: value.bfloat16() for name, value in stored(source).items()})
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_config_that_names_a_narrower_dtype_costs_nothing(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "wide"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert same(stored(run(folder, tmp_path / "out", "quietserve")), stored(source))


def test_files_of_mixed_dtypes_become_what_holds_both(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "mixed"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    out = stored(run(folder, tmp_path / "out", "quietserve"))
    assert all(torch.equal(out[name], value.float()) for name, value in stored(folder).items())


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_not_written_over(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(source, out, "plain")  # empty
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    assert "out: not empty; --overwrite replaces a checkpoint in it" in refusal(
        capsys, source, out, "--layout", "public"
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before | {"notes.txt": b"mine"}
    run(source, out, "quietserve", "--overwrite")
    assert same(stored(out), stored(source))
    assert (out / "notes.txt").read_text() == "mine"


def test_a_checkpoint_can_be_converted_where_it_is(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "here"))
    run(folder, folder, "public", "--overwrite", "--allow-loss")
    assert not list(folder.glob("quiet*"))
    run(folder, folder, "quietserve", "--overwrite")
    assert same(stored(folder), stored(source))


def test_what_is_no_folder_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "file: not a folder" in refusal(capsys, source, tmp_path / "file", "--layout", "plain")
    said = refusal(capsys, tmp_path / "nowhere", tmp_path / "out", "--layout", "plain")
    assert "nowhere: no such checkpoint folder" in said


def test_a_plain_model_has_no_thoughts_to_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny.save(tmp_path / "plain", quiet=None)
    said = refusal(capsys, plain, tmp_path / "out", "--layout", "public")
    assert "not saved: the model does not think" in said
    assert same(stored(run(plain, tmp_path / "ours", "quietserve")), stored(plain))


def test_a_size_that_is_none(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'lots'" in refusal(capsys, source, tmp_path / "out", "--layout", "plain", "--max-shard-size", "lots")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_rounded_weights_stay_in_our_layout(
    quantization: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = checkpoint.load(source, quantization=quantization)
    rounded, tokenizer = tmp_path / "rounded", loaded.tokens.tokenizer
    checkpoint.save(loaded.model, tokenizer, rounded)
    reason = "quantised by bitsandbytes, which the {} layout is not for; convert the original"
    assert reason.format("plain") in refusal(capsys, rounded, tmp_path / "out", "--layout", "plain")
    with pytest.raises(CheckpointError, match=reason.format("public")):
        checkpoint.save(loaded.model, tokenizer, tmp_path / "out", layout="public", allow_loss=True)
    assert not (tmp_path / "out").exists()
    assert same(stored(run(rounded, tmp_path / "ours", "quietserve")), stored(rounded))
    with pytest.raises(CheckpointError, match="quantised model can be saved only with its own tensors"):
        checkpoint.save(loaded.model, tokenizer, rounded, state=loaded.model.state_dict())


def test_the_command_knows_it() -> None:
    (entry,) = entry_points(group="quietserve.commands", name="convert")
    assert entry.load() is convert.main
