"""Shared by all tests: one thread (the models are tiny), the tests' own helper modules on the path, and no deadlines.

CI draws the same examples every time: what it lands must not depend on luck. Elsewhere every run draws new ones.
"""

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
settings.register_profile("quietserve", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("quietserve")
