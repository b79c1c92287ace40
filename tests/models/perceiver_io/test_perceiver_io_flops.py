"""The formula, held against the operations counted on built models and the paper's figures."""

from typing import Any

import pytest
from small_perceiver_io import KINDS, small_config, small_inputs, small_perceiver_io
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.models.perceiver_io import PerceiverIOConfig
from perceiver_vl.models.perceiver_io.flops import embedding_flops, forward_flops
from perceiver_vl.models.perceiver_io.published import PUBLISHED

SIZES = {"array": (9, 4), "image-conv": (2, 1), "flow": (96, 96)}
"""Inputs and queries of what `small_inputs` gives, beside those below."""


@pytest.mark.parametrize("changes", [{}, {"num_latents": 40}, {"gated_mlp": True, "intermediate_ratio": 3}])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_costs_what_the_formula_says(kind: str, training: bool, changes: dict[str, Any]) -> None:
    model = small_perceiver_io(kind, **changes).requires_grad_(False).train(training)
    config = model.config
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**small_inputs(kind, batch=1))
    other = 0
    if kind in SIZES:
        inputs, queries = SIZES[kind]
    elif kind in ("language", "text"):
        inputs, queries = 12, 12 if kind == "language" else 1
        other = 2 * 12 * 24 * 30 if kind == "language" else 0  # answers are compared to the bytes' vectors
    elif kind == "multimodal":
        inputs, queries = 6 + 2 * 2 * 3 + 1, 6 + 2 * 8 * 12 + 1
        other = 2 * 10 * (6 * 4 + 192 * 3 + 6)  # the heads of sound, pixels and label
    else:
        inputs, queries = 96, 1
    expected = forward_flops(config, inputs, queries, training=training) + embedding_flops(config) + other
    assert counter.get_total_flops() == expected


def test_the_paper_s_figure_comes_out() -> None:
    """407 GFLOPs for ImageNet with Fourier features (paper, appendix)."""
    config = PerceiverIOConfig(**PUBLISHED["image-fourier"])
    assert forward_flops(config, 224 * 224, 1, training=True) / 1e9 == pytest.approx(407, rel=0.01)


def test_the_cost_is_linear_in_inputs_and_queries() -> None:
    config = small_config("array")
    costs = [forward_flops(config, inputs, 50, training=True) for inputs in (100, 200, 300)]
    assert costs[2] - costs[1] == costs[1] - costs[0]
    costs = [forward_flops(config, 50, queries, training=True) for queries in (100, 200, 300)]
    assert costs[2] - costs[1] == costs[1] - costs[0]
