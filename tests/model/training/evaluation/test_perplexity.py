"""Losses against the library's own, gains against slow thinking, and the tenths."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.sampling import hash_key
from quietserve.model.tokens import Tokens
from quietserve.model.training.evaluation import perplexity
from quietserve.model.training.evaluation.evaluation import Evaluation
from reference import Reference

TOKENS = Tokens(tiny.tokenizer())
LOADED = Loaded(tiny.quiet_model(), TOKENS, "tiny")
TEXTS = ["All's well that ends well.", "Brevity is wit."]
DOCUMENTS = [(f"text {number}", TOKENS.encode(text)) for number, text in enumerate(TEXTS)]


def test_it_is_what_slow_thinking_loses() -> None:
    slow, losses = Reference(LOADED.model), {0: [], 2: []}
    weights = []
    for depth, every in losses.items():
        for number, (_, ids) in enumerate(DOCUMENTS):
            params = SamplingParams(seed=hash_key(4, number), thought_depth=depth, thought_temperature=1.0)
            for position in range(len(ids) - 1):
                step = slow.step(ids[: position + 1], params)
                every.append(-float(step.logits.log_softmax(-1)[ids[position + 1]]))
                weights += step.weights
    cells = {m.depth: m.cell for m in perplexity.measure(Evaluation(LOADED, 4, 1.0), DOCUMENTS, [2, 0])}
    for depth, every in losses.items():
        mean = sum(every) / len(every)
        assert cells[depth]["nll"]["value"] == pytest.approx(mean, abs=1e-4)
        assert cells[depth]["value"] == pytest.approx(math.exp(mean), rel=1e-3)
        assert cells[depth]["gain"]["value"] == pytest.approx(sum(losses[0]) / len(every) - mean, abs=1e-4)
        assert cells[depth]["tokens"] == len(every)
    assert cells[0]["gain"]["ci95"] == (0.0, 0.0)
    assert cells[0]["weight"] == 0
    assert cells[2]["weight"] == pytest.approx(sum(weights) / len(weights), abs=1e-4)


def test_a_subsample_is_of_the_same_losses() -> None:
    some = Evaluation(LOADED, 4, positions=3)
    drawn = [perplexity._positions(some, number, len(ids) - 1) for number, (_, ids) in enumerate(DOCUMENTS)]
    assert [len(each) for each in drawn] == [3, 3]
    (measured,) = perplexity.measure(some, DOCUMENTS, [0])
    slow = Reference(LOADED.model)
    losses = [
        -slow.step(ids[: p + 1], SamplingParams()).logits.log_softmax(-1)[ids[p + 1]]
        for (_, ids), places in zip(DOCUMENTS, drawn, strict=True)
        for p in places
    ]
    assert measured.cell["nll"]["value"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    assert measured.cell["tenths"] == []  # six tokens have none


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=10, max_size=60))
@settings(max_examples=15)
def test_tenths_are_equal_shares_by_the_bases_loss(pairs: list[tuple[float, float]]) -> None:
    base_N, own_N = np.array(pairs).T
    found = perplexity.tenths(base_N, own_N, np.arange(len(pairs)) // 4)
    bases = [tenth["base_nll"] for tenth in found]
    assert len(found) == 10
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(bases))
    counts = np.bincount(np.arange(len(pairs)) * 10 // len(pairs))
    assert counts.max() - counts.min() <= 1
    gain = sum(tenth["gain"] * count for tenth, count in zip(found, counts, strict=True)) / len(pairs)
    assert gain == pytest.approx(float((base_N - own_N).mean()), abs=1e-9)


def test_a_plain_text_is_cut_into_windows(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("abcdefghijk")
    found = perplexity.windows(file, TOKENS, 5, most=9)
    assert [TOKENS.decode(ids) for _, ids in found] == ["abcde", "fghij"]  # "k" alone foretells nothing
    assert perplexity.windows(file, TOKENS, 5, most=1) == found[:1]
    assert found[1][0] == f"{file}, window 2"
    file.write_text("a")
    with pytest.raises(ValueError, match="holds fewer than two tokens"):
        perplexity.windows(file, TOKENS, 5, most=9)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        perplexity.windows(tmp_path / "none", TOKENS, 5, most=9)


def test_a_document_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"^long: 599 tokens"):
        list(perplexity.measure(Evaluation(LOADED), [("long", [40] * 600)], [2]))
