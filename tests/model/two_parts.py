"""Two of these at once hold a model together: the first asks it what it is told to, and says what came of it.

In the end a part is lost.
"""

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from outcomes import outcome, states

from quietserve.model import parallel
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import Loaded, load
from quietserve.model.linears import PackedLinear
from quietserve.model.parallel import LostError, Processes
from quietserve.model.shards import SummedLinear

SILENCE_S, IDLE_S = 4, 6


def answer(processes: Processes, job: dict[str, Any]) -> dict[str, Any] | None:
    loaded = part(processes, job)
    if processes.rank:
        processes.follow(loaded.model.backbone)
        return None
    processes.lead(loaded.model.backbone)
    found = outcome(loaded, **job["besides"])
    processes.dismiss()
    sums = [module.part for module in loaded.model.modules() if isinstance(module, SummedLinear)]
    return found | {"bytes": loaded.model.num_bytes, "packed": sum(isinstance(part, PackedLinear) for part in sums)}


def part(processes: Processes, job: dict[str, Any]) -> Loaded:
    loaded = load(job["folder"], num_parts=processes.size)
    if job["lean"]:
        loaded.model.speed_up()
    return loaded


def lose(processes: Processes, job: dict[str, Any]) -> dict[str, Any] | None:
    """Be idle for longer than anybody may be silent, and work; then wipe a slot, which the other one dies of."""
    backbone, said = (loaded := part(processes, job)).model.backbone, []
    if processes.rank:
        Cache.clear = broken
        try:
            processes.follow(backbone)
        except LostError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(3)
    processes.lead(backbone)
    time.sleep(IDLE_S)
    parallel.Leader.clear, clear = (lambda *_: None), parallel.Leader.clear
    alive = len(states(loaded.model))
    parallel.Leader.clear = clear
    cache = Cache(backbone, slots=1, max_len=8, max_depth=0)
    cache.clear(0)
    while not processes.failure:  # it comes to light by itself
        time.sleep(0.1)
    for attempt in (lambda: cache.clear(0), lambda: states(loaded.model), processes.leave):
        try:
            attempt()
        except LostError as error:
            said.append(str(error))
    return {"alive": alive, "said": said}


def broken(cache: Cache, slot: int) -> None:
    raise MemoryError("no room for nothing")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel.BEAT_S, parallel._MOST_SILENCE = 0.2, timedelta(seconds=SILENCE_S)
    processes, jobs = Processes.from_environment(), json.loads(sys.argv[1])
    assert processes.join("cpu") == "cpu"
    found = [answer(processes, job) for job in jobs]
    found.append(lose(processes, jobs[0]))
    if not processes.rank:
        print(json.dumps(found), flush=True)
