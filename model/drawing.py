"""matplotlib, where it is installed: pictures are an option, and drawn to files alone."""

import importlib
import importlib.util
from typing import Any


def available() -> bool:
    """It is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def open_pyplot() -> Any:
    """`matplotlib.pyplot`, without a window."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")
