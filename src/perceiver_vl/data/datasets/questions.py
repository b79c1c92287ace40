"""Questions about videos: MSRVTT-QA, MSVD-QA, ActivityNet-QA, NExT-QA and the four tasks of TGIF-QA."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.rows import Row, json_rows, lines, table_rows
from perceiver_vl.data.datasets.tree import Found, Tree
from perceiver_vl.utils.errors import UsageError

_PARTS = {"train": "train", "validation": "val", "test": "test"}
_ACTIVITYNET_TYPES = (  # the data set's README
    *("motion", "spatial relationship", "temporal relationship"),
    *("yes/no", "color", "object", "location", "number", "other"),
)
_FRAME_TYPES = ("object", "number", "color", "location")  # TGIF-QA's README


def msrvtt_qa(tree: Tree, split: str) -> Iterator[Found]:
    """MSRVTT-QA: `test_qa.json` and so on, or the same as a table, `test.csv`; question 1 is about video1."""
    part = _PARTS[split]
    if tree.has(f"{part}_qa.json") or not tree.has(f"{part}.csv"):
        rows, key = json_rows(tree.file(f"{part}_qa.json")), ("video_id", "id")
    else:
        rows, key = table_rows(tree.file(f"{part}.csv"), ("video", "question", "answer", "qid")), ("video", "qid")
    for row in rows:
        yield _open_question(tree, row, split, (f"video{row.text(key[0])}",), row.text(key[1]))


def msvd_qa(tree: Tree, split: str) -> Iterator[Found]:
    """MSVD-QA: video 1 is `vid1`, or has the name that youtube_mapping.txt gives it, if that is there."""
    names = _youtube_names(tree) if tree.has("youtube_mapping.txt") else {}
    for row in json_rows(tree.file(f"{_PARTS[split]}_qa.json")):
        name = f"vid{row.text('video_id')}"
        of_youtube = (names[name],) if name in names else ()
        yield _open_question(tree, row, split, (name, *of_youtube), row.text("id"))


def _youtube_names(tree: Tree) -> dict[str, str]:
    """vid1 → its name on YouTube with its seconds."""
    path = tree.file("youtube_mapping.txt")
    names = {}
    for number, line in lines(path):
        name, _, place = line.partition(" ")
        if not place:
            raise UsageError(f"{path} row {number}: {line!r}, need a name, a space and vid1, vid2, …")
        names[place] = name
    return names


def _open_question(tree: Tree, row: Row, split: str, names: tuple[str, ...], name: str) -> Found:
    answers = (row.text("answer"),)
    return tree.record(row, names, question=row.text("question"), answers=answers, split=split, example_id=name)


def activitynet_qa(tree: Tree, split: str) -> Iterator[Found]:
    """ActivityNet-QA: questions in one file, answers and types in another."""
    part = _PARTS[split]
    answers = {row.text("question_id"): row for row in json_rows(tree.file(f"{part}_a.json"))}
    for row in json_rows(tree.file(f"{part}_q.json")):
        name = row.text("question_id")
        if name not in answers:
            raise UsageError(f"{row.where}: question_id={name}: not in {part}_a.json")
        yield tree.record(
            row,
            (f"v_{row.text('video_name')}", row.text("video_name")),
            question=row.text("question"),
            answers=(answers[name].text("answer"),),
            split=split,
            example_id=name,
            kind=_ACTIVITYNET_TYPES[answers[name].choice("type", len(_ACTIVITYNET_TYPES))],
        )


def nextqa(tree: Tree, split: str) -> Iterator[Found]:
    """NExT-QA, multiple choice: five choices, the type of question as the set writes it (TN, CW, DL, …)."""
    choices = [f"a{number}" for number in range(5)]
    for row in table_rows(tree.file(f"{_PARTS[split]}.csv"), ("video", "question", "answer", "qid", "type", *choices)):
        yield _choice(tree, row, split, row.text("video"), choices, f"{row.text('video')}_{row.text('qid')}", "type")


def tgif_action(tree: Tree, split: str) -> Iterator[Found]:
    """TGIF-QA: what is repeated so many times? Five choices."""
    return _tgif_choices(tree, split, "action")


def tgif_transition(tree: Tree, split: str) -> Iterator[Found]:
    """TGIF-QA: what happens before, or after? Five choices."""
    return _tgif_choices(tree, split, "transition")


def _tgif_choices(tree: Tree, split: str, task: str) -> Iterator[Found]:
    choices = [f"a{number}" for number in range(1, 6)]
    for row in _tgif(tree, split, task, *choices):
        yield _choice(tree, row, split, row.text("gif_name"), choices, row.text("vid_id"))


def _choice(
    tree: Tree, row: Row, split: str, name: str, choices: list[str], example_id: str, kind: str | None = None
) -> Found:
    return tree.record(
        row,
        (name,),
        question=row.text("question"),
        choices=tuple(row.text(choice) for choice in choices),
        label=row.choice("answer", len(choices)),
        split=split,
        example_id=example_id,
        kind=kind and row.text(kind),
    )


def tgif_frame(tree: Tree, split: str) -> Iterator[Found]:
    """TGIF-QA: a question that one frame answers, in one word."""
    for row in _tgif(tree, split, "frameqa", "type"):
        yield _tgif_open(tree, row, split, _FRAME_TYPES[row.choice("type", len(_FRAME_TYPES))])


def tgif_count(tree: Tree, split: str) -> Iterator[Found]:
    """TGIF-QA: how many times? The answer is a number from 2 to 10 (10 means 10 or more), as a string."""
    for row in _tgif(tree, split, "count"):
        row.integer("answer")
        yield _tgif_open(tree, row, split, None)


def _tgif_open(tree: Tree, row: Row, split: str, kind: str | None) -> Found:
    return tree.record(
        row,
        (row.text("gif_name"),),
        question=row.text("question"),
        answers=(row.text("answer"),),
        split=split,
        example_id=row.text("vid_id"),
        kind=kind,
    )


def _tgif(tree: Tree, split: str, task: str, *columns: str) -> Iterator[Row]:
    part = {"train": "Train", "test": "Test"}[split]
    needed = ("gif_name", "question", "answer", "vid_id", *columns)
    yield from table_rows(tree.file(f"{part}_{task}_question.csv"), needed, delimiter="\t")
