"""Perceiver IO beside transformers' own classes, on the same weights, at the published sizes: time and memory of a
forward and of a training step.

Both run in turns, so that a machine whose speed drifts slows both alike; the ratios are what to trust.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PerceiverConfig,
    PerceiverForImageClassificationConvProcessing,
    PerceiverForImageClassificationFourier,
    PerceiverForImageClassificationLearned,
    PerceiverForMaskedLM,
    PerceiverForOpticalFlow,
    PreTrainedModel,
)

from perceiver_vl.bench.profiling import available_memory_mib, peak_memory_mib
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.models.perceiver_io.convert import converted
from perceiver_vl.models.perceiver_io.published import PUBLISHED
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import timed

TASKS: dict[str, type[PreTrainedModel]] = {
    "language": PerceiverForMaskedLM,
    "image-fourier": PerceiverForImageClassificationFourier,
    "image-learned": PerceiverForImageClassificationLearned,
    "image-conv": PerceiverForImageClassificationConvProcessing,
    "flow": PerceiverForOpticalFlow,
}
MAIN = ("language", "image-fourier", "flow")


@dataclass(frozen=True)
class Measured:
    """Of one call: median seconds, and the most memory that it holds beside weights and inputs, in MiB."""

    seconds: float
    mib: float


@dataclass(frozen=True)
class Comparison:
    """One task's forward, or training step. difference: the largest of the outputs over their standard deviation.
    `theirs`: None where what it needs is not there.
    """

    task: str
    call: str
    inputs: int
    ours: Measured
    theirs: Measured | None
    difference: float | None


@dataclass(frozen=True)
class PerceiverIOReport(BenchReport):
    """Ours and transformers' in one run."""

    comparisons: list[Comparison]
    batch_size: int

    def sections(self) -> list[Section]:
        """A row a call."""
        rows = []
        for one in self.comparisons:
            theirs, ours = one.theirs, one.ours
            faster = None if theirs is None else theirs.seconds / ours.seconds
            share = None if theirs is None else ours.mib / theirs.mib
            rows.append(
                (
                    f"{one.task}, {one.call}",
                    f"{ours.seconds:.1f}",
                    or_dash(None if theirs is None else theirs.seconds, ".1f"),
                    or_dash(faster, ".2f"),
                    f"{ours.mib:.0f}",
                    or_dash(None if theirs is None else theirs.mib, ".0f"),
                    or_dash(share, ".2f"),
                    or_dash(one.difference, ".0e"),
                )
            )
        columns = ("", "s", "theirs", "faster", "MiB", "theirs", "share", "differs")
        title = f"Perceiver IO and transformers' own, the same weights, batch {self.batch_size}"
        return [Section(title, columns, rows, ("faster: their seconds over ours; share: our memory over theirs.",))]


def measure_perceiver_io(
    tasks: Sequence[str] = MAIN,
    *,
    training: bool = True,
    batch_size: int = 1,
    runs: int = 1,
    quick: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> PerceiverIOReport:
    """Each task's forward, and its training step, ours and theirs in turns. `quick`: small models and inputs.

    Raises `UsageError` for a task that there is not.
    """
    for task in tasks:
        if task not in TASKS:
            raise UsageError(f"tasks={task}: unknown, choose from {', '.join(TASKS)}")
    calls = ("forward", "training") if training else ("forward",)
    comparisons = []
    with ProgressBars(progress) as stages:
        advance = stages.stage("Perceiver IO", 2 * runs * len(tasks) * len(calls))
        for task in tasks:
            theirs, inputs = _their_model(task, quick, seed), _inputs(task, batch_size, quick, seed)
            ours: PreTrainedModel = converted(theirs.state_dict(), theirs.config.to_dict())
            given = {"frames": inputs["inputs"]} if task == "flow" else inputs
            number = _number_of_inputs(task, inputs)
            with torch.inference_mode():
                fits = number * theirs.config.num_latents * 4 * 4 / 2**20 * batch_size < available_memory_mib()
            for call in calls:
                pair = _calls(call, ours, given), _calls(call, theirs, inputs)
                found = [_measure(one, advance) for _ in range(runs) for one in (pair if fits else pair[:1])]
                comparisons.append(_comparison(task, call, number, found, 2 if fits else 1))
    return PerceiverIOReport(comparisons, batch_size, runs=runs, seed=seed)


def _measure(call: Callable[[], Tensor], advance: Callable[..., object]) -> tuple[Measured, Tensor]:
    """The profiler notes what torch's allocator does, which takes no time beside operations as large as these."""
    seconds: list[float] = []
    outputs: list[Tensor] = []
    mib = peak_memory_mib(lambda: seconds.append(timed(lambda: outputs.append(call()))))
    advance()
    return Measured(seconds[0], mib), outputs[0].detach()


def _comparison(task: str, call: str, number: int, found: list[tuple[Measured, Tensor]], models: int) -> Comparison:
    medians = [
        Measured(statistics.median(one.seconds for one, _ in own), max(one.mib for one, _ in own))
        for own in (found[place::models] for place in range(models))
    ]
    difference = None
    if models == 2:
        (_, ours), (_, theirs) = found[:2]
        difference = ((ours - theirs).abs().max() / theirs.std()).item()
    return Comparison(task, call, number, medians[0], medians[1] if models == 2 else None, difference)


def _calls(call: str, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        model.eval()
        with torch.inference_mode():
            return model(**inputs).logits.clone()

    def training() -> Tensor:
        model.train()
        for module in model.modules():  # the same numbers in both: no statistics of a batch
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        logits: Tensor = model(**inputs).logits
        logits.square().mean().backward()
        model.zero_grad()
        return logits

    return forward if call == "forward" else training


def _their_model(task: str, quick: bool, seed: int) -> PreTrainedModel:
    published = PUBLISHED[task]
    sizes: dict[str, Any] = {
        "num_latents": published.get("num_latents", 256),
        "d_latents": published.get("hidden_size", 1280),
        "num_blocks": published.get("num_blocks", 1),
        "num_self_attends_per_block": published.get("self_attentions_per_block", 26),
        "num_self_attention_heads": published.get("num_attention_heads", 8),
        "num_cross_attention_heads": published.get("num_cross_attention_heads", 8),
        "qk_channels": published.get("qk_size"),
        "v_channels": published.get("v_size"),
        "num_labels": published.get("num_labels", 2),
        "image_size": 224,
        "attention_probs_dropout_prob": 0.0,  # which theirs draws in training, and ours has not
    }
    if quick:
        sizes |= {"num_latents": 16, "d_latents": 64, "num_blocks": 1, "num_self_attends_per_block": 2}
        sizes |= {"image_size": 32, "train_size": [23, 31], "max_position_embeddings": 128, "d_model": 64}
        sizes |= {} if published.get("qk_size") is None else {"qk_channels": 32, "v_channels": 64}
    torch.manual_seed(seed)
    return TASKS[task](PerceiverConfig(**sizes)).eval()


def _inputs(task: str, batch_size: int, quick: bool, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if task == "language":
        return {"input_ids": torch.randint(262, (batch_size, 128 if quick else 2048), generator=draw)}
    if task == "flow":
        return {"inputs": torch.randn(batch_size, 2, 27, *((23, 31) if quick else (368, 496)), generator=draw)}
    return {"pixel_values": torch.randn(batch_size, 3, *[32 if quick else 224] * 2, generator=draw)}


def _number_of_inputs(task: str, inputs: dict[str, Tensor]) -> int:
    shape = next(iter(inputs.values())).shape
    return shape[1] if task == "language" else shape[-1] * shape[-2]
