"""How well a student says what its teacher says: of clips, and of the texts that look for them.

Shapes: C clips, Q texts, E retrieval vector.
"""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import evaluating, vision_batch_of
from perceiver_vl.tasks.retrieval_result import ranks_of, recall_of
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError

DISTILLATION = "distillation"
MEASURED = ("cosine", "neighbour_r1", "text_r1", "text_r5", "text_r10")
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Texts:
    """The captions of a source: unit vectors `(Q,E)`, and the place of the clip of each `(Q,)`."""

    vectors: Tensor
    owner: Tensor

    def recalls(self, clips: Tensor, places: Tensor) -> dict[str, float]:
        """R@1, R@5, R@10 of the texts of the clips at `places (C,)`, among these, `clips (C,E)`; {} without texts."""
        of_clip = {place: row for row, place in enumerate(places.tolist())}
        rows = [row for row, place in enumerate(self.owner.tolist()) if place in of_clip]
        if not rows:
            return {}
        own = torch.tensor([of_clip[place] for place in self.owner[rows].tolist()])
        found = recall_of(ranks_of(self.vectors[rows] @ clips.T, own))
        return {f"r{k}": getattr(found, f"r{k}") for k in (1, 5, 10)}


@torch.inference_mode()
def texts_of(model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor, source: VideoDataset) -> Texts:
    """All captions of a source, if it has some; they are the same for a teacher and its student."""
    captions = [(index, text) for index in range(len(source)) for text in source.record(index).texts]
    found = [torch.zeros(0, model.config.projection_dim or 0)]
    with evaluating(model):
        for first in range(0, len(captions), _TEXTS_AT_ONCE):
            words = processor(text=[text for _, text in captions[first : first + _TEXTS_AT_ONCE]]).to(model.device)
            vectors = model.get_text_features(words["input_ids"], words["attention_mask"])
            found.append(vectors.float().cpu())
    return Texts(torch.cat(found), torch.tensor([index for index, _ in captions], dtype=torch.long))


@torch.inference_mode()
def score_student(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    vectors: Tensor,
    texts: Texts,
    *,
    num_frames: int,
    batch_size: int = 32,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    shared: bool = False,
    progress: bool = False,
) -> TaskResult:
    """A student on the clips of `source`, of which the teacher's `vectors (C,E)` are known (NaN: of those it is not).

    cosine: of its vectors with the teacher's, the mean. neighbour_r1: how often, to the teacher's vector of a clip, the
    student's of that clip is the nearest. Where there are captions, recall of clips by these, from the student's
    vectors (text_r1, …) and from the teacher's (teacher_text_r1, …).
    Raises `PerceiverVLError` where fewer than two clips are left.
    """
    reader = ClipReader(source, num_frames, batch_size, strict, max_failed_fraction, ProcessGroup(shared))
    seen: list[tuple[Tensor, ...]] = []
    start = time.perf_counter()
    with evaluating(model), ProgressBars(progress) as bars:
        advance = bars.stage("Encoding clips", len(reader.group.share(reader.indices)))

        def see(batch: ReadBatch) -> None:
            clips = vision_batch_of(batch, processor, num_frames, model.device)
            found = model.get_vision_features(clips.pixel_values, clips.frame_mask)
            seen.append((torch.tensor(batch.indices), found[clips.rows].float().cpu()))
            advance(len(batch.indices))

        reader.read(see)
    seconds = time.perf_counter() - start
    of_all = reader.group.tensors_of_all(lambda: seen, torch.device("cpu"))
    places, student = (torch.cat(parts) for parts in zip(*of_all, strict=True)) if of_all else (torch.zeros(0), None)
    known = vectors[places.long()].isfinite().all(1)
    if student is None or known.sum() < 2:
        raise PerceiverVLError(f"validation: {int(known.sum())} clips that teacher and student can read, need two")
    places, student, teacher = places[known], student[known], vectors[places[known]]
    found = recall_of(ranks_of(teacher @ student.T, torch.arange(len(places))))
    metrics = {"cosine": F.cosine_similarity(student, teacher, dim=-1).mean().item(), "neighbour_r1": found.r1}
    for whose, clips in (("text", student), ("teacher_text", teacher)):
        metrics |= {f"{whose}_{name}": value for name, value in texts.recalls(clips, places).items()}
    return TaskResult(
        DISTILLATION,
        examples=len(places),
        labelled=len(places),
        left_out=len(source) - len(places),
        budget=str(FULL_BUDGET),
        num_frames=num_frames,
        seconds_per_example=seconds / len(places),
        metrics=metrics,
        skipped=reader.problems,
        damaged=reader.damaged(),
    )
