"""The paper's zero-shot metric, by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

import tiny
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.sampling import hash_key
from quietserve.model.tokens import Tokens
from quietserve.model.training.evaluation import scored
from quietserve.model.training.evaluation.evaluation import Evaluation
from quietserve.model.training.evaluation.intervals import wilson
from quietserve.model.training.evaluation.scoring import score
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.multiple_choice import MultipleChoice
from quietserve.model.training.tasks.numeric import Numeric
from reference import Reference

TOKENS = Tokens(tiny.tokenizer())
LOADED = Loaded(tiny.quiet_model(), TOKENS, "tiny")
SLOW = Reference(LOADED.model)
EVALUATION = Evaluation(LOADED, seed=5, thought_temperature=1.0)


def slow_logprobs(text: str, depth: int, number: int) -> torch.Tensor:
    """Log-probabilities [V] of what follows a text, thinking slowly; `number` is the item's."""
    params = SamplingParams(seed=hash_key(5, number), thought_depth=depth, thought_temperature=1.0)
    return SLOW.step(TOKENS.encode(text), params).logits.log_softmax(-1)


def byte(letter: str) -> int:
    return TOKENS.encode(letter)[0]


def numeric(answer: str) -> Numeric:
    return Numeric("f:1", "How many?", f"#### {answer}", answer, Wording())


@pytest.mark.parametrize("depth", [0, 3])
def test_a_number_is_the_product_of_its_digits_and_the_end(depth: int) -> None:
    """Each renormalised over the digits and the end; the space before, and a sign, are read and not counted."""
    items = [numeric("4"), numeric("-72")]
    expected = []
    ends = [byte("\n"), 0]
    for number, (item, begun) in enumerate(zip(items, (" ", " -"), strict=True)):
        digits, text, product = item.answer.lstrip("-"), item.prompt + begun, 1.0
        allowed = [byte(str(digit)) for digit in range(10)] + ends
        for digit in [*digits, None]:
            probs_V = slow_logprobs(text, depth, number).exp()
            chosen = ends if digit is None else [byte(digit)]
            product *= float(probs_V[chosen].sum() / probs_V[allowed].sum())
            text += digit or ""
        expected.append(product)
    (measured,) = scored.measure(EVALUATION, items, [depth])
    cell = measured.cell
    assert cell["value"] == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert measured.values == pytest.approx(expected, rel=1e-3)
    assert "likeliest" not in cell


def test_labels_are_a_softmax_over_the_labels() -> None:
    """Behind the tiny tokenizer's lone space, which all share and which counts for nothing."""
    items = [
        MultipleChoice(f"f:{number}", "Which?", {"A": "this", "B": "that", "C": "none"}, label, Wording())
        for number, label in enumerate("ACB")
    ]
    right, hits = [], 0
    for number, item in enumerate(items):
        logprobs_V = slow_logprobs(item.prompt + " ", 2, number)
        probs = logprobs_V[[byte(label) for label in "ABC"]].softmax(0).tolist()
        right.append(probs["ABC".index(item.answer)])
        hits += max(probs) == right[-1]
    (measured,) = scored.measure(EVALUATION, items, [2])
    cell = measured.cell
    assert cell["value"] == pytest.approx(sum(right) / 3, rel=1e-3)
    assert cell["likeliest"] == {"value": hits / 3, "ci95": wilson(hits, 3)}


@given(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=2, max_size=6, unique=True), st.integers(0, 2))
@settings(max_examples=25)
def test_the_choices_share_one(labels: list[str], depth: int) -> None:
    """Also where one begins another: its end then competes with what goes on."""
    item = MultipleChoice("f:1", "Which?", dict.fromkeys(labels, "x"), labels[0], Wording())
    question = scored._question(EVALUATION, item, seed=1)
    logprobs = [each.logprobs_JV for each in score(LOADED.model, question.texts, depth)]
    chances = question.probabilities(logprobs)
    assert set(chances) == set(labels)
    assert math.isclose(sum(chances.values()), 1.0, rel_tol=1e-4)


def test_one_forward_serves_all_labels() -> None:
    item = MultipleChoice("f:1", "Which?", dict.fromkeys("ABCDE", "x"), "B", Wording())
    (text,) = scored._question(EVALUATION, item, seed=1).texts
    assert len(text.positions) == 1


def mistral_like() -> Tokens:
    """A tokenizer built as Mistral's is: a lone space before digits, labels with their space, the newline as a byte."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁QA:()0123456789ABCDE"]
    pairs = [("▁", label) for label in "ABCDE"]
    names = [*dict.fromkeys([*names, *("".join(pair) for pair in pairs)])]
    vocab = {name: i for i, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=pairs, byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces, start = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    raw.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), start])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


def test_mistrals_tokens_are_those_of_the_released_evaluation() -> None:
    """Digits and the newline for a number, behind a space that is not counted; for labels, the labels with their space."""
    tokens = mistral_like()
    evaluation, names = Evaluation(replace(LOADED, tokens=tokens)), tokens.tokenizer.convert_ids_to_tokens
    number = scored._question(evaluation, numeric("72"), seed=1)
    (text,) = number.texts
    assert [names(text.ids[position]) for position in text.positions] == ["▁", "7", "2"]
    chosen = [names(factor.chosen.tolist()) for factor in number.factors["72"]]
    assert chosen == [["7"], ["2"], ["</s>", "<0x0A>"]]
    assert {*"0123456789", "<0x0A>"} <= set(names(number.factors["72"][0].allowed.tolist()))
    labels = MultipleChoice("f:1", "Which?", dict.fromkeys("ABCDE", "x"), "B", Wording())
    choice = scored._question(evaluation, labels, seed=1)
    assert names(choice.texts[0].ids[choice.texts[0].positions[0]]) == ":"
    ((factor,),) = [choice.factors["B"]]
    assert names(factor.chosen.tolist()) == ["▁B"]
    assert names(factor.allowed.tolist()) == ["▁A", "▁B", "▁C", "▁D", "▁E"]


def test_a_prompt_that_does_not_fit_is_named(tmp_path: Path) -> None:
    long = Numeric("gsm.jsonl:7", "How many? " * 60, "#### 1", "1", Wording())
    with pytest.raises(
        ValueError, match=r"^gsm.jsonl:7: \d+ tokens .* at depth 3 the model's context has room for 507$"
    ):
        list(scored.measure(EVALUATION, [numeric("1"), long], [3]))
