"""The prompt of a second turn: the same to the byte wherever it is made."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from quietserve.model import checkpoint
from quietserve.model.checkpoint import CheckpointError
from quietserve.model.correction import CorrectionConfig, bridge, next_prompt
from quietserve.model.tokens import PromptError, Tokens
from quietserve.model.training.documents import build_tokenizer

ENDS = frozenset({0})
TEMPLATES = {  # and what a model's own answer begins with behind the generation prompt
    "plain": (tiny.CHAT, " "),
    "marked": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        "",
    ),
    "prefixed": ("Be brief. {% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] ", ""),
}


def tokens_with(template: str | None) -> Tokens:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return Tokens(tokenizer, eos_ids=ENDS, marker_tokens=tiny.SPECIAL[1:])


@pytest.mark.parametrize("name", TEMPLATES)
@given(answer=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), instruction=st.text(min_size=1))
def test_it_is_what_the_template_writes_of_the_whole_conversation(name: str, answer: str, instruction: str) -> None:
    template, lead = TEMPLATES[name]
    tokens = tokens_with(template)
    question = {"role": "user", "content": "7 + 5?"}
    said = [{"role": "assistant", "content": answer}, {"role": "user", "content": instruction}]
    ids = next_prompt(tokens.render([question]), tokens.encode(lead + answer), ENDS, bridge(tokens, instruction))
    assert tokens.decode(ids, special=True) == tokens.render_text([question, *said])


def test_the_bundled_template_ends_the_answer_once() -> None:
    tokenizer = build_tokenizer()
    tokens = Tokens(tokenizer)
    question = {"role": "user", "content": "A dial is at 3. Where is the dial now?"}
    said = [{"role": "assistant", "content": "3"}, {"role": "user", "content": "Where is the dial now?"}]
    answer = [*tokens.encode(" 3", special=False), tokenizer.eos_token_id]
    ids = next_prompt(tokens.render([question]), answer, tokens.eos_ids, bridge(tokens, "Where is the dial now?"))
    assert ids == tokens.render([question, *said])


def test_an_answer_that_was_cut_off_is_ended_too() -> None:
    assert next_prompt([1, 2], [3, 4], frozenset({9}), [9, 5]) == [1, 2, 3, 4, 9, 5]
    assert next_prompt([1, 2], [3, 9], frozenset({9}), [9, 5]) == [1, 2, 3, 9, 5]
    assert next_prompt([1, 2], [], frozenset({9}), [9, 5]) == [1, 2, 9, 5]


def test_earlier_answers_are_not_tokenised_anew() -> None:
    """A template that strips what a model thought aloud showed the trainer and the server different prompts."""
    stripping = "{% for m in messages %}{{ m.role }}: {{ m.content.split('#')[-1] }}\n{% endfor %}assistant:"
    tokens = tokens_with(stripping)
    answer = tokens.encode(" 5 and 7 # 12")
    assert "5 and 7 # 12" in tokens.decode(next_prompt([], answer, ENDS, bridge(tokens, "Again.")))


def test_without_a_template_the_instruction_is_a_paragraph() -> None:
    tokens = tokens_with(None)
    assert tokens.decode(bridge(tokens, "Again.")) == "\n\nAgain.\n\n"


def test_an_instruction_that_cannot_be_said_is_an_error() -> None:
    tokens = tokens_with(tiny.CHAT)
    with pytest.raises(PromptError, match="thought marker"):
        bridge(tokens, "Think <|startthought|>")
    forgetful = tokens_with("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(PromptError, match="leaves earlier answers out"):
        bridge(forgetful, "Again.")


@given(st.sampled_from(["every", "last", "none"]), st.integers(0, 16), st.booleans())
def test_turns_that_do_not_think_have_depth_0(thinking: str, asked: int, is_last: bool) -> None:
    depth = CorrectionConfig("Again.", thinking).depth(asked, is_last)  # type: ignore[arg-type]
    assert depth == (asked if thinking == "every" or (thinking == "last" and is_last) else 0)


def test_a_checkpoint_carries_it(tmp_path: Path) -> None:
    config = CorrectionConfig("Again.", "last")
    checkpoint.save(tiny.quiet_model(), tiny.tokenizer(), tmp_path, correction=config)
    assert checkpoint.load(tmp_path).correction == config
    checkpoint.save(tiny.quiet_model(), tiny.tokenizer(), tmp_path)
    assert checkpoint.load(tmp_path).correction is None, "the one before it took it along"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ('{"instruction": " "}', "instruction is ' '; it must be a text that is not blank"),
        ('{"instruction": 3}', "instruction is 3"),
        ('{"thinking": "twice"}', "thinking is 'twice'; it must be one of every, last, none"),
        ('{"turns": 2}', "unknown key 'turns'; the keys are instruction, thinking"),
    ],
)
def test_a_file_that_says_something_else_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    tiny.save(tmp_path)
    (tmp_path / "correction.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"correction\.json: ") as caught:
        checkpoint.load(tmp_path)
    assert message in str(caught.value)


def test_every_field_is_in_the_file() -> None:
    assert CorrectionConfig.from_dict(CorrectionConfig().to_dict()) == CorrectionConfig()
    assert len(dataclasses.fields(CorrectionConfig)) == 2
