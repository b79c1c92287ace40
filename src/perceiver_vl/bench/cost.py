"""What a clip and 40 words cost, ours beside others of the same width and depth: operations, seconds, memory.

Operations are counted on the built model; a setting that would take too long or too much memory is counted and not
run, and says so. The runs are interleaved (`measuring.take_turns`); the ratios are what to trust.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perceiver_vl.bench.measuring import MatrixProduct, Timing, available_mib, count, count_and_hold, take_turns
from perceiver_vl.bench.peers import PEERS, build_peer
from perceiver_vl.bench.settings import (
    FRAMES,
    OURS,
    PATCHES,
    WORDS,
    CostSetting,
    Entry,
    Published,
    entries,
    full_budget,
)
from perceiver_vl.bench.streams import StreamCosts, measure_streams
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, matching_flops
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

MOST_SECONDS = 5.0


@dataclass(frozen=True)
class Cost:
    """One line. Operations are of one example, times and memory of a batch.

    `milliseconds`: median, with the range; `peak_mib`: held at once beside model and inputs; `share_of_peak`: the rate
    in units of a matrix product's beside it; `ratio`: the time in units of ours at the same frames, size and words.
    `skipped`: why it was counted and not run; the measured values are None then.
    """

    part: str
    label: str
    model: str
    frames: int
    image_size: int
    words: int
    latents: int | None
    cross_attentions: int | None
    gflops: float
    milliseconds: float | None
    fastest: float | None
    slowest: float | None
    peak_mib: float | None
    share_of_peak: float | None
    ratio: float | None
    skipped: str | None
    published: Published


@dataclass(frozen=True)
class CostReport(RunInfo):
    """The lines, the streams, who wins where, and what it takes to get them again."""

    costs: list[Cost]
    streams: StreamCosts
    crossovers: list[str]
    parameters: dict[str, int]
    matrix_product_gflops: float
    batch_size: int
    runs: int
    seed: int

    def part(self, name: str) -> list[Cost]:
        """The lines of one part: frames, sizes, tables, latents, reads or words."""
        return [cost for cost in self.costs if cost.part == name]


@dataclass
class _Measured:
    gflops: float
    peak_mib: float | None = None
    timing: Timing | None = None
    share_of_peak: float | None = None
    skipped: str | None = None


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
    """Measure all of `settings.entries` with random weights, at base size unless `config` says.

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
    listed = entries(config, frames, sizes)
    with ProgressBars(progress) as stages:
        models = _Models(config, listed, batch_size, seed, device)
        product = MatrixProduct(2 * config.hidden_size, device)
        measured = _count_all(models, listed, product, most_seconds, stages)
        timed = [setting for setting, found in measured.items() if found.skipped is None]
        advance = stages.stage("Measuring time", runs * len(timed))
        turns = take_turns([models.call(setting) for setting in timed], runs, product, advance)
        for setting, timing in zip(timed, turns.timings, strict=True):
            found = measured[setting]
            found.timing, found.share_of_peak = timing, turns.share_of_peak(timing, batch_size * found.gflops)
        full = full_budget(config)
        costs = [_cost(entry, measured, full) for entry in listed]
        streams = measure_streams(models.ours, config, runs=runs, product=product, seed=seed, stages=stages)
        parameters = models.parameters()
        compared = crossovers(costs, models.count_at, CostSetting(OURS, 1, config.image_size, WORDS, full))
    return CostReport(costs, streams, compared, parameters, turns.product_gflops, batch_size, runs, seed)


class _Models:
    """Ours and the others, each built when it is first run, and their inputs."""

    def __init__(
        self,
        config: PerceiverVLConfig,
        listed: Iterable[Entry],
        batch_size: int,
        seed: int,
        device: str | torch.device,
    ) -> None:
        settings = [entry.setting for entry in listed]
        most = {"num_latents": 2 * config.num_latents, "num_text_latents": config.num_latents}  # Figure 5's last point
        most["max_frames"] = max(setting.frames for setting in settings)
        most["max_text_length"] = max(WORDS, config.max_text_length)
        self.config = PerceiverVLConfig.from_dict(config.to_dict() | most)
        self.peers_config = PerceiverVLConfig.from_dict(config.to_dict() | most | {"num_latents": config.num_latents})
        self.batch_size, self.seed, self.device = batch_size, seed, device
        torch.manual_seed(seed)
        self.ours = PerceiverVLForRetrieval(self.config).eval().to(device)
        self.peers: dict[str, nn.Module] = {}
        self.shells = {peer.name: build_peer(peer, self.peers_config, "meta") for peer in PEERS}
        draw = torch.Generator().manual_seed(seed)
        self.words = torch.randint(config.vocab_size, (batch_size, WORDS), generator=draw).to(device)
        self.clips: dict[int, Tensor] = {}
        self.counts: dict[CostSetting, float] = {}
        self.draw = draw

    def call(self, setting: CostSetting) -> Callable[[], object]:
        """The forward of a setting, to be run and timed."""
        words = self.words[:, : setting.words] if setting.words else None
        pixels = self._pixels(setting) if setting.frames else None
        if setting.model == OURS:
            return lambda: _ours(self.ours, words, pixels, setting.budget)
        if setting.model not in self.peers:
            torch.manual_seed(self.seed)
            peer = next(peer for peer in PEERS if peer.name == setting.model)
            self.peers[peer.name] = build_peer(peer, self.peers_config, self.device)
        model = self.peers[setting.model]
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
        return count(lambda: self.shells[setting.model](input_ids=words, pixel_values=pixels))

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


def _count_all(
    models: _Models, listed: Sequence[Entry], product: MatrixProduct, most_seconds: float, stages: ProgressBars
) -> dict[CostSetting, _Measured]:
    """Run each setting once, counting; smaller ones first, as their memory says what the larger ones will need."""
    settings = sorted(dict.fromkeys(entry.setting for entry in listed), key=lambda setting: setting.pixels)
    advance = stages.stage("Counting operations and memory", len(settings))
    rate = product.gflops / min(product.seconds() for _ in range(3))
    held: dict[tuple[str, ComputeBudget], tuple[int, float]] = {}
    measured = {}
    for setting in settings:
        gflops = models.count_at(setting)
        seconds = models.batch_size * gflops / rate
        pixels, mib = held.get((setting.model, setting.budget), (0, 0.0))
        needed = mib * setting.pixels / pixels if pixels else 0.0
        if seconds > most_seconds:
            measured[setting] = _Measured(gflops, skipped=f"about {seconds:.0f} s a run or more")
        elif needed > available_mib(models.device):
            measured[setting] = _Measured(gflops, skipped=f"about {needed / 1024:.1f} GiB would be needed")
        else:
            flops, mib = count_and_hold(models.call(setting))
            measured[setting] = _Measured(flops / models.batch_size / 1e9, mib)
            held[setting.model, setting.budget] = setting.pixels, mib
        advance()
    return measured


def _cost(entry: Entry, measured: dict[CostSetting, _Measured], full: ComputeBudget) -> Cost:
    setting = entry.setting
    found, timing = measured[setting], measured[setting].timing
    reference = measured.get(replace(setting, model=OURS, budget=full))
    is_ours = setting.model == OURS
    latents = setting.budget.latents if setting.frames else setting.budget.text_latents
    return Cost(
        entry.part,
        entry.label,
        setting.model,
        setting.frames,
        setting.image_size,
        setting.words,
        latents if is_ours else None,
        setting.budget.cross_attentions if is_ours else None,
        found.gflops,
        timing.milliseconds if timing else None,
        timing.fastest if timing else None,
        timing.slowest if timing else None,
        found.peak_mib,
        found.share_of_peak,
        timing.milliseconds / reference.timing.milliseconds if timing and reference and reference.timing else None,
        found.skipped,
        entry.published,
    )


Point = tuple[int, float, float]  # frames, theirs, ours


FEW = (1, 2, 4)  # where the others may still be ahead


def crossovers(costs: "Sequence[Cost]", count_at: Callable[[CostSetting], float], full: CostSetting) -> list[str]:
    """For each of the others: at which numbers of frames a clip and words cost it less than ours at `full` dials.

    By operations (`count_at`) at few frames more than were measured, by seconds where both were.
    """
    frames = [cost for cost in costs if cost.part == "frames"]
    reference = {cost.frames: cost for cost in frames if _is(cost, full)}
    said = []
    for peer in PEERS:
        theirs = {cost.frames: cost for cost in frames if cost.model == peer.name}
        counted = [
            (number, count_at(replace(full, model=peer.name, frames=number)), count_at(replace(full, frames=number)))
            for number in sorted({*FEW, *theirs})
        ]
        timed = []
        for number, cost in sorted(theirs.items()):
            mine = reference[number].milliseconds
            if cost.milliseconds is not None and mine is not None:
                timed.append((number, cost.milliseconds, mine))
        said.append(in_words(peer.title, counted, "GFLOPs"))
        if timed:
            said.append(in_words(peer.title, timed, "ms"))
    words = {cost.label: cost for cost in costs if cost.part == "words"}
    ours = [cost for cost in words.values() if cost.model == OURS]
    if ours:
        listed = ", ".join(f"{cost.label} {cost.gflops:.1f}" for cost in words.values())
        said.append(f"{ours[0].words} words alone, GFLOPs: {listed}.")
    return said


def in_words(title: str, points: Sequence[Point], unit: str) -> str:
    """One sentence on `points`, in ascending order of frames."""
    less = [(frames, theirs, ours) for frames, theirs, ours in points if theirs < ours]
    ends = ", ".join(dict.fromkeys((_pair(points[0]), _pair(points[-1]))))
    measure = f"{title} ({unit}): "
    if not less:
        return measure + f"costs more than ours at every number of frames, {ends}."
    if len(less) == len(points):
        return measure + f"costs less than ours at every number of frames, {ends}."
    if less == list(points[: len(less)]):
        turn = points[len(less)]
        return measure + f"costs less than ours up to {_pair(less[-1])}; more from {_pair(turn)} on."
    if less == list(points[-len(less) :]):
        return measure + f"costs more than ours up to {_pair(points[-len(less) - 1])}; less from {_pair(less[0])} on."
    return measure + "costs less than ours at " + ", ".join(_pair(point) for point in less) + "; more elsewhere."


def _pair(point: Point) -> str:
    frames, theirs, ours = point
    return f"{frames} frame{'s' if frames > 1 else ''} ({_amount(theirs)} against {_amount(ours)})"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _is(cost: "Cost", setting: CostSetting) -> bool:
    return (cost.model, cost.image_size, cost.latents, cost.cross_attentions) == (
        setting.model,
        setting.image_size,
        setting.budget.latents,
        setting.budget.cross_attentions,
    )
