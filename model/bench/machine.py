"""What a measurement was made on, with nothing that names the machine or its owner."""

import importlib.util
import os
import platform
from importlib.metadata import version
from typing import Any

import torch
import transformers


def describe(num_threads: int, device: str = "cpu") -> dict[str, Any]:
    """Plain JSON values; two measurements may stand in one table only if these are the same."""
    has_llama = importlib.util.find_spec("xllamacpp") is not None
    return {
        "cores": os.cpu_count(),
        "threads": num_threads,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "xllamacpp": version("xllamacpp") if has_llama else None,
    }
