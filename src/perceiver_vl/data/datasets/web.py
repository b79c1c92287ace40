"""Captions from the web: one table row a picture or clip, whose media everybody downloads for themselves."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, RowResult
from perceiver_vl.data.datasets.rows import Row, lines, table_rows
from perceiver_vl.utils.errors import UsageError


def conceptual_captions(files: FileIndex) -> Iterator[RowResult]:
    """Conceptual Captions 3M: caption and address, no header, no file names.

    A picture is named by its row from 0, within a folder of its split: `train/000000012.jpg` or `train/12.jpg`. So
    img2dataset names its files too, in shards of 10,000 (`train/00000/000000012.jpg`).
    """
    names = {
        "train": ("Train_GCC-training.tsv", "Train-GCC-training.tsv"),
        "validation": ("Validation_GCC-1.1.0-Validation.tsv",),
    }
    folders = {"train": ("train", "training"), "validation": ("validation", "val")}
    rows = table_rows(files.file(*names[files.split]), ("caption", "url"), delimiter="\t", header=False)
    for number, row in enumerate(rows):
        yield files.record(
            row,
            (f"{number:09d}", str(number)),
            within=folders[files.split],
            texts=(row.text("caption"),),
            example_id=str(number),
        )


def webvid(files: FileIndex) -> Iterator[RowResult]:
    """WebVid: `videoid` names the clip, in folders by `page_dir` or flat; of 2M and 10M the one that is there."""
    part = files.part("val")
    path = files.file(f"results_2M_{part}.csv", f"results_10M_{part}.csv")
    for row in table_rows(path, ("videoid", "name")):
        name = row.text("videoid")
        yield files.record(row, (name,), texts=(row.text("name"),), example_id=name)


def sbu(files: FileIndex) -> Iterator[RowResult]:
    """SBU Captioned Photos: line n of one file is the address, of the other the caption.

    A picture is named as in its address, or by its line from 0, as img2dataset does.
    """
    addresses = files.file("SBU_captioned_photo_dataset_urls.txt")
    captions = dict(lines(files.file("SBU_captioned_photo_dataset_captions.txt")))
    for number, address in lines(addresses):
        row = Row(f"{addresses} row {number}", {"url": address, "caption": captions.get(number)})
        if number not in captions:
            raise UsageError(f"{row.where}: no caption on that line of SBU_captioned_photo_dataset_captions.txt")
        names = address.rpartition("/")[2], f"{number - 1:09d}"
        yield files.record(row, names, texts=(row.text("caption"),), example_id=str(number - 1))
