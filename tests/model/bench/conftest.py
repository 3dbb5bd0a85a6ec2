import pytest
import torch

from quietserve.model.bench.cell import Cell, Setup
from quietserve.model.bench.shapes import SHAPES, Subject, build

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def sizes() -> dict[str, int]:
    return TINY


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command knows a shape of a few thousand parameters."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)


@pytest.fixture(scope="session")
def subject() -> Subject:
    return build("tiny", TINY, torch.float32)


@pytest.fixture
def setup_of(subject):
    """A setup for a batch of two at some depth."""

    def make(depth: int, num_tokens: int = 6, max_s: float = 60.0) -> Setup:
        return Setup(subject, Cell("tiny", batch=2, prompt=12, depth=depth), num_tokens, max_s, num_threads=1)

    return make
