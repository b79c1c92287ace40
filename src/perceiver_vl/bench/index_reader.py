"""Opening an index and asking it, in a process that does nothing else: `python -m ... INDEX WHERE COUNT` → JSON."""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from perceiver_vl.search.table import open_table


def main() -> None:
    """Answer the queries in `queries.npy`, each with so many rows; print milliseconds and what memory it took."""
    folder, where, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    queries = np.load(folder / "queries.npy")
    base = _resident_mib()
    opened = [_milliseconds(partial(open_table, folder)) for _ in range(5)]
    table = open_table(folder)
    plain, filtered = (
        [_milliseconds(partial(table.nearest, query, count, kept)) for query in (*queries[:5], *queries)][5:]
        for kept in (None, where)
    )
    found = {
        "open_ms": np.median(opened),
        "p50_ms": np.median(plain),
        "p95_ms": np.quantile(plain, 0.95),
        "filtered_p50_ms": np.median(filtered),
        "filtered_p95_ms": np.quantile(filtered, 0.95),
        "base_mib": base,
        "rss_mib": _resident_mib(),
    }
    print(json.dumps({name: float(value) for name, value in found.items()}))


def _milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)


def _resident_mib() -> float:
    """The most that this process has held; what `getrusage` says may be of the one that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
