"""What tests of training commands share: runs that are killed, and what a run leaves behind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder / name for name in ("model.safetensors", "quiet.safetensors")]
    return {name: value for file in files if file.exists() for name, value in load_file(file).items()}


@contextmanager
def killed_at(step: int, trainer: type, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs inside end in the middle of a step."""
    right = trainer.take_step

    def die(self: Any, number: int, *data: Any) -> dict[str, float]:
        if number == step:
            raise KeyboardInterrupt
        return right(self, number, *data)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "take_step", die)
        with pytest.raises(KeyboardInterrupt):
            yield
