"""Prompts that may not be read, and text that arrives a token at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from quietserve.model.tokens import PromptError, TextStream, Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[5], marker_tokens=tiny.SPECIAL[1:], num_ids=259)


@given(st.text())
def test_text_survives_the_round_trip_and_arrives_whole(text: str) -> None:
    ids = TOKENS.encode(text)
    assert TOKENS.decode(ids) == text.replace("<|endoftext|>", "")
    stream = TextStream(TOKENS)
    assert "".join([stream.add(token) for token in ids]) + stream.finish() == TOKENS.decode(ids)


@given(st.lists(st.integers(3, 258)), st.lists(st.integers(3, 258)))
def test_a_text_that_nobody_reads_along_is_the_same(context: list[int], ids: list[int]) -> None:
    streams = [TextStream(TOKENS, context=context, whole=whole) for whole in (False, True)]
    along, whole = ["".join(stream.add(token) for token in ids) + stream.finish() for stream in streams]
    assert along == whole


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_a_stream_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    ids = TOKENS.encode(text)
    whole = TOKENS.decode(ids)
    cuts = [whole.index(stop) for stop in stops if stop in whole]
    stream, arrived = TextStream(TOKENS, stops), ""
    for token in ids:
        arrived += stream.add(token)
        if stream.stopped:
            break
    arrived += stream.finish()
    assert stream.stopped == bool(cuts)
    assert arrived == whole[: min(cuts)] if cuts else arrived == whole


def test_half_a_character_and_half_a_stop_string_are_withheld() -> None:
    stream = TextStream(TOKENS, ["stop"])
    pieces = [stream.add(token) for token in TOKENS.encode("é sto")]
    assert pieces == ["", "é", " ", "", "", ""]
    assert stream.finish() == "sto"


def test_bytes_that_are_no_character_arrive_at_the_end() -> None:
    first = TOKENS.encode("é")[0]
    stream = TextStream(TOKENS)
    assert stream.add(first) == ""
    assert stream.finish() == "\ufffd"


def test_ends_of_the_text_are_the_tokenizers_and_the_models() -> None:
    assert TOKENS.eos_ids == {0, 5}


@pytest.mark.parametrize("marker", tiny.SPECIAL[1:])
def test_a_thought_marker_is_refused_as_text_and_as_id(marker: str) -> None:
    with pytest.raises(PromptError, match="thought marker"):
        TOKENS.encode(f"think {marker} hard")
    with pytest.raises(PromptError, match="thought marker"):
        TOKENS.render([{"role": "user", "content": marker}])
    with pytest.raises(PromptError, match="thought marker"):
        TOKENS.check([7, TOKENS.markers[marker]])


@pytest.mark.parametrize("token", [-1, 259, 10**12])
def test_an_id_out_of_range_is_refused(token: int) -> None:
    with pytest.raises(PromptError, match=f"token id {token} is out of range; ids are 0 to 258"):
        TOKENS.check([3, token])


def test_chat_is_rendered_by_the_checkpoints_template() -> None:
    ids = TOKENS.render([{"role": "user", "content": "hello"}])
    assert TOKENS.decode(ids) == "user: hello\nassistant:"
    plain = tiny.tokenizer()
    plain.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        Tokens(plain).render([{"role": "user", "content": "hello"}])
    plain.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="refuses these messages: roles must alternate"):
        Tokens(plain).render([{"role": "user", "content": "hello"}])


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        TOKENS.encode("a \ud800")


def test_what_a_token_adds_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alternatives to every token of a long reply were once decoded anew, each twice: seconds in which nothing else ran."""
    tokens, decoded = Tokens(tiny.tokenizer()), []
    decode = tokens.tokenizer.decode
    monkeypatch.setattr(tokens.tokenizer, "decode", lambda ids, **how: decoded.append(ids) or decode(ids, **how))
    texts = [tokens.token_text(token) for token in [70, 71, 72] * 100]
    assert texts == [TOKENS.token_text(token) for token in [70, 71, 72]] * 100
    assert len(decoded) == 2 * 3


def sentencepiece() -> Tokens:
    """A tokenizer of the kind Llama 2 and Mistral have: a space is a letter of the word behind it, and a text begins without."""
    vocab = {"<unk>": 0, "</s>": 1, "\u2581hello": 2, "\u2581world": 3, "world": 4, "\u2581a": 5, "a": 6}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>"))


def test_a_leading_space_is_kept_behind_a_prompt() -> None:
    """Mistral's tokenizer strips the space of a text's first word, and an answer is not the first word."""
    tokens = sentencepiece()
    stream = TextStream(tokens, context=[2])
    assert stream.add(3) + stream.finish() == " world"
    assert tokens.token_text(3) == " world"
    assert tokens.token_text(4) == "world"
