"""Run by `torch.distributed.run` in two processes: a training run, and its end again after a resume.

Usage: two_processes.py FOLDER, where FOLDER/recipe.yaml is the run of six steps, two epochs.
"""

import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.utils.launch import leave_at_once

folder = Path(sys.argv[1])
recipe = read_recipe(folder / "recipe.yaml")
train(recipe, progress=False)

rank = dist.get_rank()
if rank == 0:
    shutil.copy(recipe.output / "model.safetensors", folder / "uninterrupted.safetensors")
    shutil.rmtree(recipe.output / "checkpoints" / "checkpoint-6")
dist.barrier()
train(recipe, resume=True, progress=False)

leave_at_once()
