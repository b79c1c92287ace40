"""A version of an index in memory: what the engine would find, for many queries at once, whatever becomes of it."""

from pathlib import Path

import numpy as np
import pytest

from perceiver_vl.search import MomentOptions, build_index
from perceiver_vl.search.filters import Filters
from perceiver_vl.search.moments import read_stretches
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.snapshot import Snapshot
from perceiver_vl.search.table import SEGMENTS, open_table
from small_media import write_clip


@pytest.fixture(scope="module")
def indexed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    media, index = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("index")
    for number in range(7):
        write_clip(media / f"clip{number}.mp4", seed=number, frames=20 + 5 * number)
    (media / "again.mp4").write_bytes((media / "clip3.mp4").read_bytes())
    build_index(model_folder, media, index, segments=0.5, segment_fps=4)
    return index


def queries(count: int) -> Vectors:
    drawn = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("most_bytes", [1 << 30, 0], ids=["in memory", "through the engine"])
def test_the_nearest_are_those_of_the_table(indexed: Path, most_bytes: int) -> None:
    snapshot, table, vectors = Snapshot(indexed, most_bytes=most_bytes), open_table(indexed), queries(5)
    assert (snapshot.rows is None) == (most_bytes == 0)
    wheres = [None, None, Filters(longer=3.0).sql(), None, "kind = 'image'"]
    found = snapshot.nearest(vectors, [3, 100, 4, 1, 2], wheres)
    for vector, count, where, near in zip(vectors, [3, 100, 4, 1, 2], wheres, found, strict=True):
        expected, _ = table.nearest(vector, count, where)
        assert near.exact
        assert len(near.rows) == len(near.vectors) == len(near.partial_attentions)
        products = near.vectors @ vector
        assert products.tolist() == sorted(products.tolist(), reverse=True)
        assert sorted(near.rows["id"].to_pylist()) == sorted(expected["id"].to_pylist())


@pytest.mark.parametrize("most_bytes", [1 << 30, 0])
def test_a_clip_is_found_by_its_content_and_by_its_name(indexed: Path, most_bytes: int) -> None:
    snapshot = Snapshot(indexed, most_bytes=most_bytes)
    rows = snapshot.of_files(["clip3.mp4", "nothing.mp4", "again.mp4"])
    assert set(rows) == {"clip3.mp4", "again.mp4"}
    assert snapshot.of_files([]) == {}
    found = snapshot.of_id(rows["clip3.mp4"]["id"])
    assert found is not None
    assert sorted(found["files"]) == ["again.mp4", "clip3.mp4"]
    assert found["vector"] == pytest.approx(rows["clip3.mp4"]["vector"])
    assert found["duration"] == 3.5
    assert snapshot.of_id("0" * 32) is None
    assert snapshot.of_id("' OR '1' = '1") is None


def test_stretches_are_those_that_are_read_for_a_query(indexed: Path) -> None:
    """All of them, or about the nearest segments what a window with one of them can reach."""
    snapshot, table = Snapshot(indexed, SEGMENTS), open_table(indexed, name=SEGMENTS)
    for vector in queries(4):
        for options in (MomentOptions(), MomentOptions(everything=1, shortlist=3, max_length=1.2)):
            ours, theirs = snapshot.stretches(vector, options), read_stretches(table, vector, options, None)
            assert ours[1:] == theirs[1:]
            by_start = [{(one.file, one.starts[0]): one for one in some[0]} for some in (ours, theirs)]
            assert by_start[0].keys() == by_start[1].keys()
            for key, one in by_start[0].items():
                other = by_start[1][key]
                np.testing.assert_array_equal(one.ends, other.ends)
                np.testing.assert_array_equal(one.vectors, other.vectors)
                np.testing.assert_array_equal(one.partial_attentions, other.partial_attentions)
                assert (one.wanted is None) == (other.wanted is None)
                if one.wanted is not None and other.wanted is not None:
                    np.testing.assert_array_equal(one.wanted, other.wanted)
    where = "file = 'clip6.mp4'"
    assert {one.file for one in snapshot.stretches(queries(1)[0], MomentOptions(), where)[0]} == {"clip6.mp4"}


def test_it_stays_as_it_was_when_it_was_opened(model_folder: Path, tmp_path: Path) -> None:
    media, index = tmp_path / "media", tmp_path / "index"
    write_clip(media / "a.mp4", seed=0)
    build_index(model_folder, media, index)
    kept, asked = Snapshot(index), Snapshot(index, most_bytes=0)
    write_clip(media / "b.mp4", seed=1)
    (media / "a.mp4").unlink()
    build_index(None, None, index)
    for old in (kept, asked):
        assert old.nearest(queries(1), [5], [None])[0].rows["file"].to_pylist() == ["a.mp4"]
    assert Snapshot(index).nearest(queries(1), [5], [None])[0].rows["file"].to_pylist() == ["b.mp4"]
