"""What a clip and 40 words cost, ours beside others of the same width and depth: operations, seconds, memory.

Operations are counted on the built model; a setting that would take too long or too much memory is counted and not
run, and says so. The runs are interleaved (`profiling.time_interleaved`); the ratios are what to trust.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perceiver_vl.bench.baselines import BASELINES, build_baseline
from perceiver_vl.bench.cost_report import Cost, CostReport, crossovers
from perceiver_vl.bench.cost_settings import (
    FRAMES,
    OURS,
    PATCHES,
    TEXT_TOKENS,
    CostRow,
    CostSetting,
    cost_rows,
    full_budget,
)
from perceiver_vl.bench.profiling import available_memory_mib, count_flops, count_flops_and_memory, time_interleaved
from perceiver_vl.bench.streams import measure_streams
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, matching_flops
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import MatrixProduct

MOST_SECONDS = 5.0


@torch.inference_mode()
def measure_cost(
    config: PerceiverVLConfig | None = None,
    *,
    frames: Sequence[int] = FRAMES,
    sizes: Sequence[int] | None = None,
    batch_size: int = 1,
    runs: int = 3,
    most_seconds: float = MOST_SECONDS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> CostReport:
    """Measure all of `cost_settings.cost_rows` with random weights, at base size unless `config` says.

    `sizes`: of frames, in pixels; None: 10 to 18 patches a side. A setting that would take more than `most_seconds` a
    run at the matrix product's rate is counted only. Raises `UsageError` for a number of frames below 1, or a size
    that the patches do not divide.
    """
    config = config or PerceiverVLConfig()
    sizes = [number * config.patch_size for number in PATCHES] if sizes is None else sizes
    for number in frames:
        if number < 1:
            raise UsageError(f"frames={number}: need at least one frame")
    for size in sizes:
        if size < 1 or size % config.patch_size:
            raise UsageError(f"size={size}: need multiples of patch_size={config.patch_size}")
    rows = cost_rows(config, frames, sizes)
    settings = list(dict.fromkeys(row.setting for row in rows))
    with ProgressBars(progress) as stages:
        models = _Models(config, max(setting.frames for setting in settings), batch_size, seed, device)
        product = MatrixProduct(2 * config.hidden_size, device)
        measured = _count_all(models, settings, product, most_seconds, stages)
        to_time = [setting for setting in measured if measured[setting].skipped is None]
        advance = stages.stage("Measuring time", runs * len(to_time))
        timings = time_interleaved([models.forward(setting) for setting in to_time], runs, product, advance)
        for setting, timing in zip(to_time, timings.timings, strict=True):
            one = measured[setting]
            one.milliseconds, one.fastest, one.slowest = timing.milliseconds, timing.fastest, timing.slowest
            one.share_of_peak = timings.share_of_peak(timing, batch_size * one.gflops)
        costs = [_cost(row, measured, full_budget(config)) for row in rows]
        streams = measure_streams(models.ours, config, runs=runs, product=product, seed=seed, stages=stages)
    full = CostSetting(OURS, 1, config.image_size, TEXT_TOKENS, full_budget(config))
    return CostReport(
        costs,
        streams,
        crossovers(costs, models.count_at, full),
        models.parameters(),
        timings.product_gflops,
        batch_size,
        runs=runs,
        seed=seed,
    )


class _Models:
    """Ours and the others, each built when it is first run, and their inputs."""

    def __init__(
        self, config: PerceiverVLConfig, max_frames: int, batch_size: int, seed: int, device: str | torch.device
    ) -> None:
        longest = {"max_frames": max_frames, "max_text_length": max(TEXT_TOKENS, config.max_text_length)}
        longest |= {"num_text_latents": config.num_latents}
        twice = {"num_latents": 2 * config.num_latents}  # Figure 5's last point
        self.config = PerceiverVLConfig.from_dict(config.to_dict() | longest | twice)
        self.baselines_config = PerceiverVLConfig.from_dict(config.to_dict() | longest)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        torch.manual_seed(seed)
        self.ours = PerceiverVLForRetrieval(self.config).eval().to(device)
        self.baselines: dict[str, nn.Module] = {}
        self.shells = {one.name: build_baseline(one.name, self.baselines_config, "meta") for one in BASELINES}
        self.draw = torch.Generator().manual_seed(seed)
        self.words = torch.randint(config.vocab_size, (batch_size, TEXT_TOKENS), generator=self.draw).to(device)
        self.clips: dict[int, Tensor] = {}
        self.counts: dict[CostSetting, float] = {}

    def forward(self, setting: CostSetting) -> Callable[[], object]:
        """That of a setting, to be run and timed."""
        words = self.words[:, : setting.words] if setting.words else None
        pixels = self._pixels(setting) if setting.frames else None
        if setting.model == OURS:
            return lambda: _ours(self.ours, words, pixels, setting.budget)
        if setting.model not in self.baselines:
            torch.manual_seed(self.seed)
            self.baselines[setting.model] = build_baseline(setting.model, self.baselines_config, self.device)
        model = self.baselines[setting.model]
        return lambda: model(input_ids=words, pixel_values=pixels)

    def count_at(self, setting: CostSetting) -> float:
        """GFLOPs of one example without running it: ours by the formulas, the others' counted on the meta device."""
        if setting not in self.counts:
            count_it = self._by_formula if setting.model == OURS else self._on_meta
            self.counts[setting] = count_it(setting) / 1e9
        return self.counts[setting]

    def _by_formula(self, setting: CostSetting) -> int:
        sized = PerceiverVLConfig.from_dict(self.config.to_dict() | {"image_size": setting.image_size})
        flops = encoder_flops(sized, setting.frames, setting.words, setting.budget)
        if setting.frames and setting.words:
            flops += matching_flops(self.config, setting.budget.latents or self.config.num_latents)
        return flops

    def _on_meta(self, setting: CostSetting) -> int:
        size = setting.image_size
        shape = (1, setting.frames, self.config.num_channels, size, size)
        pixels = torch.empty(shape, device="meta") if setting.frames else None
        words = torch.empty(1, setting.words, dtype=torch.long, device="meta") if setting.words else None
        return count_flops(lambda: self.shells[setting.model](input_ids=words, pixel_values=pixels))

    def parameters(self) -> dict[str, int]:
        """Of each model, by name."""
        models = {OURS: self.ours, **self.shells}
        return {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}

    def _pixels(self, setting: CostSetting) -> Tensor:
        """The first frames of a clip of that size, which is as long as any setting has asked for."""
        size = setting.image_size
        known = self.clips.get(size)
        if known is None or known.shape[1] < setting.frames:
            shape = (self.batch_size, setting.frames, self.config.num_channels, size, size)
            self.clips[size] = known = torch.randn(shape, generator=self.draw).to(self.device)
        return known[:, : setting.frames]


def _ours(model: PerceiverVLForRetrieval, words: Tensor | None, pixels: Tensor | None, budget: ComputeBudget) -> Tensor:
    """To the matching logit, or to the latents of one side."""
    if words is None:
        assert pixels is not None
        return model.encode_vision(pixels, budget=budget)
    if pixels is None:
        return model.encode_text(words, budget=budget)
    return model.match_jointly(words, pixel_values=pixels, budget=budget)


@dataclass
class _Measured:
    gflops: float
    peak_mib: float | None = None
    milliseconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    share_of_peak: float | None = None
    skipped: str | None = None


def _count_all(
    models: _Models, settings: Sequence[CostSetting], product: MatrixProduct, most_seconds: float, stages: ProgressBars
) -> dict[CostSetting, _Measured]:
    """Run each setting once, counting; smaller ones first, as their memory says what the larger ones will need."""
    advance = stages.stage("Counting operations and memory", len(settings))
    rate = product.gflops / min(product.seconds() for _ in range(3))
    mib_a_pixel: dict[tuple[str, ComputeBudget], float] = {}
    measured = {}
    for setting in sorted(settings, key=lambda setting: setting.pixels):
        gflops = models.count_at(setting)
        seconds = models.batch_size * gflops / rate
        needed = mib_a_pixel.get((setting.model, setting.budget), 0.0) * setting.pixels
        if seconds > most_seconds:
            measured[setting] = _Measured(gflops, skipped=f"about {seconds:.0f} s a run or more")
        elif needed > available_memory_mib(models.device):
            measured[setting] = _Measured(gflops, skipped=f"about {needed / 1024:.1f} GiB would be needed")
        else:
            flops, mib = count_flops_and_memory(models.forward(setting))
            measured[setting] = _Measured(flops / models.batch_size / 1e9, mib)
            mib_a_pixel[setting.model, setting.budget] = mib / setting.pixels if setting.pixels else 0.0
        advance()
    return measured


def _cost(row: CostRow, measured: dict[CostSetting, _Measured], full: ComputeBudget) -> Cost:
    setting, budget = row.setting, row.setting.budget
    one, ours = measured[setting], measured.get(replace(setting, model=OURS, budget=full))
    is_ours = setting.model == OURS
    return Cost(
        row.part,
        row.label,
        setting.model,
        setting.frames,
        setting.image_size,
        setting.words,
        latents=(budget.latents if setting.frames else budget.text_latents) if is_ours else None,
        cross_attentions=budget.cross_attentions if is_ours else None,
        ratio=one.milliseconds / ours.milliseconds if one.milliseconds and ours and ours.milliseconds else None,
        published=row.published,
        **vars(one),
    )
