"""The table: all of a commit or nothing, two writers, damage, object storage, plain Parquet."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.search import Searcher, build_index, export_parquet
from perceiver_vl.search.rows import EncodedClip, IndexEntry, IndexSettings, rows_of
from perceiver_vl.search.table import create_table, open_table
from small_media import write_clip

SETTINGS = IndexSettings("model", "fingerprint", "media", "full", 4, 8, 16, 4, ("decoder",))
QUERY = "a red square"
SEARCHES = """import json, sys
from perceiver_vl.search import Searcher
searcher = Searcher(sys.argv[1])
for line in sys.stdin:
    hits = searcher.search("a red square", top_k=30).hits
    print(json.dumps([(hit.file_name, round(hit.score, 4)) for hit in hits]), flush=True)
"""


def clips(*names: str, seed: int = 0) -> list[EncodedClip]:
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((len(names), 8)).astype(np.float32)
    partial_attentions = draw.standard_normal((len(names), 20)).astype(np.float32)
    entries = [IndexEntry(name, "video", 1, 2, (f"caption of {name}",)) for name in names]
    return [EncodedClip(*row) for row in zip(entries, vectors, partial_attentions, strict=True)]


def listed(index: str | Path) -> set[str]:
    return {entry.file for entry in open_table(index).entries()}


def test_a_commit_puts_rows_in_the_place_of_their_files_and_drops_others(tmp_path: Path) -> None:
    table = create_table(tmp_path, SETTINGS)
    table.commit(rows_of(clips("a", "b", "c"), SETTINGS))
    reader = open_table(tmp_path)
    table.commit(rows_of(clips("b", "d", seed=1), SETTINGS), gone=["a"])
    assert table.version == reader.version + 1, "one commit"
    assert [entry.file for entry in reader.entries()] == ["a", "b", "c"]
    assert listed(tmp_path) == {"b", "c", "d"}
    np.testing.assert_array_equal(table.rows("file = 'b'")["vector"][0].as_py(), clips("b", "d", seed=1)[0].vector)
    table.check()
    reader.refresh()
    assert {entry.file for entry in reader.entries()} == {"b", "c", "d"}


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    first = create_table(tmp_path, SETTINGS)
    second = open_table(tmp_path)
    first.commit(rows_of(clips("a"), SETTINGS))
    with pytest.raises(UsageError, match=r"^[^\n]+another run is writing it") as error:
        second.commit(rows_of(clips("b"), SETTINGS))
    assert str(tmp_path) in str(error.value)
    assert listed(tmp_path) == {"a"}
    second.refresh()
    second.commit(rows_of(clips("b"), SETTINGS))
    assert listed(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("exact_rows", [20_000, 4])
def test_an_approximate_index_is_made_and_its_recall_measured(tmp_path: Path, exact_rows: int) -> None:
    table = create_table(tmp_path, SETTINGS)
    many = clips(*(f"{number}.mp4" for number in range(3000)))
    table.commit(rows_of(many, SETTINGS))
    queries = np.stack([one.vector for one in many[:300]])  # of whose 3,000 nearest some 18 are missed
    table.finish(lambda: queries, exact_rows)
    assert (table.seal.recall is None) == (exact_rows > 3000)
    if table.seal.recall is not None:
        assert 0.3 < table.seal.recall < 1  # 20 of 55 clusters, of vectors that have none
        exact = create_table(tmp_path / "exact", SETTINGS)
        exact.commit(rows_of(many, SETTINGS))
        agreed = 0
        for query in queries:
            found, nearest = (set(one.nearest(query, 10)[0]["file"].to_pylist()) for one in (table, exact))
            agreed += len(found & nearest)
        assert table.seal.recall == pytest.approx(agreed / 3000)


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `media` of 16 clips and an `index` of them, made in several commits and changed since."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(16):
        write_clip(folder / "media" / f"clip{number:02}.mp4", seed=number)
    build_index(model_folder, folder / "media", folder / "index", commit_clips=5)
    (folder / "media" / "clip03.mp4").unlink()
    write_clip(folder / "media" / "clip05.mp4", seed=55)
    (folder / "media" / "clip07.mp4").rename(folder / "media" / "moved.mp4")
    build_index(None, None, folder / "index", commit_clips=5)
    return folder


def answers(index: Path) -> list[tuple[str, float]]:
    searcher = Searcher(index)
    found = [*searcher.search(QUERY, top_k=16).hits, *searcher.search("moved", top_k=16, hybrid=True).hits]
    return [(hit.file_name, round(hit.score, 4)) for hit in found]


@pytest.mark.parametrize("seed", range(25))
def test_damage_is_noticed_and_mended(made: Path, tmp_path: Path, seed: int) -> None:
    """A bit that is flipped, a file that is cut short, a file that is lost, of those that the newest version has."""
    index = Path(shutil.copytree(made / "index", tmp_path / "index"))
    expected, draw, table = answers(index), Random(seed), index / "clips.lance"
    newest = min(table.glob("_versions/*.manifest"))
    used = [newest, newest, *(table / "data" / file for file in open_table(index).data_files())]
    path = draw.choice([*used, *sorted(table.glob("_indices/*/*"))])
    content, how = bytearray(path.read_bytes()), draw.choice(["flip", "flip", "cut", "lose"])
    if how == "lose":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
    found: Any = None
    try:
        found = answers(index)
    except PerceiverVLError as error:
        said = str(error)
    if found is not None:
        assert found == expected, f"{how} {path.relative_to(index)}: a wrong answer without a word"
    else:
        assert re.fullmatch(rf"[^\n]+index --verify --out {index}", said)
    build_index(None, None, index, verify=bool(seed % 2))
    assert answers(index) == expected


def test_rows_that_are_damaged_are_encoded_again(made: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(made / "index", tmp_path / "index"))
    for file in open_table(index).data_files():
        path = index / "clips.lance" / "data" / file
        content = bytearray(path.read_bytes())
        content[100] ^= 1  # within the first rows
        path.write_bytes(content)
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+damaged \(the row of [^\n]+ is not what was written"):
        Searcher(index)
    report = build_index(None, None, index)
    assert 0 < report.mended == report.encoded < 16
    assert f"{report.mended} mended" in report.summary()
    assert answers(index) == answers(made / "index")


def test_verify_makes_the_approximate_index_anew(made: Path, tmp_path: Path, model_folder: Path) -> None:
    build_index(model_folder, made / "media", tmp_path / "index", exact_rows=5)
    for path in (tmp_path / "index").glob("clips.lance/_indices/*/auxiliary.idx"):
        path.write_bytes(b"")
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+damaged"):
        answers(tmp_path / "index")
    report = build_index(None, None, tmp_path / "index", exact_rows=5, verify=True)
    assert (report.mended, report.encoded, report.recall) == (0, 0, 1.0)
    assert answers(tmp_path / "index")


def test_parquet_for_other_engines(made: Path, tmp_path: Path) -> None:
    assert export_parquet(made / "index", tmp_path / "clips.parquet") == 15
    rows, stored = parquet.read_table(tmp_path / "clips.parquet"), open_table(made / "index").rows()
    assert "checksum" not in rows.column_names
    assert rows.equals(stored.drop_columns(["checksum"]).cast(rows.schema))


def test_a_table_of_somebody_else_is_not_touched(made: Path, tmp_path: Path, model_folder: Path) -> None:
    import lance
    import pyarrow as pa

    lance.write_dataset(pa.table({"vector": [[1.0]]}), tmp_path / "clips.lance")
    for attempt in (
        lambda: Searcher(tmp_path),
        lambda: build_index(model_folder, made / "media", tmp_path),
    ):
        with pytest.raises(UsageError, match="none of ours"):
            attempt()
    assert lance.dataset(tmp_path / "clips.lance").count_rows() == 1


def test_a_clock_that_was_set_back_costs_nothing(made: Path, tmp_path: Path, model_folder: Path) -> None:
    media = Path(shutil.copytree(made / "media", tmp_path / "media"))
    code = "import sys; from perceiver_vl.search import build_index; print(build_index(*sys.argv[1:]).total)"
    early = """import datetime, time
real = time.time
time.time = lambda: real() - 400 * 86400
"""
    for script in (code, early + code, code):
        words = [sys.executable, "-c", script, str(model_folder), str(media), str(tmp_path / "index")]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        assert int(done.stdout) == 15
        write_clip(media / "clip00.mp4", seed=os.getpid())
    assert len(answers(tmp_path / "index")) == 30


# Object storage


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://bucket`, served on the loopback address; where it is and who may read it is said by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


def test_an_index_in_object_storage_with_a_writer_and_two_readers(
    bucket: str, made: Path, tmp_path: Path, model_folder: Path
) -> None:
    media, index = Path(shutil.copytree(made / "media", tmp_path / "media")), f"{bucket}/an index"
    assert build_index(model_folder, media, index, commit_clips=4).encoded == 15
    expected = answers(made / "index")
    assert [name for name, _ in answers(index)] == [name for name, _ in expected]
    words = [sys.executable, "-c", SEARCHES, index]
    readers = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def ask() -> list[str]:
        for reader in readers:
            assert reader.stdin is not None
            print(file=reader.stdin, flush=True)
        return [reader.stdout.readline() for reader in readers if reader.stdout is not None]

    before = ask()
    assert before[0] == before[1] != ""
    for number in range(3):
        write_clip(media / f"clip0{number}.mp4", seed=70 + number)
        (media / f"clip1{number}.mp4").unlink()
        assert build_index(None, None, index).encoded == 1
        assert ask() == before
    for reader in readers:
        reader.communicate()
    assert len(Searcher(index).search(QUERY, top_k=30).hits) == 12
    assert not list(tmp_path.glob("s3:*"))
    assert not Path("s3:").exists()


def test_object_storage_that_cannot_be_used(
    bucket: str, made: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(index: str, message: str) -> None:
        for attempt in (
            lambda: Searcher(index),
            lambda: build_index(model_folder, made / "media", index),
        ):
            with pytest.raises(UsageError, match=rf"^{index}: [^\n]*{message}"):
                attempt()

    with pytest.raises(UsageError, match="not an index"):
        Searcher(f"{bucket}/nothing")
    fails("s3://nowhere/index", "no such bucket")
    fails("ftp://host/index", "no such kind of storage")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fails(f"{bucket}/index", "does not answer")
