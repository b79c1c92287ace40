"""The most that this machine's matrix routines do, which everything else is measured against."""

import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]
"""What tells the seconds."""


class MatrixProduct:
    """A square product, in float32 unless another type is asked for. Draws nothing from torch's global generators."""

    def __init__(self, side: int, device: str | torch.device, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)
        self.factors = torch.randn(2, side, side, generator=draw).to(device, dtype)
        self.device = device
        self.gflops = 2 * side**3 / 1e9

    def seconds(self, clock: Clock = time.perf_counter) -> float:
        """Of one product, now."""
        return timed(lambda: self.factors[0] @ self.factors[1], self.device, clock)


def peak_gflops(device: str | torch.device, dtype: torch.dtype = torch.float32, runs: int = 5) -> float:
    """GFLOP/s of the fastest of a few matrix products, large enough for the device; a fraction of a second in all."""
    product = MatrixProduct(512 if torch.device(device).type == "cpu" else 8192, device, dtype)
    return product.gflops / min(product.seconds() for _ in range(runs))


def timed(call: Callable[[], object], device: str | torch.device = "cpu", clock: Clock = time.perf_counter) -> float:
    """Seconds that `call` takes, by `clock`."""
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def wait(device: str | torch.device) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
