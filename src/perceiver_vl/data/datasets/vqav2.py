"""VQAv2: questions about COCO pictures with ten people's answers, and the answers that its label set is made of."""

from collections.abc import Iterator
from pathlib import Path

from perceiver_vl.data.answers import majority_answer
from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, json_file
from perceiver_vl.utils.errors import UsageError

_PARTS = {"train": "train2014", "validation": "val2014", "test": "test2015", "test_dev": "test-dev2015"}


def vqav2(files: FileIndex) -> Iterator[RowResult]:
    """One record a question; `test` and `test_dev` have no answers. `kind` is the answer's: yes/no, number, other."""
    part = _PARTS[files.split]
    questions = json_file(files.file(f"v2_OpenEnded_mscoco_{part}_questions.json"))
    annotations = {} if files.split.startswith("test") else _annotations(files, part)
    for row in questions.rows("questions"):
        name = row.text("question_id")
        annotation = annotations.get(name)
        if annotation is None and annotations:
            raise UsageError(f"{row.where}: question_id={name}: not in v2_mscoco_{part}_annotations.json")
        image = row.integer("image_id")
        yield files.record(
            row,
            (f"COCO_{part.replace('-dev', '')}_{image:012d}", f"{image:012d}"),
            question=row.text("question"),
            answers=_answers(annotation) if annotation else (),
            example_id=name,
            kind=annotation.text("answer_type") if annotation and "answer_type" in annotation.values else None,
        )


def majority_answers(folder: str | Path) -> list[str]:
    """The `multiple_choice_answer` of every training, then of every validation question, for `vqa_vocabulary`.

    Where a file does not give it, the answer that most of the ten gave. Raises `UsageError` without annotations.
    """
    files = FileIndex(Path(folder), "image")
    annotations = [row for split in ("train", "validation") for row in _annotations(files, _PARTS[split]).values()]
    given = "multiple_choice_answer"
    return [row.text(given) if given in row.values else majority_answer(_answers(row)) for row in annotations]


def _annotations(files: FileIndex, part: str) -> dict[str, Row]:
    content = json_file(files.file(f"v2_mscoco_{part}_annotations.json"))
    return {row.text("question_id"): row for row in content.rows("annotations")}


def _answers(annotation: Row) -> tuple[str, ...]:
    return tuple(answer.text("answer") for answer in annotation.rows("answers"))
