"""What a long video costs: read chunk by chunk in constant memory, beside all of its frames at once.

Frames are sampled at one a second and given as pixels; decoding is not counted, their memory is.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.bench.measuring import MatrixProduct, available_mib, held, timed
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import embedding_flops, encoder_flops
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

MINUTES = (1, 5, 20, 60)
CHUNK_FRAMES = 32
MOST_SECONDS = 180.0
ONE_CROSS_ATTENTION = ComputeBudget(cross_attentions=1)
FORMS = (
    ("chunks", FULL_BUDGET),
    ("chunks, 1 cross-attention", ONE_CROSS_ATTENTION),
    ("whole", FULL_BUDGET),
    ("whole, 1 cross-attention", ONE_CROSS_ATTENTION),
)


@dataclass(frozen=True)
class Length:
    """One video in one form: `gflops` by the formulas; seconds (median of the runs); MiB held at once, frames
    included. `skipped`: why it was not run; the measured values are None then.
    """

    form: str
    minutes: float
    frames: int
    gflops: float
    seconds: float | None
    seconds_per_minute: float | None
    peak_mib: float | None
    skipped: str | None


@dataclass(frozen=True)
class LengthReport(RunInfo):
    """The videos, and what it takes to get them again. `max_difference`: of the latents of the shortest video in
    chunks from those of it whole.
    """

    lengths: list[Length]
    max_difference: float
    chunk_frames: int
    image_size: int
    runs: int
    seed: int


@torch.inference_mode()
def measure_length(
    config: PerceiverVLConfig | None = None,
    *,
    minutes: Sequence[float] = MINUTES,
    chunk_frames: int = CHUNK_FRAMES,
    runs: int = 1,
    most_seconds: float = MOST_SECONDS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> LengthReport:
    """Encode random videos of so many minutes in each of `FORMS`, at base size unless `config` says.

    Raises `UsageError` for no minutes, or a chunk without frames.
    """
    if not minutes or min(minutes) * 60 < 2:
        raise UsageError(f"minutes={','.join(map(str, minutes))}: need at least one length of two seconds or more")
    if chunk_frames < 1:
        raise UsageError(f"chunk_frames={chunk_frames}: need at least one frame")
    config = config or PerceiverVLConfig()
    longest = {"max_frames": max(config.max_frames, *(round(60 * number) for number in minutes))}
    config = PerceiverVLConfig.from_dict(config.to_dict() | longest)
    torch.manual_seed(seed)
    model = PerceiverVLModel(config).eval().to(device)
    frame = torch.randn(1, 1, config.num_channels, config.image_size, config.image_size).to(device)
    product = MatrixProduct(2 * config.hidden_size, device)
    product.seconds()
    rate = product.gflops / min(product.seconds() for _ in range(3))
    short = round(60 * min(minutes))
    apart, whole = (_encode(model, frame, form, short, chunk_frames, FULL_BUDGET) for form in ("chunks", "whole"))
    lengths: list[Length] = []
    with ProgressBars(progress) as stages:
        advance = stages.stage("Measuring length", len(minutes) * len(FORMS))
        for number in sorted(minutes):
            frames = round(60 * number)
            for form, budget in FORMS:
                gflops = _gflops(config, form, frames, budget)
                before = [one for one in lengths if one.form == form and one.peak_mib is not None]
                skipped = _too_much(form, frames, gflops / rate, most_seconds, before, device)
                if skipped:
                    lengths.append(Length(form, number, frames, gflops, None, None, None, skipped))
                else:
                    call = _call(model, frame, form, frames, chunk_frames, budget)
                    lengths.append(_measured(call, form, number, frames, gflops, runs, device))
                advance()
    difference = (apart - whole).abs().max().item()
    return LengthReport(lengths, difference, chunk_frames, config.image_size, runs, seed)


def _measured(
    call: Callable[[], object], form: str, minutes: float, frames: int, gflops: float, runs: int, device: Any
) -> Length:
    """Time and memory of the same run: an hour is not read twice to be measured once."""
    seconds, peaks = [], []
    for _ in range(runs):
        peaks.append(held(lambda: seconds.append(timed(call, device))))
    median = statistics.median(seconds)
    return Length(form, minutes, frames, gflops, median, median / minutes, max(peaks), None)


def _too_much(
    form: str, frames: int, seconds: float, most_seconds: float, before: list[Length], device: Any
) -> str | None:
    if seconds > most_seconds:
        return f"about {seconds:.0f} s or more"
    if before and before[-1].peak_mib is not None and form.startswith("whole"):
        needed = before[-1].peak_mib * frames / before[-1].frames
        if needed > available_mib(device):
            return f"about {needed / 1024:.1f} GiB would be needed"
    return None


def _gflops(config: PerceiverVLConfig, form: str, frames: int, budget: ComputeBudget) -> float:
    """In chunks the frames are embedded again for every cross-attention."""
    cross_attentions = budget.cross_attentions or config.num_blocks
    again = (cross_attentions - 1) * embedding_flops(config, frames) if form.startswith("chunks") else 0
    return (encoder_flops(config, frames, 0, budget) + again) / 1e9


def _call(
    model: PerceiverVLModel, frame: Tensor, form: str, frames: int, chunk_frames: int, budget: ComputeBudget
) -> Callable[[], object]:
    return lambda: _encode(model, frame, form, frames, chunk_frames, budget)


def _encode(
    model: PerceiverVLModel, frame: Tensor, form: str, frames: int, chunk_frames: int, budget: ComputeBudget
) -> Tensor:
    """A video of the same frame again and again: its pixels do not change what it costs."""
    if form.startswith("whole"):
        pixels = frame.repeat(1, frames, 1, 1, 1)
        return model(pixel_values=pixels, budget=budget).last_hidden_state
    chunk = frame.repeat(1, min(chunk_frames, frames), 1, 1, 1)

    def chunks() -> Iterable[Tensor]:
        full, rest = divmod(frames, chunk.shape[1])
        return itertools.chain(itertools.repeat(chunk, full), [chunk[:, :rest]] if rest else [])

    return model.encode_long(chunks, num_frames=frames, budget=budget)
