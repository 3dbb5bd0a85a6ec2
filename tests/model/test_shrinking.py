"""A text that is certain not to fit is known from its length alone, and no other text is taken for one."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from quietserve.model.shrinking import most_characters
from quietserve.model.tokens import Tokens

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("ab", "ab"), ("abab", "abab"), ("Ì", "ģ")]
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(pre: Any = None, norm: Any = None, added: Sequence[AddedToken] = (), **how: Any) -> PreTrainedTokenizerFast:
    vocab = dict.fromkeys([*BYTES, *FALLBACK, "\u2581", *(left + right for left, right in MERGES)])
    raw = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(vocab)}, merges=MERGES, **how))
    raw.normalizer = norm  # type: ignore[assignment]
    raw.pre_tokenizer = pre  # type: ignore[assignment]
    raw.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


BOUNDED = {
    "bytes": (wrapped(byte_level()), 8),
    "composed": (wrapped(byte_level(), normalizers.NFC()), 32),
    "split": (wrapped(pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), byte_level()])), 8),
    "sentencepiece": (
        wrapped(
            None,
            normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
            byte_fallback=True,
        ),
        8,
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_longest_token_is_the_bound(name: str) -> None:
    tokenizer, most = BOUNDED[name]
    assert most_characters(tokenizer) == most


@pytest.mark.parametrize("name", BOUNDED)
@given(st.text() | st.text("ab \u0301\u0323ộé<0x>", max_size=60))
def test_no_text_has_fewer_tokens_than_are_certain(name: str, text: str) -> None:
    tokens = Tokens(BOUNDED[name][0])
    assert tokens.least(text) <= len(tokens.encode(text))


@pytest.mark.parametrize(
    "tokenizer",
    [
        wrapped(),  # what is not in the vocabulary is dropped
        wrapped(byte_level(), normalizers.Strip()),
        wrapped(byte_level(), normalizers.NFKC()),
        wrapped(byte_level(), normalizers.Replace("ab", "")),
        wrapped(pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), byte_level()])),
        wrapped(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), byte_level()])),
        wrapped(byte_level(), None, [AddedToken("<end>", rstrip=True)]),
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))),
    ],
)
def test_where_characters_may_vanish_nothing_is_certain(tokenizer: PreTrainedTokenizerFast) -> None:
    assert most_characters(tokenizer) is None


def test_the_bundled_kind_has_a_bound() -> None:
    assert most_characters(tiny.tokenizer()) == len("<|startthought|>")
