"""Perceiver IO beside transformers' own classes, on the same weights, at the published sizes: time and memory of a
forward and of a training step.

Both run in turns, so that a machine whose speed drifts slows both alike; the ratios are what to trust. They are those
of the processor's time, which does not count what else a busy machine does.
"""

import statistics
import time
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
    """Of one call: median seconds, by the clock and of the processor, all threads together; and the most memory that it
    holds beside weights and inputs, in MiB.
    """

    seconds: float
    processor_seconds: float
    mib: float


@dataclass(frozen=True)
class Comparison:
    """One task's forward; or a training step, which ends with the gradients; or ours with checkpoints, which theirs
    has none of, beside their training step. difference: the largest of the outputs over their standard deviation.
    `theirs`: None where the memory that it needs is not there.
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
            faster = None if theirs is None else theirs.processor_seconds / ours.processor_seconds
            share = None if theirs is None else ours.mib / theirs.mib
            rows.append(
                (
                    f"{one.task}, {one.call}",
                    f"{ours.processor_seconds:.1f}",
                    or_dash(None if theirs is None else theirs.processor_seconds, ".1f"),
                    or_dash(faster, ".2f"),
                    f"{ours.mib:.0f}",
                    or_dash(None if theirs is None else theirs.mib, ".0f"),
                    or_dash(share, ".2f"),
                    or_dash(one.difference, ".0e"),
                )
            )
        columns = ("", "s", "theirs", "faster", "MiB", "theirs", "share", "differs")
        title = f"Perceiver IO and transformers' own, the same weights, batch {self.batch_size}"
        note = "s: of the processor. faster: their seconds over ours; share: our memory over theirs."
        return [Section(title, columns, rows, (note,))]


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
    calls = ("forward", "training", "checkpointed") if training else ("forward",)
    comparisons: list[Comparison] = []
    with ProgressBars(progress) as stages:
        advance = stages.stage("Perceiver IO", runs * len(tasks) * (5 if training else 2))
        for task in tasks:
            theirs, inputs = _their_model(task, quick, seed), _inputs(task, batch_size, quick, seed)
            ours: PreTrainedModel = converted(theirs.state_dict(), theirs.config.to_dict())
            given = {"frames": inputs["inputs"]} if task == "flow" else inputs
            number = _number_of_inputs(task, inputs)
            scores = 4 * batch_size * number * theirs.config.num_latents / 2**20  # of one head, MiB
            fits = 8 * scores < available_memory_mib()
            for call in calls:
                pair = [_calls(call, ours, given)]
                if fits and call != "checkpointed":
                    pair.append(_calls(call, theirs, inputs))
                found = [_measure(one, advance) for _ in range(runs) for one in pair]
                mine, other = _median(found[:: len(pair)]), None
                difference = None
                if len(pair) == 2:
                    other = _median(found[1::2])
                    difference = ((found[0][1] - found[1][1]).abs().max() / found[1][1].std()).item()
                elif call == "checkpointed":
                    other = comparisons[-1].theirs
                comparisons.append(Comparison(task, call, number, mine, other, difference))
    return PerceiverIOReport(comparisons, batch_size, runs=runs, seed=seed)


def _measure(call: Callable[[], Tensor], advance: Callable[..., object]) -> tuple[Measured, Tensor]:
    """The profiler notes what torch's allocator does, which takes no time beside operations as large as these."""
    seconds, processor, outputs = 0.0, 0.0, torch.empty(0)

    def timed_call() -> None:
        nonlocal seconds, processor, outputs
        start, before = time.perf_counter(), time.process_time()
        outputs = call()
        seconds, processor = time.perf_counter() - start, time.process_time() - before

    mib = peak_memory_mib(timed_call)
    advance()
    return Measured(seconds, processor, mib), outputs.detach()


def _median(found: list[tuple[Measured, Tensor]]) -> Measured:
    clock, processor = (
        statistics.median(getattr(one, name) for one, _ in found) for name in ("seconds", "processor_seconds")
    )
    return Measured(clock, processor, max(one.mib for one, _ in found))


def _calls(call: str, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        model.eval()
        with torch.inference_mode():
            return model(**inputs).logits.clone()

    def training() -> Tensor:
        model.train()
        if call == "checkpointed":
            model.activation_checkpointing_enable()
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
