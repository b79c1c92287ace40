"""Encoding on a Ray cluster: the index that this machine makes alone, whatever dies on the way.

Deaths are injected into the cluster's workers: Python runs `sitecustomize.py` in each of them, where a hook watches
which files are opened.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from perceiver_vl import PerceiverVLError, UsageError, cli
from perceiver_vl.search import build_index
from perceiver_vl.search.rows import IndexEntry, numbers
from perceiver_vl.search.table import open_table
from small_media import write_clip

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'perceiver-vl[cluster]'")

HOOK = """
import os, signal, sys, time

def watch(event, args, folder=os.environ["FAULTS"]):
    if event != "open" or not isinstance(args[0], (str, os.PathLike)):
        return
    name = os.path.basename(os.fspath(args[0]))
    if not name.endswith(".mp4"):
        return
    if "deadly" in name or "once" in name:
        died = os.path.join(folder, f"{name}.died")
        times = os.path.getsize(died) if os.path.exists(died) else 0
        if "deadly" in name or not times:
            with open(died, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
    while "gate" in name and not os.path.exists(os.path.join(folder, "open")):
        time.sleep(0.05)

sys.addaudithook(watch)
"""
NAMES = [f"clip{number:02}" for number in range(26)]
NAMES[12], NAMES[13], NAMES[18] = "clip12-gate", "clip13-once", "clip18-deadly"


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where workers leave a sign of each death, and where a file `open` opens the gate."""
    folder = tmp_path / "faults"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("FAULTS", str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder


@pytest.fixture
def cluster(faults: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two cores, started with the faults; nothing of it outlives the test."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # which Ray would write into the home folder
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other tests on this machine may keep its workers from working
    scratch = tmp_path_factory.mktemp("r")  # short: the names of its sockets must fit into 107 letters
    started = ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=str(scratch), log_to_driver=False)
    yield started.address_info["address"]
    ray.shutdown()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    for number, name in enumerate(NAMES):
        write_clip(folder / f"{name}.mp4", seed=number)
    (folder / "clip24.mp4").write_bytes(b"nothing")
    return folder


def rows(index: Path) -> dict[str, np.ndarray]:
    """Each clip's vector and partial attention."""
    found = open_table(index).rows()
    values = np.concatenate([numbers(found["vector"]), numbers(found["partial_attention"])], axis=1)
    return dict(zip(found["file"].to_pylist(), values, strict=True))


def clips_in(index: Path) -> int:
    return len(open_table(index)) if (index / "clips.lance").is_dir() else 0


def assert_same_rows(index: Path, wanted: dict[str, np.ndarray]) -> None:
    """To the rounding of batches: a clip that was given to another worker is encoded among other clips."""
    found = rows(index)
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():
        np.testing.assert_allclose(found[name], row, rtol=1e-5, atol=1e-5)


def test_killed_workers_and_a_killed_run_leave_the_index_of_one_machine(
    model_folder: Path, clips: Path, tmp_path: Path, cluster: str, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = build_index(model_folder, clips, tmp_path / "alone", batch_size=2, device="cpu")
    assert (alone.encoded, [problem.file_name for problem in alone.skipped]) == (25, ["clip24.mp4"])

    index = tmp_path / "index"
    how = f"{str(model_folder)!r}, {str(clips)!r}, {str(index)!r}, batch_size=2, commit_clips=4, device='cpu'"
    asked = f"""from perceiver_vl.search import build_index, ray_encoder
ray_encoder.RETRIES = 1
build_index({how}, ray={cluster!r})"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.Popen([sys.executable, "-c", asked], env=environment, stderr=subprocess.PIPE)
    patience = time.monotonic() + 300
    try:
        while not clips_in(index):  # of the first eight clips; the gate is among the next
            assert run.poll() is None, run.stderr and run.stderr.read().decode()
            assert time.monotonic() < patience, "no clip was committed"
            time.sleep(0.1)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    kept = rows(index)
    clips_kept = len(kept)
    assert 0 < clips_kept <= 8
    (faults / "open").touch()

    monkeypatch.setattr("perceiver_vl.search.ray_encoder.RETRIES", 0)
    report = build_index(model_folder, clips, index, batch_size=2, commit_clips=4, device="cpu", ray=cluster)
    assert (report.unchanged, report.encoded, report.total) == (clips_kept, 24 - clips_kept, 24)
    reasons = {problem.file_name: problem.reason for problem in report.skipped}
    assert reasons.keys() == {"clip18-deadly.mp4", "clip24.mp4"}
    assert reasons["clip18-deadly.mp4"] == "every process that read it died"
    assert reasons["clip24.mp4"] == alone.skipped[0].reason
    assert (faults / "clip13-once.mp4.died").stat().st_size == 1
    assert (faults / "clip18-deadly.mp4.died").stat().st_size >= 2
    for name, row in kept.items():
        np.testing.assert_array_equal(rows(index)[name], row)
    wanted = rows(tmp_path / "alone")
    assert_same_rows(index, {name: row for name, row in wanted.items() if name != "clip18-deadly.mp4"})

    mended = build_index(model_folder, clips, index, batch_size=2, device="cpu")
    assert (mended.encoded, mended.total) == (1, 25), "what brought workers down was not tried again"
    assert_same_rows(index, wanted)


def test_another_model_on_a_machine_is_refused_by_name(
    model_folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perceiver_vl.search.ray_encoder import _as_task, _Worker

    (clips / "clip24.mp4").unlink()
    build_index(model_folder, clips, tmp_path / "index", device="cpu")
    settings = open_table(tmp_path / "index").settings
    monkeypatch.setattr("perceiver_vl.search.ray_encoder.decoder_version", lambda: "PyAV 1")
    import pyarrow as pa

    from perceiver_vl import ComputeBudget

    task = pa.table({"task": [_as_task([3], {3: IndexEntry("clip00.mp4", "video", 1, 1, ())})]})
    [done] = _Worker(str(tmp_path / "index"), settings, ComputeBudget(), 2, "cpu")(task)["done"].to_pylist()
    assert json.loads(done)["numbers"] == [3]
    assert "PyAV 1 decodes on this machine" in json.loads(done)["failed"]


def test_no_cluster_at_the_address_is_one_line(model_folder: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ray=nowhere: no cluster there") as error:
        build_index(model_folder, clips, tmp_path / "index", ray="nowhere", device="cpu")
    assert "\n" not in str(error.value)
    assert isinstance(error.value, PerceiverVLError)


def test_without_ray_the_command_says_what_to_install(
    model_folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perceiver_vl.cli.options.find_spec", lambda name: None)
    words = ["index", "--model", model_folder, "--media", clips, "--out", tmp_path / "index", "--ray", "local"]
    monkeypatch.setattr("sys.argv", ["perceiver-vl", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: ray is not installed: pip install 'perceiver-vl[cluster]'\n"
