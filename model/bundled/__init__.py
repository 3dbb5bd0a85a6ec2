"""The checkpoints that ship with the package: wherever a folder is asked for, their names will do."""

from pathlib import Path

_HERE = Path(__file__).parent
BUNDLED = {file.parent.name: file.parent for file in sorted(_HERE.glob("*/config.json"))}
BUNDLED_RANKERS = {file.parent.name: file.parent for file in sorted(_HERE.glob("*/ranker.json"))}
BUNDLED_PROBES = {file.parent.name: file.parent for file in sorted(_HERE.glob("*/probe.json"))}
DEFAULT = _HERE / "quiet-small"
