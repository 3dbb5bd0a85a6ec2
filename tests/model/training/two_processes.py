"""Two processes as `torchrun --standalone` starts them, but forked from this one; torch is imported once for all.

Argument: JSON, the command lines of several training runs, which they do one after the other.
"""

import json
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from quietserve.model.training import __main__, quiet_star, score  # noqa: F401: imported before the fork
from quietserve.model.training.processes import Processes


def run(runs: list[list[str]]) -> int:
    leave, Processes.leave = Processes.leave, Processes.wait
    codes = [__main__.main(argv) for argv in runs]
    leave(Processes(cpu=True))
    return max(codes)


if __name__ == "__main__":
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0)
    sys.exit(max(elastic_launch(config, run)(json.loads(sys.argv[1])).values()))
