"""Statements about pictures, true or false: NLVR2's pairs of photographs, NLVR's drawn pictures."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, json_lines


def nlvr2(files: FileIndex) -> Iterator[RowResult]:
    """NLVR2: the pair of `dev-850-0-1` is `dev-850-0-img0` and `dev-850-0-img1`; training pictures lie in folders."""
    names = {"train": "train.json", "validation": "dev.json", "test": "test1.json", "test_unseen": "test2.json"}
    for row in json_lines(files.file(names[files.split])):
        name = row.text("identifier")
        pair = name.rpartition("-")[0]
        yield files.record(
            row,
            (f"{pair}-img0",),
            second=(f"{pair}-img1",),
            texts=(row.text("sentence"),),
            label=_truth(row),
            example_id=name,
        )


def nlvr(files: FileIndex) -> Iterator[RowResult]:
    """NLVR v1: every statement about six pictures, which differ in the order of their boxes.

    One picture is asked about by a question with an answer: the statement, and "true" or "false".
    """
    part = files.part("dev")
    for row in json_lines(files.file(f"{part}.json")):
        for order in range(6):
            name = f"{part}-{row.text('identifier')}-{order}"
            sentence, truth = row.text("sentence"), _truth(row)
            yield files.record(
                row,
                (name,),
                texts=(sentence,),
                label=truth,
                question=sentence,
                answers=(("false", "true")[truth],),
                example_id=name,
            )


def _truth(row: Row) -> int:
    label = row.text("label").lower()
    if label not in ("true", "false"):
        raise row.error("label", "true or false")
    return int(label == "true")
