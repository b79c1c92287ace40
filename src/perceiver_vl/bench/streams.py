"""Figure 6's cost: scoring n texts against n clips in each stream, from what each step was measured to take.

single encodes every pair. mixed and multi encode each side once; then a pair takes a cross-attention of the decoder
(the paper's mixed stream), a merge of two stored partial attentions (the same scores from D + H numbers a side), or a
dot product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from perceiver_vl.bench.cost_settings import FEW_FRAMES, TEXT_TOKENS, full_budget
from perceiver_vl.bench.profiling import count_flops, time_interleaved
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.timing import MatrixProduct

ITEMS = (10, 30, 100, 300, 1000)
STREAMS = ("single", "mixed", "mixed_from_partial_attention", "multi")
PAIRS = 256  # scored at once


@dataclass(frozen=True)
class Step:
    """Operations and seconds (median) of one clip, text or pair."""

    gflops: float
    seconds: float


@dataclass(frozen=True)
class StreamCosts:
    """Each step as measured, and for each stream and number of items n (as text, as JSON has it) what all n² pairs
    take: seconds and GFLOPs, encoding included.
    """

    frames: int
    steps: dict[str, Step]
    seconds: dict[str, dict[str, float]]
    gflops: dict[str, dict[str, float]]


@torch.inference_mode()
def measure_streams(
    model: PerceiverVLForRetrieval,
    config: PerceiverVLConfig,
    *,
    runs: int,
    product: MatrixProduct,
    seed: int,
    stages: ProgressBars,
) -> StreamCosts:
    """Time the steps interleaved, and add them up for every number of items."""
    calls = _steps(model, config, seed)
    counted = {name: count_flops(call) / many / 1e9 for name, (call, many) in calls.items()}
    advance = stages.stage("Measuring the streams", runs * len(calls))
    timings = time_interleaved([call for call, _ in calls.values()], runs, product, advance).timings
    steps = {
        name: Step(counted[name], timing.milliseconds / 1e3 / many)
        for (name, (_, many)), timing in zip(calls.items(), timings, strict=True)
    }
    seconds = {name: step.seconds for name, step in steps.items()}
    return StreamCosts(FEW_FRAMES, steps, _totals(seconds), _totals(counted))


def _steps(
    model: PerceiverVLForRetrieval, config: PerceiverVLConfig, seed: int
) -> dict[str, tuple[Callable[[], object], int]]:
    """Each step, and how many clips, texts or pairs it is of."""
    draw = torch.Generator().manual_seed(seed)
    size, budget = config.image_size, full_budget(config)
    pixels = torch.randn(1, FEW_FRAMES, config.num_channels, size, size, generator=draw).to(model.device)
    words = torch.randint(config.vocab_size, (1, TEXT_TOKENS), generator=draw).to(model.device)
    vision = model.encode_vision(pixels, budget=budget).expand(PAIRS, -1, -1).contiguous()
    text = model.encode_text(words, budget=budget).expand(PAIRS, -1, -1).contiguous()
    stored = model.partial_match(vision), model.partial_match(text)
    vectors = model.pool_vision(vision), model.pool_text(text)
    return {
        "joint_pair": (partial(model.match_jointly, words, pixel_values=pixels, budget=budget), 1),
        "clip": (partial(model.encode_vision, pixels, budget=budget), 1),
        "text": (partial(model.encode_text, words, budget=budget), 1),
        "decoder_pair": (partial(model.match, vision, text), PAIRS),
        "partial_match": (partial(model.partial_match, vision), PAIRS),
        "merge": (partial(model.merge_matches, *stored), PAIRS),
        "pooling": (partial(model.pool_vision, vision), PAIRS),
        "dot_pair": (partial(torch.matmul, vectors[0], vectors[1].T), PAIRS**2),
    }


def _totals(step: dict[str, float]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {stream: {} for stream in STREAMS}
    for n in ITEMS:
        sides = n * (step["clip"] + step["text"])
        totals["single"][str(n)] = n**2 * step["joint_pair"]
        totals["mixed"][str(n)] = sides + n**2 * step["decoder_pair"]
        totals["mixed_from_partial_attention"][str(n)] = sides + 2 * n * step["partial_match"] + n**2 * step["merge"]
        totals["multi"][str(n)] = sides + 2 * n * step["pooling"] + n**2 * step["dot_pair"]
    return totals
