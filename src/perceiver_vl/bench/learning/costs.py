"""What a run costs beside another: operations of an example, a step of training and an answer, timed interleaved."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.bench.joint_transformer import replace_encoder
from perceiver_vl.bench.learning.runs import JOINT, OURS, Architecture, Run, digest
from perceiver_vl.bench.profiling import count_flops, time_interleaved
from perceiver_vl.bench.tables import Section
from perceiver_vl.data.mixture import Places
from perceiver_vl.models.budget import FULL_BUDGET
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.tasks.dataset import task_loss
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.objectives import PreTrainingModule
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.run import examples_of
from perceiver_vl.training.setup import prepare_start
from perceiver_vl.utils.files import write_json
from perceiver_vl.utils.timing import MatrixProduct

_CLIPS = 256  # enough for a batch: costs do not depend on what the clips show
_LOOKED_AT = 16  # of the clips of a source, for one with the most frames
_PRODUCT = 512


@dataclass(frozen=True)
class RunCost:
    """Of one run. gflops: of the forward pass of one example, words and clip in one input array; step: milliseconds of
    a training step's forward and backward pass; answer: milliseconds of that forward pass, alone.
    """

    label: str
    architecture: str
    gflops: float
    step: float
    answer: float


def measure_costs(runs: Sequence[tuple[str, Run]], output: Path, repeats: int = 5) -> list[RunCost]:
    """The costs of runs, by what they are called, on random weights, interleaved; kept in `output`."""
    path = output / "costs" / f"{digest([[label, run.key] for label, run in runs] + [repeats])}.json"
    if path.is_file():
        return [RunCost(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    calls: list[Callable[[], object]] = []
    counts = []
    for _, run in runs:
        step, answer = step_and_answer(run.recipe, run.architecture)
        calls += [step, answer]
        counts.append(count_flops(answer))
    timings = time_interleaved(calls, repeats, MatrixProduct(_PRODUCT, "cpu"), lambda: None).timings
    found = [
        RunCost(label, run.architecture, flops / 1e9, step.milliseconds, answer.milliseconds)
        for (label, run), flops, step, answer in zip(runs, counts, timings[::2], timings[1::2], strict=True)
    ]
    write_json(path, [asdict(one) for one in found])
    return found


def costs_section(costs: Sequence[RunCost]) -> Section:
    """As a table, each joint transformer with its ratio to the run before it."""
    rows: list[tuple[str, ...]] = []
    for before, cost in zip((None, *costs), costs, strict=False):
        ratio = "" if before is None or cost.architecture != JOINT else f"{cost.step / before.step:.1f}×"
        rows.append(
            (
                f"{cost.label}, {cost.architecture}",
                f"{1e3 * cost.gflops:.1f}",
                f"{cost.answer:.1f}",
                f"{cost.step:.0f}",
                ratio,
            )
        )
    return Section(
        "what they cost",
        ("trained on, model", "MFLOPs an example", "ms an example", "ms a step", "step, joint / ours"),
        rows,
        ("Random weights, interleaved in one run: the ratios are what to trust.",),
    )


def step_and_answer(
    recipe: Recipe, architecture: Architecture = OURS
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step without its optimiser, and one example's answer, of a model that has not learned; the example is
    one of those with the most frames, where clips and pictures are learned together.
    """
    recipe = of_few_clips(recipe)
    size = recipe.training["per_device_train_batch_size"]
    start = prepare_start(recipe, None, size, 0)
    model = start.model.train()
    if architecture == JOINT:
        replace_encoder(model)
    examples, collate = examples_of(recipe, start, 0)
    usable = max((pool.clips for pool in start.pools), key=len)
    spread = [place for pool in start.pools for place in _spread(pool.clips)]
    longest = max(spread, key=lambda place: int(collate([examples[place]])["frame_mask"].sum()))
    batch, one = (
        {k: v for k, v in collate([examples[i] for i in places]).items() if isinstance(v, Tensor)}
        for places in (np.resize(usable, size), [longest] * 2)
    )

    loss = _loss(model, recipe)

    def step() -> None:
        loss(batch).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    def answer() -> None:
        model.eval()
        with torch.no_grad():
            _answer(model, recipe, {name: value[:1] for name, value in one.items()})
        model.train()

    return step, answer


def _spread(places: Places) -> Places:
    return places[:: -(-len(places) // _LOOKED_AT)]


def of_few_clips(recipe: Recipe) -> Recipe:
    """The recipe with a few batches of clips, where the world gives them."""
    data = recipe.data
    few = [replace(split, world=split.world and replace(split.world, clips=_CLIPS)) for split in data.train]
    return replace(recipe, data=replace(data, train=tuple(few)))


def _loss(model: PerceiverVLPreTrainedModel, recipe: Recipe) -> Callable[[dict[str, Any]], Tensor]:
    if recipe.task is not None:
        return lambda batch: task_loss(model, batch)
    module = PreTrainingModule(model, recipe.objectives)  # type: ignore[arg-type]
    return lambda batch: module(PreTrainingBatch.from_dict(batch), [FULL_BUDGET])[0]  # type: ignore[no-any-return]


def _answer(model: Any, recipe: Recipe, one: dict[str, Any]) -> object:
    if recipe.task is not None:
        return model(**one)
    names = ("input_ids", "attention_mask", "pixel_values", "frame_mask")
    return model.match_jointly(*(one[name] for name in names))
