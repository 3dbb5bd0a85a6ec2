"""Giving a plain model what it takes to think: markers, their room in the vocabulary, stops."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import tiny
from quietserve.model import checkpoint
from quietserve.model.training.thinker import ThinkerConfig, decoder_layers, open_thinker

IDS = torch.tensor([[5, 6, 7, 8]])


def save_plain(folder: Path, *more: str, vocab_size: int | None = None) -> Path:
    """A language model whose tokenizer has bytes, an end of text, and ordinary tokens named `more`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(["<eos>", *letters, *more])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(tiny.config(vocab_size=vocab_size or len(tokenizer)))
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("vocab_size", [None, 300])
def test_markers_get_ids_of_their_own_and_the_rest_stays(vocab_size: int | None, tmp_path: Path) -> None:
    """In the room that the embeddings have, or in rows added to them."""
    base = save_plain(tmp_path / "base", vocab_size=vocab_size)
    loaded = open_thinker(base, ThinkerConfig(depth=3))
    assert loaded.model.backbone.vocab_size == (vocab_size or 259)
    assert loaded.model.hidden_ids.tolist() == [257, 258]
    checkpoint.save(loaded.model, loaded.tokens.tokenizer, tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    assert again.tokens.markers == {"<|startthought|>": 257, "<|endthought|>": 258}
    before = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(after[..., :257], before[..., :257])
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("<|startthought|>")["input_ids"] == [257]


def test_markers_begin_as_the_mean_of_what_their_text_is_read_as(tmp_path: Path) -> None:
    loaded = open_thinker(save_plain(tmp_path / "base"), ThinkerConfig(depth=3, marker="--"))
    dash = loaded.tokens.encode("-")[0]
    assert torch.allclose(loaded.model.start_embedding, loaded.model.backbone.embed(torch.tensor(dash)))
    assert loaded.model.stop_ids == {0}, "several tokens end nothing; the end of the text does"


@pytest.mark.parametrize(("stops", "ids"), [(("a", "<eos>"), {"a", "<eos>"}), ((), set())])
def test_stops_are_those_asked_for(stops: tuple[str, ...], ids: set[str], tmp_path: Path) -> None:
    loaded = open_thinker(save_plain(tmp_path / "base"), ThinkerConfig(depth=3, stops=stops))
    assert loaded.model.stop_ids == {loaded.tokens.tokenizer.get_vocab()[name] for name in ids}


@pytest.mark.parametrize(
    ("names", "config", "reason"),
    [
        (["<|startthought|>"], ThinkerConfig(depth=3), "no room for the marker '<|startthought|>': an ordinary token"),
        ([], ThinkerConfig(depth=3, stops=("zebra",)), "--stops: the tokenizer has no token 'zebra'"),
        ([], ThinkerConfig(depth=3, marker=""), "--marker '' is no token"),
    ],
)
def test_a_tokenizer_that_will_not_do_is_named(
    names: list[str], config: ThinkerConfig, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason.replace("|", r"\|")):
        open_thinker(save_plain(tmp_path / "base", *names), config)


def test_one_that_thinks_goes_on_as_it_is_to_the_depth_that_is_trained(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "thinker")
    loaded = open_thinker(folder, ThinkerConfig(depth=3, marker="x"))
    before = checkpoint.load(folder).model.state_dict()
    assert loaded.model.quiet == replace(tiny.QUIET, thought_depth=3)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_layers_are_what_a_model_is_split_by(tmp_path: Path) -> None:
    model = open_thinker(save_plain(tmp_path / "base"), ThinkerConfig(depth=3)).model
    assert [type(layer).__name__ for layer in decoder_layers(model.backbone.lm)] == ["LlamaDecoderLayer"] * 2
