"""Made digits and those who write them down: what the figures are of."""

import numpy as np
import pytest
import torch

from perceiver_vl.bench.siblings.spoken_digits import (
    DIGITS,
    MELS,
    RATE,
    SECONDS,
    draw_utterances,
    edit_distance,
    filter_banks,
    measure_spoken_digits,
    say,
)


def test_utterances_are_drawn_the_same_again_and_those_of_a_test_are_others() -> None:
    first, again, test = draw_utterances(3, 1), draw_utterances(5, 1), draw_utterances(3, 1, stream=1)
    assert torch.equal(first.features, again.features[:3])
    assert torch.equal(first.labels, again.labels[:3])
    assert not torch.equal(first.features, test.features)
    assert first.features.shape[2] == MELS
    for row in first.labels.tolist():
        said = [word for word in row if word != -100]
        assert said[-1] == 2
        assert 3 <= len(said) - 1 <= 6
        assert all(3 <= word < 3 + len(DIGITS) for word in said[:-1])


def test_a_digit_and_its_reverse_sound_otherwise() -> None:
    """Of one voice: they are the same vowels in another order."""
    forth, back = (
        filter_banks(torch.from_numpy(say([DIGITS.index(name)], np.random.default_rng(0)))) for name in ("ia", "ai")
    )
    assert (forth - back).abs().mean() > 0.1
    assert say([0], np.random.default_rng(0)).shape == (round(RATE * SECONDS),)


def test_a_tone_is_loud_where_its_frequency_is() -> None:
    time = torch.arange(RATE, dtype=torch.float64) / RATE
    places = [filter_banks(torch.sin(2 * torch.pi * tone * time)).mean(0).argmax().item() for tone in (300, 900, 2700)]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [([], [], 0), ([1, 2, 3], [1, 2, 3], 0), ([1, 3], [1, 2, 3], 1), ([3, 2, 1], [1, 2, 3], 2), ([], [4, 4], 2)],
)
def test_words_put_in_left_out_or_replaced_are_counted(first: list[int], second: list[int], wanted: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == wanted


def test_every_model_is_heard_with_all_of_its_latents_and_fewer() -> None:
    report = measure_spoken_digits(utterances=8, tested=4, steps=1)
    each = [(64, "all"), (32, "diverse"), (16, "diverse"), (16, "random")]
    assert [(one.latents, one.chosen) for one in report.heard] == [*each, *each, (None, "all")]
    assert list(report.minutes) == ["all 64 latents", "16 drawn of 64", "frames, no latents"]
    costs = [one.gflops for one in report.heard[:4]]
    assert costs[0] > costs[1] > costs[2] > costs[3] > 0
    [section] = report.sections()
    assert len(section.rows) == 9
