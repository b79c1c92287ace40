"""MSR-VTT: captions in the official splits, the 1k-A splits, and JSFusion's multiple choice.

The clips are cut from longer videos already: the times in the annotations are those of the sources and are not read.
"""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, json_file, json_lines, json_rows, table_rows

_BOTH, _TRAINING, _TEST = "MSRVTT_data.json", "train_val_videodatainfo.json", "test_videodatainfo.json"


def msrvtt(files: FileIndex) -> Iterator[RowResult]:
    """All captions of a clip; MSRVTT_data.json, or the file of the split that the challenge gave out."""
    if files.split == "test" and files.has("msrvtt_caption_test.json") and not (files.has(_BOTH) or files.has(_TEST)):
        yield from caption_lists(files, "msrvtt_caption_test.json")
        return
    content = json_file(files.file(_BOTH, _TEST if files.split == "test" else _TRAINING))
    texts = _captions(content)
    for row in content.rows("videos"):
        if row.text("split") == files.part("validate"):
            name = row.text("video_id")
            yield files.record(row, (name,), texts=tuple(texts.get(name, ())), example_id=name)


def msrvtt_1ka(files: FileIndex) -> Iterator[RowResult]:
    """1k-A: 1,000 test clips with one caption each; training clips by a list, with all their captions."""
    if files.split == "test":
        for row in table_rows(files.file("MSRVTT_JSFUSION_test.csv"), ("key", "video_id", "sentence")):
            yield files.record(row, (row.text("video_id"),), texts=(row.text("sentence"),), example_id=row.text("key"))
        return
    names = files.file("MSRVTT_train.7k.csv" if files.split == "train_7k" else "MSRVTT_train.9k.csv")
    texts = _captions(json_file(files.file(_BOTH, _TRAINING)))
    if not files.has(_BOTH) and files.has(_TEST):  # 9k also takes the official test clips that 1k-A does not test
        texts |= _captions(json_file(files.file(_TEST)))
    for row in table_rows(names, ("video_id",)):
        name = row.text("video_id")
        yield files.record(row, (name,), texts=tuple(texts.get(name, ())), example_id=name)


def _captions(content: Row) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in content.rows("sentences"):
        texts.setdefault(row.text("video_id"), []).append(row.text("caption"))
    return texts


def msrvtt_multiple_choice(files: FileIndex) -> Iterator[RowResult]:
    """JSFusion's MSR_MC_test.csv (tabs; `msr7020` is video7020), or the same questions as ClipBERT gave them out."""
    if files.has("MSR_MC_test.csv") or not files.has("msrvtt_mc_test.jsonl"):
        answers = [f"a{number}" for number in range(1, 6)]
        columns = ("key", "vid_key", *answers, "answer")
        for row in table_rows(files.file("MSR_MC_test.csv"), columns, delimiter="\t"):
            name = row.text("vid_key").replace("msr", "video", 1)
            choices = tuple(row.text(answer) for answer in answers)
            label = row.choice("answer", len(choices))
            yield files.record(row, (name,), choices=choices, label=label, example_id=row.text("key"))
        return
    for row in json_lines(files.file("msrvtt_mc_test.jsonl")):
        choices = row.texts("options")
        label = row.choice("answer", len(choices))
        name = row.text("clip_name")
        yield files.record(row, (name,), choices=choices, label=label, example_id=row.text("qid"))


def caption_lists(files: FileIndex, file_name: str) -> Iterator[RowResult]:
    """A list of clips, each with the list of its captions: `{"video": "video7010.mp4", "caption": [...]}`."""
    for row in json_rows(files.file(file_name)):
        name = row.text("video")
        yield files.record(row, (name,), texts=row.texts("caption"), example_id=name.rpartition(".")[0])
