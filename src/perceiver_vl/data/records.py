"""What an example says: one type for folders, the benchmarks' own files, shards and the generated world."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from perceiver_vl.utils.errors import MediaError, PerceiverVLError

Need = Literal["text", "question", "label"]
"""What a record is for."""


@dataclass(frozen=True)
class Record:
    """One clip or image and its words; what a data set does not have stays empty.

    file_name: within the folder of the data set, with `/`; path: where it lies here.
    texts: captions, or the statement about the media; any of several counts as right.
    start, end: the seconds of the file that the record is about; None: its beginning, its end.
    question; answers: one, or one of each annotator (VQAv2); choices: in their order.
    label: the index of the right choice or of a class, or 1 and 0 for true and false.
    second_file_name, second_path: the other picture of a pair (NLVR2).
    example_id: the benchmark's own, for its submission file; kind: the benchmark's type of question.
    """

    file_name: str
    path: Path
    texts: tuple[str, ...] = ()
    split: str | None = None
    start: float | None = None
    end: float | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    label: int | None = None
    second_file_name: str | None = None
    second_path: Path | None = None
    example_id: str | None = None
    kind: str | None = None

    def second_picture(self) -> "Record":
        """The record of a pair with its other picture in the place of the first; `PerceiverVLError` if it has none."""
        if self.second_file_name is None or self.second_path is None:
            raise PerceiverVLError(f"{self.file_name}: has no second picture, a pair names two files")
        return replace(self, file_name=self.second_file_name, path=self.second_path)

    def has(self, need: Need) -> bool:
        """Whether it has a text, a question or a label."""
        if need == "label":
            return self.label is not None
        return bool(self.texts if need == "text" else self.question)


@dataclass(frozen=True)
class SkippedSample:
    """Something that was left out of a long job, and why."""

    file_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file_name}: {self.reason}"

    @classmethod
    def of_file(cls, error: MediaError, records: Sequence[Record]) -> "SkippedSample":
        """A file that cannot be read, by the name that its data set gives it; `records`: all that are lost with it."""
        first, count = records[0], len(records)
        second = first.second_file_name if error.path == first.second_path else None
        return cls(second or first.file_name, error.reason if count == 1 else f"{error.reason} ({count} examples)")


@dataclass
class Folder:
    """What a folder holds: the usable records in the order of their file, and what was left out.

    classes: the names that the labels are indices of, where the labels are names. notes: what is no mistake, but
    better known, a line each. unseen: files and folders that could not be looked at: nobody knows what is there.
    """

    path: Path
    records: list[Record]
    skipped: list[SkippedSample] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
