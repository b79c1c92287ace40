"""Boxes before a camera: that they are measured rightly, and what the figures are of."""

import math

import pytest
import torch
from torch import Tensor

from perceiver_vl.bench.siblings.box_scenes import (
    FOCAL,
    WIDTH,
    average_precision,
    candidates,
    corners,
    disturbed,
    draw_scene,
    iou_3d,
    project,
    seen_points,
)
from perceiver_vl.bench.siblings.denoised_boxes import labels_of, measure_denoised_boxes, propose, region_places, sample

BOX = torch.tensor([1.0, 1.6, 12.0, 4.0, 1.5, 2.0, 0.0])


def moved(**changes: float) -> Tensor:
    names = ("x", "y", "z", "length", "height", "width", "yaw")
    box = BOX.clone()
    for name, change in changes.items():
        box[names.index(name)] += change
    return box


def test_boxes_fit_as_far_as_they_share_space() -> None:
    assert iou_3d(BOX, BOX).item() == pytest.approx(1)
    assert iou_3d(BOX, moved(x=1.0)).item() == pytest.approx(3 / 5)
    assert iou_3d(BOX, moved(y=-0.5)).item() == pytest.approx(1 / 2)
    assert iou_3d(BOX, moved(z=2.5)).item() == 0
    assert iou_3d(BOX, moved(yaw=math.pi)).item() == pytest.approx(1, abs=1e-5)
    assert iou_3d(BOX, moved(yaw=math.pi / 2)).item() == pytest.approx(4 / 12, abs=1e-5)
    inside = BOX * torch.tensor([1, 1, 1, 0.5, 1, 0.5, 1])
    assert iou_3d(BOX, inside).item() == pytest.approx(1 / 4, abs=1e-5)
    assert iou_3d(BOX.expand(3, 1, 7), BOX.expand(2, 7)).shape == (3, 2)


def test_turned_boxes_fit_as_drawn_points_say() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = BOX + torch.randn(7, generator=draw) * torch.tensor([1, 0, 1, 0.3, 0, 0.3, 2])
        places = (torch.rand(20000, 2, generator=draw) - 0.5) * 10 + BOX[[0, 2]]

        def within(box: Tensor, places: Tensor = places) -> Tensor:
            off, (cos, sin) = places - box[[0, 2]], (box[6].cos(), box[6].sin())
            along, across = off[:, 0] * cos - off[:, 1] * sin, off[:, 0] * sin + off[:, 1] * cos
            return (along.abs() <= box[3] / 2) & (across.abs() <= box[5] / 2)

        one, two = within(BOX), within(other)
        wanted = (one & two).sum() / (one | two).sum().clamp(min=1)
        assert iou_3d(BOX, other).item() == pytest.approx(wanted.item(), abs=0.04)


def test_a_pinhole_camera_sees_what_is_twice_as_far_half_as_large() -> None:
    near, far = project(torch.tensor([[1.0, 1.0, 10.0], [1.0, 1.0, 20.0]]))
    assert near[0].item() == pytest.approx(WIDTH / 2 + FOCAL / 10)
    assert (far[0] - WIDTH / 2).item() == pytest.approx(FOCAL / 20)
    assert seen_points(BOX).shape == (9, 2)
    torch.testing.assert_close(corners(BOX).mean(0), torch.tensor([1.0, 1.6 - 0.75, 12.0]))


def test_scenes_are_drawn_the_same_again_and_boxes_are_wrong_in_depth() -> None:
    first, again, other = draw_scene(0, 0, 3), draw_scene(0, 0, 3), draw_scene(0, 1, 3)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.boxes, again.boxes)
    assert first.pixels.shape == (3, 96, 320)
    assert not torch.equal(first.pixels, other.pixels)
    many = first.boxes[:1].expand(500, -1)
    wrong = disturbed(many, torch.Generator().manual_seed(0))
    assert (wrong - many)[:, 2].std().item() == pytest.approx(1, abs=0.1)
    pixels = (seen_points(wrong) - seen_points(many))[:, 8]  # the middle stays where it is seen
    assert pixels.abs().median() < 1


def test_the_best_candidate_of_an_object_is_right_and_its_correction_leads_there() -> None:
    scenes = [draw_scene(0, 0, number) for number in range(3)]
    given = propose(scenes, torch.Generator().manual_seed(0))
    boxes, owners = candidates(given.boxes).flatten(0, 1), given.scenes.repeat_interleave(25)
    labels, corrections = labels_of(boxes, owners, given)
    right = labels == 0
    assert right.sum() == len(given.objects)
    assert not corrections[~right].any()
    fixed = boxes[right] + torch.nn.functional.pad(corrections[right], (0, 1))
    assert iou_3d(fixed[:, None], given.objects).amax(1).min() > 0.999


def test_features_are_sampled_where_things_are_seen() -> None:
    ramp = torch.arange(80.0).expand(2, 1, 24, 80).clone()
    ramp[1] += 100
    found = sample(ramp, torch.tensor([0, 1]), torch.tensor([[[40.0, 20.0]], [[82.0, 20.0]]]))
    torch.testing.assert_close(found.flatten(), torch.tensor([9.5, 120.0]))
    places = region_places(torch.tensor([[[0.0, 0.0], [10.0, 20.0]]]))
    assert places[0, 0].tolist() == [1, 2]
    assert places[0, -1].tolist() == [9, 18]


def test_precision_is_that_at_forty_recalls() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, torch.tensor([True, True, False, False]), 2) == 1
    assert average_precision(scores, torch.tensor([False, True, False, True]), 2) == pytest.approx(0.5)
    assert average_precision(scores, torch.tensor([True, False, False, False]), 2) == pytest.approx(0.5)
    assert average_precision(scores, torch.zeros(4, dtype=torch.bool), 2) == 0


def test_both_heads_are_measured_beside_what_was_detected() -> None:
    report = measure_denoised_boxes(scenes=4, tested=2, steps=1, runs=1)
    detected, known, perceiver, plain = report.denoised
    assert 0 < detected.iou < known.iou < 1
    assert (perceiver.model, plain.model) == ("MonoXiver", "multilayer perceptron")
    assert perceiver.parameters is not None
    assert plain.parameters == pytest.approx(perceiver.parameters, rel=0.01)
    [section] = report.sections()
    assert len(section.rows) == 4
