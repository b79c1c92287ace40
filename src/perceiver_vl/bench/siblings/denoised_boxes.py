"""What MonoXiver is for (Liu et al. 2023): a monocular detector's boxes, right in the picture and wrong in depth, are
moved to where they fit.

A scene's boxes are disturbed in depth, 25 candidates placed around each, and a head scores and corrects these, beside a
multilayer perceptron of about as many weights that sees the same of a candidate. Both see the features of one small
convolutional net, which was trained before to say at each place what box is there, as a detector is, and stays so.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.bench.siblings.box_scenes import (
    CAMERA_HEIGHT,
    DEPTHS,
    HEIGHT,
    WIDTH,
    Scene,
    average_precision,
    candidates,
    disturbed,
    draw_scene,
    iou_3d,
    seen_points,
)
from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.models.monoxiver import MonoXiverConfig, MonoXiverModel
from perceiver_vl.models.monoxiver.modeling import denoising_loss
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.timing import timed

BATCH = 8
CHANNELS, REGION, STRIDE = 32, 5, 4
CANDIDATES = 750  # that are timed: 25 of each of 30 boxes
_TRAIN, _TEST = range(2)  # streams of chance
_USUAL = torch.tensor([0.0, CAMERA_HEIGHT, sum(DEPTHS) / 2, 3.9, 1.6, 1.7, 0.0])
_SPREAD = torch.tensor([4.0, 0.2, 3.0, 0.4, 0.1, 0.1, 2.0])


@dataclass(frozen=True)
class Proposals:
    """Of some scenes: detected boxes `(D,7)`, with scores and scenes `(D,)`, and what is true, `objects (O,7)`, of the
    scenes `(O,)`.
    """

    boxes: Tensor
    scores: Tensor
    scenes: Tensor
    objects: Tensor
    object_scenes: Tensor


def propose(scenes: Sequence[Scene], draw: torch.Generator) -> Proposals:
    """Disturbed boxes of each scene, with scores around 0.7, and one where nothing is, with a score around 0.5."""
    boxes, scores = [], []
    for scene in scenes:
        nowhere = scene.boxes[:1].clone()
        nowhere[:, 2] = torch.rand(1, generator=draw) * (DEPTHS[1] - DEPTHS[0]) + DEPTHS[0]
        nowhere[:, 0] = (torch.rand(1, generator=draw) - 0.5) * 0.8 * nowhere[:, 2]
        boxes.append(torch.cat([disturbed(scene.boxes, draw), nowhere]))
        scores.append(0.4 + 0.6 * torch.rand(len(boxes[-1]), generator=draw))
        scores[-1][-1] -= 0.2
    numbers, counts = torch.arange(len(scenes)), torch.tensor([len(scene.boxes) for scene in scenes])
    return Proposals(
        torch.cat(boxes),
        torch.cat(scores),
        numbers.repeat_interleave(counts + 1),
        torch.cat([scene.boxes for scene in scenes]),
        numbers.repeat_interleave(counts),
    )


def geometry_of(boxes: Tensor, points: Tensor) -> Tensor:
    """The 29 numbers of boxes `(C,7)` that are seen at `points (C,9,2)`: the box around them (4), the box in space (7),
    the points (18), all about 0 and of the size 1.
    """
    seen = 2 * points / torch.tensor([WIDTH, HEIGHT]) - 1
    around = torch.cat([seen.amin(1), seen.amax(1)], dim=-1)
    return torch.cat([around, (boxes - _USUAL) / _SPREAD, seen.flatten(1)], dim=-1)


class FeatureMap(nn.Module):
    """Two convolutions that halve the picture, then three that see further and further: `(S,3,H,W)` →
    `(S,32,H/4,W/4)`; and what a detector says at each place, of which only training has need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.halve = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU())
            for before, width in ((3, 16), (16, CHANNELS))
        )
        self.wider = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation),
                nn.GroupNorm(4, CHANNELS),
                nn.ReLU(),
            )
            for dilation in (1, 2, 4)
        )
        self.detection = nn.Conv2d(CHANNELS, 9, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        for layer in self.halve:
            pixels = layer(pixels)
        for layer in self.wider:
            pixels = pixels + layer(pixels)
        return pixels

    def loss(self, scenes: Sequence[Scene]) -> Tensor:
        """Whether there is a box at each place, and which: its place in the picture, depth, size and yaw."""
        found = self.detection(self(torch.stack([scene.pixels for scene in scenes]))).permute(0, 2, 3, 1)
        there, wanted = zip(*(_dense_targets(scene.boxes) for scene in scenes), strict=True)
        inside, targets = torch.stack(there), torch.stack(wanted)
        objectness = F.binary_cross_entropy_with_logits(found[..., 0], inside.float())
        return objectness + (found[..., 1:] - targets)[inside].abs().mean()


def _dense_targets(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """At each place of the map, whether it is in the box around a box, `(H/4,W/4)` bool, and of the nearest such box
    `(H/4,W/4,8)`: where its centre is, in units of 32 pixels, the logarithm of its depth, its size, its yaw.
    """
    rows, columns = ((torch.arange(size // STRIDE) + 0.5) * STRIDE for size in (HEIGHT, WIDTH))
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H/4,W/4,2)
    points = seen_points(boxes)
    inside = ((places[..., None, :] >= points.amin(1)) & (places[..., None, :] <= points.amax(1))).all(-1)
    nearest = torch.where(inside, boxes[:, 2], torch.inf).argmin(-1)
    own = boxes[nearest]
    angles = torch.stack([own[..., 6].cos(), own[..., 6].sin()], dim=-1)
    depth = 4 * own[..., 2:3].log()  # an error of a metre counts as one of the others
    sizes = (own[..., 3:6] - _USUAL[3:6]) / _SPREAD[3:6] / 4
    targets = torch.cat([(points[:, 8][nearest] - places) / 32, depth, sizes, angles], dim=-1)
    return inside.any(-1), targets


def sample(features: Tensor, owners: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples of `features (S,F,·,·)` at pixels `places (C,K,2)` of the pictures `owners (C,)` → `(C,K,F)`;
    zeros outside. Boxes of one picture stand together.
    """
    found: list[Tensor] = []
    pictures, numbers = owners.unique_consecutive(return_counts=True)
    for picture, own in zip(pictures.tolist(), places.split(numbers.tolist()), strict=True):
        grid = 2 * own / torch.tensor([WIDTH, HEIGHT]) - 1
        sampled = F.grid_sample(features[picture : picture + 1], grid[None], align_corners=False)
        found.append(sampled[0].permute(1, 2, 0))
    return torch.cat(found)


def region_places(points: Tensor) -> Tensor:
    """The middles of REGION × REGION parts of the box around `points (C,9,2)` → `(C,REGION²,2)`."""
    low, high = points.amin(1), points.amax(1)
    share = (torch.arange(REGION) + 0.5) / REGION
    grid = torch.stack(torch.meshgrid(share, share, indexing="xy"), dim=-1).flatten(0, 1)
    return low[:, None] + grid * (high - low)[:, None]


class MultilayerPerceptron(nn.Module):
    """The baseline: all that is known of a candidate in one row, two hidden layers; candidates do not compete."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        size = 9 * CHANNELS + 29 + CHANNELS * REGION**2
        width = next(w for w in range(8, 4096) if w * (size + w + 13) >= parameters)
        self.layers = nn.Sequential(
            nn.Linear(size, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width),
            nn.ReLU(), nn.Linear(width, 7),
        )  # fmt: skip

    def forward(self, points: Tensor, geometry: Tensor, regions: Tensor, per_image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.layers(torch.cat([points.flatten(1), geometry, regions.flatten(1)], dim=-1))
        return found[:, :1], found[:, 1:]


class _Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = MonoXiverConfig(
            point_size=CHANNELS,
            region_size=REGION,
            hidden_size=64,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=1,
        )
        self.head = MonoXiverModel(config)

    def forward(self, points: Tensor, geometry: Tensor, regions: Tensor, per_image: Tensor) -> tuple[Tensor, Tensor]:
        output = self.head(points, geometry, regions, per_image)
        return output.logits, torch.cat([output.position, output.size], dim=-1)


class Denoiser(nn.Module):
    """A head, and what it is to see: features and candidates → logits `(C,1)` and what is to be added `(C,6)`."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, boxes: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """`features (S,32,H/4,W/4)`, candidates `boxes (C,7)` of the pictures `owners (C,)`, which ascend."""
        points = seen_points(boxes)
        where = torch.cat([points, region_places(points)], dim=1)
        sampled = sample(features, owners, where)
        regions = sampled[:, 9:].transpose(1, 2).unflatten(-1, (REGION, REGION))
        per_image = owners.bincount(minlength=len(features))
        return self.head(sampled[:, :9], geometry_of(boxes, points), regions, per_image)


@dataclass(frozen=True)
class Denoised:
    """Boxes of the test: mean IoU in space of each object's own, average precision (R40) at an IoU of 0.5 and 0.7;
    milliseconds of a head for `CANDIDATES` candidates of one picture (median), thousand weights, minutes of training.
    """

    model: str
    iou: float
    ap50: float
    ap70: float
    milliseconds: float | None = None
    parameters: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class DenoisedBoxesReport(BenchReport):
    """Boxes before and after. published_milliseconds: the head at the paper's sizes, for as many candidates."""

    denoised: list[Denoised]
    scenes: int
    tested: int
    steps: int
    published_milliseconds: float

    def sections(self) -> list[Section]:
        """A row a way to treat the boxes."""
        rows = []
        for one in self.denoised:
            scores = (f"{100 * one.iou:.1f}", f"{100 * one.ap50:.1f}", f"{100 * one.ap70:.1f}")
            weights = "–" if one.parameters is None else f"{one.parameters / 1e3:.0f}"
            rows.append((one.model, *scores, or_dash(one.milliseconds, ".1f"), weights, or_dash(one.minutes, ".1f")))
        title = f"boxes of {self.tested} scenes, 3-D"
        columns = ("boxes", "mean IoU, %", "AP at 0.5", "at 0.7", "ms", "1,000 weights", "minutes")
        notes = (
            f"Trained on {self.scenes} scenes, {self.steps} steps of {BATCH}, disturbed anew at each.",
            f"ms: the head alone for {CANDIDATES} candidates of one picture, median; at the paper's sizes "
            f"{self.published_milliseconds:.0f} ms.",
        )
        return [Section(title, columns, rows, notes)]


def measure_denoised_boxes(
    *, scenes: int = 800, tested: int = 200, steps: int = 1200, runs: int = 10, seed: int = 0, progress: bool = False
) -> DenoisedBoxesReport:
    """Train a Perceiver and a multilayer perceptron to denoise boxes, from the same seed, and test both on others."""
    with ProgressBars(progress) as stages:
        training = [draw_scene(seed, _TRAIN, number) for number in range(scenes)]
        test = [draw_scene(seed, _TEST, number) for number in range(tested)]
        found = propose(test, torch.Generator().manual_seed(-1 - seed))
        around = candidates(found.boxes)
        best = _fits(around.flatten(0, 1), found.scenes.repeat_interleave(around.shape[1]), found).amax(1)
        known = around[torch.arange(len(around)), best.view(len(around), -1).argmax(1)]
        denoised = [
            _score("as detected", found.boxes, found.scores, found),
            _score("best of 25, known", known, found.scores, found),
        ]
        torch.manual_seed(seed)
        detector = FeatureMap()
        advance = stages.stage("the features of a detector", steps)
        train(
            detector,
            lambda step: detector.loss([training[place] for place in _some(scenes, seed, step)[0]]),
            steps,
            learning_rate=3e-3,
            advance=advance,
        )
        features, test_features = _features(detector, training), _features(detector, test)
        perceiver = _Perceiver()
        size = sum(weight.numel() for weight in perceiver.parameters())
        heads: dict[str, Callable[[], nn.Module]] = {
            "MonoXiver": lambda: perceiver,
            "multilayer perceptron": lambda: MultilayerPerceptron(size),
        }
        for name, build in heads.items():
            torch.manual_seed(seed)
            model = Denoiser(build())
            own = training, features, test_features, found
            denoised.append(_learn(name, model, *own, steps, runs, seed, stages.stage(name, steps)))
    published = MonoXiverModel(MonoXiverConfig(num_labels=1)).eval()
    config = published.config
    inputs = _noise(config.point_size, config.region_size)
    with torch.inference_mode():
        took = statistics.median(timed(lambda: published(*inputs), "cpu") for _ in range(min(runs, 3)))
    return DenoisedBoxesReport(denoised, scenes, tested, steps, 1e3 * took, runs=runs, seed=seed)


def labels_of(boxes: Tensor, owners: Tensor, proposals: Proposals) -> tuple[Tensor, Tensor]:
    """Which of `boxes (C,7)` is the best of an object, 0, else -1, and what takes it there, `(C,6)`."""
    fits = _fits(boxes, owners, proposals)
    labels, corrections = torch.full((len(boxes),), -1), torch.zeros(len(boxes), 6)
    best = fits.argmax(0)  # (O,)
    labels[best] = 0
    corrections[best] = (proposals.objects - boxes[best])[:, :6]
    return labels, corrections


def _fits(boxes: Tensor, owners: Tensor, proposals: Proposals) -> Tensor:
    """IoU of `boxes (C,7)` and objects of the same scene, 0 with others → `(C,O)`."""
    same = owners[:, None] == proposals.object_scenes
    rows, columns = same.nonzero(as_tuple=True)
    fits = torch.zeros(same.shape)
    fits[rows, columns] = iou_3d(boxes[rows], proposals.objects[columns])
    return fits


def _score(name: str, boxes: Tensor, scores: Tensor, proposals: Proposals, **costs: Any) -> Denoised:
    """Each box is that of one object at most, the one that fits best; a second box of an object is wrong."""
    fits = _fits(boxes, proposals.scenes, proposals)
    precisions = []
    for needed in (0.5, 0.7):
        free, right = torch.ones(len(proposals.objects), dtype=torch.bool), torch.zeros(len(boxes), dtype=torch.bool)
        for place in scores.argsort(descending=True).tolist():
            fit, own = (fits[place] * free).max(0)
            if fit >= needed:
                right[place], free[own] = True, False
        precisions.append(average_precision(scores, right, len(proposals.objects)))
    own = (proposals.scenes[1:] == proposals.scenes[:-1]).nonzero()[:, 0]  # the last of a scene is of no object
    ap50, ap70 = precisions
    return Denoised(name, fits[own, torch.arange(len(own))].mean().item(), ap50, ap70, **costs)


def _learn(
    name: str,
    model: Denoiser,
    training: Sequence[Scene],
    features: Tensor,
    test_features: Tensor,
    proposals: Proposals,
    steps: int,
    runs: int,
    seed: int,
    advance: Callable[..., object],
) -> Denoised:
    def loss_of(step: int) -> Tensor:
        some, draw = _some(len(training), seed, step)
        given = propose([training[place] for place in some], draw)
        boxes = candidates(given.boxes)
        owners = given.scenes.repeat_interleave(boxes.shape[1])
        boxes = boxes.flatten(0, 1)
        logits, residuals = model(features[some], boxes, owners)
        return denoising_loss(logits, residuals, *labels_of(boxes, owners, given))

    trained = train(model, loss_of, steps, learning_rate=2e-3, weight_decay=0.01, advance=advance)
    kept, scores = [], []
    for number in range(len(test_features)):
        around = candidates(proposals.boxes[proposals.scenes == number])
        flat = around.flatten(0, 1)
        with torch.inference_mode():
            logits, residuals = model(
                test_features[number : number + 1], flat, torch.zeros(len(flat), dtype=torch.long)
            )
        likely = logits[:, 0].sigmoid().view(around.shape[:2])
        best = likely.argmax(1)
        moved = around + F.pad(residuals, (0, 1)).view(around.shape)
        kept.append(moved[torch.arange(len(best)), best])
        scores.append(likely.amax(1))
    inputs = _noise(CHANNELS, REGION)
    with torch.inference_mode():
        took = statistics.median(
            timed(lambda: model.head(*inputs, torch.tensor([CANDIDATES])), "cpu") for _ in range(runs)
        )
    return _score(
        name,
        torch.cat(kept),
        proposals.scores * torch.cat(scores),
        proposals,
        milliseconds=1e3 * took,
        parameters=sum(weight.numel() for weight in model.head.parameters()),
        minutes=trained.minutes,
    )


def _some(scenes: int, seed: int, step: int) -> tuple[list[int], torch.Generator]:
    """The places of a step's scenes, and where its further draws come from."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randint(scenes, (BATCH,), generator=draw).tolist(), draw


@torch.no_grad()
def _features(detector: FeatureMap, scenes: Sequence[Scene]) -> Tensor:
    """`(S,32,H/4,W/4)`."""
    pixels = torch.stack([scene.pixels for scene in scenes])
    return torch.cat([detector(some) for some in pixels.split(BATCH)])


def _noise(channels: int, region: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((9, channels), (29,), (channels, region, region))
    points, geometry, regions = (torch.randn(CANDIDATES, *shape, generator=draw) for shape in shapes)
    return points, geometry, regions
