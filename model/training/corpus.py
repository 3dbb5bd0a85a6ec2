"""Any text as training batches: local files or a data set of the hub, tokenised, in windows of one length.

What is read is a function of the seed alone, and where it stands is three values; so a resumed run reads on exactly there,
and any number of processes, each of which reads everything and takes its own texts, sees the same batches.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, IterableDataset, disable_progress_bars, load_dataset
from transformers import PreTrainedTokenizerBase

from ..sampling import hash_key
from .batches import Batch, pad

READERS = {
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
SHUFFLED = 10_000  # documents of a stream that are shuffled at a time


class CorpusError(ValueError):
    """A corpus that cannot be read: the message is one line and names it."""


class Corpus:
    """Batches of windows.

    Args:
        documents: texts, by name of their column; see `open_documents`.
        column: that name.
        tokenizer: any.
        length: tokens of a window.
        size: windows of a batch.
        packing: windows are cut from all documents one after the other, each closed by the end-of-text token; otherwise each
            document has windows of its own, the last of them shorter.
        seed: of the order, another one in each pass.

    Raises:
        CorpusError: the column is not there or holds no text, or a whole pass gives no window.
    """

    def __init__(
        self,
        documents: Dataset | IterableDataset,
        column: str,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        size: int,
        packing: bool = True,
        seed: int = 0,
    ) -> None:
        self._documents, self._column, self._tokenizer = documents, column, tokenizer
        self._length, self._size, self._packing, self._seed = length, size, packing, seed
        eos: Any = tokenizer.eos_token_id
        self._eos = [] if eos is None else [int(eos)]
        self._pass, self._read, self._left = 0, 0, list[int]()
        self._windows = self._cut()

    def batch(self, step: int) -> Batch:  # noqa: ARG002  steps come one after the other
        """The next one. Every token but a window's first counts the same."""
        rows = [next(self._windows) for _ in range(self._size)]
        return pad(rows, [[0.0, *[1.0] * (len(row) - 1)] for row in rows], self._eos[0] if self._eos else 0)

    def state(self) -> dict[str, Any]:
        """Where it stands: the pass, documents read of it, and tokens read and not yet handed out."""
        return {"pass": self._pass, "read": self._read, "left": list(self._left)}

    def load(self, state: dict[str, Any]) -> None:
        """Go there; of a stream, what lies before is read once more."""
        self._pass, self._read, self._left = state["pass"], state["read"], list(state["left"])
        self._windows = self._cut()

    def _cut(self) -> Iterator[list[int]]:
        """Windows, pass after pass."""
        least = self._length if self._packing else 2
        while True:
            afresh, cut = self._read == 0, 0
            for ids in chain([[]], self._tokenised()):  # what is left over comes before the next document
                self._left += ids
                while len(self._left) >= least:
                    window, self._left = self._left[: self._length], self._left[self._length :]
                    cut += 1
                    yield window
                self._left = self._left if self._packing else []
            if afresh and not cut:
                raise CorpusError(f"column {self._column!r}: all of it is less than one window of {least} tokens")
            self._pass, self._read = self._pass + 1, 0

    def _tokenised(self) -> Iterator[list[int]]:
        """Documents of this pass from where it stands."""
        shuffled = _shuffle(self._documents, hash_key(self._seed, self._pass) >> 33)
        for row in _from(shuffled, self._read):
            text = row.get(self._column)
            if not isinstance(text, str):
                held = type(text).__name__ if self._column in row else "nothing"
                raise CorpusError(f"column {self._column!r} holds {held}, not text; the columns are {', '.join(row)}")
            self._read += 1
            yield [*self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *self._eos]


def open_documents(name: str, split: str = "train", streaming: bool = False) -> Dataset | IterableDataset:
    """Documents of a file, of all files of one kind in a folder, or of a data set of the hub (`owner/name` or `owner/name:part`).

    Raises CorpusError for what is not there, cannot be read or is empty.
    """
    disable_progress_bars()
    path, load = Path(name), cast(Any, load_dataset)
    try:
        if path.exists():
            kind, files = _files(path)
            options = {"sample_by": "paragraph"} if kind == "text" else {}
            found = load(kind, data_files={"train": files}, split="train", streaming=streaming, **options)
        else:
            hub, _, part = name.partition(":")
            found = load(hub, part or None, split=split, streaming=streaming)
        first = next(iter(found), None)
    except CorpusError:
        raise
    except Exception as error:  # the library raises many kinds; its first line, or that of the cause, says which
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise CorpusError(f"{name}: cannot be read as a data set: {reason[0]}") from error
    if first is None:
        raise CorpusError(f"{name}: is empty")
    return found


def _files(path: Path) -> tuple[str, list[str]]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in READERS)
    kinds = {READERS.get(file.suffix) for file in files}
    if None in kinds or len(kinds) != 1:
        held = "is of no kind" if path.is_file() else f"holds files of {len(kinds)} kinds"
        raise CorpusError(f"{path}: {held} that is read; one of {', '.join(READERS)} is")
    return str(kinds.pop()), [str(file) for file in files]


def _shuffle(documents: Dataset | IterableDataset, seed: int) -> Dataset | IterableDataset:
    if isinstance(documents, IterableDataset):
        return documents.shuffle(seed=seed, buffer_size=SHUFFLED)
    return documents.shuffle(seed=seed, keep_in_memory=True)


def _from(documents: Dataset | IterableDataset, number: int) -> Iterable[dict[str, Any]]:
    if isinstance(documents, IterableDataset):
        return documents.skip(number)
    rest: Any = documents.select(range(number, len(documents))) if number < len(documents) else []
    return rest
