"""The Perceiver's claim (Jaegle et al. 2021, 4.1): it sees a picture whose pixels are in any order as well, where a
network of convolutions falls.

Pictures are of one thing of the generated world each, near the middle and large; what is asked is its shape. A fixed
permutation of the places is the same for all pictures, of training and test.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.render import paint
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SceneObject, draw_background
from perceiver_vl.layers.positions import fourier_features, grid_positions
from perceiver_vl.models.perceiver import IterativePerceiverConfig, IterativePerceiverForClassification
from perceiver_vl.models.perceiver_io import PerceiverIOConfig, PerceiverIOForImageClassification
from perceiver_vl.utils.console import ProgressBars

BATCH = 32
BANDS = 8
_TRAIN, _TEST, _ORDER = range(3)  # streams of chance


@dataclass(frozen=True)
class Pictures:
    """`pixels (P,H,W,3)` bytes, `labels (P,)`: which of `SHAPES`."""

    pixels: Tensor
    labels: Tensor

    def in_order(self, order: Tensor | None) -> "Pictures":
        """With the pixel of place `order[i]` at place i, in every picture."""
        if order is None:
            return self
        return Pictures(self.pixels.flatten(1, 2)[:, order].view_as(self.pixels), self.labels)


def draw_pictures(count: int, size: int, seed: int, stream: int = _TRAIN) -> Pictures:
    """Each with one thing, of any shape and colour on any background; the same for the same arguments."""
    pixels, labels = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, stream, number])
        shape = int(rng.integers(len(SHAPES)))
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        x, y = rng.uniform(0.4, 0.6, size=2).tolist()
        thing = SceneObject("large", colour, SHAPES[shape], "still", x, y, rng.uniform(0.22, 0.36), 0.0, 0.0, 1)
        noise = int(rng.integers(2**31))
        pixels.append(torch.from_numpy(paint(draw_background(rng), [thing], [noise], np.zeros(1), size)[0]))
        labels.append(shape)
    return Pictures(torch.stack(pixels), torch.tensor(labels))


class ConvolutionalNet(nn.Module):
    """Four convolutions of 3 × 3, of which two halve the picture, and their mean; with the Perceiver's Fourier features
    as further channels (Table 2 of the paper gives them to ResNet-50 too), or without.
    """

    def __init__(self, size: int, positions: Tensor | None) -> None:
        super().__init__()
        self.positions = None if positions is None else positions.view(1, size, size, -1).movedim(-1, 1)
        channels = [3 + (0 if self.positions is None else self.positions.shape[1]), 32, 32, 64, 64]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 + number % 2, padding=1)
            for number, (before, after) in enumerate(pairwise(channels))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels[1:])
        self.classifier = nn.Linear(channels[-1], len(SHAPES))

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels (B,H,W,3)` bytes → logits `(B,8)`."""
        x = pixels.movedim(-1, 1) / 127.5 - 1
        if self.positions is not None:
            x = torch.cat([x, self.positions.expand(len(x), -1, -1, -1)], dim=1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return self.classifier(x.mean((2, 3)))


class _PixelPerceiver(nn.Module):
    """A Perceiver whose pixels stand where `positions (M,2)` say."""

    def __init__(self, size: int, positions: Tensor) -> None:
        super().__init__()
        self.positions = positions
        config = IterativePerceiverConfig(
            input_shape=[size, size],
            num_bands=BANDS,
            num_latents=32,
            hidden_size=64,
            num_blocks=2,
            num_cross_attentions=2,
            self_attentions_per_block=2,
            num_attention_heads=4,
            num_labels=len(SHAPES),
        )
        self.perceiver = IterativePerceiverForClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels (B,H,W,3)` bytes → logits `(B,8)`."""
        return self.perceiver(pixels.flatten(1, 2), positions=self.positions.expand(len(pixels), -1, -1)).logits


class _PixelPerceiverIO(nn.Module):
    """A Perceiver IO as wide and as deep, which reads once and answers by a query; pixels stand on their grid."""

    def __init__(self, size: int) -> None:
        super().__init__()
        config = PerceiverIOConfig(
            kind="image",
            image_size=[size, size],
            num_bands=BANDS,
            num_latents=32,
            hidden_size=64,
            num_blocks=2,
            self_attentions_per_block=2,
            num_attention_heads=4,
            num_cross_attention_heads=1,
            decoder_residual=True,
            num_labels=len(SHAPES),
        )
        self.perceiver = PerceiverIOForImageClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels (B,H,W,3)` bytes → logits `(B,8)`."""
        return self.perceiver(pixels.movedim(-1, 1) / 127.5 - 1).logits


@dataclass(frozen=True)
class Learned:
    """A model in one order of the pixels: the share of test pictures that it names rightly, its loss and minutes."""

    model: str
    permuted: bool
    accuracy: float
    loss: float
    minutes: float
    parameters: int


@dataclass(frozen=True)
class PermutedPixelsReport(BenchReport):
    """What each model learned of the same pictures. guesser: the share of the most frequent shape of the test."""

    learned: list[Learned]
    guesser: float
    pictures: int
    tested: int
    size: int
    steps: int

    def sections(self) -> list[Section]:
        """A row a model."""
        rows = []
        for model in dict.fromkeys(one.model for one in self.learned):
            pair = {one.permuted: one for one in self.learned if one.model == model}
            accuracies = [f"{100 * pair[permuted].accuracy:.1f}" for permuted in (False, True)]
            minutes = sum(one.minutes for one in pair.values())
            rows.append((model, *accuracies, f"{pair[False].parameters / 1e3:.0f}", f"{minutes:.1f}"))
        rows.append(("the most frequent shape", *[f"{100 * self.guesser:.1f}"] * 2, "–", "–"))
        title = f"shapes named rightly, % of {self.tested} pictures of {self.size} × {self.size} pixels"
        note = f"Trained on {self.pictures} pictures, {self.steps} steps of {BATCH}, the same for all."
        return [Section(title, ("model", "in order", "permuted", "1,000 weights", "minutes"), rows, (note,))]


def measure_permuted_pixels(
    *,
    pictures: int = 8000,
    tested: int = 1000,
    size: int = 16,
    steps: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> PermutedPixelsReport:
    """Train each model on pictures in order, and on the same with permuted pixels, from the same seed."""
    with ProgressBars(progress) as stages:
        training, test = draw_pictures(pictures, size, seed), draw_pictures(tested, size, seed, _TEST)
        order = torch.from_numpy(np.random.default_rng([seed, _ORDER]).permutation(size * size))
        places = grid_positions([size, size])
        features = fourier_features([size, size], BANDS, raw=True)
        models: dict[str, Callable[[Tensor | None], nn.Module]] = {
            # As in the paper a pixel keeps its position, and loses its neighbours
            "Perceiver": lambda order: _PixelPerceiver(size, places if order is None else places[order]),
            "Perceiver, new positions": lambda order: _PixelPerceiver(size, places),
            "Perceiver IO, new positions": lambda order: _PixelPerceiverIO(size),
            "convolutions, with positions": lambda order: ConvolutionalNet(
                size, features if order is None else features[order]
            ),
            "convolutions": lambda order: ConvolutionalNet(size, None),
        }
        learned: list[Learned] = []
        for name, build in models.items():
            for permutation in (None, order):
                if permutation is None and name == "Perceiver, new positions":  # in order they are where they were
                    learned.append(replace(learned[0], model=name, minutes=0.0))
                    continue
                advance = stages.stage(f"{name}{'' if permutation is None else ', permuted'}", steps)
                torch.manual_seed(seed)
                model = build(permutation)
                own = training.in_order(permutation), test.in_order(permutation)
                learned.append(_learn(name, permutation is not None, model, *own, steps, seed, advance))
    guesser = test.labels.bincount().max().item() / tested
    return PermutedPixelsReport(learned, guesser, pictures, tested, size, steps, runs=1, seed=seed)


def _learn(
    name: str, permuted: bool, model: nn.Module, training: Pictures, test: Pictures, steps: int, seed: int, advance: Any
) -> Learned:
    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        some = torch.randint(len(training.labels), (BATCH,), generator=draw)
        return F.cross_entropy(model(training.pixels[some]), training.labels[some])

    trained = train(model, loss_of, steps, learning_rate=2e-3, weight_decay=0.05, advance=advance)
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(-1) for part in test.pixels.split(BATCH)])
    accuracy = (found == test.labels).float().mean().item()
    parameters = sum(weight.numel() for weight in model.parameters())
    return Learned(name, permuted, accuracy, trained.loss, trained.minutes, parameters)
