"""The indexes that are served, each as one version of its tables; a newer version is opened beside it and takes its
place as a whole, so that no answer is made of two.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perceiver_vl.models.folder import model_fingerprint, warning_of_folder
from perceiver_vl.search.engine import NoIndexError, how_to_make, location
from perceiver_vl.search.query_graph import QueryEncoder, open_graph
from perceiver_vl.search.rows import IndexSettings
from perceiver_vl.search.skipped import read_skipped
from perceiver_vl.search.snapshot import Snapshot
from perceiver_vl.search.table import CLIPS, SEGMENTS, open_table
from perceiver_vl.serve.messages import IndexState, Skipped
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

Stamp = tuple[Any, ...]


@dataclass(frozen=True)
class OpenIndex:
    """One version of an index. `name`: as people call it; `root`: the folder of its media, resolved; `stamp`: what
    tells this version from others.
    """

    name: str
    place: str
    root: Path
    clips: Snapshot
    segments: Snapshot | None
    skipped: tuple[Skipped, ...]
    stamp: Stamp

    @property
    def settings(self) -> IndexSettings:
        """What all its clips share."""
        return self.clips.settings

    def state(self) -> IndexState:
        """What it holds, for people."""
        rows = self.clips.table.columns(["kind", "size", "duration"])
        kinds = rows["kind"].to_pylist()
        segments = None if self.segments is None else self.segments.settings.segments
        return IndexState(
            name=self.name,
            media=str(self.root),
            clips=len(kinds),
            videos=kinds.count("video"),
            images=kinds.count("image"),
            segments=None if self.segments is None else len(self.segments),
            hours=sum(seconds or 0.0 for seconds in rows["duration"].to_pylist()) / 3600,
            bytes=_bytes_of(self.place),
            media_bytes=sum(rows["size"].to_pylist()),
            skipped=list(self.skipped),
            version=self.clips.table.version,
            budget=self.settings.budget,
            segments_of=segments,
        )


@dataclass(frozen=True)
class Library:
    """Indexes of one model, open together, and the model's side of the words."""

    indexes: tuple[OpenIndex, ...]
    model: Path
    queries: QueryEncoder
    notes: tuple[str, ...] = ()

    def named(self, name: str | None) -> tuple[OpenIndex, ...]:
        """All, or the one of this name; raises `UsageError` for another."""
        if name is None:
            return self.indexes
        found = tuple(one for one in self.indexes if one.name == name)
        if not found:
            raise UsageError(f"index={name}: none of {', '.join(one.name for one in self.indexes)}")
        return found

    def clip(self, content: str) -> tuple[OpenIndex, dict[str, Any]] | None:
        """The first clip with this id, as `Snapshot.of_id` tells of it, and its index."""
        for index in self.indexes:
            if (row := index.clips.of_id(content)) is not None:
                return index, row
        return None


def check_indexes(places: Sequence[str], model: Path | None) -> Path:
    """The folder of the model that made all of them, found without loading it.

    Raises `UsageError` for a place without an index, for indexes that cannot be searched together, and for another
    model than the one that made them; `PerceiverVLError` for a damaged one.
    """
    if len({location(place) for place in places}) < len(places):
        raise UsageError(f"index: {', '.join(places)}: one is named twice, leave it out")
    settings = []
    for place in places:
        found = open_table(place).settings
        settings.append(found)
        if _how_asked(found) != _how_asked(settings[0]):
            raise UsageError(
                f"{place}: made by another model than {places[0]}, or at another budget or dtype; they cannot be "
                "searched together, serve them apart"
            )
    folder = model or Path(settings[0].model)
    if model is None and not folder.is_dir():
        raise UsageError(
            f"{places[0]}: its model {folder} is not there any more, say where it is with ", Setting("model", "FOLDER")
        )
    if model_fingerprint(folder) != settings[0].fingerprint:
        raise UsageError(
            f"{places[0]}: made by another model than {folder} now holds; give the one that made it with ",
            Setting("model", "FOLDER"),
        )
    return folder


def _how_asked(settings: IndexSettings) -> tuple[str, str, str | None]:
    return settings.fingerprint, settings.budget, settings.dtype


def open_library(places: Sequence[str], folder: Path, threads: int | None = None) -> Library:
    """Open all of them with the model's side of the words, without torch where `index` has left graphs for that.

    folder: the model's, as `check_indexes` gives it.
    """
    indexes = tuple(open_index(place, name) for place, name in zip(places, _names(places), strict=True))
    settings = indexes[0].settings
    warning = warning_of_folder(folder)
    notes = [f"{folder}: {warning}"] if warning else []
    queries: QueryEncoder | None = None
    try:
        queries = open_graph(folder, settings, threads)
    except PerceiverVLError as error:
        notes.append(str(error))
    if queries is None:
        from perceiver_vl.search.query_model import QueryModel

        queries = QueryModel(folder, settings, "cpu")
    return Library(indexes, folder, queries, tuple(notes))


def open_index(place: str, name: str) -> OpenIndex:
    """The newest version. Raises `UsageError` for an index without clips."""
    stamp = stamp_of(place)  # before: what comes in between is found again
    clips = Snapshot(place, CLIPS)
    if not len(clips):
        raise UsageError(f"{place}: an index without clips, give it some with {how_to_make(place)}")
    segments: Snapshot | None
    try:
        segments = Snapshot(place, SEGMENTS)
    except NoIndexError:
        segments = None
    skipped = tuple(Skipped(one.file, one.reason) for one in read_skipped(place))
    root = Path(clips.settings.media).resolve()
    return OpenIndex(name, place, root, clips, segments if segments and len(segments) else None, skipped, stamp)


def refreshed(library: Library, threads: int | None = None) -> Library:
    """The same library where nothing is new, else another, in which what has changed is open anew."""
    if all(stamp_of(one.place) == one.stamp for one in library.indexes):
        return library
    settings = [open_table(one.place).settings for one in library.indexes]
    if any(_how_asked(new) != _how_asked(library.indexes[0].settings) for new in settings):
        places = [one.place for one in library.indexes]  # made anew by another model
        return open_library(places, check_indexes(places, None), threads)
    indexes = tuple(
        one if stamp_of(one.place) == one.stamp else open_index(one.place, one.name) for one in library.indexes
    )
    return replace(library, indexes=indexes)


def stamp_of(place: str) -> Stamp:
    """What changes with every commit to an index, and when it is made anew; cheap to look at."""
    if "://" in place:
        return (open_table(place).version,)
    newest = []
    for table in (CLIPS, SEGMENTS):
        try:
            with os.scandir(Path(place, f"{table}.lance", "_versions")) as listed:
                names = sorted((one.name, one.inode()) for one in listed if one.name.endswith(".manifest"))
        except OSError:
            names = []
        newest.append((*names[:1], len(names)))
    return tuple(newest)


def _names(places: Sequence[str]) -> list[str]:
    """The last part of each place, or the whole where two end alike."""
    last = [place.rstrip("/").rpartition("/")[2] or place for place in places]
    return [name if last.count(name) == 1 else place for name, place in zip(last, places, strict=True)]


def _bytes_of(place: str) -> int | None:
    if "://" in place:
        return None
    return sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
