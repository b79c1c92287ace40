"""One look at a benchmark's folder: which annotation files and which media lie in it, and where."""

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from perceiver_vl.data.datasets.rows import Row
from perceiver_vl.data.fields import safe_name
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.media.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from perceiver_vl.utils.errors import UsageError

MISSING = "named in the annotations but not there"
NO_CAPTION = "no caption"
MediaKind = Literal["video", "image"]
RowResult = Record | tuple[SkippedSample, ...]  # of one row of annotations: its record, or all that is in its way


class MissingAnnotationsError(UsageError):
    """The annotations of a split are not in the folder."""


class FileIndex:
    """The files below `folder`, listed once: media of one kind by stem, all others by name.

    Hidden files are passed over and linked folders followed, so that annotations and media may lie apart.
    split: the one that is being read; "all" gives its records none.
    """

    split = "all"

    def __init__(self, folder: Path, kind: MediaKind) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder, give one that holds annotations and media")
        self.folder = folder
        self._extensions = VIDEO_EXTENSIONS | {".gif"} if kind == "video" else IMAGE_EXTENSIONS
        self._media: dict[str, tuple[str, ...]] = {}
        self._others: dict[str, list[str]] = {}
        for name in _files_below(folder):
            base = name.rpartition("/")[2]
            stem = self._stem(base)
            if stem != base:
                self._media[stem] = (*self._media.get(stem, ()), name)
            else:
                self._others.setdefault(base, []).append(name)

    def of_split(self, split: str) -> Self:
        """The same files, of which a split is to be read."""
        view = copy.copy(self)
        view.split = split
        return view

    def part(self, validation: str) -> str:
        """The split as its files call it, which is as we do but for `validation`."""
        return validation if self.split == "validation" else self.split

    def file(self, *names: str) -> Path:
        """The annotation file of the first of these names that is there; of several, the one nearest to the top.

        Raises `MissingAnnotationsError` if there is none, `UsageError` if two are as near.
        """
        for name in names:
            found = sorted(self._others.get(name, ()), key=lambda place: place.count("/"))
            if len(found) > 1 and found[0].count("/") == found[1].count("/"):
                raise UsageError(f"{self.folder}: both {found[0]} and {found[1]}, keep one of them")
            if found:
                return self.folder / found[0]
        raise MissingAnnotationsError(f"{self.folder}: no {' or '.join(names)}")

    def has(self, name: str) -> bool:
        """Whether there is an annotation file of this name."""
        return name in self._others

    def media_in(self, parent: str) -> list[str]:
        """The media below a folder at the top, sorted."""
        return sorted(place for places in self._media.values() for place in places if place.partition("/")[0] == parent)

    def record(
        self, row: Row, names: Sequence[str], *, second: Sequence[str] = (), within: Sequence[str] = (), **fields: Any
    ) -> RowResult:
        """The record of the file that has one of `names`, with any known extension; what is skipped if none has.

        second: the names of the other picture of a pair. within: one of these folders must lie on the way to it.
        fields: the others of the record. Raises `UsageError` for a name that leads out of the folder.
        """
        places = [self._find(row, names, within)] + ([self._find(row, second, within)] if second else [])
        skipped = tuple(place for place in places if isinstance(place, SkippedSample))
        if skipped:
            return skipped
        file_name, *others = map(str, places)
        if "texts" in fields and not any(fields["texts"]):
            return (SkippedSample(file_name, NO_CAPTION),)
        if others:
            fields |= {"second_file_name": others[0], "second_path": self.folder / others[0]}
        split = None if self.split == "all" else self.split
        return Record(file_name, self.folder / file_name, split=split, **fields)

    def _find(self, row: Row, names: Sequence[str], within: Sequence[str]) -> str | SkippedSample:
        for name in names:
            _refuse_outside(row, name)
            base = name.rpartition("/")[2]
            places = self._media.get(self._stem(base)) or self._media.get(base, ())
            if within:
                places = tuple(place for place in places if set(place.split("/")[:-1]) & set(within))
            if "/" in name:
                places = tuple(place for place in places if f"/{self._stem(place)}".endswith(f"/{self._stem(name)}"))
            exact = tuple(place for place in places if place.rpartition("/")[2] == base)
            places = exact or places
            if len(places) > 1:
                return SkippedSample(name, f"both {places[0]} and {places[1]} could be meant, keep one of them")
            if places:
                return places[0]
        return SkippedSample(f"{within[0]}/{names[0]}" if within else names[0], MISSING)

    def _stem(self, name: str) -> str:
        """Without its extension, if that is one of the media: names of clips have dots in them."""
        stem, _, extension = name.rpartition(".")
        return stem if stem and f".{extension.lower()}" in self._extensions else name


def _files_below(folder: Path) -> Iterator[str]:
    """The names of all files within `folder`, with `/`, in a steady order."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up would be followed for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = Path(parent).relative_to(folder).as_posix()
        start = "" if within == "." else f"{within}/"
        yield from (start + name for name in sorted(files) if not name.startswith("."))


def _refuse_outside(row: Row, name: str) -> None:
    try:
        safe_name(name)
    except UsageError as error:
        raise UsageError(f"{row.where}: {error}") from error
    if not name:
        raise UsageError(f"{row.where}: an empty name of a file")
