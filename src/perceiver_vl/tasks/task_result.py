"""What a model scores on a task that is answered example by example, and what it says of each example."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """What the model says of one example.

    answer: in words; label: its number, of a class or choice (-1 of a caption, which has none); score: its probability,
    of a count the number before it was rounded. example_id: the benchmark's, else the place in the split.
    """

    example_id: str
    file_name: str
    answer: str
    label: int
    score: float


@dataclass(frozen=True)
class KindScore:
    """The task's first metric on the examples of one kind."""

    examples: int
    score: float


@dataclass
class TaskResult:
    """What a model scores on a split.

    metrics: by name, shares in per cent, over the `labelled` of the `examples` that could be read; empty where none is.
    left_out: examples that were not asked, their files or what they lack in `skipped`: the official scripts would count
    each as wrong, or refuse the submission. damaged: files that lacked frames and were used all the same.
    predictions: of every example that was asked, in the order of the split. beside: what guessers score by the same
    metrics, by their names.
    """

    task: str
    examples: int
    labelled: int
    left_out: int
    budget: str
    num_frames: int
    seconds_per_example: float
    metrics: dict[str, float] = field(default_factory=dict)
    by_kind: dict[str, KindScore] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list, repr=False)
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)

    def metric(self, name: str) -> float:
        """One metric; raises `UsageError` for one that was not measured."""
        if name not in self.metrics:
            measured = ", ".join(self.metrics) or "nothing, for no example says what is right"
            raise UsageError(f"metric={name}: {self.task} measured {measured}")
        return self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the predictions go into the submission file."""
        return {name: value for name, value in asdict(self).items() if name != "predictions"}

    def print(self) -> None:
        """Every metric, and the first one by kind of question."""
        labelled = f"{self.labelled} of {self.examples} examples say what is right"
        out.print(f"{self.task}: {labelled}, {self.num_frames} frames, budget {self.budget}")
        if self.metrics:
            table = Table("metric", "kind", pad_edge=False)
            for column in ("examples", "score", *self.beside):
                table.add_column(column, justify="right")
            for name, score in self.metrics.items():
                guessed = [f"{others[name]:.2f}" for others in self.beside.values()]
                table.add_row(name, "", str(self.labelled), f"{score:.2f}", *guessed)
            first = next(iter(self.metrics))
            for kind, of_kind in self.by_kind.items() if len(self.by_kind) > 1 else ():
                table.add_row(first, kind, str(of_kind.examples), f"{of_kind.score:.2f}")
            out.print(table, soft_wrap=False)
        left_out = f", {self.left_out} left out" if self.left_out else ""
        out.print(f"{1e3 * self.seconds_per_example:.1f} ms an example with decoding{left_out}")
