"""The second question about a clip over the first: what is left to do once the clip's part is cached.

First: embed the clip, cache what it contributes, answer. Second: answer from the cache. Decoding is not counted.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.bench.cost_settings import TEXT_TOKENS
from perceiver_vl.bench.profiling import count_flops, time_interleaved
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForQuestionAnswering
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import MatrixProduct

FRAMES = (8, 32, 64, 256)
ANSWERS = 3129  # of VQAv2


@dataclass(frozen=True)
class CachedClip:
    """A clip of so many frames, by so many cross-attentions: milliseconds (median) and GFLOPs of the first question, of
    the second, and of one that is asked without a cache; `max_difference`: of the second's logits from those.
    """

    frames: int
    cross_attentions: int
    first_ms: float
    second_ms: float
    uncached_ms: float
    second_over_first: float
    first_gflops: float
    second_gflops: float
    cache_mib: float
    max_difference: float


@dataclass(frozen=True)
class VisionCacheReport(BenchReport):
    """The clips, and `second_over_first` by frames at all cross-attentions."""

    questions: list[CachedClip]
    second_over_first: dict[str, float]

    def sections(self) -> list[Section]:
        """A row a clip."""
        rows = [
            (
                str(one.frames),
                str(one.cross_attentions),
                f"{one.first_ms:.0f}",
                f"{one.second_ms:.0f}",
                f"{one.second_over_first:.2f}",
                f"{one.first_gflops:.0f} → {one.second_gflops:.0f}",
                f"{one.cache_mib:.1f}",
                f"{one.max_difference:.0e}",
            )
            for one in self.questions
        ]
        columns = ("frames", "k", "first, ms", "second, ms", "ratio", "GFLOPs", "cache MiB", "max diff")
        note = (
            "k: cross-attentions. Ratio: second over first. Max diff: of the second's logits from those of a model "
            "that sees the clip again."
        )
        return [Section("the second question about a clip", columns, rows, (note,))]


@torch.inference_mode()
def measure_vision_cache(
    config: PerceiverVLConfig | None = None,
    *,
    frames: Sequence[int] = FRAMES,
    runs: int = 3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> VisionCacheReport:
    """Ask random clips two questions each, at all cross-attentions and at one, at base size unless `config` says.

    Raises `UsageError` for a number of frames below 1.
    """
    if not frames or min(frames) < 1:
        raise UsageError(f"frames={','.join(map(str, frames))}: need at least one number, each at least 1")
    config = config or PerceiverVLConfig(num_labels=ANSWERS)
    longest = {"max_frames": max(frames), "max_text_length": max(TEXT_TOKENS, config.max_text_length)}
    config = PerceiverVLConfig.from_dict(config.to_dict() | longest)
    torch.manual_seed(seed)
    model = PerceiverVLForQuestionAnswering(config).eval().to(device)
    pixels = torch.randn(1, max(frames), config.num_channels, config.image_size, config.image_size).to(device)
    words = torch.randint(config.vocab_size, (1, TEXT_TOKENS)).to(device)
    product = MatrixProduct(2 * config.hidden_size, device)
    with ProgressBars(progress) as stages:
        advance = stages.stage("Asking", 2 * len(frames) * (runs + 1) * 3)
        questions = [
            _ask_twice(model, pixels[:, :number], words, budget, runs, product, advance)
            for number, budget in itertools.product(sorted(frames), (FULL_BUDGET, ComputeBudget(cross_attentions=1)))
        ]
    by_frames = {
        str(one.frames): one.second_over_first for one in questions if one.cross_attentions == config.num_blocks
    }
    return VisionCacheReport(questions, by_frames, runs=runs, seed=seed)


def _ask_twice(
    model: PerceiverVLForQuestionAnswering,
    pixels: Tensor,
    words: Tensor,
    budget: ComputeBudget,
    runs: int,
    product: MatrixProduct,
    advance: Callable[..., object],
) -> CachedClip:
    def answer(cache: VisionCache) -> Tensor:
        return model.answer_inputs(model.perceiver_vl.embed_inputs(words, vision_cache=cache), budget)

    def answer_uncached() -> Tensor:
        return model(words, pixel_values=pixels, budget=budget).logits

    cache = model.cache_vision(pixels, budget=budget)
    calls = [lambda: answer(model.cache_vision(pixels, budget=budget)), lambda: answer(cache), answer_uncached]
    flops = [count_flops(call) / 1e9 for call in calls]
    advance(len(calls))
    timings = time_interleaved(calls, runs, product, advance).timings
    first, second, uncached = (timing.milliseconds for timing in timings)
    return CachedClip(
        pixels.shape[1],
        budget.cross_attentions or model.config.num_blocks,
        first,
        second,
        uncached,
        second / first,
        flops[0],
        flops[1],
        _mib(cache),
        (answer(cache) - answer_uncached()).abs().max().item(),
    )


def _mib(cache: VisionCache) -> float:
    parts = [] if cache.first is None else [cache.first.output, cache.first.logsumexp]
    parts += [tensor for keys_values in cache.later for part in keys_values for tensor in (part.keys, part.values)]
    return sum(part.nbytes for part in parts) / 2**20
