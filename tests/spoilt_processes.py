"""Run by `torch.distributed.run` in two processes: a training run in which one of them meets a loss that is no number.

Usage: spoilt_processes.py RECIPE. Process 1 meets it at the third step.
"""

import sys
from typing import Any

import torch.distributed as dist
from torch import Tensor

import perceiver_vl.training.trainers
from perceiver_vl.training import train
from perceiver_vl.training.losses import pretraining_losses
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.utils.errors import PREEMPTED, PreemptedError

calls = 0


def losses(*given: Any) -> dict[str, Tensor]:
    """Of the objectives, VTM's spoilt in one process at one step."""
    global calls
    calls += 1
    found = pretraining_losses(*given)
    return {name: loss * (float("nan") if calls == 3 and dist.get_rank() == 1 else 1) for name, loss in found.items()}


perceiver_vl.training.trainers.pretraining_losses = losses  # type: ignore[attr-defined,assignment]
try:
    train(read_recipe(sys.argv[1]), progress=False)
except PreemptedError as stopped:
    print(stopped, file=sys.stderr, flush=True)
    sys.exit(PREEMPTED)
