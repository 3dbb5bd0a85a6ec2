"""Started by `torchrun`: several training runs one after the other, so that torch is imported once."""

import json
import sys

from quietserve.model.training.__main__ import main
from quietserve.model.training.processes import Processes

if __name__ == "__main__":
    leave, Processes.leave = Processes.leave, Processes.wait
    codes = [main(argv) for argv in json.loads(sys.argv[1])]
    leave(Processes(cpu=True))
    sys.exit(max(codes))
