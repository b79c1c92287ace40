"""Uploads: searched by, asked about, limited, and deleted."""

import errno
import io
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from perceiver_vl.serve.settings import UploadLimits
from small_service import id_of, opened, post, problem, processes_are_killed, service_of


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where uploads are written; nothing is left of them."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def uploaded(api: TestClient, data: bytes) -> dict[str, Any]:
    answer = api.post("/v1/uploads", content=data)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_clip_that_is_uploaded_finds_itself(api: TestClient, served: tuple[Path, Path], scratch: Path) -> None:
    example = uploaded(api, (served[1] / "clip2.mp4").read_bytes())
    assert (example["kind"], example["frames"], example["duration"]) == ("video", 4, 4.0)
    hits = post(api, "/v1/search", like=[{"id": example["id"]}], top=3)["hits"]
    assert hits[0]["file"] == "clip2.mp4"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)  # Pillow and torch differ by a level here and there
    ours, theirs = post(api, "/v1/embed", ids=[example["id"], id_of(api, "clip2.mp4")])["ids"]
    assert ours == pytest.approx(theirs, abs=0.02)
    asked = {"id": example["id"], "question": "what is it?", "choices": ["a", "b"]}
    assert post(api, "/v1/ask", **asked)["answers"]
    assert post(api, "/v1/ask", **asked)["cached"]


def test_a_picture_is_an_example_too(api: TestClient, served: tuple[Path, Path], scratch: Path) -> None:
    example = uploaded(api, (served[1] / "picture0.png").read_bytes())
    assert (example["kind"], example["frames"], example["duration"]) == ("image", 1, None)
    assert post(api, "/v1/search", query="a", like=[{"id": example["id"], "weight": 2}])["hits"]


def test_an_upload_of_too_many_bytes_is_refused(served: tuple[Path, Path], scratch: Path) -> None:
    with service_of(served[0], uploads=UploadLimits(most_bytes=1000)) as client:
        opened(client)
        assert "more than 1000 bytes" in problem(client.post("/v1/uploads", content=b"x" * 2000), 413)
        parts = (b"x" * 400 for _ in range(5))  # without saying how many
        problem(client.post("/v1/uploads", content=parts), 413)


def picture_that_claims(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims to be so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"not a video", "upload: not a media file"),
        (b"", "upload: empty file"),
        (b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.mp4\n", "upload: not a media file"),
        (picture_that_claims(60_000, 60_000), "pixels"),
    ],
    ids=["text", "nothing", "playlist", "too many pixels"],
)
def test_what_is_no_media_file_is_refused_in_one_line(data: bytes, says: str, api: TestClient, scratch: Path) -> None:
    said = problem(api.post("/v1/uploads", content=data), 422)
    assert says in said
    assert str(scratch) not in said


def test_a_decoder_that_wants_too_much_memory_is_ended(served: tuple[Path, Path], scratch: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(file, "PNG")
    with service_of(served[0], uploads=UploadLimits(most_memory=400 << 20)) as client:
        said = problem(opened(client).post("/v1/uploads", content=file.getvalue()), 422)
        assert "memory" in said or "cannot be decoded within" in said
        assert client.get("/health/ready").status_code == 200


def test_a_decoder_that_takes_too_long_is_ended(served: tuple[Path, Path], scratch: Path) -> None:
    file = io.BytesIO()
    Image.new("P", (800, 800)).save(file, "GIF")
    begin = file.getvalue().index(b"\x2c\0\0\0\0")
    data = file.getvalue()[:begin] + 3000 * file.getvalue()[begin:-1] + b";"  # frame after frame
    with service_of(served[0], uploads=UploadLimits(most_seconds=1)) as client:
        said = problem(opened(client).post("/v1/uploads", content=data), 422)
        assert re.search(r"within 1 s|takes more than \d+ s", said)
        assert client.get("/health/ready").status_code == 200


def test_a_decoder_that_is_killed_is_said_and_the_next_upload_has_another(
    api: TestClient, served: tuple[Path, Path], scratch: Path
) -> None:
    data = (served[1] / "picture0.png").read_bytes()
    with processes_are_killed():
        answer = api.post("/v1/uploads", content=data)
    assert "ended from outside, try again" in problem(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert uploaded(api, data)["kind"] == "image"


def test_a_full_disk_is_said(api: TestClient, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if path.name == "upload" and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    assert "no room" in problem(api.post("/v1/uploads", content=b"x"), 507)


def test_uploads_are_kept_for_a_while(served: tuple[Path, Path], scratch: Path) -> None:
    data = (served[1] / "picture0.png").read_bytes()
    with service_of(served[0], uploads=UploadLimits(kept=1)) as client:
        opened(client)
        first, second = uploaded(client, data), uploaded(client, data)
        assert "upload it again" in problem(client.post("/v1/search", json={"like": [{"id": first["id"]}]}), 404)
        assert client.post("/v1/search", json={"like": [{"id": second["id"]}]}).status_code == 200
    with service_of(served[0], uploads=UploadLimits(kept_seconds=0)) as client:
        old = uploaded(opened(client), data)
        problem(client.post("/v1/search", json={"like": [{"id": old["id"]}]}), 404)
