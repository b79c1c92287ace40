"""Searches for moments, measured: windows from stored numbers beside decoding them, encoding them again, and frames
scored by a CLIP of the same size; what an hour of video costs to index, and a query against many.
"""

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from perceiver_vl.bench.decoding import write_clip
from perceiver_vl.bench.moments_library import (
    QUERIES,
    SEGMENT,
    SEGMENTS_AN_HOUR,
    VECTOR,
    make_library,
    save_model,
)
from perceiver_vl.bench.profiling import peak_memory_mib
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.layers.partial_attention import merge, unpack
from perceiver_vl.layers.windows import WindowTable
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.search.build import build_index
from perceiver_vl.search.moments import MomentOptions, MomentResult
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.searcher import Searcher
from perceiver_vl.search.table import SEGMENTS, open_table
from perceiver_vl.search.windows import WINDOWS_AT_ONCE, Query, Stretch, scales, score
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import timed

HOURS = (1, 10, 100)
QUICK_HOURS = (1,)
RECALL_AT = 10
RECALL_HOURS = 3  # as many as are scored whole
ONE_CROSS_ATTENTION = ComputeBudget(cross_attentions=1)
_PRODUCTS = 5
LOUDNESS = (2.0, 20.0)  # nats, about which the weights of made-up parts spread


@dataclass(frozen=True)
class MomentsBenchReport(BenchReport):
    """What searching for moments costs.

    max_difference: of logits of merged windows from those of the decoder over all their latents, over `windows_tried`,
    every window of a row of segments; `same_order`: of all of them. table_error, prefix_error: of the output of windows
    of a ten-hour row from merges one by one in float64, by the `LOUDNESS` by which parts spread; None: some are lost.
    windows_per_second: of an hour at six scales for one query, which takes `hour_s` seconds (median);
    windows_per_core_second: by the seconds that processors worked for it, whoever else had them meanwhile;
    matrices_per_core_second: the most that could be, by the matrix products of the decoder's end alone.
    seconds_per_hour, megabytes_per_hour: of indexing 720p H.264 with one cross-attention and a frame a second, decoding
    included, from a video of `video_s` seconds; dtype_seconds_per_hour: the same in `dtype`, where one was asked for,
    and dtype_cosine: the least cosine of a segment's vectors in both. encode_windows_s: seconds to encode all windows
    of an hour again, from one of each length; clip_seconds_per_hour: a frame a second by a CLIP of the same size;
    `…_mib`: what one batch, of a segment's or as many single frames, holds. milliseconds_per_query: by hours of library
    (median). recall: of the `RECALL_AT` best of a library of `recall_hours`, the share that is found through the
    shortlist.
    """

    max_difference: float
    windows_tried: int
    same_order: bool
    table_error: dict[str, float]
    prefix_error: dict[str, float | None]
    windows_per_second: float
    windows_per_core_second: float
    matrices_per_core_second: float
    hour_s: float
    seconds_per_hour: float
    megabytes_per_hour: float
    video_s: float
    encode_windows_s: float
    clip_seconds_per_hour: float
    clip_megabytes_per_hour: float
    segment_mib: float
    clip_mib: float
    milliseconds_per_query: dict[str, float]
    everything_milliseconds: float
    recall: float
    recall_hours: int
    threads: int
    dtype: str | None = None
    dtype_seconds_per_hour: float | None = None
    dtype_cosine: float | None = None

    def sections(self) -> list[Section]:
        """Exactness, an hour beside the alternatives, and queries."""
        exact = [
            ("merged against direct, largest difference of logits", f"{self.max_difference:.1e}"),
            ("windows tried", f"{self.windows_tried:,}"),
            ("order of all of them", "the same" if self.same_order else "another"),
        ]
        for spread, error in self.table_error.items():
            exact.append((f"ten hours, spread of {spread} nats: table, error", f"{error:.0e}"))
            lost = self.prefix_error[spread]
            exact.append(
                (f"ten hours, spread of {spread} nats: prefix sums", "lost" if lost is None else f"{lost:.0e}")
            )
        hour = [
            ("segments of 2 s", f"{self.seconds_per_hour:.0f}", f"{self.hour_s:.2f}", f"{self.megabytes_per_hour:.1f}"),
            *(
                [(f"… in {self.dtype}", f"{self.dtype_seconds_per_hour:.0f}", "–", f"{self.megabytes_per_hour:.1f}")]
                if self.dtype_seconds_per_hour is not None
                else []
            ),
            ("each window encoded", "–", f"{self.encode_windows_s:,.0f}", "0"),
            ("CLIP, frame by frame", f"{self.clip_seconds_per_hour:.0f}", "–", f"{self.clip_megabytes_per_hour:.1f}"),
        ]
        queries = [(f"{hours} h", f"{ms:,.0f}") for hours, ms in self.milliseconds_per_query.items()]
        notes = (
            f"Index: of segments with decoding, from {self.video_s:g} s of video; of CLIP without. Encoding a segment "
            f"holds {self.segment_mib:.0f} MiB, as many frames by CLIP {self.clip_mib:.0f} MiB.",
            f"Query: every window at six scales, {self.windows_per_second:,.0f} a second; "
            f"{self.windows_per_core_second:,.0f} a second that a core works for it, of at most "
            f"{self.matrices_per_core_second:,.0f} by the matrix products of the decoder's end alone.",
            *(
                [f"A segment's vectors in float32 and {self.dtype}: least cosine {self.dtype_cosine:.5f}."]
                if self.dtype_cosine is not None
                else []
            ),
        )
        about = (
            f"Recall of the shortlist, {self.recall_hours} h: {self.recall:.2f} of the {RECALL_AT} best; all windows "
            f"there take {self.everything_milliseconds:,.0f} ms. Libraries are made up.",
        )
        return [
            Section("every window from stored numbers", ("", ""), exact),
            Section("an hour of video", ("", "index, s", "query, s", "MB"), hour, notes),
            Section("a query", ("library", "ms"), queries, about),
        ]


@torch.inference_mode()
def measure_moments(
    config: PerceiverVLConfig | None = None,
    *,
    hours: Sequence[int] = HOURS,
    segments: int = 24,
    video_s: float = 120.0,
    height: int = 720,
    dtype: str | None = None,
    runs: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> MomentsBenchReport:
    """A model of random weights, at base size unless `config` says: its windows of a row of `segments`, an hour's, what
    it takes to index a video of `video_s` in float32 and in `dtype`, and queries against libraries of `hours`.

    Raises `UsageError` for what cannot be measured.
    """
    if not hours or min(hours) < 1 or segments < 2 or video_s < 2 * SEGMENT:
        raise UsageError(
            f"hours={','.join(map(str, hours))}, segments={segments}, video_s={video_s}: need hours of 1 or more, two "
            f"segments and {2 * SEGMENT:g} s of video"
        )
    with tempfile.TemporaryDirectory(prefix="perceiver-vl-moments-") as scratch, ProgressBars(progress) as bar:
        folder = Path(scratch)
        advance = bar.stage("Making a model and a video", 2)
        config = save_model(folder / "model", config, seed)
        advance()
        (folder / "media").mkdir()
        write_clip(folder / "media" / "video.mp4", "H.264", height, video_s, seed)
        advance()
        model, _ = load_retriever(folder / "model", "cpu")
        advance = bar.stage("Windows", 4)
        difference, tried, same = _against_decoding(model, segments, seed)
        advance()
        errors = {f"{spread:g}": _errors(spread, seed) for spread in LOUDNESS}
        advance()
        windows, hour_s, worked_s, products_s = _score_hour(model, runs, seed)
        advance()
        windows_s, segment_mib = _encode_windows(model, config)
        advance()
        seconds, vectors = _index(folder, "float32", progress)
        other_seconds, cosine = None, None
        if dtype is not None:
            other_seconds, others = _index(folder, dtype, progress)
            cosine = float((vectors * others).sum(1).min())
        clip_s, clip_mib = _clip(config, seed)
        by_hours: dict[str, float] = {}
        megabytes = recall = everything = 0.0
        recall_hours = min(RECALL_HOURS, max(hours))
        for size in sorted({*hours, recall_hours}):
            advance = bar.stage(f"A library of {size} h", size + runs + 1)
            table = make_library(folder / "library", folder / "model", config, size, seed, advance)
            searcher = Searcher(folder / "library")
            searcher.segments()
            if size == recall_hours:
                recall, everything = _recall(searcher, runs)
            if size in hours:
                by_hours[str(size)] = _query(searcher, runs, advance, warm=size == recall_hours)
            megabytes = _held(folder / "library" / "segments.lance", table.data_files()) / size / 1e6
    return MomentsBenchReport(
        max_difference=difference,
        windows_tried=tried,
        same_order=same,
        table_error={spread: table for spread, (table, _) in errors.items()},
        prefix_error={spread: prefix for spread, (_, prefix) in errors.items()},
        windows_per_second=windows / hour_s,
        windows_per_core_second=windows / worked_s,
        matrices_per_core_second=windows / products_s,
        hour_s=hour_s,
        seconds_per_hour=seconds * 3600 / video_s,
        dtype=dtype,
        dtype_seconds_per_hour=None if other_seconds is None else other_seconds * 3600 / video_s,
        dtype_cosine=cosine,
        megabytes_per_hour=megabytes,
        video_s=video_s,
        encode_windows_s=windows_s,
        clip_seconds_per_hour=clip_s,
        clip_megabytes_per_hour=3600 * 4 * config.hidden_size / 1e6,
        segment_mib=segment_mib,
        clip_mib=clip_mib,
        milliseconds_per_query=by_hours,
        everything_milliseconds=everything,
        recall=recall,
        recall_hours=recall_hours,
        threads=torch.get_num_threads(),
        runs=runs,
        seed=seed,
    )


def _index(folder: Path, dtype: str, progress: bool) -> tuple[float, Vectors]:
    """Seconds to index the video in segments in a dtype, decoding included, and the unit vectors of these `(S,E)`."""
    report = build_index(
        folder / "model",
        folder / "media",
        folder / f"index-{dtype}",
        segments=SEGMENT,
        budget=ONE_CROSS_ATTENTION,
        dtype=dtype,
        progress=progress,
    )
    assert report.segments is not None
    rows = open_table(folder / f"index-{dtype}", name=SEGMENTS).columns(["start", "vector"])
    vectors = np.stack(rows.sort_by("start")["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    return report.segments.seconds, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _held(folder: Path, data_files: Sequence[str]) -> int:
    """Bytes of the newest version of a table: its rows, and indexes where there are some."""
    indexes = [one for one in (folder / "_indices").rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in [*indexes, *(folder / "data" / name for name in data_files)])


def _against_decoding(model: PerceiverVLForRetrieval, segments: int, seed: int) -> tuple[float, int, bool]:
    """Every window of a row of random latents: the largest difference of logits, how many there are, and whether both
    put them in the same order, but for those that differ by less than that.
    """
    draw = torch.Generator().manual_seed(seed)
    size, latents = model.config.hidden_size, model.config.num_latents
    row = torch.randn(segments, latents, size, generator=draw)
    text = torch.randn(1, model.config.num_text_latents or latents, size, generator=draw)
    windows = list(itertools.combinations(range(segments + 1), 2))
    starts, ends = np.array(windows).T
    table = WindowTable(model.partial_match(row).numpy(), model.config.num_attention_heads)
    found = model.merge_matches(torch.from_numpy(table.merge(starts, ends)), model.partial_match(text))
    direct = torch.cat([model.match(row[start:end].flatten(0, 1)[None], text) for start, end in windows])
    difference = (found - direct).abs().max().item()
    in_order = direct[found.argsort(descending=True)]
    return difference, len(windows), bool((in_order.diff() <= 2 * difference).all())


def _errors(spread: float, seed: int) -> tuple[float, float | None]:
    """The largest error of windows of ten hours, by the table and by differences of prefix sums in float64."""
    heads, width, parts, length = 4, 8, 10 * SEGMENTS_AN_HOUR, 30
    draw = np.random.default_rng([seed, 3])
    packed = draw.standard_normal((parts, width + heads)).astype(np.float32)
    packed[:, -heads:] *= spread
    starts = np.arange(0, parts - length, 97)
    table = WindowTable(packed, heads).merge(starts, starts + length)
    weights = np.exp(packed[:, -heads:].astype(np.float64) - packed[:, -heads:].max(0))
    weighted = weights[:, :, None] * packed[:, :-heads].astype(np.float64).reshape(parts, heads, -1)
    sums = [np.concatenate([np.zeros((1, *one.shape[1:])), one.cumsum(0)]) for one in (weighted, weights)]
    total, share = (one[starts + length] - one[starts] for one in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_prefix = (total / share[:, :, None]).reshape(len(starts), -1)
    true = np.concatenate(
        [
            functools.reduce(
                merge, [unpack(torch.from_numpy(packed[place : place + 1]).double(), heads) for place in places]
            )
            .pack()
            .numpy()
            for places in (range(start, start + length) for start in starts.tolist())
        ]
    )[:, :-heads]
    error = float(np.abs(by_prefix - true).max())
    return float(np.abs(table[:, :-heads] - true).max()), error if np.isfinite(error) else None


def _score_hour(model: PerceiverVLForRetrieval, runs: int, seed: int) -> tuple[int, float, float, float]:
    """How many windows an hour has at six scales, the seconds (median) that it takes to score them for a query, how
    long processors worked for it, and for as many rows' matrix products of the decoder's end alone.
    """
    draw = np.random.default_rng(seed)
    size, heads = model.config.hidden_size, model.config.num_attention_heads
    starts = SEGMENT * np.arange(SEGMENTS_AN_HOUR, dtype=np.float64)
    vectors, partials = (
        draw.standard_normal((SEGMENTS_AN_HOUR, width), dtype=np.float32) for width in (VECTOR, size + heads)
    )
    stretch = Stretch("video", 3600.0, starts, starts + SEGMENT, vectors, partials)
    text = torch.from_numpy(draw.standard_normal((1, size + heads), dtype=np.float32))
    query = Query(vectors[0], 1.0, lambda rows: model.merge_matches(torch.from_numpy(rows), text).numpy(), heads)
    places = scales(stretch, 0, 60)
    score(stretch, query, *places)
    working = time.process_time()
    seconds = [timed(lambda: score(stretch, query, *places)) for _ in range(runs)]
    worked = (time.process_time() - working) / runs
    wide = model.config.intermediate_size
    rows, hidden = torch.randn(WINDOWS_AT_ONCE, size), torch.randn(WINDOWS_AT_ONCE, wide)
    square, tall = torch.randn(size, size), torch.randn(wide, size)
    working = time.process_time()
    for _ in range(_PRODUCTS):  # attention's way out, the MLP's up and down, the head's
        _ = rows @ square, rows @ tall.T, hidden @ tall, rows @ square
    products = (time.process_time() - working) / _PRODUCTS / len(rows)
    return len(places[0]), statistics.median(seconds), worked, len(places[0]) * products


def _encode_windows(model: PerceiverVLForRetrieval, config: PerceiverVLConfig) -> tuple[float, float]:
    """Seconds to encode every window of an hour at six scales, from one of each length; MiB that a segment takes."""
    total, mib = 0.0, 0.0
    for count in (1, 2, 4, 8, 16, 30):
        frames = min(round(count * SEGMENT), config.max_frames)
        pixels = torch.zeros(1, frames, config.num_channels, config.image_size, config.image_size)
        encode = functools.partial(model.encode_vision, pixels, budget=ONE_CROSS_ATTENTION)
        mib = mib or peak_memory_mib(encode)
        total += timed(encode) * (SEGMENTS_AN_HOUR - count + 1)
    return total, mib


def _clip(config: PerceiverVLConfig, seed: int) -> tuple[float, float]:
    """Seconds to encode an hour at a frame a second by CLIP's image encoder of the same size, from a batch; its MiB."""
    torch.manual_seed(seed)
    size = config.hidden_size
    side = config.image_size - config.image_size % config.patch_size
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=size,
            intermediate_size=4 * size,
            num_hidden_layers=config.num_blocks * config.self_attentions_per_block,
            num_attention_heads=config.num_attention_heads,
            image_size=min(side, 7 * config.patch_size),
            patch_size=config.patch_size,
            projection_dim=VECTOR,
        )
    ).eval()
    side = clip.config.image_size
    batch = torch.zeros(2, 3, side, side)
    encode = functools.partial(clip, pixel_values=batch)
    mib = peak_memory_mib(encode)
    return statistics.median([timed(encode) for _ in range(3)]) * 3600 / len(batch), mib


def _query(searcher: Searcher, runs: int, advance: Callable[..., None], warm: bool) -> float:
    """Milliseconds (median) of a query as it is asked, after a first, which a `warm` index has had."""
    if not warm:
        searcher.moments(QUERIES[-1])
    advance()
    seconds = []
    for words in itertools.islice(itertools.cycle(QUERIES), runs):
        seconds.append(searcher.moments(words).seconds["total"])
        advance()
    return 1e3 * statistics.median(seconds)


def _recall(searcher: Searcher, runs: int) -> tuple[float, float]:
    """The share of the best moments of all windows that is found through the shortlist, and milliseconds of the
    former.
    """
    options = MomentOptions(top_k=RECALL_AT, per_video=RECALL_AT)
    shares, seconds = [], []
    for words in itertools.islice(itertools.cycle(QUERIES), runs):
        everything = searcher.moments(words, replace(options, everything=1 << 40))
        listed = searcher.moments(words, replace(options, everything=0))
        seconds.append(everything.seconds["total"])
        shares.append(len(_places(everything) & _places(listed)) / max(1, len(everything.moments)))
    return statistics.mean(shares), 1e3 * statistics.median(seconds)


def _places(result: MomentResult) -> set[tuple[str, float, float]]:
    return {(one.file_name, one.start, one.end) for one in result.moments}
