"""Which files are videos and images, by their names."""

import os
from pathlib import Path

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_EXTENSIONS = frozenset(".avif .bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())  # noqa: SIM905


def is_media(path: str | os.PathLike[str]) -> bool:
    """Whether the extension is one of a video or an image."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


def find_media(folder: str | os.PathLike[str]) -> list[Path]:
    """All media files below `folder`, sorted; hidden files and folders are skipped."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".") and is_media(name)]
    return sorted(found)
