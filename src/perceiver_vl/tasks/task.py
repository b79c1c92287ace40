"""What every task is to the command line: a model class, the data it needs, and its official metric on them."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from perceiver_vl.data.records import Need, SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import UsageError


class Result(Protocol):
    """What a model scores. skipped: what could not be read; damaged: files that lacked frames and were used."""

    skipped: list[SkippedSample]
    damaged: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

    def print(self) -> None:
        """As tables, on standard output."""


AnyResult = TypeVar("AnyResult", bound=Result)


class Task(ABC, Generic[AnyResult]):
    """A task, by the name that `--task` knows, and the model class that does it.

    need: what every record must have, None where the records themselves tell; in_one_process: whether several
    processes cannot share its evaluation.
    """

    name: ClassVar[str]
    model_class: ClassVar[type[PerceiverVLPreTrainedModel]]
    need: ClassVar[Need | None] = None
    in_one_process: ClassVar[bool] = False

    @abstractmethod
    def evaluate(
        self,
        model: Any,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        batch_size: int = 32,
        strict: bool = False,
        max_failed_fraction: float = MAX_FAILED_FRACTION,
        progress: bool = False,
    ) -> AnyResult:
        """What `model` (of the task's class) scores on `source`; a task may have options beside these."""

    def is_labelled_somewhere(self, source: VideoDataset) -> bool:
        """Whether any record says what is right, as a caption does: without, there are predictions alone."""
        return True

    def submission(self, result: AnyResult) -> str:
        """The text of the benchmark's own file; raises `UsageError` for a task that has none."""
        raise UsageError(f"task={self.name}: has no submission file, its figures are its result")
