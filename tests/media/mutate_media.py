"""Damage media files at random and read them: what share still gives frames, and whether anything else than a
`MediaError` ever comes of it.

By hand: python tests/media/mutate_media.py FOLDER [--count 20] [--seed 0] [--memory-mib 3072] [--seconds 30]
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.files import find_media
from perceiver_vl.utils.errors import MediaError


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with some bytes changed, a piece overwritten, cut out or doubled, or its end cut off."""
    data = bytearray(content)
    kind = rng.integers(5)
    start = int(rng.integers(len(data)))
    end = start + int(rng.integers(1, 1 + max(1, len(data) // 20)))
    if kind == 0:
        for place in rng.integers(0, len(data), int(rng.integers(1, 30))):
            data[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        data[start:end] = rng.bytes(len(data[start:end]))
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    else:
        del data[max(1, start) :]
    return bytes(data)


def outcome(content: bytes, num_frames: int = 4) -> str:
    """ "frames", "some" (of those asked for), or "refused"; anything but `MediaError` is raised."""
    try:
        clip = load_clip(content, num_frames, size=(32, 32))
    except MediaError:
        return "refused"
    assert clip.frames.shape[1:] == (32, 32, 3)
    assert len(clip.frames) == len(clip.timestamps) >= 1
    return "some" if clip.missing else "frames"


def growth(content: bytes, times: int = 60) -> float:
    """MiB by which this process grows when it reads the same file again and again."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for _ in range(times // 2):
        outcome(content)
    before = resident()
    for _ in range(times):
        outcome(content)
    return (resident() - before) / 2**20


def _limit(memory_mib: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def bounded_child(memory_mib: int = 3072) -> Iterator[Pool]:
    """A process that may take so much memory; a crash of it shows as a result that never comes."""
    with multiprocessing.get_context("spawn").Pool(1, _limit, (memory_mib,)) as pool:
        yield pool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20, help="mutations of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--seconds", type=float, default=30, help="after which a file counts as hung")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    wrong, slowest = [], (0.0, "")
    for number, name in enumerate(find_media(arguments.folder).files):
        path = Path(arguments.folder, name)
        content = path.read_bytes()
        if not content:
            continue
        found: Counter[str] = Counter()
        with bounded_child(arguments.memory_mib) as child:
            for trial in range(arguments.count):
                data = mutated(content, np.random.default_rng((arguments.seed, number, trial)))
                begun = time.monotonic()
                try:
                    found[child.apply_async(outcome, (data,)).get(arguments.seconds)] += 1
                except Exception as error:
                    wrong.append(f"{path} mutation {trial}: {type(error).__name__}: {error}")
                    break
                slowest = max(slowest, (time.monotonic() - begun, f"{path.name} mutation {trial}"))
        total += found
        print(f"{path.name:40}", " ".join(f"{kind} {found[kind]:4}" for kind in ("frames", "some", "refused")))
    every = max(1, sum(total.values()))
    shares = ", ".join(f"{kind} {total[kind] / every:.1%}" for kind in ("frames", "some", "refused"))
    print(f"{every} mutated files: {shares}; slowest {slowest[0]:.2f} s ({slowest[1]})")
    for line in wrong:
        print("WRONG", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
