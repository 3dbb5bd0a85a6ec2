"""Shared by all tests: one thread (the models are tiny), and the tests' own helper modules on the path."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
