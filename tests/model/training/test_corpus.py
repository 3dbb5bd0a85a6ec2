"""Any text as batches: what is read, in which order, where it goes on, and what cannot be read."""

import json
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from quietserve.model.training.corpus import Corpus, CorpusError, open_documents

tokenizer = tiny.tokenizer()
EOS = tokenizer.eos_token_id
TEXTS = [f"{n}." + " and more" * (n % 4) for n in range(30)]


def corpus(texts: list[str], packing: bool = True, streaming: bool = False, seed: int = 0) -> Corpus:
    documents = Dataset.from_dict({"text": texts})
    return Corpus(documents.to_iterable_dataset() if streaming else documents, "text", tokenizer, 10, 3, packing, seed)


def windows(source: Corpus, batches: int) -> list[list[int]]:
    drawn = [source.batch(step) for step in range(batches)]
    return [row[:n].tolist() for batch in drawn for row, n in zip(batch.ids_BT, batch.lengths().tolist(), strict=True)]


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_windows_are_the_documents_end_to_end(streaming: bool) -> None:
    total = sum(len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS)
    drawn = windows(corpus(TEXTS, streaming=streaming), total // 30)
    assert {len(row) for row in drawn} == {10}
    joined = [token for row in drawn for token in row]
    read = tokenizer.decode(joined).split(tokenizer.eos_token)
    assert set(read[:-1]) <= set(TEXTS)
    assert len(set(read)) == len(read) > len(TEXTS) / 2, "each once in a pass"


def test_without_packing_no_window_holds_two_documents() -> None:
    rows = windows(corpus(TEXTS, packing=False), 20)
    assert all(EOS not in row[:-1] for row in rows)
    assert {len(row) for row in rows} > {10}, "last windows are shorter"


def test_every_token_but_the_first_counts_the_same() -> None:
    weights = corpus(TEXTS).batch(0).weights_BT
    assert weights[:, 0].eq(0).all()
    assert weights[:, 1:].eq(1).all()


@settings(max_examples=20)
@given(st.integers(0, 40), st.booleans(), st.booleans(), st.integers(0, 3))
def test_it_goes_on_exactly_where_it_stood(stop: int, packing: bool, streaming: bool, seed: int) -> None:
    """Through the ends of passes, too; and a state survives JSON."""
    whole = windows(corpus(TEXTS, packing, streaming, seed), stop + 6)
    first = corpus(TEXTS, packing, streaming, seed)
    begun = windows(first, stop)
    second = corpus(TEXTS, packing, streaming, seed)
    second.load(json.loads(json.dumps(first.state())))
    assert begun + windows(second, 6) == whole


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    texts = [f"{n:08}." for n in range(30)]  # nine tokens and the end: one window each
    passes = [windows(corpus(texts, seed=seed), 20) for seed in (0, 0, 1)]
    assert passes[0] == passes[1] != passes[2]
    assert sorted(passes[0][:30]) == sorted(passes[0][30:])
    assert passes[0][:30] != passes[0][30:]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the csv reader's, when it is left half-way
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet", "folder"])
def test_files_of_every_kind_are_read(kind: str, tmp_path: Path) -> None:
    rows = [{"text": f"line {n}", "other": n} for n in range(5)]
    data = Dataset.from_list(rows)
    file = tmp_path / f"texts.{kind}"
    writers = {
        "jsonl": lambda: file.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "json": lambda: file.write_text(json.dumps(rows)),
        "csv": lambda: data.to_csv(file),
        "txt": lambda: file.write_text("\n\n".join(row["text"] for row in rows)),
        "parquet": lambda: data.to_parquet(file),
        "folder": lambda: [
            file.mkdir(),
            *((file / f"{row['other']}.jsonl").write_text(json.dumps(row)) for row in rows),
        ],
    }
    writers[kind]()
    for streaming in (False, True):
        found = open_documents(str(file), streaming=streaming)
        assert [row["text"].strip() for row in islice(found, 9)] == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", None, r"none\.txt: cannot be read as a data set"),
        ("empty.txt", "", r"empty\.txt: (is empty|cannot be read)"),
        ("bad.jsonl", "{no json", r"bad\.jsonl: cannot be read as a data set"),
        ("weights.bin", "x", r"weights\.bin: is of no kind that is read; one of \.txt, "),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=reason):
        open_documents(str(tmp_path / name))


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    source = Corpus(Dataset.from_dict({"body": ["a"], "n": [1]}), "text", tokenizer, 10, 1)
    with pytest.raises(CorpusError, match="column 'text' holds nothing, not text; the columns are body, n"):
        source.batch(0)
    source = Corpus(Dataset.from_dict({"body": ["a"], "n": [1]}), "n", tokenizer, 10, 1)
    with pytest.raises(CorpusError, match="column 'n' holds int, not text"):
        source.batch(0)


def test_a_corpus_shorter_than_a_window_is_refused_rather_than_read_for_ever() -> None:
    with pytest.raises(CorpusError, match="all of it is less than one window of 10 tokens"):
        corpus(["ab"]).batch(0)
