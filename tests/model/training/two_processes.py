"""Started by `torchrun`: several runs of `train quiet-star` one after the other, so that torch is imported once."""

import json
import sys

from quietserve.model.training import quiet_star
from quietserve.model.training.processes import Processes

if __name__ == "__main__":
    leave, Processes.leave = Processes.leave, Processes.wait
    codes = [quiet_star.main(argv) for argv in json.loads(sys.argv[1])]
    leave(Processes(cpu=True))
    sys.exit(max(codes))
