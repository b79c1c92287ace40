"""Fine-tuning on a task: examples whose every random draw comes from (seed, epoch, example index), and their batches.

Shapes: B batch, C choices, T frames, L text tokens.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from perceiver_vl.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.data.clips import ClipSource, Frames, is_damaged
from perceiver_vl.data.records import Problem, Record
from perceiver_vl.errors import MediaError, PerceiverVLError
from perceiver_vl.model import PerceiverVLPreTrainedModel
from perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import sources_of, usable_examples
from perceiver_vl.tasks.reading import load_media
from perceiver_vl.tasks.task import Task


@dataclass(frozen=True)
class TaskExample:
    """A labelled record and the frames of its clip, or of both pictures of a pair.

    problems: files passed over for it. tried: the records that were to be read for it, the last of which was. damaged:
    its file, if frames are missing. As `data.batching.Example` has them.
    """

    record: Record
    media: tuple[Frames, ...]
    problems: tuple[Problem, ...] = ()
    tried: tuple[int, ...] = ()
    damaged: str | None = None


class TaskExamples(Dataset[TaskExample]):
    """The labelled examples of a split, with sampled frames; item epoch · n + index, as `EpochSampler` draws them.

    An example whose file cannot be read is replaced by the next one and named in that one's `problems`; with `strict`
    it raises. `problems`: records that are no labelled examples of the task.
    Raises `UsageError` if none is, or if the head of a model with `config` cannot learn from them.
    """

    def __init__(
        self,
        task: Task,
        config: PerceiverVLConfig,
        processor: PerceiverVLProcessor,
        source: ClipSource,
        num_frames: int,
        sampling: Literal["uniform", "random"],
        seed: int,
        strict: bool = False,
        second: ClipSource | None = None,
    ) -> None:
        self.sources = sources_of(task, processor, source, second)
        self.indices, self.problems = usable_examples(task, source, labelled=True)
        task.check_head(config, [source.record(index) for index in self.indices])
        self.num_frames, self.sampling, self.seed, self.strict = num_frames, sampling, seed, strict

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> TaskExample:
        epoch, index = divmod(item, len(self))
        problems: list[Problem] = []
        tried: list[int] = []
        for place in [*range(index, len(self)), *range(index)]:
            example = self.indices[place]
            tried.append(example)
            record = self.sources[0].record(example)
            rng = np.random.default_rng([self.seed, epoch, index]) if self.sampling == "random" else None
            try:
                media = load_media(self.sources, example, self.num_frames, rng)
            except MediaError as error:
                if self.strict:
                    raise
                problems.append(Problem(record.file_name, error.reason))
                continue
            damaged = record.file_name if is_damaged(self.sources[0], example) else None
            return TaskExample(record, media, tuple(problems), tuple(tried), damaged)
        raise PerceiverVLError(f"none of the {len(self)} examples can be read, the first: {problems[0].reason}")

    def __getitems__(self, items: list[int]) -> list[TaskExample] | PerceiverVLError:
        """What a data loader asks for. An error is handed on: raised in a worker process, it ends as a stack trace."""
        try:
            return [self[item] for item in items]
        except PerceiverVLError as error:
            return error


class TaskCollator:
    """Examples → what the task's model takes, `labels` among it, and what came of reading them, as a dictionary."""

    def __init__(self, task: Task, processor: PerceiverVLProcessor, config: PerceiverVLConfig) -> None:
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
            **self.task.words(records, self.processor),
            **vision,
            "labels": self.task.targets(records, self.config),
            "problems": [problem for example in examples for problem in example.problems],
            "tried": [place for example in examples for place in example.tried],
            "failed": [place for example in examples for place in example.tried[:-1]],
            "damaged": [example.damaged for example in examples if example.damaged is not None],
        }


def task_loss(model: PerceiverVLPreTrainedModel, batch: dict[str, Any], budget: ComputeBudget = FULL_BUDGET) -> Tensor:
    """The loss of a collated batch: every task's model computes its own from `labels`."""
    inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    loss: Tensor = model(**inputs, budget=budget).loss
    return loss
