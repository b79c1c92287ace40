"""A small index with segments, and a service over it that is asked without a network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs pip install 'perceiver-vl[serve]'")

from starlette.testclient import TestClient

from perceiver_vl.search import build_index
from small_media import write_clip, write_image
from small_service import MARKUP, opened, service_of


@pytest.fixture(scope="session")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(index, media): five clips of some seconds, one of them twice, and two pictures; not to be changed."""
    folder = tmp_path_factory.mktemp("served")
    media, index = folder / "media", folder / "index"
    for number in range(4):
        write_clip(media / f"clip{number}.mp4", seed=number, frames=20 + 10 * number)
    write_clip(media / "trip" / f"{MARKUP}.mp4", seed=7, frames=30)
    shutil.copy(media / "clip1.mp4", media / "trip" / "copy of 1.mp4")
    for number in range(2):
        write_image(media / f"picture{number}.png", seed=20 + number)
    (media / "broken.mp4").write_bytes(b"not a video")
    lines = [
        {"file_name": "clip0.mp4", "text": ["First snow", "a 100% red_square"]},
        {"file_name": "clip2.mp4", "text": f"<script>alert(2)</script>{MARKUP}"},
    ]
    (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_index(model_folder, media, index, segments=0.5, segment_fps=4, max_failed_fraction=0.5)
    return index, media


@pytest.fixture(scope="module")  # its threads look for newer versions while it is open: not beside other tests
def api(served: tuple[Path, Path]) -> Iterator[TestClient]:
    """An open service; not to be changed."""
    with service_of(served[0]) as client:
        yield opened(client)
