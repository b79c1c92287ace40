"""The formula, held against the operations counted on built models, up to each exit."""

from typing import Any

import pytest
from small_dynamic_perceiver import PLAIN, small_dynamic_perceiver, small_pictures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.models.dynamic_perceiver.flops import exit_flops
from perceiver_vl.models.early_exit import ALWAYS, NEVER


@pytest.mark.parametrize("changes", [{}, PLAIN, {"se_ratio": 0.5, "num_latents": 20, "last_write": False}])
@pytest.mark.parametrize("size", [(32, 40), (33, 47)])
@pytest.mark.parametrize("exit", range(4))
def test_leaving_at_an_exit_costs_what_the_formula_says(
    changes: dict[str, Any], size: tuple[int, int], exit: int
) -> None:
    model = small_dynamic_perceiver(**changes).requires_grad_(False)
    thresholds = [ALWAYS if number == exit else NEVER for number in range(4)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(small_pictures(1, *size), thresholds=thresholds)
    assert output.exits.tolist() == [exit]
    assert counter.get_total_flops() == exit_flops(model.config, *size)[exit]
