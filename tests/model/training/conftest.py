from pathlib import Path

import pytest

from quietserve.model.training import pretrain


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has hardly learned anything, in a second."""
    folder = tmp_path_factory.mktemp("base")
    sizes = ["--width", "32", "--layers", "1", "--heads", "2", "--batch", "4"]
    assert pretrain.main(["--out", str(folder), "--steps", "2", "--idle-steps", "1", *sizes]) == 0
    return folder
