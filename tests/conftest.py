"""Shared by all tests: one thread (the models are tiny), the tests' own helper modules on the path, and no deadlines.

CI draws the same examples every time: what it lands must not depend on luck. Elsewhere every run draws new ones.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("quietserve", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("quietserve")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch  # not by the process that only hands tests out

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A server that was begun in this process has taken the log over."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
