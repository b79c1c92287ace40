"""A student learns the vectors of a teacher: what they are, what of the teacher becomes the student's, and the loss.

No captions are needed: what the teacher makes of a clip says where it belongs. Shapes: B batch, ΣB that of all
processes, C clips, T frames, E retrieval vector.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perceiver_vl.data.batching import DrawnExamples, ReadStatistics, read_statistics
from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.records import Record
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.from_encoders import resolve_model
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import vision_batch_of
from perceiver_vl.training.module import TrainingModule
from perceiver_vl.training.recipe import Recipe, Teacher
from perceiver_vl.utils.console import ProgressBars, err
from perceiver_vl.utils.distributed import GlobalBatch, ProcessGroup, global_batches
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError
from perceiver_vl.utils.files import write_with

_VECTORS = "checkpoints/teacher.safetensors"
_NO_VISION: dict[str, Any] = {"vision_config": None, "token_grid": None, "frame_class_token": False}
_NO_VISION |= {"image_size": 1, "patch_size": 1, "max_frames": 1, "coarse_patch_size": None, "tubelet_size": 1}


@dataclass(frozen=True)
class LoadedTeacher:
    """A model that searches, and how many frames of a clip it looks at."""

    name: str
    model: PerceiverVLForRetrieval
    processor: PerceiverVLProcessor
    num_frames: int


def load_teacher(teacher: Teacher, device: str | torch.device | None = None) -> LoadedTeacher:
    """The teacher of a recipe: a Perceiver-VL, or a dual encoder.

    Raises `UsageError` for a model of another kind, one that knows nothing of search, or more frames than it takes.
    """
    model, processor = load_retriever(resolve_model(teacher.model, err.print), device, "float32")
    config = model.config
    if warning := config.search_warning():
        raise UsageError(f"teacher.model={teacher.model}: {warning}")
    frames = teacher.num_frames or processor.image_processor.num_frames
    if frames > config.max_frames:
        raise UsageError(f"teacher.num_frames={frames}: need 1 to {config.max_frames}, the teacher's max_frames")
    return LoadedTeacher(teacher.model, model.requires_grad_(False), processor, frames)


def student_config(teacher: LoadedTeacher, own: dict[str, Any], asked: dict[str, Any]) -> PerceiverVLConfig:
    """The configuration of a student: `own`, with the fields of a recipe that are `asked`, and the teacher's text side.

    Raises `UsageError` for a field that the teacher decides.
    """
    theirs: PerceiverVLConfig = teacher.model.config
    of_text = {
        "base": "dual",
        "base_of_vision": False,
        "base_anchors": 0,
        "base_queries": 0,
        "encoder_projections": False,
        "knows_search": True,
        "text_config": PerceiverVLConfig.from_dict(theirs.to_dict() | _NO_VISION | _base_of_text(theirs)),
    }
    for name in ("projection_dim", "logit_bias", "vocab_size", "mask_token_id", "pad_token_id", "max_text_length"):
        of_text[name] = getattr(theirs, name)
    for name, value in asked.items():
        if name in of_text and value != of_text[name]:
            known = of_text[name] if isinstance(of_text[name], int | str | None) else "another"
            raise UsageError(
                f"model.{name}={value}: the teacher's text side is taken over, which has {known}; leave it out"
            )
    return PerceiverVLConfig.from_dict(own | asked | of_text)


def _base_of_text(config: PerceiverVLConfig) -> dict[str, Any]:
    return {} if config.base == "none" else {"base_of_vision": False, "base_anchors": 0}


def take_over_text(student: PerceiverVLForRetrieval, teacher: LoadedTeacher) -> None:
    """Give a student of `student_config` the weights of the teacher's text side: its vectors of texts are the same."""
    assert student.perceiver_vl.text_encoder is not None
    side, theirs = student.perceiver_vl.text_encoder.model, teacher.model.state_dict()
    shared = {name: theirs[name] for name, own in side.state_dict().items() if _fits(theirs.get(name), own)}
    side.load_state_dict(shared, strict=False)  # what is left is of vision, and never asked
    student.contrastive.logit_scale.data.copy_(teacher.model.contrastive.logit_scale)
    if student.contrastive.logit_bias is not None and teacher.model.contrastive.logit_bias is not None:
        student.contrastive.logit_bias.data.copy_(teacher.model.contrastive.logit_bias)


def _fits(theirs: Tensor | None, own: Tensor) -> bool:
    return theirs is not None and theirs.shape == own.shape


def look_at(
    teacher: LoadedTeacher, source: VideoDataset, recipe: Recipe, description: str, progress: bool = False
) -> Tensor:
    """The teacher's unit vectors of all clips `(C,E)`, by its own processor; NaN of those that it cannot read.

    `source`: at the size of the teacher's frames. All processes share the work. Raises `PerceiverVLError` where too
    many clips cannot be read, or the vectors are not finite.
    """
    data, group = recipe.data, ProcessGroup(shared=True)
    reader = ClipReader(
        source, teacher.num_frames, recipe.evaluation.batch_size, data.strict, data.max_failed_fraction, group
    )
    seen: list[tuple[Tensor, ...]] = []
    with ProgressBars(progress) as bars, torch.inference_mode():
        advance = bars.stage(description, len(group.share(reader.indices)))

        def see(batch: ReadBatch) -> None:
            clips = vision_batch_of(batch, teacher.processor, teacher.num_frames, teacher.model.device)
            vectors = teacher.model.get_vision_features(clips.pixel_values, clips.frame_mask)
            seen.append((torch.tensor(batch.indices), vectors[clips.rows].float().cpu()))
            advance(len(batch.indices))

        reader.read(see)
    found = group.tensors_of_all(lambda: seen, torch.device("cpu"))
    vectors = torch.full((len(source), teacher.model.config.projection_dim or 0), torch.nan)
    for places, some in found:
        if not some.isfinite().all():
            raise PerceiverVLError(f"teacher.model={teacher.name}: its vectors are not finite numbers, name another")
        vectors[places] = some
    return vectors


def keep_vectors(output: Path, vectors: dict[str, Tensor]) -> None:
    """Write what the teacher said of a run's clips where a run that goes on finds it."""
    path = output / _VECTORS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda part: save_file(vectors, part))


def kept_vectors(output: Path) -> dict[str, Tensor]:
    """What `keep_vectors` has written; {} where that is not there, or damaged."""
    try:
        found: dict[str, Tensor] = load_file(output / _VECTORS)
    except (OSError, SafetensorError):
        return {}
    return found


@dataclass(frozen=True)
class DistillationExample(ReadStatistics):
    """The frames of a clip, and the teacher's vector of it `(E,)`."""

    frames: Frames
    vector: Tensor


class DistillationExamples(DrawnExamples[DistillationExample]):
    """Clips with the teacher's `vectors (C,E)` of them; one that the teacher could not read is passed over."""

    def __init__(self, vectors: Tensor, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vectors = vectors

    def _media(self, place: int, key: tuple[int, int, int]) -> tuple[Frames, ...]:
        if not self.vectors[place].isfinite().all():
            raise MediaError(self.source.record(place).path, "the teacher could not read it")
        return super()._media(place, key)

    def _example(
        self, record: Record, media: tuple[Frames, ...], key: tuple[int, int, int], reading: ReadStatistics
    ) -> DistillationExample:
        return DistillationExample(media[0], self.vectors[reading.tried[-1]], **vars(reading))


class DistillationCollator:
    """Examples → `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)`, `vectors (B,E)`, and what came of reading them."""

    def __init__(self, processor: PerceiverVLProcessor) -> None:
        self.processor = processor

    def __call__(self, examples: list[DistillationExample] | PerceiverVLError) -> dict[str, Any]:
        """An error → `error` alone."""
        if isinstance(examples, PerceiverVLError):
            return {"error": examples}
        clips = [example.frames for example in examples]
        vision: dict[str, Any] = dict(self.processor(videos=clips, num_frames=max(map(len, clips))))
        vectors = torch.stack([example.vector for example in examples])
        return {**vision, "vectors": vectors, **read_statistics(examples)}


class DistillationModule(TrainingModule):
    """A student with the loss of its vectors."""

    model: PerceiverVLForRetrieval

    def forward(  # type: ignore[override]
        self, inputs: dict[str, Tensor], global_batch: GlobalBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`distillation_loss` of `pixel_values`, `frame_mask` and the teacher's `vectors`."""
        if global_batch is None:
            [global_batch] = global_batches([len(inputs["vectors"])], inputs["vectors"].device)
        student = self.model.get_vision_features(inputs["pixel_values"], inputs["frame_mask"])
        scale = self.model.logit_scale.detach()
        parts = distillation_loss(student, inputs["vectors"].to(student), scale, global_batch)
        return torch.stack([*parts.values()]).sum(), parts

    def encode(self, **inputs: Tensor) -> Tensor:
        """Latents `(B,N,D)`."""
        latents: Tensor = self.model.perceiver_vl(**inputs, return_dict=True).last_hidden_state
        return latents


def distillation_loss(student: Tensor, teacher: Tensor, scale: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
    """Unit vectors `(B,E)` of both → what is to be summed: both are 0 where the student's are the teacher's.

    cosine: 1 - the cosine of each with its teacher's (CLIP-KD's feature distillation, Yang et al. 2024). likeness: the
    divergence of whom a clip is like, by the softmax of scaled cosines with the teacher's vectors of all clips, from
    the student's vector and from the teacher's own (as CLIP-KD's contrastive distillation; Park et al. 2019).
    After 120 steps of the run in docs/start-from-weights.md R@10 is 23.5 with both, 19.5 with cosine alone.
    """
    everyone, rows = batch.rows(teacher), batch.mean_of(batch.total)
    wanted = (scale * teacher @ everyone.T).log_softmax(-1)
    found = (scale * student @ everyone.T).log_softmax(-1)
    return {
        "cosine": (1 - F.cosine_similarity(student, teacher, dim=-1)).sum() / rows,
        "likeness": F.kl_div(found, wanted, reduction="sum", log_target=True) / rows,
    }
