"""The generated world in the layouts of the benchmarks' own files, so that their readers and metrics can be tried out.

| task | as |
| --- | --- |
| captions | MSR-VTT: MSRVTT_data.json and the 1k-A lists (github.com/ArrowLuo/CLIP4Clip) |
| action, transition, count | TGIF-QA: tables with tabs, no validation split (github.com/YunseokJANG/tgif-qa) |
| frame | TGIF-QA, and MSRVTT-QA on the same clips |
| yesno, long | MSRVTT-QA: train_qa.json, val_qa.json, test_qa.json (github.com/xudejing/video-question-answering) |
| image | VQAv2: questions, and annotations of ten answers, of the test split none (visualqa.org/download.html) |
| pairs | NLVR2: train.json, dev.json, test1.json (github.com/lil-lab/nlvr) |
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.scene import SPLITS

RecordsBySplit = Mapping[str, Sequence[tuple[int, Record]]]
"""Of each split the records, and the number of each among those of all splits."""
_TGIF_ONLY = ("action", "transition", "count")
_TGIF_PARTS = {"train": "Train", "test": "Test"}
_TGIF_NAMES = {"action": "ACTION", "transition": "TRANS", "count": "COUNT", "frame": "FRAMEQA"}
_TGIF_TYPES = {"shape": 0, "size": 0, "colour": 2, "where": 3}  # object, number, colour, location
_VQA_PARTS = {"train": "train2014", "validation": "val2014", "test": "test2015"}
_NLVR_PARTS = {"train": "train", "validation": "dev", "test": "test1"}


def official_splits(task: str) -> tuple[str, ...]:
    """The splits of a task that its benchmark has too."""
    return tuple(_TGIF_PARTS) if task in _TGIF_ONLY else SPLITS


def official_media(task: str, split: str, number: int, record: Record) -> tuple[str, ...]:
    """The names of an example's files."""
    if task == "image":
        return (f"{_VQA_PARTS[split]}/COCO_{_VQA_PARTS[split]}_{number:012d}.png",)
    if task == "pairs":
        return tuple(f"pictures/{_nlvr_id(record).rpartition('-')[0]}-img{place}.png" for place in (0, 1))
    return (f"videos/{_video(number)}.mp4",)


def official_annotations(task: str, splits: RecordsBySplit) -> dict[str, str]:
    """The annotation files: name → content."""
    if task == "captions":
        return _msrvtt(splits)
    if task == "image":
        return _vqav2(splits)
    if task == "pairs":
        return _nlvr2(splits)
    tables = _tgif(task, splits) if task in _TGIF_NAMES else {}
    return tables if task in _TGIF_ONLY else tables | _msrvtt_qa(splits)


def _video(number: int) -> str:
    return f"video{number}"


def _msrvtt(splits: RecordsBySplit) -> dict[str, str]:
    parts = {"train": "train", "validation": "validate", "test": "test"}
    videos, sentences = [], []
    for split, records in splits.items():
        for number, record in records:
            videos.append({"video_id": _video(number), "split": parts[split], "id": number})
            sentences += [{"video_id": _video(number), "caption": caption} for caption in record.texts]
    numbered = [{"sen_id": place, **sentence} for place, sentence in enumerate(sentences)]
    test = [
        (f"ret{number}", f"msr{number}", _video(number), record.texts[0]) for number, record in splits.get("test", ())
    ]
    train = [(_video(number),) for split in ("train", "validation") for number, _ in splits.get(split, ())]
    return {
        "MSRVTT_JSFUSION_test.csv": _table(("key", "vid_key", "video_id", "sentence"), test, ","),
        "MSRVTT_train.9k.csv": _table(("video_id",), train, ","),
        "MSRVTT_data.json": json.dumps({"videos": videos, "sentences": numbered}),
    }


def _msrvtt_qa(splits: RecordsBySplit) -> dict[str, str]:
    parts = {"train": "train", "validation": "val", "test": "test"}
    return {
        f"{parts[split]}_qa.json": json.dumps(
            [
                {
                    "answer": record.answers[0],
                    "category_id": 0,
                    "id": number,
                    "question": record.question,
                    "video_id": number,
                }
                for number, record in records
            ]
        )
        for split, records in splits.items()
    }


def _tgif(task: str, splits: RecordsBySplit) -> dict[str, str]:
    name = "frameqa" if task == "frame" else task
    tables = {}
    for split, part in _TGIF_PARTS.items():
        lines = [_tgif_line(task, number, record) for number, record in splits[split]]
        rows = [tuple(line.values()) for line in lines]
        tables[f"{part}_{name}_question.csv"] = _table(tuple(lines[0]), rows, "\t")
    return tables


def _tgif_line(task: str, number: int, record: Record) -> dict[str, Any]:
    """The columns in the order of the official files."""
    choices = {f"a{place}": choice for place, choice in enumerate(record.choices, start=1)}
    answer = record.answers[0] if record.label is None else record.label
    kind = {"type": _TGIF_TYPES[record.kind or ""]} if task == "frame" else {}
    line = {"gif_name": _video(number), "question": record.question, **choices, "answer": answer, **kind}
    line |= {"vid_id": f"{_TGIF_NAMES[task]}{number}", "key": number}
    return line | ({"description": ""} if task == "frame" else {})


def _vqav2(splits: RecordsBySplit) -> dict[str, str]:
    files = {}
    for split, records in splits.items():
        part = _VQA_PARTS[split]
        shared = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": part}
        questions = [
            {"image_id": number, "question": record.question, "question_id": _question_id(number)}
            for number, record in records
        ]
        files[f"v2_OpenEnded_mscoco_{part}_questions.json"] = json.dumps(shared | {"questions": questions})
        if split != "test":
            annotations = [_annotation(number, record) for number, record in records]
            content = {"data_type": "mscoco", "data_subtype": part, "annotations": annotations}
            files[f"v2_mscoco_{part}_annotations.json"] = json.dumps(content)
    return files


def _question_id(number: int) -> int:
    return 1000 * number  # as VQAv2 has it: the picture's number and three digits


def _annotation(number: int, record: Record) -> dict[str, Any]:
    return {
        "question_id": _question_id(number),
        "image_id": number,
        "question_type": " ".join((record.question or "").split()[:2]),
        "answer_type": record.kind,
        "multiple_choice_answer": record.answers[0],
        "answers": [
            {"answer_id": place, "answer": answer, "answer_confidence": "yes"}
            for place, answer in enumerate(record.answers, start=1)
        ],
    }


def _nlvr2(splits: RecordsBySplit) -> dict[str, str]:
    files = {}
    for split, records in splits.items():
        lines = [
            {"identifier": _nlvr_id(record), "sentence": record.texts[0], "label": str(bool(record.label))}
            for _, record in records
        ]
        files[f"{_NLVR_PARTS[split]}.json"] = "".join(f"{json.dumps(line)}\n" for line in lines)
    return files


def _nlvr_id(record: Record) -> str:
    split, _, rest = (record.example_id or "").partition("-")
    return f"{_NLVR_PARTS[split]}-{rest}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
