"""The formula, held against the operations counted on built models."""

from typing import Any

import pytest
from small_monoxiver import small_candidates, small_monoxiver
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.models.monoxiver.flops import forward_flops


@pytest.mark.parametrize("changes", [{}, {"num_self_attentions": 0, "num_latents": 6}, {"num_class_layers": 0}])
@pytest.mark.parametrize("count", [1, 7])
def test_a_forward_costs_what_the_formula_says(count: int, changes: dict[str, Any]) -> None:
    model = small_monoxiver(**changes)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**small_candidates(count))
    assert counter.get_total_flops() == forward_flops(model.config, count)
