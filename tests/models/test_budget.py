"""Budgets: what can be typed after `--budget`, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import ComputeBudget, UsageError

dials = st.none() | st.integers(1, 10_000)
budgets = st.builds(ComputeBudget, frames=dials, latents=dials, text_latents=dials, cross_attentions=dials) | st.builds(
    ComputeBudget, latents=st.integers(1, 9), blocks=dials, latent_choice=st.sampled_from(["first", "diverse"])
)


@given(budgets.filter(lambda budget: budget != ComputeBudget()))
def test_what_a_budget_prints_can_be_typed(budget: ComputeBudget) -> None:
    assert ComputeBudget.parse(str(budget)) == budget


def test_the_form_of_the_design() -> None:
    budget = ComputeBudget(frames=8, latents=64, cross_attentions=1)
    assert ComputeBudget.parse("frames=8,latents=64,cross_attentions=1") == budget
    assert ComputeBudget.parse(" latents = 64, frames=8 ,cross_attentions=1,") == budget
    assert str(budget) == "frames=8,latents=64,cross_attentions=1"


def test_nothing_typed_is_the_full_budget() -> None:
    assert ComputeBudget.parse("") == ComputeBudget()
    assert str(ComputeBudget()) == "full"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("frame=8", "'frame'"),
        ("latents", "latents"),
        ("latents=", "latents="),
        ("latents=many", "latents=many"),
        ("latents=-4", "latents=-4"),
        ("latents=0", "latents=0"),
        ("latents=1.5", "latents=1.5"),
        ("latents=²", "latents=²"),
        ("frames=8 latents=64", "frames=8 latents=64"),
        ("blocks=0", "blocks=0"),
        ("blocks=2,cross_attentions=3", "cross_attentions=3,blocks=2"),
        ("latents=8,latent_choice=best", "latent_choice=best"),
        ("latent_choice=diverse", "say how many"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(typed: str, named: str) -> None:
    with pytest.raises(UsageError, match=r"^budget [^\n]*: [^\n]+$") as refused:
        ComputeBudget.parse(typed)
    assert named in str(refused.value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8"])
@pytest.mark.parametrize("dial", ["frames", "latents", "text_latents", "cross_attentions", "blocks"])
def test_every_dial_is_a_whole_number_of_at_least_one(dial: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^budget {dial}={value}: [^\n]+$"):
        ComputeBudget(**{dial: value})  # type: ignore[arg-type]
