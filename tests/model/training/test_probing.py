"""Probes: labels in files, states of the right tokens, fits that find what is there and nothing else, whole commands."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import tiny
from quietserve.model.checkpoint import Loaded, load
from quietserve.model.probe import layer_states, load_probe, probe_config, read_text
from quietserve.model.tokens import Tokens
from quietserve.model.training import probes
from quietserve.model.training.probing import WINDOW, Examples, Fit, States, fit, measure, split
from quietserve.model.training.traces import Trace, properties, read_traces, write_traces

SHORT = ["--steps", "40", "--batch", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("probing") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(folder)


def traces_of(loaded: Loaded, texts: list[str], name: str = "vowel") -> list[Trace]:
    """Every letter but the first says whether it is a vowel."""
    found = []
    for text in texts:
        ids = loaded.tokens.encode(text)
        kinds = ["yes" if letter in "aeiou" else "no" for letter in text]
        found.append(Trace(tuple(ids), {name: tuple(enumerate(kinds))[1:]}))
    return found


WORDS = [f"{a}{b}{c} {d}{a}{b}" for a in "bade" for b in "ioux" for c in "afe" for d in "uz"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("abc é€", min_size=2, max_size=12), min_size=1, max_size=4), st.data())
def test_files_come_back(
    loaded: Loaded, tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    """Where a character is several tokens, its label goes to the one at which the character ends."""
    file, traces = tmp_path_factory.mktemp("traces") / "traces.jsonl", []
    for text in texts:
        lines = [[at, data.draw(st.sampled_from(["x", "y", None]))] for at in range(1, len(text))]
        traces.append({"text": text, "labels": {"kind": lines}})
    file.write_text("".join(json.dumps(one) + "\n" for one in traces))
    if not any(kind for one in traces for _, kind in one["labels"]["kind"]):
        with pytest.raises(ValueError, match="holds no text with a label"):
            read_traces(file, loaded.tokens)
        return
    read = read_traces(file, loaded.tokens)
    for one, told in zip(read, traces, strict=True):
        wanted = [(letter, kind) for letter, kind in told["labels"]["kind"] if kind]
        assert len(one.labels["kind"]) == len(wanted)
        for (token, kind), (letter, told_kind) in zip(one.labels["kind"], wanted, strict=True):
            assert kind == told_kind
            assert token == len(loaded.tokens.encode(told["text"][: letter + 1])) - 1
    write_traces(file, read, loaded.tokens)
    assert properties(read_traces(file, loaded.tokens)) == ["kind"]


def test_a_tokenizer_that_ends_texts_by_itself(loaded: Loaded, tmp_path: Path) -> None:
    """The token that it adds has no letters, and was taken to begin at the first one: labels came to stand on it."""
    tokenizer = tiny.tokenizer()
    end = TemplateProcessing(single=f"$A {tiny.SPECIAL[0]}", special_tokens=[(tiny.SPECIAL[0], 0)])
    tokenizer.backend_tokenizer.post_processor = end
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps({"text": "abcd", "labels": {"kind": [[1, "x"], [3, "y"]]}}) + "\n")
    [read] = read_traces(file, Tokens(tokenizer))
    assert read.ids[-1] == 0
    assert read.labels["kind"] == ((1, "x"), (3, "y"))


@pytest.mark.parametrize("text", ["ab\u2028c", "ab\u2029c", "ab\u0085c", "é€"])
def test_texts_that_are_not_escaped(loaded: Loaded, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file was once cut at signs that end lines elsewhere than in JSON, and read in whatever encoding the machine had."""
    file, read, asked = tmp_path / "traces.jsonl", Path.read_text, []
    line = json.dumps({"text": text, "labels": {"kind": [[1, "x"]]}}, ensure_ascii=False)
    file.write_text(f"{line}\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(Path, "read_text", lambda self, **how: asked.append(how) or read(self, **how))
    one, other = read_traces(file, loaded.tokens)
    assert one == other
    assert loaded.tokens.decode(one.ids, special=True).endswith(text)
    assert asked == [{"encoding": "utf-8"}]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", r"traces.jsonl:1: no text with labels"),
        ('{"text": "abc"}', "no text with labels: KeyError"),
        ('{"text": "abc", "labels": {"kind": [[3, "x"]]}}', "kind: there is no letter 3; the text's are 0 to 2"),
        ('{"text": "abc", "labels": {"kind": [[0, "x"]]}}', "the first token has a label, but nothing before it"),
        ('{"text": "abc", "labels": {"kind": [[1, "x"], [1, "y"]]}}', "one token has two labels"),
        ('{"text": "abc", "labels": {"kind": []}}', "holds no text with a label"),
        ("", "holds no text with a label"),
    ],
)
def test_bad_files(loaded: Loaded, tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "traces.jsonl").write_text(line)
    with pytest.raises(ValueError, match=complaint):
        read_traces(tmp_path / "traces.jsonl", loaded.tokens)


def test_a_file_that_is_not_there(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_traces(tmp_path / "none.jsonl", loaded.tokens)


def test_states_are_those_that_chose_the_tokens(loaded: Loaded) -> None:
    """The row before a token's: a probe that read the token's own row would read what it is to foretell."""
    traces = traces_of(loaded, ["abra", "cadabra", "b"])
    examples = States(loaded, traces, [0, 2]).examples("vowel", ("no", "yes"))
    rows = []
    for trace in traces:
        states_TH = layer_states(loaded.model, torch.tensor([trace.ids]), [0, 2])[0]
        rows += [states_TH[token - 1] for token, _ in trace.labels["vowel"]]
    assert torch.allclose(examples.features_NF, torch.stack(rows), atol=1e-5)
    assert examples.classes_N.tolist() == [int(letter in "aeiou") for text in ("bra", "adabra") for letter in text]
    assert examples.texts == [0] * 3 + [1] * 6


@pytest.mark.parametrize("offset", [-2, -1, 1, 3])
def test_offsets_pair_a_state_with_another_label(loaded: Loaded, offset: int) -> None:
    traces = traces_of(loaded, ["abracadabra"])
    states = States(loaded, traces, [2])
    now, then = (states.examples("vowel", ("no", "yes"), by) for by in (0, offset))
    kinds, rows = now.classes_N.tolist(), now.features_NF
    first, last = max(0, -offset), len(kinds) - max(0, offset)
    assert then.classes_N.tolist() == kinds[first + offset : last + offset]
    assert torch.equal(then.features_NF, rows[first:last])


def test_the_control_without_states_knows_the_tokens_so_far(loaded: Loaded) -> None:
    traces = traces_of(loaded, ["abba", "cab"])
    examples = States(loaded, traces, [2]).tokens_alone("vowel", ("no", "yes"))
    shape = examples.features_NF.view(5, WINDOW, 2)  # the labelled letters are a and b
    assert shape.argmax(-1)[2, :3].tolist() == [1, 1, 0]
    assert shape.sum(-1).sum(-1).tolist() == [1, 2, 3, 1, 2]


def planted(seed: int, count: int = 4000) -> Examples:
    """A class that lies in one direction of the states, in texts of four tokens."""
    generator = torch.Generator().manual_seed(seed)
    features_NF = 5 + 3 * torch.randn(count, 8, generator=generator)
    classes_N = (features_NF[:, 0] + features_NF[:, 1] > 12).long()
    return Examples(features_NF, classes_N, [number // 4 for number in range(count)])


@pytest.mark.parametrize("widths", [(), (32,)])
def test_a_probe_finds_what_is_there(loaded: Loaded, widths: tuple[int, ...]) -> None:
    config = probe_config(loaded, property="planted", classes=("no", "yes"), widths=widths, hidden_size=8)
    examples = planted(0)
    learned, kept = (examples.take(texts) for texts in split(1000, 0.2, 0))
    net = fit(config, learned, Fit(widths, steps=300, batch=256))
    found = measure(net, learned, kept)
    assert len(learned) + len(kept) == 4000
    assert not set(learned.texts) & set(kept.texts)
    assert found["accuracy"] > 0.95
    assert found["skill"] > 0.85
    assert found["skill_ci95"][0] < found["skill"] < found["skill_ci95"][1]
    shuffled = Examples(learned.features_NF, learned.classes_N[torch.randperm(len(learned))], learned.texts)
    nothing = measure(fit(config, shuffled, Fit(widths, steps=300, batch=256)), shuffled, kept)
    assert abs(nothing["skill"]) < 0.1
    assert nothing["majority"] == pytest.approx(kept.classes_N.bincount().max().item() / len(kept))


def test_skill_is_what_the_commonest_class_leaves(loaded: Loaded) -> None:
    """A probe that always says the commonest class is right nine times in ten, and knows nothing."""
    config = probe_config(loaded, property="rare", classes=("no", "yes"), hidden_size=2)
    features_NF, classes_N = torch.zeros(1000, 2), (torch.arange(1000) % 10 == 0).long()
    examples = Examples(features_NF, classes_N, list(range(1000)))
    found = measure(fit(config, examples, Fit(steps=100)), examples, examples)
    assert found["accuracy"] == found["majority"] == pytest.approx(0.9)
    assert found["skill"] == 0
    assert found["balanced"] == 0.5


def test_where_there_is_nothing_to_know(loaded: Loaded) -> None:
    """All texts to measure with may have the one class that was commonest: a skill was 0 / 0, or minus a hundred million."""
    config = probe_config(loaded, property="rare", classes=("no", "yes"), hidden_size=2)
    learned = Examples(torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50), list(range(100)))
    same = Examples(torch.eye(2)[:1].repeat(10, 1), torch.zeros(10, dtype=torch.long), list(range(10)))
    other = Examples(torch.eye(2)[1:].repeat(10, 1), torch.zeros(10, dtype=torch.long), list(range(10)))
    net = fit(config, learned, Fit(steps=50, batch=32))
    for measured in (same, other):
        found = measure(net, learned, measured)
        assert (found["majority"], found["skill"], found["skill_ci95"]) == (1, 0, (0, 0))


def write_words(loaded: Loaded, file: Path, texts: list[str] = WORDS) -> Path:
    write_traces(file, traces_of(loaded, texts), loaded.tokens)
    return file


def test_the_command_leaves_probes_that_read_as_they_were_measured(
    folder: Path, loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_words(loaded, tmp_path / "traces.jsonl")
    args = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "out"), *SHORT]
    assert probes.main(args) == 0
    assert "| vowel | 2 |" in capsys.readouterr().out
    probe = load_probe(tmp_path / "out" / "vowel", loaded)
    assert probe.config.tokens, "it speaks at the letters that were labelled alone"
    measured = probe.config.measured
    assert {"tokens_alone", "random_weights"} <= measured.keys()
    _, held = split(len(WORDS), 0.2, 0)
    right = count = 0
    for number in sorted(held):
        ids = loaded.tokens.encode(WORDS[number])
        for letter, readout in zip(WORDS[number][1:], read_text(loaded, probe, ids), strict=True):
            assert readout is not None
            right += (letter in "aeiou") == (readout.class_ == "yes")
            count += 1
    assert measured["tokens"] == count
    assert measured["accuracy"] == pytest.approx(right / count, abs=0.02)
    assert probes.main(args) == 2
    assert "a probe is there; --overwrite replaces it" in capsys.readouterr().err
    assert probes.main([*args, "--overwrite", "--no-controls", "--widths", "8", "--layers", "1"]) == 0
    again = load_probe(tmp_path / "out" / "vowel", loaded).config
    assert (again.widths, again.layers) == ((8,), (1,))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--layers", "3"], "--layers is 3; it must be between 0 and 2"),
        (["--layers", "1", "1"], "--layers is 1 1; it must be each of them once"),
        (["--properties", "colour"], "--properties is colour; it must be among those of"),
        (["--held", "1"], "--held is 1.0; it must be above 0 and below 1"),
        (["--widths", "0"], "--widths is 0; it must be 1 or more each"),
        (["--lr", "0"], "--lr is 0.0; it must be above 0"),
        (["--offset", "90"], "property 'vowel': too few texts have a label at offset 90"),
        (["--model", "/no/such/model"], "no/such/model"),
    ],
)
def test_bad_arguments(
    folder: Path, loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    data = write_words(loaded, tmp_path / "traces.jsonl", WORDS[:10])
    args = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "out"), *SHORT, *flags]
    assert probes.main(args) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_labels_that_are_all_the_same(
    folder: Path, loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_words(loaded, tmp_path / "traces.jsonl", ["bcd", "dfg"])
    args = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "out")]
    assert probes.main(args) == 2
    assert "every label of 'vowel' is the same" in capsys.readouterr().err
