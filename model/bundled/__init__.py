"""The checkpoint that ships with the package."""

from pathlib import Path

DEFAULT = Path(__file__).parent / "quiet-small"
