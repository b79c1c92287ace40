"""Indexes that change while they are served, several of them, and files that are not where they should be."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from perceiver_vl import UsageError
from perceiver_vl.search import build_index
from perceiver_vl.serve.library import check_indexes
from small_media import write_clip, write_image
from small_service import id_of, opened, post, problem, service_of, wait_until

QUERY = "a red square"


@pytest.fixture
def own(served: tuple[Path, Path], tmp_path: Path, model_folder: Path) -> tuple[Path, Path]:
    """(index, media): a small index to be changed."""
    media, index = tmp_path / "media", tmp_path / "index"
    for number in range(3):
        write_clip(media / f"clip{number}.mp4", seed=number)
    build_index(model_folder, media, index)
    return index, media


def files(client: Any) -> set[str]:
    return {hit["file"] for hit in post(client, "/v1/search", query=QUERY, top=100, group=False)["hits"]}


def test_a_newer_version_is_picked_up(own: tuple[Path, Path]) -> None:
    index, media = own
    with service_of(index) as client:
        assert len(files(opened(client))) == 3
        write_clip(media / "new.mp4", seed=9)
        (media / "clip0.mp4").unlink()
        build_index(None, None, index)
        wait_until(lambda: files(client) == {"clip1.mp4", "clip2.mp4", "new.mp4"})


def test_an_index_that_is_replaced_is_never_mixed(
    own: tuple[Path, Path], other_model_folder: Path, tmp_path: Path
) -> None:
    """Each answer is of the old index or of the new, which is of another model."""
    index, _ = own
    for number in range(3):
        write_image(tmp_path / "others" / f"picture{number}.png", seed=number)
    build_index(other_model_folder, tmp_path / "others", tmp_path / "new")
    olds, news = {f"clip{number}.mp4" for number in range(3)}, {f"picture{number}.png" for number in range(3)}
    seen: list[set[str]] = []
    with service_of(index) as client:
        before = post(opened(client), "/v1/embed", texts=[QUERY])["texts"]
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                seen.append(files(client))

        asking = threading.Thread(target=ask)
        asking.start()
        index.rename(tmp_path / "old")
        (tmp_path / "new").rename(index)
        wait_until(lambda: files(client) == news)
        ended.set()
        asking.join()
        assert post(client, "/v1/embed", texts=[QUERY])["texts"] != before
    assert all(found in (olds, news) for found in seen)


def test_an_index_that_is_damaged_serves_on_as_it_was(own: tuple[Path, Path]) -> None:
    index, _ = own
    with service_of(index) as client:
        assert len(files(opened(client))) == 3
        newest = min((index / "clips.lance" / "_versions").glob("*.manifest"))  # their names count down
        newer = newest.with_name(f"{int(newest.stem) - 1:020d}.manifest")
        newer.write_bytes(b"damaged")
        wait_until(lambda: "perceiver_vl_refresh_failures_total 0.0" not in client.get("/metrics").text)
        assert len(files(client)) == 3
        assert newer.exists()  # whoever only reads an index mends nothing


def test_a_file_that_is_gone_is_said_and_the_search_goes_on(own: tuple[Path, Path]) -> None:
    index, media = own
    with service_of(index) as client:
        clip = id_of(opened(client), "clip0.mp4")
        (media / "clip0.mp4").unlink()
        for path in (f"/v1/media/{clip}", f"/v1/clips/{clip}/strip", f"/v1/media/{clip}/stream"):
            assert "clip0.mp4: not there any more" in problem(client.get(path), 404)
        assert len(files(client)) == 3
        write_clip(media / "renamed.mp4", seed=0)  # the same content under another name
        build_index(None, None, index)
        wait_until(lambda: "renamed.mp4" in files(client))
        assert client.get(f"/v1/media/{clip}").status_code == 200  # whose id is the content's


def test_only_files_under_the_roots_are_served(own: tuple[Path, Path], tmp_path: Path) -> None:
    index, media = own
    secret = write_clip(tmp_path / "elsewhere" / "secret.mp4", seed=30)
    (media / "linked").symlink_to(tmp_path / "elsewhere")  # as `index` follows links
    (media / "clip0.mp4").unlink()
    (media / "clip0.mp4").symlink_to(secret)
    build_index(None, None, index)
    with service_of(index) as client:
        clip = id_of(opened(client), "linked/secret.mp4")
        for path in (f"/v1/media/{clip}", f"/v1/clips/{clip}/strip", f"/v1/media/{clip}/stream"):
            said = problem(client.get(path), 403)
            assert "--root FOLDER" in said
            assert str(tmp_path) not in said
        for tried in (
            "../../etc/passwd",
            "%2e%2e%2fmedia%2fclip1.mp4",
            str(media / "clip1.mp4"),
            "clip1.mp4",
            "0" * 31,
        ):
            assert client.get(f"/v1/media/{tried}").status_code == 404
            assert client.get(f"/static/{tried}").status_code == 404
    with service_of(index, roots=(tmp_path / "elsewhere",)) as client:
        clip = id_of(opened(client), "linked/secret.mp4")
        assert client.get(f"/v1/media/{clip}").content == secret.read_bytes()


def test_two_indexes_are_searched_together(
    own: tuple[Path, Path], model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    for number in range(2):
        write_image(tmp_path / "photos" / f"picture{number}.png", seed=number)
    build_index(model_folder, tmp_path / "photos", tmp_path / "photo-index")
    with service_of(own[0], tmp_path / "photo-index") as client:
        hits = post(opened(client), "/v1/search", query=QUERY, top=10, group=False)["hits"]
        assert {(hit["index"], hit["kind"]) for hit in hits} == {("index", "video"), ("photo-index", "image")}
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        one = post(client, "/v1/search", query=QUERY, index="photo-index")
        assert {hit["kind"] for hit in one["hits"]} == {"image"}
        assert "has no segments" in problem(client.post("/v1/moments", json={"query": QUERY}), 400)
        assert "say which of index, photo-index" in problem(client.post("/v1/index/jobs", json={}), 400)
    build_index(other_model_folder, tmp_path / "photos", tmp_path / "of-another")
    with pytest.raises(UsageError, match="another model"):
        check_indexes([str(own[0]), str(tmp_path / "of-another")], None)
    with pytest.raises(UsageError, match="named twice"):
        check_indexes([str(own[0]), str(own[0])], None)


def test_two_services_share_an_index(own: tuple[Path, Path]) -> None:
    with service_of(own[0]) as one, service_of(own[0]) as other:
        opened(one)
        opened(other)
        clip = id_of(one, "clip0.mp4")
        assert other.get(f"/v1/media/{clip}").content == one.get(f"/v1/media/{clip}").content
        write_clip(own[1] / "new.mp4", seed=9)
        build_index(None, None, own[0])
        wait_until(lambda: len(files(one)) == len(files(other)) == 4)


def test_a_model_that_is_gone_is_named(own: tuple[Path, Path], tmp_path: Path, model_folder: Path) -> None:
    moved = Path(shutil.copytree(model_folder, tmp_path / "moved"))
    build_index(moved, own[1], tmp_path / "of-moved")
    shutil.rmtree(moved)
    with pytest.raises(UsageError, match="say where it is with"):
        check_indexes([str(tmp_path / "of-moved")], None)
    assert check_indexes([str(tmp_path / "of-moved")], model_folder) == model_folder
    with pytest.raises(UsageError, match="not an index"):
        check_indexes([str(tmp_path / "nothing")], None)
