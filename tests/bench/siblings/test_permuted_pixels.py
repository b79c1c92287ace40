"""Pictures and their permutation: what the figures are of."""

import torch

from perceiver_vl.bench.siblings.permuted_pixels import draw_pictures, measure_permuted_pixels
from perceiver_vl.data.synthetic.scene import SHAPES


def test_pictures_are_drawn_the_same_again_and_those_of_a_test_are_others() -> None:
    first, again, test = draw_pictures(12, 16, 3), draw_pictures(20, 16, 3), draw_pictures(12, 16, 3, stream=1)
    assert torch.equal(first.pixels, again.pixels[:12])
    assert torch.equal(first.labels, again.labels[:12])
    assert not torch.equal(first.pixels, test.pixels)
    assert first.pixels.shape == (12, 16, 16, 3)
    assert first.pixels.dtype == torch.uint8


def test_every_shape_is_about_as_frequent() -> None:
    counts = draw_pictures(400, 16, 0).labels.bincount(minlength=len(SHAPES))
    assert counts.min() > 25  # of 50


def test_one_order_is_that_of_all_pictures_and_loses_none_of_the_pixels() -> None:
    pictures = draw_pictures(3, 16, 0)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    permuted = pictures.in_order(order)
    assert torch.equal(permuted.labels, pictures.labels)
    for before, after in zip(pictures.pixels.flatten(1, 2), permuted.pixels.flatten(1, 2), strict=True):
        assert torch.equal(after, before[order])
        assert not torch.equal(after, before)
    assert pictures.in_order(None) is pictures


def test_a_pixel_that_keeps_its_position_is_seen_alike_in_any_order() -> None:
    """The first row: one training in order and one of permuted pixels end at the same loss, but for rounding."""
    report = measure_permuted_pixels(pictures=40, tested=20, size=16, steps=2)
    in_order, permuted = report.learned[:2]
    assert (in_order.model, in_order.permuted, permuted.permuted) == ("Perceiver", False, True)
    torch.testing.assert_close(permuted.loss, in_order.loss, atol=1e-3, rtol=0)
    assert report.guesser >= 1 / len(SHAPES)
    [section] = report.sections()
    assert section.rows[0][0] == "Perceiver"
