"""A student beside its teacher on the same clips: how well texts find them, and what a clip costs, by its frames.

Times are of one real clip from pixels to its vector, interleaved with those of all other settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.bench.profiling import time_interleaved
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, pooling_flops, pretrained_flops
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import vision_batch_of
from perceiver_vl.training.student_score import texts_of
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.timing import MatrixProduct

FRAMES = (8, 32, 128)
FRAMES_AT_ONCE = 128
"""Of all clips that are encoded together: an encoder's maps of a frame take about 10 MB."""
Loaded = tuple[PerceiverVLForRetrieval, PerceiverVLProcessor]


@dataclass(frozen=True)
class MeasuredModel:
    """The teacher or the student at a number of frames: GFLOPs and median milliseconds of a clip, and their range; of
    the student the mean cosine of its vectors with the teacher's at as many frames; recall of clips by their captions
    in per cent, None where there are none.
    """

    model: str
    num_frames: int
    gflops: float
    milliseconds: float
    fastest: float
    slowest: float
    cosine: float | None
    r1: float | None
    r5: float | None
    r10: float | None


@dataclass(frozen=True)
class DistillationReport(BenchReport):
    """Both models at every number of frames, on `clips` clips of `data` with `captions` captions."""

    measured: list[MeasuredModel]
    data: str
    clips: int
    captions: int

    def sections(self) -> list[Section]:
        """A row a model and number of frames."""
        rows = [
            (
                one.model,
                str(one.num_frames),
                *(or_dash(value, ".1f") for value in (one.r1, one.r5, one.r10)),
                or_dash(one.cosine, ".3f"),
                f"{one.gflops:.3g}",
                f"{one.milliseconds:.3g}",
            )
            for one in self.measured
        ]
        title = f"teacher and student: {self.captions} captions among {self.clips} clips of {self.data}"
        notes = ("ms: one clip, decoded, to its vector. A clip with fewer frames has those it has.",)
        return [Section(title, ("model", "T", "R@1", "R@5", "R@10", "cosine", "GFLOPs", "ms"), rows, notes)]


@torch.inference_mode()
def measure_distillation(
    teacher: Loaded,
    student: Loaded,
    open_clips: Callable[[PerceiverVLProcessor], VideoDataset],
    *,
    frames: Sequence[int] = FRAMES,
    runs: int = 5,
    batch_size: int = 16,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    data: str = "",
    progress: bool = False,
) -> DistillationReport:
    """Both models on the clips that `open_clips` gives at the size of a processor's frames.

    A model whose table of times has fewer rows than `frames` is given zeros for the others, as before training. `data`:
    what the clips are called in the report. Raises `UsageError` for models whose vectors cannot be compared, or fewer
    than one frame; `PerceiverVLError` where fewer than two clips can be read.
    """
    sizes = [model.config.projection_dim for model, _ in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"model: vectors of {sizes[1]} numbers, its teacher's have {sizes[0]}; name its own teacher")
    if not frames or min(frames) < 1:
        raise UsageError(f"num_frames={','.join(map(str, frames))}: need at least one frame")
    models = {"teacher": teacher, "student": student}
    sources = {name: open_clips(processor) for name, (_, processor) in models.items()}
    vectors: dict[tuple[str, int], Tensor] = {}
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    places = torch.zeros(0, dtype=torch.long)
    with ProgressBars(progress) as stages:
        for number in frames:
            for name, (model, processor) in models.items():
                _make_room(model, number)
                advance = stages.stage(f"{name}, {number} frames", len(sources[name]))
                clips = max(1, min(batch_size, FRAMES_AT_ONCE // number))
                reader = ClipReader(
                    sources[name], number, clips, False, max_failed_fraction, ProcessGroup(shared=False)
                )
                found, inputs = _encode(model, processor, reader, advance)
                vectors[name, number] = found
                calls[name, number] = partial(model.get_vision_features, *inputs)
        known = torch.stack([found.isfinite().all(1) for found in vectors.values()]).all(0)
        places = known.nonzero().squeeze(1)
        if len(places) < 2:
            raise PerceiverVLError(f"{data}: {len(places)} clips that both models can read, need two")
        advance = stages.stage("Measuring time", runs * len(calls))
        product = MatrixProduct(512, teacher[0].device)
        timings = time_interleaved([*calls.values()], runs, product, advance).timings
    texts = {name: texts_of(*models[name], sources[name]) for name in models}
    measured = []
    for (name, number), timing in zip(calls, timings, strict=True):
        config, found = models[name][0].config, vectors[name, number][places]
        recalls = texts[name].recalls(found, places)
        cosine = F.cosine_similarity(found, vectors["teacher", number][places], dim=-1).mean().item()
        flops = encoder_flops(config, number) + pretrained_flops(config, number) + pooling_flops(config)
        times: dict[str, Any] = {key: getattr(timing, key) for key in ("milliseconds", "fastest", "slowest")}
        of_texts: dict[str, Any] = {key: recalls.get(key) for key in ("r1", "r5", "r10")}
        of_student = None if name == "teacher" else cosine
        measured.append(MeasuredModel(name, number, flops / 1e9, cosine=of_student, **times, **of_texts))
    captions = int(torch.isin(texts["teacher"].owner, places).sum())
    return DistillationReport(measured, data, len(places), captions, runs=runs)


def _encode(
    model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor, reader: ClipReader, advance: Callable[..., None]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Vectors of all clips `(C,E)`, NaN of those that cannot be read, and the inputs of the first one."""
    vectors = torch.full((len(reader.source), model.config.projection_dim or 0), torch.nan)
    first: list[tuple[Tensor, Tensor]] = []

    def see(batch: ReadBatch) -> None:
        clips = vision_batch_of(batch, processor, reader.num_frames, model.device)
        found = model.get_vision_features(clips.pixel_values, clips.frame_mask)
        vectors[batch.indices] = found[clips.rows].float().cpu()
        if not first:
            first.append((clips.pixel_values[:1].clone(), clips.frame_mask[:1].clone()))
        advance(len(batch.indices))

    reader.read(see)
    if not first:
        raise PerceiverVLError("no clip can be read, name others")
    return vectors, first[0]


def _make_room(model: PerceiverVLForRetrieval, frames: int) -> None:
    """Zeros for the times of frames that a model has no rows for."""
    vision = model.perceiver_vl.embeddings.vision
    missing = model.config.groups_of(frames) - len(vision.temporal_embeddings)
    if missing > 0:
        vision.temporal_embeddings = nn.Parameter(F.pad(vision.temporal_embeddings.detach(), (0, 0, 0, missing)))
        model.config.max_frames = frames
