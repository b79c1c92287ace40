"""Fine-tuning on a task: examples whose every random draw comes from (seed, epoch, example index), and their batches.

Shapes: B batch, C choices, T frames, L text tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from perceiver_vl.data.batching import DrawnExamples, ReadStatistics, read_statistics
from perceiver_vl.data.mixture import telling_places
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.utils.errors import PerceiverVLError


@dataclass(frozen=True)
class TaskExample(ReadStatistics):
    """A labelled record and the frames of its clip, or of both pictures of a pair."""

    record: Record
    media: tuple[Frames, ...]


class TaskExamples(DrawnExamples[TaskExample]):
    """The labelled examples of a split, with sampled frames; items as `DrawnExamples` has them.

    `pools`: the places of labelled examples of the task that may stand in for each other; None: of all there are, the
    other records being named in `problems`. `second`: the other pictures of pairs; None: those the records name.
    Raises `UsageError` if there is none, or if the head of a model with `config` cannot learn from them.
    """

    def __init__(
        self,
        task: ExampleTask,
        config: PerceiverVLConfig,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        num_frames: int,
        sampling: Literal["uniform", "random"],
        seed: int,
        strict: bool = False,
        second: VideoDataset | None = None,
        *,
        pools: Sequence[npt.NDArray[np.int64]] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.problems: list[SkippedSample] = []
        if pools is None:
            places, self.problems = task.usable_examples(source, labelled=True)
            pools = [np.array(places)]
        task.check_head(
            config, [source.record(place) for pool in pools for place in telling_places(source, pool).tolist()]
        )
        self.task, sources = task, task.media_sources(source, processor, second)
        size = processor.image_processor.size
        super().__init__(
            source,
            num_frames,
            sampling,
            seed,
            strict,
            pools=pools,
            augmentation=augmentation,
            size=(size["height"], size["width"]),
            second=sources[1] if task.pictures > 1 else None,
        )

    def _example(
        self, record: Record, media: tuple[Frames, ...], key: tuple[int, int, int], reading: ReadStatistics
    ) -> TaskExample:
        return TaskExample(self.task.drawn(record, key), media, **vars(reading))


def letters_of_task(record: Record, key: tuple[int, int, int]) -> int:
    """How many letters a task's model reads of a record, at least: the question and the longest choice, or the
    statement; nothing is drawn.
    """
    if record.question is None and not record.choices:
        return len(record.texts[0]) if record.texts else 0
    return len(record.question or "") + max(map(len, record.choices), default=0)


class TaskCollator:
    """Examples → what the task's model takes, `labels` among it, and what came of reading them, as a dictionary."""

    def __init__(self, task: ExampleTask, processor: PerceiverVLProcessor, config: PerceiverVLConfig) -> None:
        self.task, self.processor, self.config = task, processor, config

    def __call__(self, examples: list[TaskExample] | PerceiverVLError) -> dict[str, Any]:
        """`B` examples → `pixel_values (B,T,3,H,W)` (of pairs `(B,2,T,3,H,W)`), `frame_mask`, the words, `labels`;
        lists `problems`, `tried`, `failed`, `damaged`. An error → `error` alone.
        """
        if isinstance(examples, PerceiverVLError):
            return {"error": examples}
        records = [example.record for example in examples]
        clips = [frames for example in examples for frames in example.media]
        vision: dict[str, Tensor] = dict(self.processor(videos=clips, num_frames=max(map(len, clips))))
        if self.task.pictures > 1:
            vision = {name: value.unflatten(0, (-1, self.task.pictures)) for name, value in vision.items()}
        return {
            **self.task.training_inputs(records, self.processor, self.config),
            **vision,
            **read_statistics(examples),
        }


def task_loss(model: PerceiverVLPreTrainedModel, batch: dict[str, Any], budget: ComputeBudget = FULL_BUDGET) -> Tensor:
    """The loss of a collated batch: every task's model computes its own from `labels`."""
    inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    loss: Tensor = model(**inputs, budget=budget).loss
    return loss
