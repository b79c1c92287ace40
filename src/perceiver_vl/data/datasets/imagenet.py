"""Pictures in a folder for each class, as ImageNet is kept: `train/n01440764/….JPEG`."""

from collections.abc import Iterator

from perceiver_vl.data.datasets.rows import Row
from perceiver_vl.data.datasets.tree import Found, MissingAnnotationsError, Tree
from perceiver_vl.utils.errors import UsageError

_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


def imagenet(tree: Tree, split: str) -> Iterator[Found]:
    """One record a picture; `label` is the place of its folder among `class_names`."""
    places = _pictures(tree, split)
    if not places:
        raise MissingAnnotationsError(f"{tree.folder}: no pictures in {' or '.join(_FOLDERS[split])}")
    labels = {name: label for label, name in enumerate(class_names(tree))}
    for place in places:
        parts = place.split("/")
        if len(parts) != 3 or parts[1] not in labels:
            raise UsageError(f"{tree.folder / place}: need SPLIT/CLASS/PICTURE, with a class that train has too")
        yield tree.record(Row(str(tree.folder), {}), (place,), label=labels[parts[1]], split=split)


def class_names(tree: Tree) -> tuple[str, ...]:
    """The folders of the training split, or if it is not there of validation, sorted."""
    places = _pictures(tree, "train") or _pictures(tree, "validation")
    return tuple(sorted({place.split("/")[1] for place in places}))


def _pictures(tree: Tree, split: str) -> list[str]:
    return [place for folder in _FOLDERS[split] for place in tree.media_in(folder)]
