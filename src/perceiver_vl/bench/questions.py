"""The second question about a clip over the first: what is left to do once the clip's part is cached.

First: embed the clip, cache what it contributes, answer. Second: answer from the cache. Decoding is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.bench.measuring import MatrixProduct, count, take_turns
from perceiver_vl.bench.settings import WORDS
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForQuestionAnswering
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

FRAMES = (8, 32, 64, 256)
ANSWERS = 3129  # of VQAv2


@dataclass(frozen=True)
class Questions:
    """A clip of so many frames, read so often: milliseconds (median) and GFLOPs of the first question, of the second,
    and of one that is asked without a cache; `max_difference`: of the second's logits from those.
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
class QuestionsReport(RunInfo):
    """The clips, `second_over_first` by frames at all cross-attentions, and what it takes to get them again."""

    questions: list[Questions]
    second_over_first: dict[str, float]
    runs: int
    seed: int


@torch.inference_mode()
def measure_questions(
    config: PerceiverVLConfig | None = None,
    *,
    frames: Sequence[int] = FRAMES,
    runs: int = 3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> QuestionsReport:
    """Ask random clips two questions each, at all cross-attentions and at one, at base size unless `config` says.

    Raises `UsageError` for a number of frames below 1.
    """
    if not frames or min(frames) < 1:
        raise UsageError(f"frames={','.join(map(str, frames))}: need at least one number, each at least 1")
    config = config or PerceiverVLConfig(num_labels=ANSWERS)
    most = {"max_frames": max(frames), "max_text_length": max(WORDS, config.max_text_length)}
    config = PerceiverVLConfig.from_dict(config.to_dict() | most)
    torch.manual_seed(seed)
    model = PerceiverVLForQuestionAnswering(config).eval().to(device)
    size = config.image_size
    pixels = torch.randn(1, max(frames), config.num_channels, size, size).to(device)
    words = torch.randint(config.vocab_size, (1, WORDS)).to(device)
    product = MatrixProduct(2 * config.hidden_size, device)
    questions = []
    with ProgressBars(progress) as stages:
        advance = stages.stage("Asking", 2 * len(frames) * (runs + 1) * 3)
        for number in sorted(frames):
            for budget in (FULL_BUDGET, ComputeBudget(cross_attentions=1)):
                clip = _Clip(model, pixels[:, :number], words, budget)
                questions.append(_ask_twice(clip, runs, product, advance))
    by_frames = {
        str(one.frames): one.second_over_first for one in questions if one.cross_attentions == config.num_blocks
    }
    return QuestionsReport(questions, by_frames, runs, seed)


@dataclass(frozen=True)
class _Clip:
    model: PerceiverVLForQuestionAnswering
    pixels: Tensor
    words: Tensor
    budget: ComputeBudget

    def cache(self) -> VisionCache:
        return self.model.cache_vision(self.pixels, budget=self.budget)

    def answer(self, cache: VisionCache) -> Tensor:
        base = self.model.perceiver_vl
        return self.model.answer_inputs(base.embed_inputs(self.words, vision_cache=cache), self.budget)

    def first(self) -> Tensor:
        return self.answer(self.cache())

    def uncached(self) -> Tensor:
        return self.model(self.words, pixel_values=self.pixels, budget=self.budget).logits


def _ask_twice(clip: _Clip, runs: int, product: MatrixProduct, advance: Callable[..., object]) -> Questions:
    cache = clip.cache()
    calls = [clip.first, lambda: clip.answer(cache), clip.uncached]
    flops = [count(call) / 1e9 for call in calls]
    advance(len(calls))
    first, second, uncached = take_turns(calls, runs, product, advance).timings
    return Questions(
        clip.pixels.shape[1],
        clip.budget.cross_attentions or clip.model.config.num_blocks,
        first.milliseconds,
        second.milliseconds,
        uncached.milliseconds,
        second.milliseconds / first.milliseconds,
        flops[0],
        flops[1],
        _mib(cache),
        (clip.answer(cache) - clip.uncached()).abs().max().item(),
    )


def _mib(cache: VisionCache) -> float:
    parts = [cache.first.output, cache.first.logsumexp]
    parts += [tensor for read in cache.later for part in read for tensor in (part.keys, part.values)]
    return sum(part.nbytes for part in parts) / 2**20
