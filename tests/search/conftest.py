"""A folder of small clips and images."""

from pathlib import Path

import pytest

from small_media import write_clip, write_image


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Five clips, one of them in a folder of its own, and three images."""
    folder = tmp_path / "media"
    for number in range(4):
        write_clip(folder / f"clip{number}.mp4", seed=number)
    write_clip(folder / "trip" / "clip4.mp4", seed=4)
    for number in range(3):
        write_image(folder / f"image{number}.png", seed=10 + number)
    return folder
