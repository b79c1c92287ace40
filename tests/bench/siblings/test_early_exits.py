"""Pictures that leave early: what the figures are of."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.bench.siblings.early_exits import ExitsOfFeatures, draw_pictures, measure_early_exits
from perceiver_vl.data.synthetic.scene import SHAPES
from perceiver_vl.models.dynamic_perceiver import DynamicPerceiverConfig
from perceiver_vl.models.dynamic_perceiver.flops import feature_flops


def test_pictures_are_drawn_the_same_again_and_of_every_shape() -> None:
    first, again, test = draw_pictures(3, 32, 1), draw_pictures(5, 32, 1), draw_pictures(3, 32, 1, stream=2)
    assert torch.equal(first.pixels, again.pixels[:3])
    assert not torch.equal(first.pixels, test.pixels)
    assert first.pixels.shape == (3, 32, 32, 3)
    assert draw_pictures(200, 32, 0).labels.bincount(minlength=len(SHAPES)).min() > 8


def test_exits_of_features_cost_what_the_formula_says() -> None:
    config = DynamicPerceiverConfig(stem_width=8, depths=[1, 2, 1, 1], widths=[16, 16, 32, 48])
    model = ExitsOfFeatures(config).eval().requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = list(model.exits_in_turn(torch.randn(1, 3, 33, 40)))
    assert len(logits) == 3
    assert counter.get_total_flops() == feature_flops(config, 33, 40)[-1]


def test_budgets_are_kept_by_both_on_the_pictures_they_were_solved_on() -> None:
    report = measure_early_exits(pictures=34, tested=8, size=32, steps=1)
    exits = [one for one in report.leaving if one.budget is None]
    budgets = [one for one in report.leaving if one.budget is not None]
    assert [one.model for one in exits] == ["Dynamic Perceiver"] * 4 + ["exits of features"] * 3
    assert [one.model for one in budgets] == ["Dynamic Perceiver"] * 6 + ["exits of features"] * 4
    for model in dict.fromkeys(one.model for one in exits):
        costs = [one.mflops for one in exits if one.model == model]
        assert costs == sorted(costs)
        assert all(costs[0] - 1e-9 <= one.mflops <= costs[-1] + 1e-9 for one in budgets if one.model == model)
    assert len(report.sections()) == 2
