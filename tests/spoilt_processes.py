"""Run by `torch.distributed.run` in two processes: a training run in which one of them meets a loss that is no number.

Usage: spoilt_processes.py RECIPE. Process 1 meets it at the third step.
"""

import sys
from dataclasses import replace

import torch.distributed as dist

from perceiver_vl.training import train
from perceiver_vl.training.losses.base import EncodedBatch, ObjectiveOutput
from perceiver_vl.training.losses.vtm import VTM
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.utils.errors import PREEMPTED, PreemptedError

calls, forward = 0, VTM.forward


def spoilt(self: VTM, batch: EncodedBatch) -> ObjectiveOutput:
    """The loss of VTM, which is no number in one process at one step."""
    global calls
    calls += 1
    found = forward(self, batch)
    return replace(found, loss=found.loss * (float("nan") if calls == 3 and dist.get_rank() == 1 else 1))


VTM.forward = spoilt  # type: ignore[method-assign]
try:
    train(read_recipe(sys.argv[1]), progress=False)
except PreemptedError as stopped:
    print(stopped, file=sys.stderr, flush=True)
    sys.exit(PREEMPTED)
