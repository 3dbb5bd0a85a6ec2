"""Several processes, with a part of the model's layers in each: the first one decides, and the others follow.

The first process (rank 0) does all that it would do alone, and everything but the layers is its own: embeddings, markers, output
layer, mixing head, schedule, choices. What a forward does between embeddings and output layer, all must do together, each with its
own heads and their keys and values; so must they what changes a cache. Before it does either, the first process says so: a few
integers, and for a forward the rows' embeddings [B, R, H], as much as any of the sums that layers exchange. The others do
nothing else than to wait for that.

Integers go through a group of their own in the machine's memory (gloo), which waits without computing; embeddings and sums through
the device's (NCCL on a GPU). That the first process is idle and not gone, it says every few seconds.

Whatever interrupts one process between two words, leaves the others waiting for its part of a sum. Nobody tries to
make that good: all of them end.
"""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum, auto
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
import torch.distributed as dist
from torch import Tensor

from .backbone import Attend, Backbone, Watch, causal
from .cache import Cache, CachedAttention
from .checkpoint_folder import first_line
from .shards import shed_ends
from .thoughts import Rows

BEAT_S = 5.0  # between signs of life; twice that, and a process that is gone has been missed
_MOST_SILENCE = timedelta(minutes=5)  # longer, and whoever speaks hangs
_MEETING = timedelta(minutes=30)  # that the slowest may take to load
_FIELDS = ("positions", "slots", "columns", "base", "own_from", "own")  # of rows; the tokens have become embeddings
_WORD = 9  # a call, a cache's number and its four sizes, three numbers of the call


class LostError(RuntimeError):
    """A process is gone, or does something else than the others; the message is one line."""


class Call(IntEnum):
    """What all processes are to do."""

    BEAT = auto()  # nothing
    CACHED = auto()  # a forward of N rows through a cache
    CAUSAL = auto()  # a forward of [B, R] without one
    COPY = auto()  # between slots: source, target, length
    CLEAR = auto()  # a slot
    FORGET = auto()  # a cache
    LEAVE = auto()


class Processes:
    """The processes that hold a model together: those of a `torchrun`, or this one alone.

    Args:
        rank: which of them this is, from 0.
        size: how many there are.
        local_rank: which of them on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self._local_rank = rank, size, local_rank
        self._control: Any = None
        self._leader: Leader | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Processes":
        """As `torchrun` says it."""
        environ = os.environ if environ is None else environ
        size = int(environ.get("WORLD_SIZE", "1"))
        return cls(int(environ["RANK"]), size, int(environ["LOCAL_RANK"])) if size > 1 else cls()

    @property
    def failure(self) -> LostError | None:
        """Why nothing more can be done together."""
        return self._leader.failure if self._leader else None

    def join(self, device: str) -> str:
        """Meet the others, who do so too; returns where this one computes: for `cuda` on a GPU of its own.

        Raises ValueError for a device that does not go with it, and LostError where the others do not come.
        """
        if self.size == 1:
            return device
        accelerator = torch.accelerator.current_accelerator()
        kind = accelerator.type if accelerator else "cpu"
        if device != kind:
            raise ValueError(f"{device!r}: {self.size} processes have a device each here; it must be {kind!r}")
        if kind != "cpu":
            device = f"{kind}:{self._local_rank}"
            if self._local_rank >= torch.accelerator.device_count():
                raise ValueError(f"there are {torch.accelerator.device_count()} devices, and no {device!r}")
            torch.accelerator.set_device_index(self._local_rank)
        try:
            dist.init_process_group(
                dist.get_default_backend_for_device(device),
                rank=self.rank,
                world_size=self.size,
                timeout=_MEETING,
                device_id=None if kind == "cpu" else torch.device(device),
            )
            self._control = dist.new_group(backend="gloo", timeout=_MOST_SILENCE)
        except Exception as error:  # many kinds, as many as there are ways to be found
            raise LostError(f"the {self.size} processes have not met: {first_line(error)}") from error
        return device

    def lead(self, backbone: Backbone) -> None:
        """From now on have the others follow, for the first process; nothing where it is alone."""
        if self.size > 1:
            self._leader = Leader(backbone, self._control)

    def follow(self, backbone: Backbone) -> None:
        """Do as the first process does, until it has had enough; for the others. Raises LostError."""
        try:
            Follower(backbone, self._control).run()
        except Exception as error:
            raise LostError(f"process {self.rank} of {self.size} can follow no longer: {first_line(error)}") from error

    def dismiss(self) -> None:
        """Let the others follow no longer. Raises LostError where one of them is gone already."""
        if self._leader:
            self._leader.close()
            self._leader = None

    def leave(self) -> None:
        """End what `join` began. Raises LostError where another one is gone already."""
        self.dismiss()
        if self._control:
            dist.destroy_process_group()


class Leader:
    """Has all processes do what this one does to its layers and caches; from any thread, one thing at a time.

    Whatever fails in the middle of that is the end: `failure` is then set, and all that follows raises LostError.

    Args:
        backbone: whose body is a part. From now on it asks the others; it is not to be changed any more.
        control: the group for integers.
    """

    def __init__(self, backbone: Backbone, control: Any) -> None:
        self.failure: LostError | None = None
        self._control, self._lock, self._leaving = control, threading.Lock(), threading.Event()
        self._numbers: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()
        self._counter = itertools.count()
        self._gone: deque[int] = deque()  # caches that are no more
        backbone.leader = self
        threading.Thread(target=self._beat, name="quietserve-beat", daemon=True).start()

    def run(
        self,
        body: Callable[[Tensor, Tensor, Attend, Watch | None], Tensor],
        embeds_BRH: Tensor,
        positions_BR: Tensor,
        attend: Attend,
        watch: Watch | None,
    ) -> Tensor:
        """A backbone's forward, through all processes' parts; `watch` is shown what this one computes, which is the same."""
        with self._together():
            if isinstance(attend, CachedAttention) and attend.rows:
                self._say(Call.CACHED, attend.cache, len(attend.rows))
                self._send(torch.tensor([getattr(attend.rows, field) for field in _FIELDS]))
            else:
                assert attend is causal, "no other attention can be told of"
                self._say(Call.CAUSAL, None, *positions_BR.shape)
                self._send(positions_BR.cpu().contiguous())
            dist.broadcast(embeds_BRH.contiguous(), 0)
            return body(embeds_BRH, positions_BR, attend, watch)

    def copy(self, cache: Cache, source: int, target: int, length: int) -> None:
        """As `Cache.copy`, in the other processes."""
        with self._together():
            self._say(Call.COPY, cache, source, target, length)

    def clear(self, cache: Cache, slot: int) -> None:
        """As `Cache.clear`, in the other processes."""
        with self._together():
            self._say(Call.CLEAR, cache, slot)

    def close(self) -> None:
        """Have the others follow no longer, and wait until they do not. Raises LostError."""
        self._leaving.set()
        with self._together():
            self._say(Call.LEAVE)
            dist.barrier(self._control)

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S) and not self.failure:
            try:
                with self._together():
                    if not self._leaving.is_set():
                        self._say(Call.BEAT)
            except LostError:
                return

    @contextmanager
    def _together(self) -> Iterator[None]:
        with self._lock:
            if self.failure:
                raise LostError(str(self.failure))
            try:
                yield
            except BaseException as error:
                self.failure = LostError(f"the processes are together no longer: {first_line(error)}")
                raise self.failure from error

    def _say(self, call: Call, cache: Cache | None = None, *numbers: int) -> None:
        while self._gone:
            self._send(_word(Call.FORGET, self._gone.popleft()))
        sizes = (-1, 0, 0, 0, 0) if cache is None else (self._number(cache), *cache.sizes)
        self._send(_word(call, *sizes, *numbers))

    def _number(self, cache: Cache) -> int:
        if cache not in self._numbers:
            self._numbers[cache] = number = next(self._counter)
            finalize(cache, self._gone.append, number)  # not said at once: that may be in the middle of anything
        return self._numbers[cache]

    def _send(self, numbers: Tensor) -> None:
        dist.broadcast(numbers, 0, group=self._control)


class Follower:
    """Does what the leader says, with this process's layers and caches of its own.

    Args:
        backbone: as the leader's; its embeddings and output layer go.
        control: the group for integers.
    """

    def __init__(self, backbone: Backbone, control: Any) -> None:
        self._backbone, self._control = backbone, control
        self._caches: dict[int, Cache] = {}
        shed_ends(backbone.lm)

    @torch.inference_mode()
    def run(self) -> None:
        """Until the leader has had enough. Raises RuntimeError where it goes without a word, and whatever a forward does."""
        while True:
            call, number, *sizes, first, second, third = self._hear(_WORD).tolist()
            if call == Call.LEAVE:
                dist.barrier(self._control)
                return
            if call == Call.CAUSAL:
                self._causal(first, second)
            elif call == Call.FORGET:
                self._caches.pop(number, None)  # it may have been none that anything was read into
            elif call != Call.BEAT:
                self._change(call, self._cache(number, sizes), first, second, third)

    def _change(self, call: int, cache: Cache, first: int, second: int, third: int) -> None:
        if call == Call.CACHED:
            self._cached(cache, first)
        elif call == Call.COPY:
            cache.copy(first, second, third)
        elif call == Call.CLEAR:
            cache.clear(first)

    def _cache(self, number: int, sizes: list[int]) -> Cache:
        """What stands for the leader's cache of this number: made when it is first named."""
        if number not in self._caches:
            self._caches[number] = Cache(self._backbone, *sizes)
        return self._caches[number]

    def _cached(self, cache: Cache, num_rows: int) -> None:
        fields, rows = self._hear(len(_FIELDS), num_rows), Rows()
        for name, values in zip(_FIELDS, fields.tolist(), strict=True):
            setattr(rows, name, values)
        self._forward(fields[:1], cache.attend(rows))

    def _causal(self, num_texts: int, num_rows: int) -> None:
        self._forward(self._hear(num_texts, num_rows), causal)

    def _forward(self, positions_BR: Tensor, attend: Attend) -> None:
        backbone = self._backbone
        shape = (*positions_BR.shape, backbone.hidden_size)
        embeds_BRH = torch.empty(shape, dtype=backbone.dtype, device=backbone.device)
        dist.broadcast(embeds_BRH, 0)
        backbone(embeds_BRH, positions_BR.to(backbone.device), attend)

    def _hear(self, *shape: int) -> Tensor:
        numbers = torch.empty(shape, dtype=torch.long)
        dist.broadcast(numbers, 0, group=self._control)
        return numbers


def _word(*numbers: int) -> Tensor:
    return torch.tensor([*numbers, *[0] * (_WORD - len(numbers))])
