"""The formula, held against the operations counted on built models and the paper's figures."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_perceivers import small_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.models.perceiver import IterativePerceiverConfig, IterativePerceiverForClassification
from perceiver_vl.models.perceiver.flops import forward_flops


@settings(max_examples=20, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {
            "num_latents": st.integers(1, 30),
            "num_bands": st.integers(0, 3),
            "hidden_size": st.sampled_from([4, 12]),
            "num_cross_attentions": st.integers(2, 4),
            "self_attentions_per_block": st.integers(1, 2),
            "cross_attention_size": st.sampled_from([None, 6, 40]),
            "num_cross_attention_heads": st.integers(1, 2),
            "intermediate_ratio": st.integers(1, 3),
            "gated_mlp": st.booleans(),
            "pooling": st.sampled_from(["mean", "normed_mean", "query"]),
            "query_size": st.sampled_from([None, 8]),
        }
    ),
    rows=st.integers(1, 9),
    training=st.booleans(),
)
def test_a_forward_costs_what_the_formula_says(changes: dict[str, Any], rows: int, training: bool) -> None:
    if changes["num_cross_attention_heads"] == 2 and changes["cross_attention_size"] is None:
        changes["num_cross_attention_heads"] = 1
    config = small_config(**changes)
    model = IterativePerceiverForClassification(config).requires_grad_(False).train(training)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, rows, 5, 2))
    assert counter.get_total_flops() == forward_flops(config, rows * 5, training=training)


@pytest.mark.parametrize(("reads", "gflops"), [(1, 404), (2, 448), (4, 534), (8, 707)])
def test_the_paper_s_figures_come_out(reads: int, gflops: int) -> None:
    """ImageNet's table of the number of reads (paper, appendix)."""
    sharing = "all" if reads == 1 else "all_but_first"
    config = IterativePerceiverConfig(num_labels=1000, num_cross_attentions=reads, share_cross_attentions=sharing)
    assert forward_flops(config, 224 * 224, training=True) / 1e9 == pytest.approx(gflops, rel=0.005)


def test_the_cost_is_linear_in_the_inputs_and_depth_costs_none_of_it() -> None:
    shallow, deep = small_config(num_blocks=4), small_config(num_blocks=9)
    costs = [forward_flops(shallow, inputs, training=True) for inputs in (100, 200, 300)]
    assert costs[2] - costs[1] == costs[1] - costs[0]
    deeper = [forward_flops(deep, inputs, training=True) for inputs in (100, 200)]
    assert deeper[1] - deeper[0] == costs[1] - costs[0]
