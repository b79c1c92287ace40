"""How a call is measured: its operations counted, its memory summed, its time interleaved with the others'.

Interleaving is why the ratios can be trusted: a machine whose speed drifts slows all calls alike. Before each call a
matrix product is timed, which says how fast the machine was at that moment.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from perceiver_vl.utils.timing import Clock, MatrixProduct, timed

MEMORY_SHARE = 0.8  # of what is available, the most that a setting may need


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of the runs and their range; `in_products`: how often a matrix product, timed before each
    run, fits into the run (median).
    """

    milliseconds: float
    fastest: float
    slowest: float
    in_products: float


@dataclass(frozen=True)
class InterleavedTimings:
    """The timings, one a call, and the rate of the matrix products in between, in GFLOP/s (median)."""

    timings: list[Timing]
    product_gflops: float
    product_size: float  # GFLOPs of one

    def share_of_peak(self, timing: Timing, gflops: float) -> float:
        """The rate of a call of `gflops`, in units of the matrix product's at the same time."""
        return gflops / (timing.in_products * self.product_size)


def time_interleaved(
    calls: Sequence[Callable[[], object]],
    runs: int,
    product: MatrixProduct,
    advance: Callable[[], object],
    clock: Clock = time.perf_counter,
) -> InterleavedTimings:
    """Time every call once a round, `runs` rounds, each after a matrix product; `advance` is told of each call.

    clock: of the wall, or `time.process_time`: with one thread, what other programs do matters less to that.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    products: list[list[float]] = [[] for _ in calls]
    product.seconds(clock)
    for _ in range(runs):
        for number, call in enumerate(calls):
            products[number].append(product.seconds(clock))
            seconds[number].append(timed(call, product.device, clock))
            advance()
    timings = [
        Timing(
            1e3 * statistics.median(of_call),
            1e3 * min(of_call),
            1e3 * max(of_call),
            statistics.median(run / matmul for run, matmul in zip(of_call, before, strict=True)),
        )
        for of_call, before in zip(seconds, products, strict=True)
    ]
    rates = [product.gflops / second for before in products for second in before]
    return InterleavedTimings(timings, statistics.median(rates) if rates else 0.0, product.gflops)


def count_flops(call: Callable[[], object]) -> int:
    """Operations of one call (a multiply-add is two); on the meta device without the memory or the time of them."""
    # Not in inference mode, where torch would take each operation apart in Python to count it
    with torch.inference_mode(False), torch.no_grad():
        return count_training_flops(call)


def count_training_flops(call: Callable[[], object]) -> int:
    """Operations of one call with those of its backward passes and of its optimizer's products."""
    counter = FlopCounterMode(display=False, custom_mapping=_FLOP_FORMULAS)
    counter.mod_tracker = _Untold()  # type: ignore[assignment]
    with counter:
        call()
    return counter.get_total_flops()


class _Untold:
    """In the place of what tells the counter by which module an operation is made: by none, and nothing is hooked."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def peak_memory_mib(call: Callable[[], object]) -> float:
    """MiB that one call holds at once, beside what was there before: the running sum of what torch's allocator did."""
    with profile(profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak / 2**20


def count_flops_and_memory(call: Callable[[], object]) -> tuple[int, float]:
    """`count_flops` and `peak_memory_mib` of one and the same call."""
    flops: list[int] = []
    mib = peak_memory_mib(lambda: flops.append(count_flops(call)))
    return flops[0], mib


def available_memory_mib(device: str | torch.device = "cpu") -> float:
    """Memory that a call may need here: most of what is free."""
    if torch.device(device).type == "cuda":
        return MEMORY_SHARE * torch.cuda.mem_get_info()[0] / 2**20
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    path = Path("/proc/meminfo")  # which only Linux has
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith("MemAvailable"):
            free = 1024 * int(line.split()[1])
    return MEMORY_SHARE * free / 2**20


def _fused_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Given shapes of what goes in."""
    return sdpa_flop_count(query, key, value)


def _fused_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Given shapes of what goes in."""
    return sdpa_backward_flop_count(gradient, query, key, value)


def _int8_flops(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    """Given shapes of what goes in: an operation is one, whatever its numbers are."""
    return 2 * left[0] * left[1] * right[1]


# torch counts the fused attentions of GPUs only, and no products of int8
_FLOP_FORMULAS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward_flops,
    torch.ops.aten._int_mm: _int8_flops,
}
