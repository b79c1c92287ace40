"""How many threads to compute with, and using so many."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CORES = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def use_threads(threads: int | None = None) -> None:
    """Compute with `threads` threads from now on; None: with `OMP_NUM_THREADS`, or one for each core of this process.

    Two threads on one core compete for its vector unit, and more threads than a container may run wait for each other.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(count_threads(threads))


@contextmanager
def threads_in_use(threads: int) -> Iterator[None]:
    """Compute with `threads` threads, and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_threads(threads: int | None = None) -> int:
    """How many threads that is."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return threads or (int(asked) if asked.isdecimal() else 0) or physical_cores()


def physical_cores() -> int:
    """Cores that this process may use: of its affinity, and within the quota of its container; at least one."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(processor) for processor in usable}
    return max(1, min(len(cores), _quota()))


def _siblings(processor: int) -> str:
    """The logical processors of a core, by which the core is known; the processor itself where the system does not
    tell, as outside Linux.
    """
    path = _CORES / f"cpu{processor}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.is_file() else str(processor)


def _quota() -> int:
    """Processors' worth of time that the container may take, rounded up; all where it is not limited."""
    unlimited = os.cpu_count() or 1
    if not _QUOTA.is_file():
        return unlimited
    allowed, period = _QUOTA.read_text().split()
    return unlimited if allowed == "max" else -(-int(allowed) // int(period))
