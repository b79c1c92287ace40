"""Kills a run of `index` again and again, goes on with it, and compares the index with that of a run left alone.

Usage: index_kills.py [--kills 30] [--seed 0] [--clips 40] [--json]

The run is a real one: the command, a folder of clips with captions and a broken file among them, commits of four clips.
Between chains of kills the folder changes: files are touched, renamed, changed, added and deleted. Every time the run
is started, SIGKILL comes at a moment drawn from the seed, uniform over the length of a run left alone. After every kill
the index must open, whole, with rows that are those of its files; a start that gets to its end closes a chain: names,
captions, vectors and what is found for a query must be those of an index made at once. Exit code 0 only if they are.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from perceiver_vl.search import build_index
from perceiver_vl.search.engine import NoIndexError
from perceiver_vl.search.rows import numbers
from perceiver_vl.search.table import open_table
from perceiver_vl.utils.errors import PerceiverVLError
from small_media import save_model, write_clip

RUN = """import sys
from perceiver_vl.search import build_index
build_index(*sys.argv[1:], batch_size=2, commit_clips=4, device="cpu")"""
TOLERANCE = 1e-4  # batches differ after a kill, and with them the order of sums


@dataclass
class Report:
    """What became of a number of kills: `survived` are those after which the index was whole, and in the end equal."""

    seed: int
    seconds: float = 0.0
    kills: int = 0
    survived: int = 0
    chains: int = 0
    differences: list[str] = field(default_factory=list)


def rows_of(index: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """File → its captions, and its vector and partial attention; every row checked."""
    table = open_table(index)
    table.check()
    rows = table.rows()
    values = np.concatenate([numbers(rows["vector"]), numbers(rows["partial_attention"])], axis=1)
    return dict(zip(rows["file"].to_pylist(), zip(rows["captions"].to_pylist(), values, strict=True), strict=True))


def change(media: Path, draw: random.Random, round_: int) -> None:
    """Touch, rename, change, add and delete some of the files."""
    clips = sorted(media.rglob("*.mp4"))
    touched, renamed, changed, gone = (draw.choice(clips) for _ in range(4))
    for clip in clips[: len(clips) // 2]:
        os.utime(clip)
    os.utime(touched)
    write_clip(changed, seed=1000 + round_)
    if renamed.exists() and renamed not in (changed, gone):
        renamed.rename(media / f"renamed{round_}.mp4")
    if gone.exists() and gone != changed:
        gone.unlink()
    for number in range(6):
        write_clip(media / f"new{round_}-{number}.mp4", seed=2000 + 10 * round_ + number)


def write_captions(media: Path, round_: int) -> None:
    names = [path.name for path in sorted(media.rglob("*.mp4"))]
    lines = [json.dumps({"file_name": name, "text": f"caption {round_} of {name}"}) for name in names]
    (media / "metadata.jsonl").write_text("\n".join(lines))


def start(model: Path, media: Path, index: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", RUN, str(model), str(media), str(index)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compare(index: Path, whole: Path, report: Report) -> None:
    found, wanted = rows_of(index), rows_of(whole)
    if found.keys() != wanted.keys():
        report.differences.append(f"other files: {sorted(found.keys() ^ wanted.keys())}")
        return
    for name, (captions, values) in wanted.items():
        if found[name][0] != captions:
            report.differences.append(f"{name}: captions {found[name][0]}, not {captions}")
        if not np.allclose(found[name][1], values, atol=TOLERANCE):
            report.differences.append(f"{name}: off by {np.abs(found[name][1] - values).max():.1e}")


def kill_again_and_again(folder: Path, kills: int, seed: int, clips: int) -> Report:
    draw, report = random.Random(seed), Report(seed)
    model, media, index = save_model(folder / "model"), folder / "media", folder / "index"
    for number in range(clips):
        write_clip(media / f"clip{number}.mp4", seed=number)
    (media / "broken.mp4").write_bytes(b"nothing")
    write_captions(media, 0)
    begun = time.monotonic()
    start(model, media, folder / "alone").wait()
    report.seconds = time.monotonic() - begun
    while report.kills < kills:
        in_chain = 0
        while True:
            process = start(model, media, index)
            try:
                process.wait(report.seconds * draw.uniform(0.3, 1.05) if report.kills < kills else None)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                report.kills, in_chain = report.kills + 1, in_chain + 1
            try:
                rows_of(index)
            except NoIndexError:
                pass  # killed before the first commit
            except PerceiverVLError as error:
                report.differences.append(f"after kill {report.kills}: {error}")
        if process.returncode:
            report.differences.append(f"a run ended with {process.returncode}")
            break
        before = len(report.differences)
        build_index(model, media, folder / f"whole{report.chains}", device="cpu")
        compare(index, folder / f"whole{report.chains}", report)
        report.survived += in_chain if len(report.differences) == before else 0
        report.chains += 1
        change(media, draw, report.chains)
        write_captions(media, report.chains)
    return report


def main() -> None:
    """Print the report; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_again_and_again(Path(folder), asked.kills, asked.seed, asked.clips)
    plain: dict[str, Any] = asdict(report)
    print(json.dumps(plain, indent=2) if asked.json else "\n".join(f"{name}: {value}" for name, value in plain.items()))
    sys.exit(report.survived < report.kills or bool(report.differences))


if __name__ == "__main__":
    main()
