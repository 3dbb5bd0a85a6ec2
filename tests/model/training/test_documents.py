import random
import re
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from quietserve.model.training.batches import pad
from quietserve.model.training.documents import (
    DASH,
    END,
    EOS,
    IDLE_WORDS,
    QUESTION_WEIGHT,
    START,
    Style,
    build_tokenizer,
    collate,
    make_batch,
    write_document,
    write_prompt,
)
from quietserve.model.training.tasks import FAMILIES, MAX_STEPS, draw

tokenizer = build_tokenizer()
STYLES = get_args(Style)
PROBLEM = FAMILIES["dial"].sample(random.Random(3), 4)


def ids(text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@given(st.text())
def test_any_text_survives_the_round_trip(text: str):
    encoded = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(encoded) == text


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32), st.integers(1, MAX_STEPS))
def test_a_step_of_working_is_two_tokens_and_an_answer_one(name: str, seed: int, num_steps: int):
    problem = FAMILIES[name].sample(random.Random(seed), num_steps)
    assert len(ids(problem.working)) == 2 * num_steps
    assert len(ids(f" {problem.answer}")) == 1


def test_every_word_and_every_state_is_one_token():
    for word in (*IDLE_WORDS, "---", *range(13)):
        assert len(ids(f" {word}")) == 1
    assert len(ids(write_prompt(PROBLEM))) == len(re.findall(r"\w+|[^\w ]", write_prompt(PROBLEM)))


def test_a_document_is_its_parts_joined_so_a_prompt_cuts_no_token():
    rng = random.Random(0)
    prompt, answer = ids(write_prompt(PROBLEM)), ids(f" {PROBLEM.answer}{EOS}")
    assert ids(write_document(PROBLEM, "direct", rng)) == prompt + answer
    notes = ids(DASH) + ids(PROBLEM.working) + ids(DASH)
    assert ids(write_document(PROBLEM, "notes", rng)) == prompt + notes + answer


def test_idle_talk_is_two_to_ten_words_between_dashes():
    rng = random.Random(0)
    lengths = set()
    for _ in range(200):
        _, talk, answer = write_document(PROBLEM, "idle", rng).split(DASH)
        assert set(talk.split()) <= set(IDLE_WORDS)
        assert answer == f" {PROBLEM.answer}{EOS}"
        lengths.add(len(ids(talk)))
    assert lengths == set(range(2, 11))


@pytest.mark.parametrize("num_steps", [1, 4])
def test_notes_may_break_off_anywhere_before_their_end(num_steps: int):
    problem = FAMILIES["dial"].sample(random.Random(3), num_steps)
    rng = random.Random(0)
    begun = set()
    for _ in range(200):
        prompt, working, answer = write_document(problem, "cut", rng).split(DASH)
        assert prompt == write_prompt(problem)
        assert problem.working.startswith(working)
        assert answer == f" {problem.answer}{EOS}"
        begun.add(len(ids(working)))
    assert begun == set(range(1, 2 * num_steps))


def test_the_chat_template_renders_the_training_prompt():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{PROBLEM.question}\n"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == write_prompt(PROBLEM)


def test_earlier_turns_are_paragraphs_that_end():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert rendered == f"Question: a\nAnswer: b{EOS}Question: c\nAnswer:"


def test_thought_markers_are_tokens_of_their_own_that_no_document_holds():
    markers = [tokenizer.convert_tokens_to_ids(marker) for marker in (START, END)]
    assert len({*markers, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 4
    batch = make_batch(tokenizer, random.Random(0), 64, dict.fromkeys(STYLES, 1.0), range(1, 8))
    assert not torch.isin(batch.ids_BT, torch.tensor(markers)).any()


def test_a_saved_tokenizer_loads_as_any_other(tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = write_document(PROBLEM, "notes", random.Random(0))
    assert loaded(text)["input_ids"] == ids(text)
    assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("style", STYLES)
def test_a_batch_weighs_question_answer_and_padding(style):
    rng = random.Random(5)
    drawn = [draw(rng, "train", FAMILIES["dial"], steps) for steps in range(1, 8)]
    texts = [write_document(problem, style, rng) for problem in drawn]
    batch = collate(tokenizer, drawn, texts, [style] * 7)
    for row, problem in enumerate(drawn):
        prompt, length = len(ids(write_prompt(problem))), int(batch.lengths()[row])
        weights = batch.weights_BT[row]
        assert weights[0] == 0
        assert (weights[1:prompt] == torch.tensor(QUESTION_WEIGHT)).all()
        unlearned = {length - 3} if style == "cut" else set()  # the dash that breaks the notes off
        assert {place for place in range(prompt, length) if weights[place] != 1} == unlearned
        assert all(weights[place] == 0 for place in unlearned)
        assert (weights[length:] == 0).all()
        assert tokenizer.decode(batch.ids_BT[row, length - 2 : length]) == f" {problem.answer}{EOS}"
        assert (batch.ids_BT[row, length:] == tokenizer.pad_token_id).all()


def test_a_batch_depends_on_its_generator_alone():
    drawn = [make_batch(tokenizer, random.Random(seed), 8, {"idle": 1.0}, [2]).ids_BT for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_part_of_a_batch_loses_the_columns_it_does_not_need():
    batch = pad([[1, 2, 3, 4, 5], [6, 7, 8], [9, 8]], [[0, 1, 1, 1, 1], [0, 1, 1], [0, 1]], pad_id=0)
    assert batch.lengths().tolist() == [5, 3, 2]
    part = batch.take(torch.tensor([2, 1]))
    assert part.ids_BT.tolist() == [[9, 8, 0], [6, 7, 8]]
    assert part.weights_BT.tolist() == [[0, 1, 0], [0, 1, 1]]
