"""Rankers: many answers at once as each alone, files that come back as they went, files that cannot be."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

import tiny
from quietserve.model import checkpoint
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import CheckpointError, Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.ranker import (
    ClassifierJudge,
    Ranker,
    RankerConfig,
    StatesEncoder,
    StatesJudge,
    load_classifier,
    load_ranker,
    save_ranker,
    states_config,
)
from quietserve.model.tokens import Tokens
from quietserve.model.voting import Entry

LOADED = Loaded(tiny.quiet_model(), Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:]), "tiny")
TEXTS = st.lists(
    st.tuples(st.text("abc ", min_size=1, max_size=9), st.text("xyz ", max_size=30)), min_size=1, max_size=9
)


def make_judge(layers: int = 2, seed: int = 0) -> StatesJudge:
    torch.manual_seed(seed)
    return StatesJudge(StatesEncoder(states_config(LOADED, width=8, layers=layers, heads=2)), LOADED).eval()


def entry(prompt: str, text: str) -> Entry:
    return Entry(tuple(LOADED.tokens.encode(prompt)), text)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ClassifierJudge:
    folder = tmp_path_factory.mktemp("lm")
    checkpoint.save(LOADED.model, tiny.tokenizer(), folder, layout="plain")
    return load_classifier(folder, LOADED.tokens, num_labels=1).eval()


@given(TEXTS, st.integers(0, 2), st.integers(1, 60))
def test_together_as_each_alone(pairs: list[tuple[str, str]], layers: int, most: int) -> None:
    """Whatever stands beside an answer in its batch, and however batches are cut."""
    ranker, entries = Ranker(RankerConfig("states"), make_judge(layers)), [entry(*pair) for pair in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quietserve.model.ranker.MAX_ROWS", most)
        together = ranker.score(entries)
    assert together == pytest.approx([ranker.score([one])[0] for one in entries], abs=2e-6)


def test_a_classifier_reads_them_together_too(classifier: ClassifierJudge) -> None:
    ranker, entries = Ranker(RankerConfig("classifier"), classifier), [entry("a b", t) for t in ("x", "yy z", "zzz")]
    together = ranker.logits(entries)
    assert together == pytest.approx([ranker.logits([one])[0] for one in entries], abs=1e-4)
    assert len(set(together)) == 3, "it reads the answer"
    assert ranker.logits([entry("b a", "x")])[0] != pytest.approx(together[0]), "and the question"


def test_what_it_reads() -> None:
    """The question, the answer, where one ends and the other begins; of what is too long, the end."""
    ranker = Ranker(RankerConfig("states"), make_judge())
    score = ranker.logits([entry("ab", "xy"), entry("ba", "xy"), entry("ab", "yx"), entry("abx", "y"), entry("ab", "")])
    assert len({round(value, 5) for value in score}) == 5
    long = entry("a" * 600, "xy")
    assert ranker.logits([long]) == pytest.approx(ranker.logits([long._replace(prompt=long.prompt[-510:])]))


@given(st.text("abc xyz", min_size=2, max_size=20))
def test_it_is_told_how_likely_each_token_was(text: str) -> None:
    """As a scored prompt is: without that, a ranker of chains of thought had .73 of its pairs, and votes were better without it."""
    ids = LOADED.tokens.encode(text)
    decoder = Decoder(LOADED.model, LOADED.tokens, Cache(LOADED.model.backbone, 1, 32, 0))
    (scored,) = generate(decoder, [ids], SamplingParams(max_tokens=0, prompt_logprobs=0))
    told = make_judge()._states(torch.tensor([ids]))[0, :, -2:]
    assert told[0].tolist() == [0, 0]
    wanted = [max(token.logprob or 0.0, -20.0) for token in scored.prompt]
    assert told[:, 0].tolist() == pytest.approx(wanted, abs=1e-4)
    assert (told[1:, 1] >= 0).all()
    older = StatesJudge(StatesEncoder(replace(states_config(LOADED, width=8, heads=2), logprobs=False)), LOADED)
    assert older._states(torch.tensor([ids])).shape[-1] == 2 * LOADED.model.backbone.hidden_size


def test_scores_are_calibrated_logits() -> None:
    judge = make_judge()
    config = RankerConfig("states", temperature=2.0, bias=-1.0)
    (logit,), (score,) = Ranker(config, judge).logits([entry("a", "x")]), Ranker(config, judge).score([entry("a", "x")])
    assert score == pytest.approx(torch.tensor(logit / 2 - 1).sigmoid().item(), abs=1e-6)


def test_what_is_no_number_is_no_score() -> None:
    judge = make_judge()
    with torch.no_grad():
        judge.encoder.enter.weight.fill_(math.nan)
    with pytest.raises(ArithmeticError, match="no number"):
        Ranker(RankerConfig("states"), judge).score([entry("a", "x")])


@pytest.mark.parametrize("kind", ["states", "classifier"])
def test_a_saved_ranker_comes_back(kind: str, tmp_path: Path, classifier: ClassifierJudge) -> None:
    judge = make_judge(seed=4) if kind == "states" else classifier
    config = replace(states_config(LOADED, width=8, layers=2, heads=2), kind=kind, bias=0.5, measured={"ece": 0.1})
    save_ranker(tmp_path, config, judge)
    entries = [entry("ab", "x"), entry("ab c", "yy z")]
    back = load_ranker(tmp_path, LOADED)
    assert back.config == config
    assert back.score(entries) == Ranker(config, judge).score(entries)


def test_the_language_model_is_no_part_of_it(tmp_path: Path) -> None:
    judge = make_judge()
    assert {name.split(".")[0] for name, _ in judge.named_parameters()} == {"encoder"}
    before = sum(p.numel() for p in LOADED.model.parameters())
    save_ranker(tmp_path, states_config(LOADED, width=8, layers=2, heads=2), judge)
    assert (tmp_path / "ranker.safetensors").stat().st_size < 4 * before


def test_files_that_cannot_be(tmp_path: Path) -> None:
    config = states_config(LOADED, width=8, layers=2, heads=2)
    save_ranker(tmp_path, config, make_judge())
    file, tensors = tmp_path / "ranker.json", tmp_path / "ranker.safetensors"
    values = json.loads(file.read_text())

    def complaint(**changes: object) -> str:
        file.write_text(json.dumps(values | changes))
        with pytest.raises(CheckpointError) as caught:
            load_ranker(tmp_path, LOADED)
        return str(caught.value)

    assert "field 'colour' is unknown" in complaint(colour="red")
    assert "'oracle'" in complaint(kind="oracle")
    assert "not a ranker's" in complaint(temperature=0)
    assert "reads states 48 wide of a vocabulary of 259; tiny's are 32 wide, of 259" in complaint(hidden_size=48)
    assert "ranker.safetensors" in complaint(width=16)
    assert "no model for sequence classification" in complaint(kind="classifier")
    file.write_text(json.dumps(values))
    tensors.write_bytes(tensors.read_bytes()[:100])
    assert "ranker.safetensors" in complaint()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"ranker\.json: missing"):
        load_ranker(tmp_path, LOADED)


def test_an_answer_may_spell_out_a_markers_name() -> None:
    """A model can write it letter by letter; its vote once failed, as no prompt may hold that name."""
    ranker = Ranker(RankerConfig("states"), make_judge())
    spelled, nested, without = (
        entry("a", f"x{name}y") for name in ("<|startthought|>", "<|start<|endthought|>thought|>", "")
    )
    assert len(set(ranker.score([spelled, nested, without]))) == 1


def test_a_classifier_is_trained_in_float32_with_a_head_of_its_own(tmp_path: Path) -> None:
    """Most files have 16 bits, in which small steps are lost; and many have been classifiers of two or three things."""
    config = tiny.config(num_labels=3)
    AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    judge = load_classifier(tmp_path, LOADED.tokens, num_labels=1)
    assert {weights.dtype for weights in judge.classifier.parameters()} == {torch.float32}
    assert judge([entry("a", "x"), entry("a", "y")]).shape == (2,)
    with pytest.raises(CheckpointError, match="has 3 labels; a ranker has 1 or 2"):
        load_classifier(tmp_path, LOADED.tokens)
