"""Which files are videos and images, by their names, and where they lie."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_EXTENSIONS = frozenset(".avif .bmp .gif .heic .heif .jpeg .jpg .png .tif .tiff .webp".split())  # noqa: SIM905
SOUND_EXTENSIONS = frozenset(".aac .aiff .flac .m4a .mp3 .oga .ogg .opus .wav .wma".split())  # noqa: SIM905
FEATURES = ".npy"  # of what `prepare --features` writes in the place of media
EXCLUDED = (
    ".*",  # hidden, and the sidecars of macOS (._name)
    "@eaDir",  # thumbnails of Synology
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__MACOSX",
    "*.lrdata",  # previews of Lightroom
    "*.photoslibrary",  # of Photos, which holds several copies of each
    "iPod Photo Cache",
)
"""Names of folders and files that are no media of anybody: thumbnails, sidecars, what was thrown away."""


@dataclass
class MediaFiles:
    """The media files below a folder, sorted; `unlisted`: folders that could not be listed, with the reason;
    `excluded`: folders and media files that a pattern leaves out, but for hidden ones. Names are relative, with `/`.
    """

    files: list[str] = field(default_factory=list)
    unlisted: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)


def is_media(path: str | os.PathLike[str]) -> bool:
    """Whether the extension is one of a video or an image."""
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS  # noqa: PTH122 (a million of them)


def find_media(
    folder: str | os.PathLike[str], exclude: Sequence[str] = (), *, features: bool = False, sounds: bool = False
) -> MediaFiles:
    """All media files below `folder`; linked folders are followed, each once, so that loops end.

    features: those that `prepare --features` wrote there count, too. sounds: and files of sound.
    exclude: patterns as a shell has them (`*`, `?`), of names or of whole relative names, beside `EXCLUDED`.
    """
    found, further = MediaFiles(), (FEATURES,) * features + tuple(SOUND_EXTENSIONS) * sounds
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        place = os.path.join(folder, parent)  # noqa: PTH118
        try:
            status = os.stat(place)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            found.unlisted[parent or "."] = error.strerror or "cannot be listed"
            continue
        inner = []
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            is_folder = entry.is_dir()
            if not is_folder and not (is_media(name) or name.lower().endswith(further)):
                continue
            if any(fnmatchcase(entry.name, pattern) or fnmatchcase(name, pattern) for pattern in (*EXCLUDED, *exclude)):
                found.excluded += [] if entry.name.startswith(".") else [name]
            elif is_folder:
                inner.append(name)
            else:
                found.files.append(name)
        waiting += reversed(inner)
    found.files.sort()
    return found
