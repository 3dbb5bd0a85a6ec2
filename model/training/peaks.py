"""The most memory that one training step needs, found in a fresh process that may not have more than a limit."""

import ctypes
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .steps import Size, Step, draw_texts, open_model

_M_MMAP_THRESHOLD, _KEPT_BELOW = -3, 2**20  # of mallopt(3), bytes
_FIRST_LENGTH = 8  # of a first, small step: what libraries take and keep is not the step's


@dataclass(frozen=True)
class Place:
    """Where steps are taken, and how far they may go."""

    sizes: Mapping[str, int]  # of the model
    dtype: str
    device: str
    threads: int
    seed: int
    memory_limit: float  # GiB, above what is held before the step
    time_limit: float  # seconds of one process


def peak_apart(place: Place, size: Size, way: str) -> dict[str, Any]:
    """Weigh a step in a process of its own: `peak_bytes`, or `given_up` and why."""
    context = get_context("forkserver")  # which has imported everything, and nothing more
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(theirs, place, size, way), daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed here
    try:
        if not ours.poll(place.time_limit):
            return {"given_up": f"over {place.time_limit:g} s"}
        with suppress(EOFError):
            return ours.recv()
        process.join()
        return {"given_up": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        ours.close()


def _send_peak(connection: Connection, place: Place, size: Size, way: str) -> None:
    connection.send(peak(place, size, way))


def peak(place: Place, size: Size, way: str) -> dict[str, Any]:
    """Weigh a step in this process, whose memory it limits for good.

    What is counted is above what is held before the step: weights, gradients and libraries.
    """
    torch.set_num_threads(place.threads)
    model = open_model(place.sizes, place.dtype, place.device, place.seed)
    step = Step(way, model, size)
    step.take(draw_texts(model, replace(size, length=_FIRST_LENGTH), place.seed), place.seed)
    batch = draw_texts(model, size, place.seed)
    meter = _CudaMemory(place.device) if place.device.startswith("cuda") else _ProcessMemory()
    meter.limit(place.memory_limit)
    began = time.perf_counter()
    try:
        step.take(batch, place.seed)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            return {"given_up": f"over {place.memory_limit:g} GiB"}
        raise
    return {"peak_bytes": meter.peak(), "seconds": time.perf_counter() - began}


class _ProcessMemory:
    """Resident memory by Linux's own count, which can be told to forget an earlier peak (that of `getrusage` cannot)."""

    def __init__(self) -> None:
        # Left to itself glibc keeps blocks of up to 32 MiB that were freed, and two weighings differ by a fourth.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _KEPT_BELOW)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def limit(self, gib: float) -> None:
        most = _status("VmData") + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    def peak(self) -> int:
        return max(0, _status("VmHWM") - self._before)  # the kernel's two counts may lag by some pages


class _CudaMemory:
    """What torch has allocated on a GPU."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def limit(self, gib: float) -> None:
        whole = torch.cuda.get_device_properties(self._device).total_memory
        share = (torch.cuda.memory_reserved(self._device) + gib * 2**30) / whole
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before


def _status(name: str) -> int:
    """Bytes of one line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
