"""Classes of images and clips (ImageNet and the like). Shapes: B batch, K classes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForImageClassification
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import VisionBatch
from perceiver_vl.tasks.example_task import LabelTask, csv_text
from perceiver_vl.tasks.metrics import probabilities, top_k_hits
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.errors import UsageError


class ImageClassification(LabelTask):
    """ImageNet and other classes of images and clips.

    Examples: an image or clip, its class by number (`label`) or by name (`answers`). Query: one learned vector. Head:
    one logit a class. Loss: cross-entropy. Metrics: top-1 and top-5 accuracy. Submission: CSV, `file name,class` a
    line.
    """

    name = "image-classification"
    model_class = PerceiverVLForImageClassification
    need = "label"
    metrics = ("top1", "top5")

    def missing(self, record: Record) -> str | None:
        if record.label is not None and record.label < 0:
            return f"label={record.label}: classes are numbered from 0"
        return None

    def is_labelled(self, record: Record) -> bool:
        return record.label is not None or bool(record.answers)

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        """As many classes as the numbers go, named where records name them; without numbers the names by the alphabet.

        Raises `UsageError` where some have numbers and others have names, and where no record says its class.
        """
        names: dict[int, str] = {}
        unnumbered = set()
        for record in records:
            if record.label is not None:
                known = names.get(record.label, str(record.label))
                names[record.label] = record.answers[0] if record.answers else known
            elif record.answers:
                unnumbered.add(record.answers[0])
        if names and unnumbered:
            raise UsageError(f"classes by number ({min(names)}) and by name ({min(unnumbered)}): write all in one way")
        if not names and not unnumbered:
            raise UsageError("no record says its class: give a label or an answer")
        names = names or dict(enumerate(sorted(unnumbered)))
        classes = [names.get(label, str(label)) for label in range(max(names) + 1)]
        return {"id2label": dict(enumerate(classes)), "label2id": {name: label for label, name in enumerate(classes)}}

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        for record in records:
            if not 0 <= label_of(record, config) < config.num_labels:
                label = f"label {record.label}" if record.label is not None else f"class {record.answers[0]!r}"
                raise UsageError(f"{record.file_name}: {label} is not among the model's {config.num_labels} classes")

    def text_inputs(self, records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
        return {}

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        return torch.tensor([label_of(record, config) for record in records])

    def logits(
        self,
        model: PerceiverVLForImageClassification,
        vision: VisionBatch,
        text: dict[str, Tensor],
        budget: ComputeBudget,
    ) -> Tensor:
        logits: Tensor = model(pixel_values=vision.pixel_values, frame_mask=vision.frame_mask, budget=budget).logits
        return logits[vision.rows]

    def predict(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
        score, label = probabilities(logits).max(-1)
        return config.id2label[int(label)], int(label), score.item()

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        label = torch.tensor([label_of(record, config)])
        return {f"top{k}": 100.0 * top_k_hits(logits[None], label, k).item() for k in (1, 5)}

    def submission(self, result: TaskResult) -> str:
        return csv_text([(one.file_name, one.answer) for one in result.predictions])


def label_of(record: Record, config: PerceiverVLConfig) -> int:
    """The number of the class: by its name where the model knows it, else as the record says; -1 if neither can be."""
    if record.answers and record.answers[0] in config.label2id:
        return int(config.label2id[record.answers[0]])
    return -1 if record.label is None else record.label
