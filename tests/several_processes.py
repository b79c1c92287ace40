"""What the objectives ask, in one process or in several: losses, gradients, and the weights after some steps.

Run by `torch.distributed.run` in N processes: several_processes.py FOLDER writes FOLDER/found-N.safetensors.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from perceiver_vl import ComputeBudget, MediaError, PerceiverVLError, PerceiverVLForPreTraining, PerceiverVLForRetrieval
from perceiver_vl.data.batching import SharedBatches
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.media.sampling import Frames
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.muon import muon_with_adamw
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.sharding import UNITS, make_shardable, whole_model
from perceiver_vl.utils.distributed import rank_and_world_size
from perceiver_vl.utils.launch import leave_at_once
from tiny import tiny_batch, tiny_encoders, tiny_model, tiny_processor, tiny_stretches

sys.path.append(str(Path(__file__).with_name("tasks")))
from small_tasks import ANSWERS, PROCESSOR, Pictures, model_of, records_of

EVERYTHING = Objectives({"vtm": 1, "mlm": 1, "vtc": 1, "ttc": 1, "mixed_vtm": 1, "mixed_vtc": 1}, hard_negatives=True)
NOTHING = {"vtm": 0.0, "mlm": 0.0}
CASES: dict[str, tuple[Objectives, int]] = {
    **{f"{name} of 7": (Objectives(NOTHING | {name: 1.0}), 7) for name in OBJECTIVES},
    "structure of 7": (Objectives(NOTHING | {"structure": 1.0}, structure_levels=3), 7),
    "vtc of 7, weighed and mixed": (Objectives(NOTHING | {"vtc": 1.0}, focal_gamma=0.5, mixed_negatives=3), 7),
    "vtc of 7, one way": (Objectives(NOTHING | {"vtc": 1.0}, vtc_directions="vision_to_text"), 7),
    "momentum of 7, with a queue": (Objectives(NOTHING | {"momentum": 1.0}, queue_size=17, momentum_decay=0.5), 7),
    "mpm of 7, in chunks": (Objectives(NOTHING | {"mpm": 1.0}, chunk=2, joint_share=0.7, mpm_targets=0.6), 7),
    "moments of 7, aligned": (Objectives(NOTHING | {"moments": 1.0}, moment_alignment=0.7), 7),
    "all of 7": (EVERYTHING, 7),
    "all of 7, in chunks": (replace(EVERYTHING, chunk=2), 7),
    "all of 8, half of it jointly": (replace(EVERYTHING, joint_share=0.5), 8),
    "moments of 7, in chunks": (Objectives(NOTHING | {"moments": 1.0}, chunk=2), 7),
    "moments of 2": (Objectives(NOTHING | {"moments": 1.0}), 2),
    "all of 2": (EVERYTHING, 2),  # in three processes one has nothing
}
"""Objectives, and examples in all processes."""


def some_batch(pairs: int, objectives: Objectives) -> PreTrainingBatch:
    """Clips of different lengths, captions with different numbers of masked words; or stretches of these clips."""
    if objectives.needs_stretches:
        return tiny_stretches(pairs)
    batch = tiny_batch(pairs)
    batch.frame_mask[2:4, 2:] = 0
    return batch


def part_of(batch: PreTrainingBatch) -> PreTrainingBatch:
    """This process's, without the frames that none of its clips has; of nothing, none of a stand-in."""
    rank, processes = rank_and_world_size()
    [rows] = SharedBatches(range(len(batch)), len(batch), rank, processes, drop_last=False)  # type: ignore[arg-type]
    whole = {field.name: value for field in fields(batch) if (value := getattr(batch, field.name)) is not None}
    part = {
        name: value[[max(row, ~row) for row in rows]][: sum(row >= 0 for row in rows)] for name, value in whole.items()
    }
    if batch.edges is not None:
        return PreTrainingBatch(**part)
    longest = int(whole["frame_mask"][rows if rows[0] >= 0 else [0]].sum(1).max())
    for name in ("pixel_values", "frame_mask"):
        part[name] = part[name][:, :longest]
    return PreTrainingBatch(**part)


def trained(
    objectives: Objectives,
    pairs: int,
    steps: int,
    dtype: torch.dtype,
    wrap: Callable[[Any], nn.Module],
    muon: bool = False,
    **config: Any,
) -> Iterator[tuple[str, Tensor]]:
    """The loss and gradients of the first step, and the weights after `steps` of gradient descent, or of Muon, whole,
    and what the encoder then makes of all clips.
    """
    model = tiny_model(PerceiverVLForPreTraining, layer_drop=0.5, **config).to(dtype).train()
    module = PreTrainingModule(model, objectives)
    wrapped = wrap(module)
    register_fsdp_forward_method(module, "encode")
    optimizer: torch.optim.Optimizer = (
        muon_with_adamw(wrapped, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
        if muon
        else torch.optim.SGD(wrapped.parameters(), lr=0.01)
    )
    batch = part_of(some_batch(pairs, objectives))
    for step in range(steps):
        model.seed_layer_drop(step)
        loss, _ = wrapped(batch, [FULL])
        loss.backward()
        if step == 0:
            yield "loss", mean_of_all(loss.detach().clone())
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    yield f"gradient {name}", whole_tensor(parameter.grad).reshape(-1).clone()
        optimizer.step()
        optimizer.zero_grad()
        if module.momentum is not None:
            module.momentum.follow(model, step + 1)
            for side, queued in module.momentum.queue.items():
                if objectives.queue_size:
                    yield f"weight of the queue of {side} {step}", queued.reshape(-1).clone()
    clips = some_batch(pairs, objectives).pixel_values.to(dtype)
    clips = clips.flatten(0, 1) if objectives.needs_stretches else clips
    with torch.no_grad():
        yield "weight of what is encoded", module.eval().encode(pixel_values=clips)
    for name, value in whole_model(model).state_dict().items():
        yield f"weight {name}", value.reshape(-1).clone()


FULL = ComputeBudget()


def whole_tensor(value: Tensor) -> Tensor:
    whole: Tensor = value.detach().full_tensor() if hasattr(value, "full_tensor") else value.detach()
    return whole


def mean_of_all(value: Tensor) -> Tensor:
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(value)
    return value / rank_and_world_size()[1]


def data_parallel(model: nn.Module) -> nn.Module:
    return model if rank_and_world_size()[1] == 1 else DistributedDataParallel(model, find_unused_parameters=True)


def sharded(model: nn.Module) -> nn.Module:
    """By `fully_shard`, as accelerate calls it on GPUs; on processors its Accelerator would not."""
    if rank_and_world_size()[1] == 1:
        return model
    make_shardable(model)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=UNITS
    )
    stand_in: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), mixed_precision="no"
    )
    whole: nn.Module = fsdp2_prepare_model(stand_in, model)
    return whole


def elastic_gradients() -> Iterator[tuple[str, Tensor]]:
    """Of three budgets, the smaller ones taught by the whole."""
    model = tiny_model(PerceiverVLForPreTraining, layer_drop=0.5).train()
    wrapped, batch = data_parallel(PreTrainingModule(model, EVERYTHING, 0.5)), part_of(some_batch(7, EVERYTHING))
    model.seed_layer_drop(1)
    budgets = [FULL, ComputeBudget(latents=3, cross_attentions=1), ComputeBudget(frames=2, text_latents=2)]
    loss, _ = wrapped(batch, budgets)
    loss.backward()
    yield "loss", mean_of_all(loss.detach().clone())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield f"gradient {name}", parameter.grad.reshape(-1)


def found() -> dict[str, Tensor]:
    """All of it, by case and name."""
    everything: dict[str, Tensor] = {}

    def keep(case: str, values: Iterator[tuple[str, Tensor]]) -> None:
        everything.update({f"{case}: {name}": value.contiguous() for name, value in values})

    for case, (objectives, pairs) in CASES.items():
        steps = 3 if case.startswith("all") or "queue" in case else 1
        config = tiny_encoders() if "structure" in case else {"masked_patches": "mpm" in case}
        keep(case, trained(objectives, pairs, steps, torch.float64, data_parallel, **config))
    keep("float32", trained(EVERYTHING, 7, 3, torch.float32, data_parallel))
    keep("sharded", trained(EVERYTHING, 7, 3, torch.float64, sharded, tie_word_embeddings=True))
    keep("sharded, in chunks", trained(replace(EVERYTHING, chunk=2), 7, 1, torch.float64, sharded))
    contrast = Objectives(NOTHING | {"vtc": 1.0})
    keep("sharded, contrast alone", trained(contrast, 7, 1, torch.float64, sharded, tie_word_embeddings=True))
    keep("Muon, sharded", trained(EVERYTHING, 7, 3, torch.float64, sharded, muon=True))
    keep("elastic", elastic_gradients())
    return everything


class Broken:
    """Clips of the world, some of which cannot be read."""

    def __init__(self, *indices: int, clips: int = 11) -> None:
        self.rank_and_world_size, self.indices = World("train", clips, size=16), indices

    def __len__(self) -> int:
        return len(self.rank_and_world_size)

    def record(self, index: int) -> Record:
        return self.rank_and_world_size.record(index)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        if index in self.indices:
            raise MediaError(f"{index}.mp4", "damaged")
        return self.rank_and_world_size.frames(index, num_frames, rng)


def scores() -> dict[str, Any]:
    """Evaluations that the processes share, with files that cannot be read, less the seconds they take."""
    clips = Broken(3, 4)
    processor = tiny_processor([text for index in range(11) for text in clips.record(index).texts])
    model = tiny_model(PerceiverVLForRetrieval, vocab_size=len(processor.tokenizer))
    how: dict[str, Any] = {"batch_size": 2, "max_failed_fraction": 1.0, "shared": True}
    ranking: dict[str, Any] = {"streams": ("multi", "mixed", "single", "cascade", "cascade-single"), "shortlist": 3}
    found = {"retrieval": evaluate_retrieval(model, processor, clips, num_frames=2, **ranking, **how).to_dict()}
    records = [
        replace(record, answers=(ANSWERS[index % 4],))
        for index, record in enumerate(records_of("question-answering", 9))
    ]
    asker, some = model_of("question-answering"), Pictures(records, broken={"20.mp4", "80.mp4"})
    asked = example_task_of("question-answering").evaluate(asker, PROCESSOR, some, **how)
    found["task"] = {**asked.to_dict(), "predictions": [vars(prediction) for prediction in asked.predictions]}
    for name, more in (("strict", {"strict": True}), ("too many", {"max_failed_fraction": 0.1})):
        try:
            evaluate_retrieval(
                model, processor, Broken(*range(15, 19), clips=22), num_frames=2, **ranking, **how | more
            )
        except PerceiverVLError as error:
            found[name] = {"error": str(error).split("of ", 1)[-1]}  # several find out earlier, when some are left
    told: dict[str, Any] = json.loads(json.dumps(found), object_pairs_hook=without_seconds)
    return told


def without_seconds(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if not key.startswith("seconds")}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    result, said = found(), scores()
    if dist.get_rank() == 0:
        save_file(
            {name: value.clone() for name, value in result.items()},
            Path(sys.argv[1]) / f"found-{rank_and_world_size()[1]}.safetensors",
        )
        Path(sys.argv[1], f"scores-{rank_and_world_size()[1]}.json").write_text(json.dumps(said))
    leave_at_once()
