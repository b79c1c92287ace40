"""What measures the benches: operations, memory, interleaved times."""

import torch

from perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.bench.profiling import (
    available_memory_mib,
    count_flops,
    count_flops_and_memory,
    peak_memory_mib,
    time_interleaved,
)
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, matching_flops
from perceiver_vl.utils.timing import MatrixProduct
from tiny import tiny_config, tiny_inputs

MIB = 2**18  # float32 numbers


def test_the_fused_attention_of_a_cpu_is_counted() -> None:
    config = tiny_config()
    model = PerceiverVLForRetrieval(config).eval().requires_grad_(False)
    inputs = tiny_inputs(batch=1)
    inputs["pixel_values"] = inputs["pixel_values"].float()
    expected = encoder_flops(config, 3, 6) + matching_flops(config, 6)
    with torch.inference_mode():
        assert count_flops(lambda: model.match_jointly(**inputs)) == expected
        flops, mib = count_flops_and_memory(lambda: model.match_jointly(**inputs))
    assert flops == expected
    assert mib > 0


def test_memory_is_what_is_held_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(4 * MIB)

    def together() -> None:
        _ = [torch.zeros(4 * MIB) for _ in range(3)]

    assert 4 <= peak_memory_mib(one_after_the_other) < 4.5
    assert 12 <= peak_memory_mib(together) < 12.5


def test_calls_are_interleaved() -> None:
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    told: list[None] = []
    product = MatrixProduct(16, "cpu")
    found = time_interleaved(calls, 3, product, lambda: told.append(None))
    assert order == ["a", "b"] * 3
    assert len(told) == 6
    assert product.gflops == 2 * 16**3 / 1e9
    assert found.product_gflops > 0
    for timing in found.timings:
        assert 0 < timing.fastest <= timing.milliseconds <= timing.slowest
    twice = found.share_of_peak(found.timings[0], 2.0)
    assert twice == 2 * found.share_of_peak(found.timings[0], 1.0) > 0


def test_there_is_memory() -> None:
    assert available_memory_mib() > 1
