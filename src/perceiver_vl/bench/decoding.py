"""How many clips a second one core decodes, samples and resizes: ours beside other decoders, on generated videos.

The cost is processor time, of all threads together, so that a decoder gains nothing by taking more cores. Runs are
interleaved, so that a machine whose speed drifts slows all decoders alike; the ratios are what to trust.
"""

import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.media.decode import decoder_version, load_frames
from perceiver_vl.media.sampling import Frames, sample_indices
from perceiver_vl.tasks.provenance import versions
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import first_line

RATE = 30
KEYFRAME_EVERY = 250  # frames, as x264 does unless told
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "H.264": ("libx264", {"preset": "veryfast", "crf": "24", "g": str(KEYFRAME_EVERY)}),
    "HEVC": (
        "libx265",
        {"preset": "ultrafast", "crf": "28", "x265-params": f"log-level=none:keyint={KEYFRAME_EVERY}"},
    ),
    "VP9": (
        "libvpx-vp9",
        {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0", "g": str(KEYFRAME_EVERY), "row-mt": "1"},
    ),
}
HEIGHTS = (240, 720, 1080)
FRAME_COUNTS = (8, 64)
SIZE = (224, 224)
OURS = "perceiver-vl"

Decoder = Callable[[str, list[int]], Frames]


@dataclass(frozen=True)
class Row:
    """Clips a second of one core (median), processor milliseconds of a clip and their range, and the mean difference
    of the pixels from ours, in levels of 255: filters and colour conversions differ, other frames would show.
    """

    decoder: str
    codec: str
    height: int
    frames: int
    clips_per_second: float
    milliseconds: float
    fastest: float
    slowest: float
    difference: float


@dataclass(frozen=True)
class DecodingReport(BenchReport):
    """The rows; which decoders are not there, and why."""

    rows: list[Row]
    absent: dict[str, str]
    seconds: float
    size: tuple[int, int]

    def sections(self) -> list[Section]:
        """A row a decoder and setting; what the rows of a setting share stands in the first of them, ours."""
        ours = {(row.codec, row.height, row.frames): row.milliseconds for row in self.rows if row.decoder == OURS}
        rows = [
            (
                *((row.codec, str(row.height), str(row.frames)) if row.decoder == OURS else ("", "", "")),
                row.decoder,
                f"{row.clips_per_second:.2f}",
                f"{row.milliseconds:.0f}",
                f"{row.fastest:.0f}",
                f"{row.slowest:.0f}",
                f"{row.milliseconds / ours[row.codec, row.height, row.frames]:.2f}",
                f"{row.difference:.1f}",
            )
            for row in self.rows
        ]
        size = "×".join(map(str, self.size))
        title = f"clips of {self.seconds:g} s and {RATE} frames a second, decoded and resized to {size}"
        columns = "codec", "height", "frames", "decoder", "clips/s/core", "ms", "fastest", "slowest", "ratio", "diff"
        notes = tuple(f"not measured: {name} ({reason})" for name, reason in self.absent.items())
        return [Section(title, columns, rows, notes)]


def measure_decoding(
    *,
    codecs: Sequence[str] = tuple(CODECS),
    heights: Sequence[int] = HEIGHTS,
    frame_counts: Sequence[int] = FRAME_COUNTS,
    seconds: float = 10.0,
    runs: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> DecodingReport:
    """Decode clips of `seconds` (16:9, 30 frames a second, a keyframe in 250) to each of `frame_counts` at 224x224."""
    decoders, absent, found_versions = _decoders()
    rows = []
    with tempfile.TemporaryDirectory() as folder, ProgressBars(progress) as stages:
        advance = stages.stage("Writing clips", len(codecs) * len(heights))
        paths = {}
        for height in heights:
            for codec in codecs:
                paths[codec, height] = write_clip(Path(folder, f"{codec}{height}.mkv"), codec, height, seconds, seed)
                advance()
        advance = stages.stage("Decoding", len(paths) * len(frame_counts) * (runs + 1))
        for (codec, height), path in paths.items():
            for count in frame_counts:
                wanted = sample_indices(round(seconds * RATE), count)
                measured = _measure(decoders, str(path), wanted, runs, advance)
                ours = measured[OURS][1].astype(np.int16)
                for name, (times, frames) in measured.items():
                    middle = statistics.median(times)
                    fastest, slowest = 1e3 * min(times), 1e3 * max(times)
                    difference = float(np.abs(frames - ours).mean())
                    setting = name, codec, height, len(wanted)
                    rows.append(Row(*setting, 1 / middle, 1e3 * middle, fastest, slowest, difference))
    return DecodingReport(rows, absent, seconds, SIZE, runs=runs, seed=seed, versions=versions() | found_versions)


def write_clip(path: Path, codec: str, height: int, seconds: float, seed: int) -> Path:
    """A view that moves over a landscape of random colours, with the grain of a camera."""
    rng = np.random.default_rng(seed)
    width = height * 16 // 9 // 2 * 2
    rough = rng.integers(0, 256, (40, 70, 3), np.uint8)
    field = np.asarray(Image.fromarray(rough).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    grain = rng.integers(-4, 5, (5, height, width, 1), np.int16)
    encoder, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        count = round(seconds * RATE)
        for number in range(count):
            y, x = (round(side * (0.5 + 0.45 * np.sin(k * number / 40))) for side, k in ((height, 1), (width, 1.3)))
            view = field[y : y + height, x : x + width] + grain[number % len(grain)]
            frame: Any = av.VideoFrame.from_ndarray(view.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _measure(
    decoders: dict[str, Decoder], path: str, wanted: list[int], runs: int, advance: Callable[..., None]
) -> dict[str, tuple[list[float], Frames]]:
    """Processor seconds of every run, and the frames, for each decoder."""
    frames = {}
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for run in range(runs + 1):  # the first warms up
        for name, decode in decoders.items():
            start = time.process_time()
            frames[name] = decode(path, wanted)
            if run:
                times[name].append(time.process_time() - start)
        advance()
    return {name: (times[name], frames[name]) for name in decoders}


def _decoders() -> tuple[dict[str, Decoder], dict[str, str], dict[str, str]]:
    """Those that can be imported, why others cannot, and their versions."""
    decoders: dict[str, Decoder] = {OURS: _ours, "PyAV, every frame": _pyav}
    absent = {}
    found = {"decoders": decoder_version()}
    for name, module, decode in (
        ("OpenCV", "cv2", _opencv),
        ("decord", "decord", _decord),
        ("torchcodec", "torchcodec.decoders", _torchcodec),
    ):
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises them all where FFmpeg is missing
            absent[name] = first_line(error)
            continue
        decoders[name] = decode
        found[name] = str(importlib.import_module(module.partition(".")[0]).__version__)
    return decoders, absent, found


def _ours(path: str, wanted: list[int]) -> Frames:
    return load_frames(path, len(wanted), size=SIZE)


def _pyav(path: str, wanted: list[int]) -> Frames:
    """Plain: every frame up to the last one wanted, one after the other."""
    chosen, taken = set(wanted), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in chosen:
                taken.append(frame.to_ndarray(format="rgb24", width=SIZE[1], height=SIZE[0], interpolation="BICUBIC"))
            if number == wanted[-1]:
                break
    return np.stack(taken)


def _opencv(path: str, wanted: list[int]) -> Frames:
    cv2: Any = importlib.import_module("cv2")
    chosen, taken = set(wanted), []
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for number in range(wanted[-1] + 1):
        video.grab()
        if number in chosen:
            small = cv2.resize(video.retrieve()[1], SIZE[::-1], interpolation=cv2.INTER_AREA)
            taken.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    video.release()
    return np.stack(taken)


def _decord(path: str, wanted: list[int]) -> Frames:
    video: Any = importlib.import_module("decord").VideoReader(path, width=SIZE[1], height=SIZE[0], num_threads=1)
    frames: Frames = video.get_batch(wanted).asnumpy()
    return frames


def _torchcodec(path: str, wanted: list[int]) -> Frames:
    decoders, transforms = (importlib.import_module(f"torchcodec.{name}") for name in ("decoders", "transforms"))
    video: Any = decoders.VideoDecoder(
        path, num_ffmpeg_threads=1, dimension_order="NHWC", transforms=[transforms.Resize(SIZE)]
    )
    frames: Frames = video.get_frames_at(wanted).data.numpy()
    return frames
