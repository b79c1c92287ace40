"""What a long video costs: read chunk by chunk in constant memory, beside all of its frames at once.

Frames are sampled at one a second and given as pixels; decoding is not counted, their memory is.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from perceiver_vl.bench.profiling import available_memory_mib, peak_memory_mib
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import embedding_flops, encoder_flops
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import MatrixProduct, timed

MINUTES = (1, 5, 20, 60)
CHUNK_FRAMES = 32
MOST_SECONDS = 180.0
ONE_CROSS_ATTENTION = ComputeBudget(cross_attentions=1)
FORMS = (  # the name, whether in chunks, the budget
    ("chunks", True, FULL_BUDGET),
    ("chunks, 1 cross-attention", True, ONE_CROSS_ATTENTION),
    ("whole", False, FULL_BUDGET),
    ("whole, 1 cross-attention", False, ONE_CROSS_ATTENTION),
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
    seconds: float | None = None
    seconds_per_minute: float | None = None
    peak_mib: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class LengthReport(BenchReport):
    """The videos. `max_difference`: of the latents of the shortest video in chunks from those of it whole."""

    lengths: list[Length]
    max_difference: float
    chunk_frames: int
    image_size: int

    def sections(self) -> list[Section]:
        """A row a video."""
        rows = [
            (
                one.form,
                f"{one.minutes:g}",
                f"{one.gflops:.0f}",
                or_dash(one.seconds, ".1f"),
                or_dash(one.seconds_per_minute, ".2f"),
                or_dash(one.peak_mib, ".0f"),
            )
            for one in self.lengths
        ]
        skipped = [one for one in self.lengths if one.skipped]
        notes = (
            "MiB: held at once, model aside, frames included. In chunks the frames are embedded for every "
            "cross-attention.",
            f"The shortest video's latents in chunks differ from those of it whole by {self.max_difference:.1e}.",
            *(f"Not run: {one.form}, {one.minutes:g} minutes ({one.skipped})." for one in skipped),
        )
        title = f"a frame a second, {self.image_size} pixels, chunks of {self.chunk_frames} frames"
        return [Section(title, ("form", "minutes", "GFLOPs", "s", "s a minute", "MiB"), rows, notes)]


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
    encode = partial(_encode, model, frame, chunk_frames)
    product = MatrixProduct(2 * config.hidden_size, device)
    product.seconds()
    rate = product.gflops / min(product.seconds() for _ in range(3))
    short = round(60 * min(minutes))
    difference = (encode(short, True, FULL_BUDGET) - encode(short, False, FULL_BUDGET)).abs().max().item()
    lengths: list[Length] = []
    mib_a_frame: dict[str, float] = {}  # of the forms whose memory grows with the frames
    with ProgressBars(progress) as stages:
        advance = stages.stage("Measuring length", len(minutes) * len(FORMS))
        for number, (form, in_chunks, budget) in itertools.product(sorted(minutes), FORMS):
            frames = round(60 * number)
            gflops = _gflops(config, frames, in_chunks, budget)
            needed = mib_a_frame.get(form, 0.0) * frames
            if gflops / rate > most_seconds:
                skipped = f"about {gflops / rate:.0f} s or more"
                lengths.append(Length(form, number, frames, gflops, skipped=skipped))
            elif needed > available_memory_mib(device):
                skipped = f"about {needed / 1024:.1f} GiB would be needed"
                lengths.append(Length(form, number, frames, gflops, skipped=skipped))
            else:
                seconds, mib = _measure(partial(encode, frames, in_chunks, budget), runs, device)
                lengths.append(Length(form, number, frames, gflops, seconds, seconds / number, mib))
                if not in_chunks:
                    mib_a_frame[form] = mib / frames
            advance()
    return LengthReport(lengths, difference, chunk_frames, config.image_size, runs=runs, seed=seed)


def _measure(call: Callable[[], object], runs: int, device: str | torch.device) -> tuple[float, float]:
    """Seconds (median) and MiB, of the same runs: an hour is not read twice to be measured once."""
    seconds: list[float] = []
    mib = max([peak_memory_mib(lambda: seconds.append(timed(call, device))) for _ in range(runs)])
    return statistics.median(seconds), mib


def _gflops(config: PerceiverVLConfig, frames: int, in_chunks: bool, budget: ComputeBudget) -> float:
    """In chunks the frames are embedded again for every cross-attention."""
    cross_attentions = budget.cross_attentions or config.num_blocks
    again = (cross_attentions - 1) * embedding_flops(config, frames) if in_chunks else 0
    return (encoder_flops(config, frames, 0, budget) + again) / 1e9


def _encode(
    model: PerceiverVLModel, frame: Tensor, chunk_frames: int, frames: int, in_chunks: bool, budget: ComputeBudget
) -> Tensor:
    """A video of the same frame again and again: its pixels do not change what it costs."""
    if not in_chunks:
        return model(pixel_values=frame.repeat(1, frames, 1, 1, 1), budget=budget).last_hidden_state
    chunk = frame.repeat(1, min(chunk_frames, frames), 1, 1, 1)

    def chunks() -> Iterable[Tensor]:
        full, rest = divmod(frames, chunk.shape[1])
        return itertools.chain(itertools.repeat(chunk, full), [chunk[:, :rest]] if rest else [])

    return model.encode_long(chunks, num_frames=frames, budget=budget)
