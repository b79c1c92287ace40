"""The smallest examples of every task: pictures of noise, letters for words, and a model whose answers differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_vl import MediaError, PerceiverVLProcessor
from perceiver_vl.data.records import Record
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.tasks import example_task_of
from tiny import tiny_model, tiny_processor

LETTERS = "abcdefghijklmnopqrst"
PROCESSOR: PerceiverVLProcessor = tiny_processor([" ".join(LETTERS)] * 2)
ANSWERS = ("red", "blue", "green", "no")


class Pictures:
    """Records as given; a file's number is the seed of its picture, and those in `broken` cannot be read."""

    def __init__(self, records: list[Record], broken: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.records, self.broken = records, broken

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        name = self.records[index].file_name
        if name in self.broken:
            raise MediaError(self.records[index].path, "damaged")
        picture = np.random.default_rng(int(name.split(".")[0])).integers(256, size=(16, 16, 3), dtype=np.uint8)
        shifts = np.zeros(num_frames, int) if rng is None else rng.integers(16, size=num_frames)
        return np.stack([np.roll(picture, shift, axis=1) for shift in shifts])


class OtherPictures(Pictures):
    """The other pictures of pairs."""

    def record(self, index: int) -> Record:
        record = self.records[index]
        assert record.second_file_name is not None
        assert record.second_path is not None
        return replace(record, file_name=record.second_file_name, path=record.second_path)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        return Pictures([self.record(index)], self.broken).frames(0, num_frames, rng)


def records_of(task: str, count: int = 8) -> list[Record]:
    """Examples without right answers, two of each file."""
    found = []
    for index in range(count):
        name, letters = f"{20 * (index // 2)}.mp4", LETTERS[index : index + 3]
        record = Record(name, Path(name), example_id=str(100 + index), question=" ".join(letters))
        if task == "multiple-choice":
            record = replace(record, choices=tuple(LETTERS[index : index + 2 + index % 3]))
        if task == "nlvr2":
            other = f"{20 * (index // 2) + 10}.mp4"
            statement = (record.question or "",)
            record = replace(record, question=None, texts=statement, second_file_name=other, second_path=Path(other))
            record = replace(record, example_id=f"dev-{index // 4}-{index % 2}-{index % 4 // 2}")
        if task == "image-classification" or (task == "captioning" and index % 2):  # every second one is a caption
            record = replace(record, question=None)
        found.append(record)
    return found


def model_of(task: str, **changes: Any) -> PerceiverVLPreTrainedModel:
    """A model that can do the task, with answers `ANSWERS` where it has a label set."""
    head: dict[str, Any] = {}
    if task in ("vqa", "question-answering", "image-classification"):
        head = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
    if task == "counting":
        head = example_task_of(task).head([])
    if task == "captioning":
        head = example_task_of(task).words(PROCESSOR.tokenizer)
    model = tiny_model(example_task_of(task).model_class, vocab_size=len(PROCESSOR.tokenizer), **(head | changes))
    return model.float()
