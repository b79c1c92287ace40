"""Sentences about moments of longer videos: DiDeMo, ActivityNet Captions, and LSMDC's film clips.

Paragraph-to-video retrieval joins the sentences of a video in the order of their time; the other variant keeps each
sentence with its seconds.
"""

from collections import Counter
from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, json_file, json_rows, table_rows

_ACTIVITYNET = {"train": "train.json", "validation": "val_1.json", "validation_2": "val_2.json"}
_SEGMENT = 5.0  # DiDeMo marks segments of so many seconds


def didemo(files: FileIndex) -> Iterator[RowResult]:
    """DiDeMo, one record a video: its descriptions as one paragraph."""
    videos: dict[str, list[Row]] = {}
    for row in json_rows(files.file(f"{files.part('val')}_data.json")):
        videos.setdefault(row.text("video"), []).append(row)
    for name, rows in videos.items():
        in_time = sorted(rows, key=_moment)
        yield files.record(rows[0], (name,), texts=(_paragraph(row.text("description") for row in in_time),))


def didemo_sentences(files: FileIndex) -> Iterator[RowResult]:
    """DiDeMo, one record a description, with the seconds of the moment that most annotators marked."""
    for row in json_rows(files.file(f"{files.part('val')}_data.json")):
        start, end = _moment(row)
        yield files.record(
            row,
            (row.text("video"),),
            texts=(row.text("description"),),
            start=start,
            end=end,
            example_id=row.text("annotation_id"),
        )


def _moment(row: Row) -> tuple[float, float]:
    """Seconds; of moments marked equally often the earliest."""
    counts = Counter(row.spans("times"))
    if not counts:
        raise row.error("times", "at least one pair of segments")
    first, last = min(counts, key=lambda span: (-counts[span], span))
    return first * _SEGMENT, (last + 1) * _SEGMENT


def activitynet_captions(files: FileIndex) -> Iterator[RowResult]:
    """ActivityNet Captions, one record a video: its sentences as one paragraph."""
    for name, row, moments in _activitynet(files):
        text = _paragraph(sentence for _, sentence in sorted(moments, key=lambda moment: moment[0]))
        yield files.record(row, (name, name.removeprefix("v_")), texts=(text,), example_id=name)


def activitynet_sentences(files: FileIndex) -> Iterator[RowResult]:
    """ActivityNet Captions, one record a sentence, with its seconds."""
    for name, row, moments in _activitynet(files):
        for (start, end), sentence in moments:
            names = name, name.removeprefix("v_")
            yield files.record(row, names, texts=(sentence,), start=start, end=end, example_id=name)


def _activitynet(files: FileIndex) -> Iterator[tuple[str, Row, list[tuple[tuple[float, float], str]]]]:
    path = files.file(_ACTIVITYNET[files.split])
    for name, value in json_file(path).values.items():
        row = Row(f"{path}: {name}", value if isinstance(value, dict) else {})
        spans, sentences = row.spans("timestamps"), row.texts("sentences")
        if len(spans) != len(sentences):
            raise row.error("sentences", f"as many as timestamps, {len(spans)}")
        yield name, row, list(zip(spans, sentences, strict=True))


def lsmdc(files: FileIndex) -> Iterator[RowResult]:
    """LSMDC: tabs, no header: the clip, two pairs of times in the film, the sentence; a clip may come twice.

    The clips are cut already, so the times are not read. `test` is the 1,000 clips of the retrieval task.
    """
    names = {
        "train": ("LSMDC16_annos_training.csv",),
        "validation": ("LSMDC16_annos_val.csv",),
        "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
    }
    columns = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
    clips: dict[str, tuple[Row, list[str]]] = {}
    for row in table_rows(files.file(*names[files.split]), columns, delimiter="\t", header=False):
        clips.setdefault(row.text("clip"), (row, []))[1].append(row.text("sentence"))
    for name, (row, texts) in clips.items():
        yield files.record(row, (name,), texts=tuple(texts), example_id=name)


def _paragraph(sentences: Iterator[str]) -> str:
    return " ".join(filter(None, sentences))
