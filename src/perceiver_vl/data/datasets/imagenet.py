"""Pictures in a folder for each class, as ImageNet is kept: `train/n01440764/….JPEG`."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.file_index import FileIndex, MissingAnnotationsError, RowResult
from perceiver_vl.data.datasets.rows import Row
from perceiver_vl.utils.errors import UsageError

_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


def imagenet(files: FileIndex) -> Iterator[RowResult]:
    """One record a picture; `label` is the place of its folder among `class_names`."""
    places = _pictures(files, files.split)
    if not places:
        raise MissingAnnotationsError(f"{files.folder}: no pictures in {' or '.join(_FOLDERS[files.split])}")
    labels = {name: label for label, name in enumerate(class_names(files))}
    for place in places:
        parts = place.split("/")
        if len(parts) != 3 or parts[1] not in labels:
            raise UsageError(f"{files.folder / place}: need SPLIT/CLASS/PICTURE, with a class that train has too")
        yield files.record(Row(str(files.folder), {}), (place,), label=labels[parts[1]])


def class_names(files: FileIndex) -> tuple[str, ...]:
    """The folders of the training split, or if it is not there of validation, sorted."""
    places = _pictures(files, "train") or _pictures(files, "validation")
    return tuple(sorted({place.split("/")[1] for place in places}))


def _pictures(files: FileIndex, split: str) -> list[str]:
    return [place for folder in _FOLDERS[split] for place in files.media_in(folder)]
