"""One ridge matrix between two encoders that never met: the least that whatever is built on them has to beat.

Shapes: C clips, Q captions, W width of the vision encoder's tokens, E of the text encoder's vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.data.open import open_dataset
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval
from perceiver_vl.tasks.retrieval_result import Recall, clip_ranks_of, ranks_of, recall_of
from perceiver_vl.training.recipe import DataSource

PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Vectors:
    """Mean tokens of clips `(C,W)`, mean vectors of captions `(Q,E)`, and whose each caption is `(Q,)`, float64."""

    clips: Tensor
    captions: Tensor
    owner: Tensor


@dataclass(frozen=True)
class RidgeResult:
    """Recall of the test split, with the penalty that was best on the validation split."""

    penalty: float
    clips: int
    captions: int
    text_to_video: Recall
    video_to_text: Recall

    def cells(self) -> tuple[str, ...]:
        """For a table: penalty, R@1, R@5 and R@10 of texts among clips, R@1 of clips among texts."""
        found = self.text_to_video
        return f"{self.penalty:g}", *(f"{r:.1f}" for r in (found.r1, found.r5, found.r10, self.video_to_text.r1))


class RidgeVectors:
    """What both encoders of a model say of folders of features, each folder looked at once."""

    def __init__(self, model_folder: Path, num_frames: int) -> None:
        self.num_frames = num_frames
        found: tuple[PerceiverVLForRetrieval, PerceiverVLProcessor] = load_retriever(model_folder, "cpu")
        self.model, self.processor = found
        self._known: dict[str, Vectors] = {}

    def of(self, split: DataSource) -> Vectors:
        """Of one split."""
        if (key := repr(split)) not in self._known:
            self._known[key] = self._of(split)
        return self._known[key]

    def of_all(self, splits: Sequence[DataSource]) -> Vectors:
        """Of several together."""
        found = [self.of(one) for one in splits]
        starts = torch.tensor([0, *(len(one.clips) for one in found)]).cumsum(0)
        return Vectors(
            torch.cat([one.clips for one in found]),
            torch.cat([one.captions for one in found]),
            torch.cat([one.owner + start for one, start in zip(found, starts, strict=False)]),
        )

    @torch.inference_mode()
    def _of(self, split: DataSource) -> Vectors:
        assert split.folder is not None
        source, _ = open_dataset(split.folder, (0, 0), split=split.split, metadata=split.metadata)
        tokens = [source.frames(index, self.num_frames) for index in range(len(source))]  # (T,1+P,W) each
        clips = torch.stack([torch.from_numpy(one[:, 1:].astype("float64")).mean((0, 1)) for one in tokens])
        texts = [source.record(index).texts for index in range(len(source))]
        words = self.processor(text=[text for some in texts for text in some])
        encoder = self.model.perceiver_vl.text_encoder
        assert encoder is not None
        encoder.remembered = encoder.remembered or {}  # smaller splits have captions of larger ones
        pairs = zip(
            words["input_ids"].split(_TEXTS_AT_ONCE), words["attention_mask"].split(_TEXTS_AT_ONCE), strict=True
        )
        captions = F.normalize(torch.cat([encoder(ids, mask)[1] for ids, mask in pairs]).double(), dim=-1)
        return Vectors(clips, captions, torch.tensor([clip for clip, some in enumerate(texts) for _ in some]))


def ridge_recall(training: Vectors, validation: Vectors, test: Vectors) -> RidgeResult:
    """Fit the matrix `(W,E)` from clips to the mean vector of their captions, each penalty of `PENALTIES` tried."""
    count = training.owner.bincount(minlength=len(training.clips))[:, None]
    targets = torch.zeros(len(training.clips), training.captions.shape[1], dtype=torch.float64)
    targets = targets.index_add_(0, training.owner, training.captions) / count
    means = training.clips.mean(0), targets.mean(0)
    centred, wanted = training.clips - means[0], targets - means[1]
    gram, cross = centred.T @ centred, centred.T @ wanted
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        matrix = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), cross)
        found = _recalls(matrix, means, validation)[0]
        if best is None or found.r1 + found.r10 > best[0]:
            best = found.r1 + found.r10, penalty, matrix
    assert best is not None
    return RidgeResult(best[1], len(training.clips), len(training.captions), *_recalls(best[2], means, test))


def _recalls(matrix: Tensor, means: tuple[Tensor, Tensor], vectors: Vectors) -> tuple[Recall, Recall]:
    """Of captions among clips, and of clips among captions, where any of its own counts."""
    clips = F.normalize((vectors.clips - means[0]) @ matrix + means[1], dim=-1)
    scores = vectors.captions @ clips.T
    return recall_of(ranks_of(scores, vectors.owner)), recall_of(clip_ranks_of(scores.T, vectors.owner))
