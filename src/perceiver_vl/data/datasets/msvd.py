"""MSVD (the Microsoft Research Video Description Corpus): about forty captions a clip."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.msrvtt import caption_lists
from perceiver_vl.data.datasets.rows import Row, lines
from perceiver_vl.utils.errors import UsageError


def msvd(files: FileIndex) -> Iterator[RowResult]:
    """AllVideoDescriptions.txt (a name, a space, a caption; `#` starts a remark) with the list of the split.

    Or one file a split, `msvd_caption_test.json` and so on, each clip with the list of its captions.
    """
    part = files.part("val")
    if not files.has("AllVideoDescriptions.txt") and files.has(f"msvd_caption_{part}.json"):
        yield from caption_lists(files, f"msvd_caption_{part}.json")
        return
    names = files.file(f"{part}_list.txt")
    captions = _captions(files)
    for number, name in lines(names):
        row = Row(f"{names} row {number}", {})
        yield files.record(row, (name,), texts=tuple(captions.get(name, ())), example_id=name)


def _captions(files: FileIndex) -> dict[str, list[str]]:
    path = files.file("AllVideoDescriptions.txt")
    captions: dict[str, list[str]] = {}
    for number, line in lines(path):
        if line.startswith("#"):
            continue
        name, space, caption = line.partition(" ")
        if not space:
            raise UsageError(f"{path} row {number}: {line!r}, need a name, a space and a caption")
        captions.setdefault(name, []).append(caption)
    return captions
