"""Run by `torch.distributed.run` in two processes: a training run, its end again after a resume, contrastive losses.

Usage: two_processes.py FOLDER, where FOLDER/recipe.yaml is the run of six steps, two epochs.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from perceiver_vl.objectives import contrastive_loss
from perceiver_vl.recipe import read_recipe
from perceiver_vl.training import train

folder = Path(sys.argv[1])
recipe = read_recipe(folder / "recipe.yaml")
train(recipe, progress=False)

rank = dist.get_rank()
if rank == 0:
    shutil.copy(recipe.output / "model.safetensors", folder / "uninterrupted.safetensors")
    shutil.rmtree(recipe.output / "checkpoints" / "checkpoint-6")
dist.barrier()
train(recipe, resume=True, progress=False)

draw = torch.Generator().manual_seed(rank)
vision, text = (torch.randn(3, 7, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
loss = contrastive_loss(vision, text, scale)
loss.backward()
found = {"vision": vision, "text": text, "scale": scale, "loss": loss}
gradients = {f"{name}_grad": found[name].grad for name in ("vision", "text", "scale")}
tensors = {name: tensor.detach().contiguous() for name, tensor in (found | gradients).items()}
save_file(tensors, folder / f"contrast-{rank}.safetensors")
dist.destroy_process_group()
# Everything is written. At the interpreter's own end a thread of gloo may still ask for its lock; Python then ends that
# thread in the middle of C++, and that aborts the process ("terminate called without an active exception").
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
