"""The `transformers` library on the same weights: `generate`, and its continuous batching. Greedy; neither thinks."""

import logging
import threading
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.generation.streamers import BaseStreamer

from ..checkpoint import quiet_libraries
from .cell import Setup, Unavailable
from .timings import Stopwatch, Timings

_PAGE = 64  # tokens; from 16 to 256 it makes no difference that could be measured
_AMPLE = 2  # times the blocks needed: with less than 15 % of them free it would let requests wait
_PREFILL = 512  # most tokens of one forward, unless more requests than that decode at once


class Generate:
    """`model.generate` with its own growing cache, all prompts in one batch."""

    name = "transformers"

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Decode all prompts in step."""
        assert depth == 0
        streamer = _Streamer(Stopwatch(len(prompts), num_tokens, self._setup.max_s))
        lm: Any = self._setup.subject.lm
        ids = torch.tensor(prompts, device=lm.device)
        with quiet_libraries(), suppress(_EnoughError):
            lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_greedy(self._setup.room),
                streamer=streamer,
            )
        return streamer.watch.timings()

    def close(self) -> None:
        """Nothing is held."""


class ContinuousBatching:
    """The library's continuous batching: a paged cache, and a thread that decodes what is in its queue.

    Its cache is sized for this cell: by itself it would take a share of the machine's free memory.
    """

    name = "transformers-cb"

    def __init__(self, setup: Setup) -> None:
        self._setup, cell, lm = setup, setup.cell, setup.subject.lm
        if not hasattr(lm, "init_continuous_batching"):
            raise Unavailable(f"{type(lm).__name__} has no continuous batching")
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=_AMPLE * cell.batch * (setup.max_len // _PAGE + 2),
            max_batch_tokens=max(_PREFILL, cell.batch),
            allow_block_sharing=False,  # a prompt is read once, and measured
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,
        )
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # what matters is raised
        self._router = _Router()
        with torch.inference_mode(False):
            self._manager: Any = lm.init_continuous_batching(_greedy(setup.room), config)  # pyright: ignore
            self._manager.output_router = self._router
            self._manager.start()

    def run(self, prompts: list[list[int]], depth: int, num_tokens: int) -> Timings:
        """Put all prompts into its queue and wait for the last one."""
        assert depth == 0
        names = [f"{id(prompts)}-{number}" for number in range(len(prompts))]
        watch = Stopwatch(len(prompts), num_tokens, self._setup.max_s)
        self._router.begin(names, watch, self._manager)
        for name, prompt in zip(names, prompts, strict=True):
            self._manager.add_request(prompt, name, max_new_tokens=self._setup.room, streaming=True, eos_token_id=-1)
        self._router.wait()
        return watch.timings()

    def close(self) -> None:
        """Stop its thread; the model gets its own attention back."""
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()


class _EnoughError(Exception):
    """Ends a `generate` that has been measured."""


class _Streamer(BaseStreamer):
    """Is handed the prompts first, and then the newest tokens of all of them."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self._steps = 0

    def put(self, value: Tensor) -> None:
        """Note a step."""
        if self._steps:
            for request, token in enumerate(value.tolist()):
                self.watch.tick(request, token, self._steps)
        self._steps += 1
        if self.watch.over:
            raise _EnoughError

    def end(self) -> None:
        """Nothing more to come."""


class _Router(OutputRouter):
    """Notes tokens in the thread that makes them: a reader of the output queue would have to wait for its turn."""

    def begin(self, names: list[str], watch: Stopwatch, manager: Any) -> None:
        """Expect these requests."""
        self._numbers = {name: number for number, name in enumerate(names)}
        self._watch, self._manager = watch, manager
        self._first_batch = manager.__dict__.get("current_batch", 0)
        self._unfinished = set(names)
        self._error: str | None = None
        self._done = threading.Event()

    def wait(self) -> None:
        """Return when all are finished. Raises RuntimeError with the reason of a request that failed."""
        while not self._done.wait(timeout=1):
            if not self._manager.is_running():
                break
        if self._unfinished or self._error:
            raise RuntimeError(f"continuous batching failed: {self._error or 'its thread ended'}")

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Tokens of one forward."""
        for output in outputs:
            self._take(output)

    def deliver(self, output: GenerationOutput) -> None:
        """A request that failed, or was cancelled."""
        self._take(output)

    def _take(self, output: GenerationOutput) -> None:
        number = self._numbers.get(output.request_id)
        if number is None:
            return  # of a run that was cut
        self._error = self._error or output.error
        if len(output.generated_tokens) > len(self._watch.tokens[number]):
            forwards = self._manager.current_batch - self._first_batch
            self._watch.tick(number, output.generated_tokens[-1], forwards)
        if output.is_finished() or self._watch.over:
            self._finish(output)

    def _finish(self, output: GenerationOutput) -> None:
        if not output.is_finished():
            self._manager.cancel_request(output.request_id)
        self._unfinished.discard(output.request_id)
        if not self._unfinished:
            self._done.set()


def _greedy(num_tokens: int) -> GenerationConfig:
    """To the end, whatever is chosen: -1 is no id, and None would mean the checkpoint's own."""
    return GenerationConfig(max_new_tokens=num_tokens, do_sample=False, use_cache=True, eos_token_id=-1, pad_token_id=0)
