"""A server for the whole folder, with the bundled checkpoint: what reaches it comes from software that nobody here wrote."""

import json
from collections.abc import Iterator

import pytest

from serving import serving

PRESETS = {f"quiet-depth-{depth}": {"thought_depth": depth} for depth in (0, 12)}
SMALL = ("--max-model-len", "64", "--max-thought-depth", "4", "--default-thought-depth", "2")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    flags = [flag for name, held in PRESETS.items() for flag in ("--model-preset", f"{name}={json.dumps(held)}")]
    with serving(*flags) as address:
        yield address


@pytest.fixture(scope="session")
def small_url() -> Iterator[str]:
    """Another one, for whoever asks anything at all: no request takes it long."""
    with serving(*SMALL) as address:
        yield address


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The books are read when everybody else has been served."""
    items.sort(key=lambda item: item.path.name == "test_books.py")
