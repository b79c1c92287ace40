"""Pictures of numbers: what they are called is text."""

import pytest

from perceiver_vl.utils.plots import curves_svg, front_svg, points_svg, recall_against_latency_svg


@pytest.mark.parametrize("name", ["$\\frac{$", "a_b $x$", "<b>&", "50 %", "_hidden"])
def test_names_are_neither_mathematics_nor_markup(name: str) -> None:
    drawn = curves_svg({name: ([1, 2], [3, 4]), "other": ([1, 2], [1, 1])}, x=name, y=name, title=name)
    drawn += points_svg({name: ([1, 2], [3, 4])}, x=name, y=name, title=name)
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert drawn.count(f">{escaped}<") >= 6
    assert "<b>" not in drawn


def test_logarithmic_axes_have_plain_numbers() -> None:
    drawn = recall_against_latency_svg([("multi", 0.01, 10.0), ("single", 100.0, 50.0)], "recall")
    drawn += front_svg([(1.0, 2.0), (1e6, 3.0)], [(1.0, 2.0)], x="GFLOPs", y="R@1", title="budgets")
    assert ">100<" in drawn
    assert "$" not in drawn
    assert "mathdefault" not in drawn
