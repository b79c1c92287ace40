"""Files against the sizes and checksums that a manifest says they have."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.files import sha256


@dataclass
class Verification:
    """How many files of a folder were read, and what is wrong with it."""

    folder: Path
    files: int
    problems: list[SkippedSample]


def size_fault(path: Path, size: int | None) -> str | None:
    """What is wrong with a file that should have `size` bytes (None: any), as far as its size tells."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "no such file, named in the manifest"
    if size is not None and found != size:
        return f"{'truncated' if found < size else 'altered'}: {found} bytes, the manifest says {size}"
    return None


def file_fault(path: Path, size: int | None, digest: str) -> str | None:
    """What is wrong with a file of a manifest, every byte read."""
    try:
        if fault := size_fault(path, size):
            return fault
        return None if sha256(path) == digest else "altered: its SHA-256 is not that of the manifest"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def verify_files(
    folder: Path, files: Sequence[tuple[str, int | None, str]], workers: int = 1, progress: bool = False
) -> Verification:
    """Read every byte of the `files` (name, bytes, SHA-256) of a folder, in `workers` threads."""
    result = Verification(folder, len(files), [])
    with ProgressBars(progress) as bars, ThreadPoolExecutor(max(1, workers)) as pool:
        advance = bars.stage("Verifying", len(files))
        faults = pool.map(lambda file: file_fault(folder / file[0], *file[1:]), files)
        for (name, _, _), fault in zip(files, faults, strict=True):
            if fault:
                result.problems.append(SkippedSample(name, fault))
            advance()
    return result
