"""Questions about videos: MSRVTT-QA, MSVD-QA, ActivityNet-QA, NExT-QA and the four tasks of TGIF-QA."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, json_rows, lines, table_rows
from perceiver_vl.utils.errors import UsageError

_ACTIVITYNET_TYPES = (  # the data set's README
    *("motion", "spatial relationship", "temporal relationship"),
    *("yes/no", "color", "object", "location", "number", "other"),
)
_FRAME_TYPES = ("object", "number", "color", "location")  # TGIF-QA's README


def msrvtt_qa(files: FileIndex) -> Iterator[RowResult]:
    """MSRVTT-QA: `test_qa.json` and so on, or the same as a table, `test.csv`; question 1 is about video1."""
    part = files.part("val")
    if files.has(f"{part}_qa.json") or not files.has(f"{part}.csv"):
        rows, key = json_rows(files.file(f"{part}_qa.json")), ("video_id", "id")
    else:
        rows, key = table_rows(files.file(f"{part}.csv"), ("video", "question", "answer", "qid")), ("video", "qid")
    for row in rows:
        yield _open_question(files, row, (f"video{row.text(key[0])}",), row.text(key[1]))


def msvd_qa(files: FileIndex) -> Iterator[RowResult]:
    """MSVD-QA: video 1 is `vid1`, or has the name that youtube_mapping.txt gives it, if that is there."""
    names = _youtube_names(files) if files.has("youtube_mapping.txt") else {}
    for row in json_rows(files.file(f"{files.part('val')}_qa.json")):
        name = f"vid{row.text('video_id')}"
        of_youtube = (names[name],) if name in names else ()
        yield _open_question(files, row, (name, *of_youtube), row.text("id"))


def _youtube_names(files: FileIndex) -> dict[str, str]:
    """vid1 → its name on YouTube with its seconds."""
    path = files.file("youtube_mapping.txt")
    names = {}
    for number, line in lines(path):
        name, _, place = line.partition(" ")
        if not place:
            raise UsageError(f"{path} row {number}: {line!r}, need a name, a space and vid1, vid2, …")
        names[place] = name
    return names


def _open_question(
    files: FileIndex, row: Row, names: tuple[str, ...], example_id: str, kind: str | None = None
) -> RowResult:
    question, answers = row.text("question"), (row.text("answer"),)
    return files.record(row, names, question=question, answers=answers, example_id=example_id, kind=kind)


def activitynet_qa(files: FileIndex) -> Iterator[RowResult]:
    """ActivityNet-QA: questions in one file, answers and types in another."""
    part = files.part("val")
    answers = {row.text("question_id"): row for row in json_rows(files.file(f"{part}_a.json"))}
    for row in json_rows(files.file(f"{part}_q.json")):
        name = row.text("question_id")
        if name not in answers:
            raise UsageError(f"{row.where}: question_id={name}: not in {part}_a.json")
        yield files.record(
            row,
            (f"v_{row.text('video_name')}", row.text("video_name")),
            question=row.text("question"),
            answers=(answers[name].text("answer"),),
            example_id=name,
            kind=_ACTIVITYNET_TYPES[answers[name].choice("type", len(_ACTIVITYNET_TYPES))],
        )


def nextqa(files: FileIndex) -> Iterator[RowResult]:
    """NExT-QA, multiple choice: five choices, the type of question as the set writes it (TN, CW, DL, …)."""
    choices = [f"a{number}" for number in range(5)]
    columns = "video", "question", "answer", "qid", "type", *choices
    for row in table_rows(files.file(f"{files.part('val')}.csv"), columns):
        yield _choice(files, row, row.text("video"), choices, f"{row.text('video')}_{row.text('qid')}", "type")


def tgif_action(files: FileIndex) -> Iterator[RowResult]:
    """TGIF-QA: what is repeated so many times? Five choices."""
    return _tgif_choices(files, "action")


def tgif_transition(files: FileIndex) -> Iterator[RowResult]:
    """TGIF-QA: what happens before, or after? Five choices."""
    return _tgif_choices(files, "transition")


def _tgif_choices(files: FileIndex, task: str) -> Iterator[RowResult]:
    choices = [f"a{number}" for number in range(1, 6)]
    for row in _tgif(files, task, *choices):
        yield _choice(files, row, row.text("gif_name"), choices, row.text("vid_id"))


def _choice(
    files: FileIndex, row: Row, name: str, choices: list[str], example_id: str, kind: str | None = None
) -> RowResult:
    return files.record(
        row,
        (name,),
        question=row.text("question"),
        choices=tuple(row.text(choice) for choice in choices),
        label=row.choice("answer", len(choices)),
        example_id=example_id,
        kind=kind and row.text(kind),
    )


def tgif_frame(files: FileIndex) -> Iterator[RowResult]:
    """TGIF-QA: a question that one frame answers, in one word."""
    for row in _tgif(files, "frameqa", "type"):
        kind = _FRAME_TYPES[row.choice("type", len(_FRAME_TYPES))]
        yield _open_question(files, row, (row.text("gif_name"),), row.text("vid_id"), kind)


def tgif_count(files: FileIndex) -> Iterator[RowResult]:
    """TGIF-QA: how many times? The answer is a number from 2 to 10 (10 means 10 or more), as a string."""
    for row in _tgif(files, "count"):
        row.integer("answer")
        yield _open_question(files, row, (row.text("gif_name"),), row.text("vid_id"))


def _tgif(files: FileIndex, task: str, *columns: str) -> Iterator[Row]:
    part = {"train": "Train", "test": "Test"}[files.split]
    needed = ("gif_name", "question", "answer", "vid_id", *columns)
    yield from table_rows(files.file(f"{part}_{task}_question.csv"), needed, delimiter="\t")
