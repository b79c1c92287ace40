"""Scenes of boxes on the ground before a pinhole camera, what a detector that errs in depth makes of them, and how well
boxes fit.

A box is `(x, y, z, length, height, width, yaw)` in metres and radians, as in KITTI: x to the right, y down, z ahead of
the camera; (x, y, z) is the middle of its bottom. Shapes: S scenes, C boxes, W × H pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

WIDTH, HEIGHT, FOCAL, HORIZON, CAMERA_HEIGHT = 320, 96, 240.0, 24.0, 1.65
DEPTHS = (7.0, 17.0)
_FACES = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))  # of `corners`
_SHADES = (0.4, 1.0, 0.75, 0.55, 0.85, 0.65)


@dataclass(frozen=True)
class Scene:
    """`pixels (3,H,W)`, from 0 to 1, and its `boxes (C,7)`."""

    pixels: Tensor
    boxes: Tensor


def draw_scene(seed: int, stream: int, number: int) -> Scene:
    """One to three boxes that do not hide each other, on uneven ground, as flat ground would tell the depth of a box by
    its height alone; the same for the same arguments.
    """
    rng = np.random.default_rng([seed, stream, number])
    boxes: list[list[float]] = []
    wanted = int(rng.integers(1, 4))
    while len(boxes) < wanted:
        z = rng.uniform(*DEPTHS)
        x = rng.uniform(-0.55, 0.55) * z
        if all(abs(x / z - other[0] / other[2]) > 2.5 * (1 / z + 1 / other[2]) / 2 for other in boxes):
            size = [rng.uniform(3.2, 4.6), rng.uniform(1.4, 1.8), rng.uniform(1.5, 1.9)]
            boxes.append([x, CAMERA_HEIGHT + rng.uniform(-0.25, 0.25), z, *size, rng.uniform(-math.pi, math.pi)])
        elif rng.random() < 0.05:
            boxes.clear()  # these leave no room
    found = torch.tensor(boxes, dtype=torch.float32)
    return Scene(torch.from_numpy(_paint(found, rng)), found)


def _paint(boxes: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Far boxes first; each face has a shade of the box's colour. Drawn at twice the size, for smooth edges."""
    image = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), tuple(rng.integers(120, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 2 * HORIZON, 2 * WIDTH, 2 * HEIGHT), fill=tuple(rng.integers(60, 110, 3).tolist()))
    for place in boxes[:, 2].argsort(descending=True).tolist():
        colour, seen = rng.integers(90, 256, 3), corners(boxes[place])
        pixels = (2 * project(seen)).tolist()
        away = [seen[list(face)].mean(0).norm().item() for face in _FACES]
        for face in sorted(range(6), key=lambda number: -away[number]):  # of a convex box, the near ones cover the rest
            shade = tuple((colour * _SHADES[face]).astype(int).tolist())
            draw.polygon([tuple(pixels[corner]) for corner in _FACES[face]], fill=shade)
    small = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=np.float32) / 255
    return (small + rng.normal(0, 0.02, small.shape).astype(np.float32)).transpose(2, 0, 1)


def disturbed(boxes: Tensor, draw: torch.Generator) -> Tensor:
    """As a monocular detector sees them: about right in the picture, too near or too far by a metre (normal), sizes off
    by 3 %.
    """
    depth = boxes[:, 2]
    nearer = (1 + torch.randn(len(boxes), generator=draw) / depth).clamp(0.5, 1.5)
    middle = boxes[:, :3] - torch.stack([torch.zeros_like(depth), boxes[:, 4] / 2, torch.zeros_like(depth)], dim=-1)
    middle = middle * nearer[:, None]
    sizes = boxes[:, 3:6] * (1 + 0.03 * torch.randn(len(boxes), 3, generator=draw))
    bottom = middle + torch.stack([torch.zeros_like(depth), sizes[:, 1] / 2, torch.zeros_like(depth)], dim=-1)
    return torch.cat([bottom, sizes, boxes[:, 6:]], dim=-1)


def candidates(boxes: Tensor, reach: float = 1.5, step: float = 0.75) -> Tensor:
    """A grid over x and z around each box, itself among them: `(C,7)` → `(C,25,7)`."""
    line = torch.arange(-reach, reach + step / 2, step)
    moves = torch.zeros(len(line) ** 2, 7)
    moves[:, 0], moves[:, 2] = line.repeat(len(line)), line.repeat_interleave(len(line))
    return boxes[:, None] + moves


def corners(boxes: Tensor) -> Tensor:
    """`(…,7)` → `(…,8,3)`: those of the bottom, then those of the top, each in turn."""
    flat = _footprint(boxes)  # (…,4,2)
    levels = [boxes[..., 1], boxes[..., 1] - boxes[..., 4]]
    return torch.cat(
        [torch.stack([flat[..., 0], y[..., None].expand(flat.shape[:-1]), flat[..., 1]], -1) for y in levels], dim=-2
    )


def project(places: Tensor) -> Tensor:
    """Where `(…,3)` is seen, in pixels `(…,2)`; what is not ahead of the camera, as if it were 0.1 m ahead."""
    depth = places[..., 2:].clamp(min=0.1)
    return FOCAL * places[..., :2] / depth + torch.tensor([WIDTH / 2, HORIZON], dtype=places.dtype)


def seen_points(boxes: Tensor) -> Tensor:
    """Eight corners and the centre in the picture: `(…,7)` → `(…,9,2)` pixels."""
    places = corners(boxes)
    return project(torch.cat([places, places.mean(-2, keepdim=True)], dim=-2))


def iou_3d(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes `(…,7)`, whose leading shapes broadcast → `(…)`."""
    kind = first.dtype
    first, second = torch.broadcast_tensors(first.double(), second.double())
    ground = _overlap(*(_footprint(boxes).reshape(-1, 4, 2) for boxes in (first, second))).view(first.shape[:-1])
    low = torch.minimum(first[..., 1], second[..., 1])
    high = torch.maximum(first[..., 1] - first[..., 4], second[..., 1] - second[..., 4])
    both = ground * (low - high).clamp(min=0)
    volumes = first[..., 3:6].prod(-1) + second[..., 3:6].prod(-1)
    return (both / (volumes - both).clamp(min=1e-9)).to(kind)


def _footprint(boxes: Tensor) -> Tensor:
    """Corners on the ground, in turn: `(…,7)` → `(…,4,2)`, x and z."""
    along = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=boxes.dtype) * boxes[..., 3:4]
    across = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=boxes.dtype) * boxes[..., 5:6]
    cos, sin = boxes[..., 6:].cos(), boxes[..., 6:].sin()
    turned = torch.stack([cos * along + sin * across, -sin * along + cos * across], dim=-1)
    return turned + boxes[..., None, [0, 2]]


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Area that two convex quadrilaterals `(C,4,2)` share: its corners are those of one inside the other, and where
    edges cross; in turn around their middle they give the area.
    """
    edges, others = (one.roll(-1, 1) - one for one in (first, second))
    crossing = _cross(edges[:, :, None], others[:, None])  # (C,4,4)
    apart = second[:, None] - first[:, :, None]
    safe = torch.where(crossing.abs() < 1e-9, 1.0, crossing)
    share, other_share = _cross(apart, others[:, None]) / safe, _cross(apart, edges[:, :, None]) / safe
    meets = (crossing.abs() >= 1e-9) & (share >= 0) & (share <= 1) & (other_share >= 0) & (other_share <= 1)
    points = torch.cat([first, second, (first[:, :, None] + share[..., None] * edges[:, :, None]).flatten(1, 2)], 1)
    valid = torch.cat([_inside(first, second), _inside(second, first), meets.flatten(1)], 1)  # (C,24)
    middle = (points * valid[..., None]).sum(1) / valid.sum(1).clamp(min=1)[:, None]
    around = points - middle[:, None]
    some = around.gather(1, valid.int().argmax(1)[:, None, None].expand(-1, 1, 2))
    around = torch.where(valid[..., None], around, some)  # twice the same corner adds no area
    order = torch.atan2(around[..., 1], around[..., 0]).argsort(1)
    around = around.gather(1, order[..., None].expand(-1, -1, 2))
    area = 0.5 * _cross(around, around.roll(-1, 1)).sum(1).abs()
    return area * valid.any(1)


def _inside(points: Tensor, polygon: Tensor) -> Tensor:
    """Which of `points (C,4,2)` are in `polygon (C,4,2)` → `(C,4)`."""
    edges = polygon.roll(-1, 1) - polygon
    sides = _cross(edges[:, None], points[:, :, None] - polygon[:, None])
    return (sides >= -1e-6).all(-1) | (sides <= 1e-6).all(-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def average_precision(scores: Tensor, right: Tensor, objects: int) -> float:
    """Mean over 40 recalls of the best precision at that recall or a higher one (KITTI's R40): `scores (C,)`, `right
    (C,)` bool, at most one right box for each of `objects`.
    """
    found = right[scores.argsort(descending=True)].cumsum(0).double()
    precision = found / torch.arange(1, len(found) + 1)
    recall = found / max(objects, 1)
    wanted = torch.arange(1, 41) / 40
    reached = recall >= wanted[:, None] - 1e-9  # (40,C)
    return (precision * reached).amax(1).mean().item()
