"""What a log shows of trouble, and that a healthy one shows nothing."""

import pytest

from perceiver_vl.training.reporting.diagnostics import diagnose

HEALTHY = {
    "data_wait": 0.02,
    "latent_similarity": 0.79,
    "example_similarity": 0.25,
    "cross_attention_1_entropy": 0.56,
    "cross_attention_1_update": 10.0,
    "cross_attention_2_vision_entropy": 0.38,
    "cross_attention_2_vision_update": 0.37,
}


def log_of(losses: list[float], **changes: float) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    lines[0] |= HEALTHY | changes
    return lines


def test_a_healthy_run_has_none() -> None:
    assert diagnose(log_of([6.0, 5.0, 4.5, 4.2, 4.4, 4.0, 4.6]), 0) == []
    assert diagnose([], 0) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_wait": 0.34}, "34% of the time is spent waiting for data"),
        ({"latent_similarity": 0.991}, "the latents collapse onto each other (cosine 0.991)"),
        ({"example_similarity": 0.999}, "all examples have nearly the same latents (cosine 0.999)"),
        (
            {"cross_attention_1_entropy": 0.9981},
            "cross-attention 1 looks at everything alike (attention is 99.8% of uniform)",
        ),
        ({"cross_attention_2_vision_update": 0.004}, "cross-attention 2 (vision) is not used: what it finds is 0.4%"),
    ],
)
def test_each_figure_has_its_own(changes: dict[str, float], said: str) -> None:
    (found,) = diagnose(log_of([1.0, 1.0], **changes), 0)
    assert found.startswith(said)


def test_the_latest_figure_counts() -> None:
    lines = log_of([1.0, 1.0], data_wait=0.9)
    lines[1]["data_wait"] = 0.1
    assert diagnose(lines, 0) == []


def test_skipped_steps_are_told() -> None:
    assert diagnose([], 1)[0].startswith("a step was skipped")
    assert diagnose([], 3)[0].startswith("3 steps were skipped")


def test_losses_of_objectives_that_take_turns_are_held_against_their_own() -> None:
    turns = [{"step": n, "loss": value, f"loss_{n % 2}": value} for n, value in enumerate([0.7, 5.0] * 9)]
    assert diagnose(turns, 0) == []
    (found,) = diagnose([*turns, {"step": 18, "loss": 1.9, "loss_0": 1.9}], 0)
    assert "jumped to 1.9 at step 18 (it was about 0.7)" in found


def test_a_loss_that_jumps_is_told_while_it_is_news() -> None:
    calm = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5]
    (found,) = diagnose(log_of([*calm, 7.5]), 0)
    assert "jumped to 7.5 at step 7 (it was about 1.75)" in found
    assert diagnose(log_of([*calm, 7.5, *calm]), 0) == []
    assert diagnose(log_of([2.0, 9.0]), 0) == []  # too early to say
