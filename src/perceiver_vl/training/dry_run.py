"""A look at a training run before it begins: its model, its data, and what they will cost.

One small batch is read and goes through the model once; nothing is written.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.encoder import PerceiverVLEncoder
from perceiver_vl.tasks.dataset import task_loss
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.training.distillation import DistillationModule
from perceiver_vl.training.elastic import ElasticTaskModule, budgets_of_step
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.recipe import DataSource, Recipe
from perceiver_vl.training.run import checked_arguments, examples_of, sampler_for
from perceiver_vl.training.setup import prepare_start
from perceiver_vl.training.stages import part_of
from perceiver_vl.training.statistics import memory
from perceiver_vl.utils.errors import within

_BYTES_A_PARAMETER = 16
"""In float32: the parameter, its gradient and the two moments of Adam."""
_EXAMPLES, _MOST_EXAMPLES = 2, 32


@dataclass
class SplitFound:
    """How many clips a split has, and how many of them are usable."""

    split: str
    clips: int
    usable: int


@dataclass
class DryRun:
    """What a run would be.

    parameters: by part of the model. fresh: parts that `initialise.model` lacks. flops_per_example: of a forward
    pass at all cross-attentions, a multiply-add counting as two (with the backward pass, three times as many). batch:
    examples of one process at a time; examples_per_step: of all processes, accumulated. memory: bytes of one process:
    `weights` are parameters, gradients and Adam's moments in float32, `activations` what is kept for the backward pass
    of a batch or of a chunk of it, without activation checkpointing (of an elastic recipe at the dearest budgets that
    it may draw), `program` what Python and its libraries hold in main memory.
    """

    model: str
    task: str | None
    parameters: dict[str, int]
    fresh: list[str]
    flops_per_example: int
    steps: int
    batch: int
    examples_per_step: int
    memory: dict[str, int]
    data: list[SplitFound]
    skipped: list[SkippedSample]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@within("", "task")
@within("data", "max_failed_fraction")
def dry_run(recipe: Recipe, processes: int = 1) -> DryRun:
    """Do all that `train` does before its first step, and read one small batch of the training clips.

    Raises what `train` would raise.
    """
    program = int(memory(torch.device("cpu")).get("memory_mib", 0) * 2**20)
    arguments = checked_arguments(recipe)
    batch = arguments.train_batch_size * max(processes, arguments.world_size)
    start = prepare_start(recipe, None, batch, arguments.seed)
    vectors = None
    if recipe.teacher is not None:  # any will do
        vectors = torch.ones(len(start.source), start.config.projection_dim or 0)
    examples, collate = examples_of(recipe, start, arguments.seed, vectors)
    sampler = sampler_for(recipe, start, batch, arguments.seed)
    items = [item for item, _ in zip(sampler, range(min(_examples(recipe), batch)), strict=False)]
    read = collate(examples.__getitems__(items))
    if "error" in read:
        raise read["error"]
    flops, kept = _forward(start.model, read, recipe, arguments)

    parameters: dict[str, int] = {}
    for name, parameter in start.model.named_parameters():
        parameters[part_of(name)] = parameters.get(part_of(name), 0) + parameter.numel()
    usable = [sum(len(pool.clips) for pool in start.pools if pool.source == n) for n in range(len(recipe.data.train))]
    found = [
        SplitFound(_name(split, "train"), len(source), count)
        for split, source, count in zip(recipe.data.train, start.source.sources, usable, strict=True)
    ]
    if start.validation is not None and recipe.data.validation is not None:
        count = _usable(start.validation, start.task)
        found.append(SplitFound(_name(recipe.data.validation, "validation"), len(start.validation), count))
    accumulated = arguments.gradient_accumulation_steps
    chunk = recipe.objectives.chunk or arguments.train_batch_size
    return DryRun(
        model=type(start.model).__name__,
        task=recipe.task,
        parameters=parameters,
        fresh=start.fresh,
        flops_per_example=flops // len(items),
        steps=_steps(arguments, len(sampler) // batch),
        batch=arguments.train_batch_size,
        examples_per_step=batch * accumulated,
        memory={
            "weights": _BYTES_A_PARAMETER * sum(parameters.values()),
            "activations": kept * min(arguments.train_batch_size, chunk) // len(items),
            "program": program,
        },
        data=found,
        skipped=start.problems,
    )


def _examples(recipe: Recipe) -> int:
    """Of the batch that is looked at: so many that the joint objectives have their share of it."""
    if recipe.task is not None:
        return _EXAMPLES
    return min(_MOST_EXAMPLES, round(_EXAMPLES / recipe.objectives.joint_share))


def _steps(arguments: TrainingArguments, batches: int) -> int:
    """Steps of the optimiser, as the Trainer counts them; `batches`: of an epoch."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    return ceil(arguments.num_train_epochs * max(1, ceil(batches / arguments.gradient_accumulation_steps)))


def _usable(clips: VideoDataset, task: ExampleTask | None) -> int:
    """How many clips a task can be scored on; those of pre-training have captions, or would not be there."""
    return len(clips) if task is None else len(task.usable_examples(clips, labelled=True)[0])


def _name(split: DataSource, part: str) -> str:
    """A split in words, as the recipe has it."""
    where = "world" if split.world is not None else str(split.folder or split.shards)
    named = " ".join(filter(None, (split.benchmark, where, split.split)))
    return f"{part}: {named}"


def _forward(
    model: PerceiverVLPreTrainedModel, batch: dict[str, Any], recipe: Recipe, arguments: TrainingArguments
) -> tuple[int, int]:
    """Operations of a forward pass, and bytes that it keeps for the backward pass, weights left out."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def run(budgets: list[ComputeBudget], objectives: Objectives) -> object:
        distill = recipe.elastic.distill if recipe.elastic else 0.0
        if recipe.teacher is not None:
            return DistillationModule(model)(tensors)
        if recipe.task is None:
            return PreTrainingModule(model, objectives, distill)(PreTrainingBatch.from_dict(batch), budgets)  # type: ignore[arg-type]
        if len(budgets) == 1:
            return task_loss(model, tensors)
        return ElasticTaskModule(model, distill)(tensors, budgets)

    budgets = [FULL_BUDGET]
    if recipe.elastic is not None:
        budgets = budgets_of_step(recipe.elastic, model.config, recipe.data.num_frames, arguments.seed, 0)
        budgets[-1] = FULL_BUDGET  # what is drawn may be the whole
    for module in model.modules():
        if isinstance(module, PerceiverVLEncoder):
            module.layer_drop = 0.0  # at all cross-attentions
    flops, most = 0.0, 0
    learns = [parameter.requires_grad for parameter in model.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16 or arguments.fp16):
        for objectives, share in replace(recipe.objectives, chunk=None).turns():  # in chunks nothing is kept at first
            kept.clear()
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                held = run(budgets, objectives)  # noqa: F841 (while it lives no storage is given to another tensor)
            most = max(most, sum(kept.values()))
            model.requires_grad_(False)  # the counter cannot follow a graph that some of its modules are not part of
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run([FULL_BUDGET], objectives)
            flops += share * counter.get_total_flops()
            for parameter, learned in zip(model.parameters(), learns, strict=True):
                parameter.requires_grad_(learned)
    return round(flops), most
