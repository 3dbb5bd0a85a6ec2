"""llama.cpp on the same weights, through its own server's batching; needs the optional packages `xllamacpp` and `gguf`."""

import importlib
import importlib.util
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import gguf_file
from .cell import Setup, Unavailable
from .timings import Stopwatch, Timings

_CONTEXT_STEP = 256  # llama.cpp rounds a slot's context up to this
_SLACK = 8  # tokens; the server stops just before a slot is full


class LlamaCpp:
    """The server of llama.cpp inside this process: one slot a request, one thread of Python waiting for each.

    Weights and cache have the dtype of ours. Greedy, and no sampler but the likeliest token.
    """

    name = "llama.cpp"

    def __init__(self, setup: Setup) -> None:
        if missing := [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]:
            raise Unavailable(f"needs {' and '.join(missing)}: pip install 'quietserve[bench]'")
        if setup.subject.model.backbone.device.type != "cpu":
            raise Unavailable("the package at hand computes on a CPU")
        self._setup = setup
        file = setup.subject.scratch / "model.gguf"
        if not file.exists():
            gguf_file.write(setup.subject.lm, file)
        self._server = _serve(setup, file)

    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Submit all prompts at once and wait for the last one."""
        assert depth == 0
        watch = Stopwatch(len(prompts), num_tokens, self._setup.max_s)
        errors: list[str] = []
        threads = [
            threading.Thread(target=self._complete, args=(prompt, _callback(number, watch, errors)))
            for number, prompt in enumerate(prompts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise RuntimeError(f"llama.cpp failed: {errors[0]}")
        return watch.timings()

    def close(self) -> None:
        """End its threads."""
        del self._server

    def _complete(self, prompt: list[int], callback: Callable[[Any], bool]) -> None:
        request = {
            "prompt": prompt,
            "max_tokens": self._setup.room,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "stream": True,
        }
        self._server.handle_completions(request, callback)


def _callback(number: int, watch: Stopwatch, errors: list[str]) -> Callable[[Any], bool]:
    """Takes one request's chunks as they come; True asks for no more of them."""

    def take(chunk: Any) -> bool:
        if "choices" not in chunk:
            errors.append(str(chunk.get("error", chunk)))
            return True
        for token in re.findall(r"<(\d+)>", chunk["choices"][0]["text"]):
            watch.tick(number, int(token))
        return watch.over

    return take


def _serve(setup: Setup, file: Path) -> Any:
    xllamacpp = importlib.import_module("xllamacpp")
    kinds = xllamacpp.ggml_type
    kind = kinds.GGML_TYPE_BF16 if setup.subject.lm.dtype == torch.bfloat16 else kinds.GGML_TYPE_F32
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel = setup.cell.batch
    params.n_ctx = setup.cell.batch * -(-(setup.max_len + _SLACK) // _CONTEXT_STEP) * _CONTEXT_STEP
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setup.num_threads
    params.cache_type_k = params.cache_type_v = kind
    # On a CPU its flash attention computes in half precision and is slower: 3 times at a prompt of 1024.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # nothing is reused from one run to the next
    params.fit_params = False  # it would size the context by the machine's free memory
    params.verbosity = -1
    return xllamacpp.Server(params)
