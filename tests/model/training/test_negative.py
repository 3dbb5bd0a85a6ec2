"""The command: its arms and what they read, their losses against slow ones, what it leaves, its resumption, its arguments."""

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from training_runs import killed_at, log_of, tensors
from transformers import AutoModelForCausalLM

import tiny
from quietserve.model import checkpoint
from quietserve.model.backbone import causal
from quietserve.model.checkpoint import Loaded
from quietserve.model.quiet_model import QuietModel
from quietserve.model.tokens import Tokens
from quietserve.model.training import logprobs, negative, rationale_teacher
from quietserve.model.training import rationale_losses as losses
from quietserve.model.training.integration import SETTINGS, TENSORS, in_mode, integrate, load_integrated, units
from quietserve.model.training.lessons import Deck, Lesson, Text, Texts, by_question, collate, pair
from quietserve.model.training.loop import LoopConfig
from quietserve.model.training.lora import Lora
from quietserve.model.training.negative import ARMS, INTEGRATED, KNOBS, STUDENTS, shuffle_betas, wide_rank
from quietserve.model.training.negative_trainer import NegativeTrainer, StageConfig
from quietserve.model.training.processes import Processes
from quietserve.model.training.rationale_teacher import OWN, comes_to
from quietserve.model.training.samples import SAMPLES, Asked, Sample, append

FEW = ["--steps", "2", "--batch", "3", "--log-every", "1", "--lr", "0.01", "--inner", "4"]
FEW_PLAIN = FEW[:-2]


def sample(text: str, answer: str | None, right: bool) -> Sample:
    return Sample(text, answer, right, -1.0, -0.5, len(text) + 1)


def asked(number: int, *samples: Sample) -> Asked:
    prompt = f"Question: {number}?\nAnswer:"
    return Asked(f"test:{number}", f"{number}?", f"{prompt} ---", prompt, str(number % 4), samples)


ASKED = [
    asked(n, *(sample(f" a {k} --- {k}", str(k), k == n % 4) for k in range(4)), sample(" hm", None, False))
    for n in range(5)
] + [asked(5, sample(" so --- 1", "1", True)), asked(6, sample(" no --- 0", "0", False))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("negative") / "base", quiet=None, base=tiny.config(num_hidden_layers=1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    append(folder, ASKED)
    return folder


@pytest.fixture(scope="module")
def teacher(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "nat"
    assert train(base, data, folder, "nat", "--lr", "0.1") == 0
    return folder


def train(base: Path, data: Path, out: Path, arm: str, *flags: str) -> int:
    few = FEW if "inner" in ARMS[arm] else FEW_PLAIN
    return negative.main(["--base", str(base), "--data", str(data), "--out", str(out), "--arm", arm, *few, *flags])


@pytest.fixture
def model() -> QuietModel:
    """With markers, which have no probability."""
    return tiny.quiet_model()


TEXTS = [Text((5, 6, 7), (8, 9, 0), 0, 0.3), Text((5,), (9, 0), 0, 0.7), Text((10, 11), (12, 13, 14, 0), 1, 0.0)]


@torch.no_grad()
def distributions(model: QuietModel, text: Text) -> list[list[float]]:
    """Before every token of a completion, read by itself without padding: log-probabilities of all tokens."""
    ids = torch.tensor([[*text.prompt, *text.said]])
    rows = model.logits(model(ids, torch.arange(ids.shape[1])[None], causal))[0].log_softmax(-1)
    return rows[len(text.prompt) - 1 : -1].tolist()


def slowly(model: QuietModel, text: Text) -> list[float]:
    return [row[token] for row, token in zip(distributions(model, text), text.said, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_only_completions_and_their_ends_count(model: QuietModel) -> None:
    """The released code learnt questions and padding too, and no end."""
    batch = collate(TEXTS)
    assert batch.weights_BT.tolist() == [
        [0, 0, 0, 1, 1, 1],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    told = losses.read(model, batch)
    assert told.targets_N.tolist() == [8, 9, 0, 9, 0, 12, 13, 14, 0]
    found = losses.logprobs(model, told)
    torch.testing.assert_close(found, torch.tensor([value for text in TEXTS for value in slowly(model, text)]))
    loss_B, facts = losses.Imitation(model)([Lesson(text) for text in TEXTS])
    assert loss_B.tolist() == pytest.approx([-mean(slowly(model, text)) for text in TEXTS], abs=1e-4)
    assert not facts


@settings(max_examples=6)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 2**32))
def test_neighbours_and_padding_change_nothing(sizes: list[tuple[int, int]], seed: int) -> None:
    model = tiny.quiet_model(quiet=None)
    rng = torch.Generator().manual_seed(seed)
    draw = [(torch.randint(3, 259, (sum(size),), generator=rng).tolist(), size[0]) for size in sizes]
    texts = [Text(tuple(ids[:split]), (*ids[split:], 0), 0) for ids, split in draw]
    loss_B, _ = losses.Imitation(model)([Lesson(text) for text in texts])
    assert loss_B.tolist() == pytest.approx([-mean(slowly(model, text)) for text in texts], abs=1e-3)


def against(arm: str, right: list[float], wrong: list[float]) -> float:
    """The slow way: the loss of a right and a wrong rationale from the log-probabilities of their tokens."""
    ce = -mean(right)
    return {
        "mix": lambda: (ce - mean(wrong)) / 2,
        "nt": lambda: ce + 0.5 * mean([max(value, math.log(0.02)) for value in wrong]),
        "ul": lambda: ce + 0.5 * mean([-math.log(1 - math.exp(value)) for value in wrong]),
        "cl": lambda: ce + 0.5 * max(0.0, 3.0 - (mean(right) - mean(wrong))),
    }[arm]()


@pytest.mark.parametrize(
    ("arm", "loss"),
    [
        ("mix", losses.mixed),
        ("nt", losses.Negated(0.5, 0.02)),
        ("ul", losses.Unlikelihood(0.5)),
        ("cl", losses.Margin(0.5, 3.0)),
    ],
)
def test_wrong_rationales_count_as_their_authors_say(model: QuietModel, arm: str, loss: losses.Against) -> None:
    lessons = [Lesson(TEXTS[0], TEXTS[1]), Lesson(TEXTS[1], TEXTS[2]), Lesson(TEXTS[2])]
    loss_B, facts = losses.Contrast(model, loss)(lessons)
    for found, lesson in zip(loss_B.tolist(), lessons, strict=True):
        right = slowly(model, lesson.text)
        wanted = against(arm, right, slowly(model, lesson.wrong)) if lesson.wrong else -mean(right)
        assert found == pytest.approx(wanted, abs=1e-4)
    assert facts["ce"].tolist() == pytest.approx([-mean(slowly(model, lesson.text)) for lesson in lessons], abs=1e-4)
    wrong = [-mean(slowly(model, lesson.wrong)) for lesson in lessons if lesson.wrong]
    assert facts["ce_wrong"].tolist() == pytest.approx(wrong, abs=1e-4)


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_lessons_without_a_wrong_rationale_are_not_logged_as_certain_ones(
    model: QuietModel, tmp_path: Path, micro_batch: int | None
) -> None:
    """They once counted as a cross-entropy of 0, which made wrong rationales look likelier the fewer questions had one."""
    steps = [[Lesson(TEXTS[0], TEXTS[1]), Lesson(TEXTS[1]), Lesson(TEXTS[2])], [Lesson(TEXTS[0])]]
    model.requires_grad_()
    trainer = NegativeTrainer(
        StageConfig(0.1, 0, micro_batch=micro_batch),
        losses.Contrast(model, losses.Margin(0.1, 0.2)),
        steps.__getitem__,
        LoopConfig(2),
        Processes(cpu=True),
        tmp_path,
        {},
        {},
    )
    told = trainer.take_step(0)
    assert told["ce_wrong"] == pytest.approx(-mean(slowly(model, TEXTS[1])), abs=1e-4)
    assert told["ce"] == pytest.approx(mean([-mean(slowly(model, text)) for text in TEXTS]), abs=1e-4)
    assert "ce_wrong" not in trainer.take_step(1), "there is none"


def test_what_is_unlikely_already_is_left_alone() -> None:
    logprob_N = torch.tensor([0.5, 0.01]).log().requires_grad_()
    losses.Negated(1.0, 0.02)(torch.zeros(1), logprob_N, lambda values: values.sum()[None]).backward()
    assert logprob_N.grad is not None
    assert logprob_N.grad.tolist() == [1, 0]


def test_a_certain_token_has_a_loss() -> None:
    logprob_N = torch.zeros(1, requires_grad=True)
    loss = losses.Unlikelihood(1.0)(torch.zeros(1), logprob_N, lambda values: values)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-math.log(losses.LEAST_DOUBT))
    assert logprob_N.grad is not None
    assert torch.isfinite(logprob_N.grad).all()


def stirred(seed: int = 1) -> QuietModel:
    """A teacher that has learnt something."""
    model = tiny.quiet_model()
    torch.manual_seed(seed)
    integrate(model.backbone.lm, Lora(2, 4.0, ("q_proj", "v_proj")), 5)
    for unit in units(model):
        for name, parameter in unit.named_parameters():
            if "base_layer" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("at_once", [10**6, 600])
def test_distilling_is_what_a_loop_over_tokens_says(
    model: QuietModel, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many logits are held at once."""
    monkeypatch.setattr(losses, "MAX_LOGITS", at_once)
    monkeypatch.setattr(logprobs, "MAX_LOGITS", at_once)
    teacher = stirred()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loss_B, facts = losses.Calibration(model, teacher)([Lesson(text) for text in TEXTS])
    for number, text in enumerate(TEXTS):
        own, theirs = distributions(model, text), distributions(teacher, text)
        soft = [
            -sum(math.exp(t) * o for t, o in zip(nat, student, strict=True) if t > -math.inf)
            for nat, student in zip(theirs, own, strict=True)
        ]
        ce = -mean(slowly(model, text))
        wanted = 0.5 * ce + 0.5 * (0.5 + text.beta) * mean(soft)
        assert loss_B[number].item() == pytest.approx(wanted, abs=1e-3)
    assert facts["beta"].tolist() == pytest.approx([text.beta for text in TEXTS])
    loss_B.sum().backward()
    head: Any = model.backbone.lm.get_output_embeddings()
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize("at_once", [10**6, 600])
def test_betas_are_what_a_loop_over_tokens_says(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MAX_LOGITS", at_once)
    teacher = stirred()
    found = losses.betas(teacher, TEXTS)
    assert all(unit.mode == "integrated" for unit in units(teacher))
    for beta, text in zip(found, TEXTS, strict=True):
        whole = distributions(teacher, text)
        with in_mode(teacher, "negative"):
            negative_half = distributions(teacher, text)
        divergences = [
            sum(math.exp(n) * (n - w) for n, w in zip(half, nat, strict=True) if n > -math.inf)
            for half, nat in zip(negative_half, whole, strict=True)
        ]
        assert beta == pytest.approx(math.tanh(mean(divergences)), abs=1e-4)
        assert 0 <= beta < 1
    loaded = Loaded(teacher, Tokens(tiny.tokenizer()), "teacher")
    again = rationale_teacher.weighed(loaded.model, TEXTS, 2)
    assert [text.beta for text in again] == pytest.approx(found, abs=1e-5)
    assert [(text.prompt, text.said) for text in again] == [(text.prompt, text.said) for text in TEXTS]


def test_shuffled_betas_are_those_of_the_batch() -> None:
    found = [shuffle_betas(TEXTS, random.Random(seed)) for seed in range(8)]
    assert all([lesson.text.said for lesson in one] == [text.said for text in TEXTS] for one in found)
    orders = {tuple(lesson.text.beta for lesson in one) for one in found}
    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {(0.0, 0.3, 0.7)}


# --- data ------------------------------------------------------------------------------------------------------------


def test_samples_become_texts_that_end() -> None:
    tokens = Tokens(tiny.tokenizer())
    texts = Texts(tokens, ASKED, 100)
    assert len(texts.right) == 6
    assert len(texts.wrong) == 16, "who came to no answer is not wrong"
    assert all(text.said[-1] == 0 and 0 not in text.said[:-1] for text in [*texts.right, *texts.wrong, *texts.direct()])
    assert tokens.decode(texts.right[0].prompt) == "Question: 0?\nAnswer: ---"
    assert tokens.decode(texts.right[0].said) == " a 0 --- 0"
    assert [tokens.decode(text.prompt + text.said) for text in texts.direct()[:2]] == [
        "Question: 0?\nAnswer: 0",
        "Question: 1?\nAnswer: 1",
    ]
    with pytest.raises(ValueError, match=r"test:0: a sample has 35 tokens with its question; there is room for 34"):
        Texts(tokens, ASKED, 34)


def test_texts_without_an_end_cannot_be_learnt() -> None:
    tokens = Tokens(tiny.tokenizer())
    tokens.eos_ids = frozenset()
    with pytest.raises(ValueError, match="no token that ends a text"):
        Texts(tokens, ASKED, 100)


@given(st.integers(1, 7), st.integers(1, 5), st.text(max_size=3))
def test_every_text_is_read_once_before_any_is_read_again(size: int, batch: int, seed: str) -> None:
    texts = [Text((5,), (number, 0), number) for number in range(size)]
    deck = Deck(texts, seed, "texts")
    drawn = [text.question for step in range(3 * size) for text in deck.take(step, batch)]
    for first in range(0, len(drawn), size):
        assert Counter(drawn[first : first + size]) == Counter(range(size))
    assert Deck(texts, seed, "texts").take(2, batch) == deck.take(2, batch), "wherever it begins"


def test_a_right_text_is_paired_with_a_wrong_one_of_its_question() -> None:
    texts = Texts(Tokens(tiny.tokenizer()), ASKED, 100)
    lessons = pair(texts.right, by_question(texts.wrong), random.Random(0))
    assert [lesson.text for lesson in lessons] == texts.right
    assert [lesson.wrong is None for lesson in lessons] == [False] * 5 + [True]
    assert all(lesson.wrong in texts.wrong and lesson.wrong.question == lesson.text.question for lesson in lessons[:5])


@pytest.mark.parametrize(
    ("prompt", "key", "text", "found"),
    [
        ("Answer: ---", "7", " Monday 6 --- 7", "7"),
        ("Answer: ---", "7", " Monday 7", None),
        ("Answer: ---", "Anna", " Bob --- Anna", "Anna"),
        ("step by step.", "1000", " 10 times 100 is $1,000.0", "1000"),
        ("step by step.", "B", " (A) no. The answer is (B).", "B"),
        ("Answer:", "+ 3 - 4", " + 3 - 4", "+ 3 - 4"),
        ("step by step.", "1", " none", None),
    ],
)
def test_what_a_rationale_comes_to(prompt: str, key: str, text: str, found: str | None) -> None:
    assert comes_to(Asked("test", "", prompt, "Answer:", key, ()), text) == found


# --- arms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_leaves_what_it_should(
    base: Path, data: Path, teacher: Path, tmp_path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / arm
    more = ["--teacher", str(teacher), "--own-samples", "1"] if arm in STUDENTS else []
    assert train(base, data, out, arm, *more) == 0
    log = log_of(out)
    assert [line["step"] for line in log] == [1, 2]
    if arm in INTEGRATED:
        assert "alpha_negative" in log[0]
        assert "alpha_negative" not in log_of(out / "negative")[0]
        assert load_integrated(out).model.backbone.vocab_size == 259
        return
    assert "lora" not in "".join(tensors(out)), "merged"
    assert (out / "adapter/adapter_model.safetensors").exists()
    assert checkpoint.load(out).model.backbone.vocab_size == 259
    assert ("beta" in log[0]) == (arm in STUDENTS)
    assert ("ce_wrong" in log[0]) == (arm in ("mix", "nt", "ul", "cl"))
    if arm == "wide":
        assert log[0]["rank"] == 15
        assert "adapters of rank 15 have as many parameters" in capsys.readouterr().err


def test_the_wide_adapter_has_as_many_parameters_as_the_unit() -> None:
    lora = Lora(8, 16.0, ("q_proj", "v_proj"))
    model = tiny.quiet_model()
    before = {name for name, _ in model.named_parameters()}
    rank = wide_rank(model, lora, 128)
    assert {name for name, _ in model.named_parameters()} == before
    wanted = 8 * (32 + 32) + 8 * (32 + 16) + 128 * (32 + 3 * 32) + 128 * (32 + 3 * 16)
    assert abs(rank * (32 + 32 + 32 + 16) - wanted) <= (32 + 32 + 32 + 16) / 2


def test_the_first_stage_trains_the_negative_adapters_and_nothing_else(base: Path, data: Path, tmp_path: Path) -> None:
    """The released code's first checkpoint overwrote V."""
    assert train(base, data, tmp_path / "nat", "nat") == 0
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("nat/negative", "nat")]
    first, second = (state["model"] for state in states)
    assert first
    assert all(".negative." in name for name in first)
    assert second
    assert not any(".negative." in name or "base_layer" in name for name in second)
    kept = load_file(tmp_path / "nat" / TENSORS)
    saved = {name.removeprefix("backbone.lm."): value for name, value in (first | second).items()}
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    assert all(value.any() for value in kept.values()), "everything has learnt"
    assert json.loads((tmp_path / "nat" / SETTINGS).read_text())["arm"] == "nat"


def test_arms_that_freeze_something_else(base: Path, data: Path, tmp_path: Path) -> None:
    found = {}
    for arm in INTEGRATED:
        assert train(base, data, tmp_path / arm, arm) == 0
        kept = load_file(tmp_path / arm / TENSORS)
        found[arm] = {name: value for name, value in kept.items() if ".negative." in name}
    nat, positive, shuffled = (found[arm] for arm in ("nat", "two-positives", "random-negative"))
    for name, value in nat.items():
        assert not torch.equal(value, positive[name])
        assert not torch.equal(value, shuffled[name]), "of the same size, and nothing else"
        assert torch.equal(value.flatten().sort()[0], shuffled[name].flatten().sort()[0])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, on reading
@pytest.mark.parametrize("arm", ["kd", "nt"])
def test_what_is_merged_is_what_the_adapter_makes_of_the_base(base: Path, data: Path, tmp_path: Path, arm: str) -> None:
    from peft import PeftModel

    assert train(base, data, tmp_path / "out", arm, "--lr", "0.1") == 0
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/adapter")
        adapted, merged = lm(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        before = lm.unload()(ids).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, merged, atol=1e-3)


@pytest.mark.parametrize("arm", ["kd", "nat"])
def test_what_thinks_is_left_alone(data: Path, tmp_path: Path, arm: str) -> None:
    base = tiny.save(tmp_path / "base")
    assert train(base, data, tmp_path / "out", arm) == 0
    loaded = load_integrated(tmp_path / "out") if arm == "nat" else checkpoint.load(tmp_path / "out")
    before = tiny.thinking_parameters(checkpoint.load(base).model)
    after = tiny.thinking_parameters(loaded.model)
    assert loaded.model.can_think
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_learns_what_is_right(base: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--steps", "12", "--negative-steps", "1", "--lr", "0.03", "--batch", "6"]
    assert train(base, data, tmp_path, "nat", *flags) == 0
    log = log_of(tmp_path)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]


def test_lessons_may_be_taken_a_few_at_a_time(base: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--lora-dropout", "0", "--batch", "5"]
    for arm in ("cl", "nat"):
        assert train(base, data, tmp_path / arm / "all", arm, *flags) == 0
        assert train(base, data, tmp_path / arm / "few", arm, *flags, "--micro-batch", "2") == 0
        one, two = (log_of(tmp_path / arm / name) for name in ("all", "few"))
        for before, after in zip(one, two, strict=True):
            assert after == pytest.approx(before, abs=1e-4)


def test_activations_may_be_computed_twice(base: Path, data: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("twice", ["--gradient-checkpointing"])):
        assert train(base, data, tmp_path / name, "nat", *more) == 0
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "twice")


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_a_student_learns_from_its_teachers_own_right_samples(
    base: Path,
    data: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Drawn once, and kept."""
    drawn = []

    class Certain(rationale_teacher.LocalSampler):
        def draw(self, prompts: Any, numbers: Any, count: int) -> Any:
            drawn.append(len(prompts) * count)
            made = super().draw(prompts, numbers, count)
            return [[one._replace(text=" so\u2028 --- 2", logprobs=[-1.0] * 9) for one in every] for every in made]

    monkeypatch.setattr(rationale_teacher, "LocalSampler", Certain)
    flags = ["--teacher", str(teacher), "--own-samples", "2"]
    assert train(base, data, tmp_path, "nce", *flags) == 0
    assert drawn == [2 * len(ASKED)]
    settings, *lines = map(json.loads, (tmp_path / OWN).read_text().splitlines())
    assert settings["samples"] == 2
    assert lines == [{"question": n, "text": " so\u2028 --- 2"} for n in (2, 2, 6, 6)], "those whose key is 2"
    assert train(base, data, tmp_path, "nce", *flags, "--resume") == 0
    assert len(drawn) == 1
    kept = (tmp_path / OWN).read_bytes()
    assert train(base, data, tmp_path, "nce", *flags, "--own-samples", "3", "--resume") == 2
    assert (tmp_path / OWN).read_bytes() == kept, "once they were drawn anew, and only then the run was refused"
    assert "own_samples.jsonl was drawn with another samples; use another folder" in capsys.readouterr().err


def test_a_constant_beta_is_given_or_the_mean(base: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--own-samples", "1", "--steps", "1"]
    assert train(base, data, tmp_path / "given", "nce-constant", *flags, "--beta", "0.25") == 0
    assert train(base, data, tmp_path / "mean", "nce-constant", *flags) == 0
    assert train(base, data, tmp_path / "own", "nce", *flags, "--batch", "6") == 0
    assert {line["beta"] for line in log_of(tmp_path / "given")} == {0.25}
    [constant], [own] = (log_of(tmp_path / name) for name in ("mean", "own"))
    assert constant["beta"] == pytest.approx(own["beta"]), "six right samples are one batch"


def test_a_teacher_must_speak_the_same_language(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["zebra"])
    checkpoint.save(tiny.quiet_model(tiny.config(vocab_size=260), quiet=None), tokenizer, base)
    assert train(base, data, tmp_path / "out", "nce", "--teacher", str(teacher)) == 2
    assert "has another vocabulary than --base" in capsys.readouterr().err


# --- resumption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arm", "steps"), [("kd", 1), ("random-negative", 1), ("nat", 3), ("nce-shuffled", 1)])
def test_a_killed_run_goes_on_bit_for_bit(
    base: Path, data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, steps: int
) -> None:
    """`nat` is killed in its first stage, the other one in its second."""
    flags = ["--save-every", "1", *(["--negative-steps", str(steps)] if arm in INTEGRATED else [])]
    flags += ["--teacher", str(teacher), "--own-samples", "1"] if arm in STUDENTS else []
    assert train(base, data, tmp_path / "whole", arm, *flags) == 0
    with killed_at(1, NegativeTrainer, monkeypatch):
        train(base, data, tmp_path / "halves", arm, *flags)
    assert train(base, data, tmp_path / "halves", arm, *flags, "--resume") == 0
    read = kept if arm in INTEGRATED else tensors
    whole, halves = (read(tmp_path / name) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert whole
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halves")


def kept(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / TENSORS)


def test_a_folder_is_of_one_run(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(base, data, tmp_path, "kd") == 0
    assert train(base, data, tmp_path, "nat") == 2
    assert "state.pt is an earlier run's: --resume goes on with it" in capsys.readouterr().err
    assert not (tmp_path / "negative").exists(), "said before the first stage"
    assert train(base, data, tmp_path, "mix", "--resume") == 2
    assert "was saved with arm 'kd', not 'mix'" in capsys.readouterr().err


# --- arguments -------------------------------------------------------------------------------------------------------


def test_every_knob_is_read_by_an_arm() -> None:
    read = {knob for knobs in ARMS.values() for knob in knobs}
    assert read == {*KNOBS, "negative_steps", "teacher", "beta"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arm", "best"], "--arm is best; it must be one of fine-tune, kd"),
        (["--arm", "kd", "--inner", "3"], "--inner is 3; it must be left out: the arm kd does not read it"),
        (["--arm", "nce"], "--teacher is None; it must be a folder that an arm of nat, two-positives"),
        (["--arm", "nce", "--teacher", "/none"], "/none/integration.json: missing"),
        (["--arm", "nt", "--floor", "1"], "--floor is 1.0; it must be above 0 and below 1"),
        (["--arm", "ul", "--weight", "-1"], "--weight is -1.0; it must be 0 or more"),
        (["--lora", "0"], "--lora is 0; it must be 1 or more"),
        (["--lora-dropout", "1"], "--lora-dropout is 1.0; it must be at least 0 and below 1"),
        (["--lora-targets", "none_proj"], "none_proj"),
        (["--lora-targets", "q_proj", "q_proj"], "--lora-targets is q_proj q_proj; it must be each of them once"),
        (["--steps", "0"], "--steps is 0; it must be 1 or more"),
        (["--shard"], "--shard is True; it must be left out"),
        (["--data", "/none"], "/none/samples.jsonl: cannot be read"),
    ],
)
def test_arguments_that_cannot_be(
    base: Path, data: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert negative.main(["--base", str(base), "--data", str(data), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    ("arm", "asked", "message"),
    [
        ("kd", [ASKED[6]], "--data holds no right samples"),
        ("nat", [ASKED[5]], "--data holds no wrong samples"),
        ("cl", ASKED[5:], "--data holds no question with a right and a wrong sample"),
    ],
)
def test_data_that_an_arm_cannot_learn_from(
    base: Path, tmp_path: Path, arm: str, asked: list[Asked], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    append(tmp_path, asked)
    assert (tmp_path / SAMPLES).exists()
    assert train(base, tmp_path, tmp_path / "out", arm) == 2
    assert message in capsys.readouterr().err
