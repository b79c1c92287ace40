"""What a Dynamic Perceiver is for (Han et al. 2023): easy pictures leave early, hard ones go on, and the mean cost is
what was asked for.

Pictures are of one thing of the generated world each, large or small, anywhere, in more or less noise; what is asked is
its shape. Beside it stands the same network of convolutions with exits on its own features.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_vl.bench.siblings.permuted_pixels import Pictures
from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.render import paint
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SceneObject, draw_background
from perceiver_vl.models.dynamic_perceiver import (
    DynamicPerceiverConfig,
    DynamicPerceiverForImageClassification,
    self_distillation_loss,
)
from perceiver_vl.models.dynamic_perceiver.flops import exit_flops, feature_flops
from perceiver_vl.models.early_exit import ExitsInTurn, exits_taken, leave_when_sure, solve_budget
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.timing import timed

BATCH = 32
_TRAIN, _HELD_OUT, _TEST = range(3)  # streams of chance
_TIMED = 20  # pictures, one at a time


def draw_pictures(count: int, size: int, seed: int, stream: int = _TRAIN) -> Pictures:
    """Easy ones and hard ones; the same for the same arguments."""
    pixels, labels = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, stream, number])
        shape = int(rng.integers(len(SHAPES)))
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        radius = rng.uniform(0.18, 0.4)
        x, y = rng.uniform(radius, 1 - radius, size=2).tolist()
        thing = SceneObject("large", colour, SHAPES[shape], "still", x, y, radius, 0.0, 0.0, 1)
        painted = paint(draw_background(rng), [thing], [int(rng.integers(2**31))], np.zeros(1), size)[0]
        noise = rng.normal(0, 255 * rng.uniform(0, 0.15), painted.shape)
        pixels.append(torch.from_numpy((painted + noise).clip(0, 255).astype(np.uint8)))
        labels.append(shape)
    return Pictures(torch.stack(pixels), torch.tensor(labels))


class ExitsOfFeatures(nn.Module):
    """The baseline: the feature branch alone, a linear exit after each of its last three stages."""

    def __init__(self, config: DynamicPerceiverConfig) -> None:
        super().__init__()
        own = DynamicPerceiverForImageClassification(config)
        self.stem, self.stages = own.stem, own.stages
        self.classifiers = nn.ModuleList(nn.Linear(width, config.num_labels) for width in config.widths[1:])

    def exits_in_turn(self, pixel_values: Tensor) -> ExitsInTurn:
        """As of `DynamicPerceiverForImageClassification`."""
        x = self.stem(pixel_values).relu()
        for stage, convolutions in enumerate(self.stages):
            x = convolutions(x)
            if stage:
                places = yield self.classifiers[stage - 1](x.mean((2, 3)))
                x = x if places is None else x[places]


class _Leaving(Protocol):
    def exits_in_turn(self, pixel_values: Tensor) -> ExitsInTurn: ...


@dataclass(frozen=True)
class Leaving:
    """A model at a mean cost, in millions of operations (a multiply-add is two): the share of test pictures that it
    names rightly. budget: what was asked for, thresholds being solved on held-out pictures; None: all leave at one
    exit. milliseconds: of a picture alone (mean).
    """

    model: str
    budget: float | None
    mflops: float
    accuracy: float
    milliseconds: float


@dataclass(frozen=True)
class EarlyExitsReport(BenchReport):
    """Each model at each exit, then at each budget. minutes, parameters: by the model's name."""

    leaving: list[Leaving]
    minutes: dict[str, float]
    parameters: dict[str, int]
    guesser: float
    pictures: int
    tested: int
    size: int
    steps: int

    def sections(self) -> list[Section]:
        """Exits for all, and budgets."""
        found = []
        for title, budgets in (("all leave at one exit", False), ("each leaves where it is sure", True)):
            rows = [
                (
                    one.model,
                    *([] if one.budget is None else [f"{one.budget:.2f}"]),
                    f"{one.mflops:.2f}",
                    f"{100 * one.accuracy:.1f}",
                    f"{one.milliseconds:.1f}",
                )
                for one in self.leaving
                if (one.budget is not None) == budgets
            ]
            columns = ("model", *(["budget"] if budgets else []), "MFLOPs", "right, %", "ms")
            found.append(Section(f"{title}, % of {self.tested} pictures named rightly", columns, rows))
        sizes = ", ".join(f"{name} {count / 1e3:.0f} k" for name, count in self.parameters.items())
        minutes = ", ".join(f"{name} {value:.1f}" for name, value in self.minutes.items())
        notes = (
            f"Pictures of {self.size} × {self.size} pixels; the most frequent shape is {100 * self.guesser:.1f} %.",
            f"Trained on {self.pictures} pictures, {self.steps} steps of {BATCH}, the same for both. Weights: {sizes}. "
            f"Minutes: {minutes}.",
            "Thresholds are solved on as many other pictures as are tested. ms: of a picture alone, mean.",
        )
        return [found[0], Section(found[1].title, found[1].columns, found[1].rows, notes)]


def measure_early_exits(
    *,
    pictures: int = 4000,
    tested: int = 1000,
    size: int = 32,
    steps: int = 600,
    seed: int = 0,
    progress: bool = False,
) -> EarlyExitsReport:
    """Train both on the same pictures, and let those of the test leave at one exit, or where they are sure enough."""
    with ProgressBars(progress) as stages:
        training = draw_pictures(pictures, size, seed)
        held_out, test = draw_pictures(tested, size, seed, _HELD_OUT), draw_pictures(tested, size, seed, _TEST)
        config, wider = _config(), _config(stem_width=24, widths=[32, 64, 128, 256])  # of about the same cost
        models: dict[str, tuple[Callable[[], Any], list[float]]] = {
            "Dynamic Perceiver": (
                lambda: DynamicPerceiverForImageClassification(config),
                [flops / 1e6 for flops in exit_flops(config, size, size)],
            ),
            "exits of features": (
                lambda: ExitsOfFeatures(wider),
                [flops / 1e6 for flops in feature_flops(wider, size, size)],
            ),
        }
        leaving: list[Leaving] = []
        minutes, parameters = {}, {}
        for name, (build, costs) in models.items():
            torch.manual_seed(seed)
            model = build()
            minutes[name] = _learn(model, training, steps, seed, stages.stage(name, steps))
            parameters[name] = sum(weight.numel() for weight in model.parameters())
            leaving += _leave(name, model, costs, held_out, test)
    leaving.sort(key=lambda one: one.budget is not None)
    guesser = test.labels.bincount().max().item() / tested
    return EarlyExitsReport(
        leaving, minutes, parameters, guesser, pictures, tested, size=size, steps=steps, runs=1, seed=seed
    )


def _config(**changes: Any) -> DynamicPerceiverConfig:
    sizes: dict[str, Any] = {
        "stem_width": 16,
        "depths": [1, 2, 4, 3],
        "widths": [24, 48, 96, 192],
        "group_widths": [8, 8, 8, 8],
        "num_latents": 16,
        "latent_depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 4, 4],
        "intermediate_ratio": 2,
        "pooled_size": 5,
        "num_labels": len(SHAPES),
    }
    return DynamicPerceiverConfig(**(sizes | changes))


def _numbers(pixels: Tensor) -> Tensor:
    """Bytes `(B,H,W,3)` → numbers `(B,3,H,W)`, -1 to 1."""
    return pixels.movedim(-1, 1) / 127.5 - 1


def _learn(model: Any, training: Pictures, steps: int, seed: int, advance: Callable[..., object]) -> float:
    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        some = torch.randint(len(training.labels), (BATCH,), generator=draw)
        exits = tuple(model.exits_in_turn(_numbers(training.pixels[some])))
        if isinstance(model, DynamicPerceiverForImageClassification):
            return self_distillation_loss(exits, training.labels[some])
        return torch.stack([nn.functional.cross_entropy(logits, training.labels[some]) for logits in exits]).sum()

    return train(model, loss_of, steps, learning_rate=2e-3, weight_decay=0.05, advance=advance).minutes


def _leave(name: str, model: _Leaving, costs: list[float], held_out: Pictures, test: Pictures) -> list[Leaving]:
    """At each exit, and at the budgets between and at their costs."""
    sure, right = _answers(model, held_out)
    test_sure, test_right = _answers(model, test)
    whole, found = torch.tensor(costs, dtype=torch.float64), []
    for exit, cost in enumerate(costs):
        thresholds = [-1.0 if number >= exit else 2.0 for number in range(len(costs))]
        took = _milliseconds(model, thresholds, test)
        found.append(Leaving(name, None, cost, test_right[exit].float().mean().item(), took))
    between = [(costs[number] + costs[number + 1]) / 2 for number in range(len(costs) - 1)]
    for budget in sorted([*between, *costs[1:]]):
        policy = solve_budget(budget, sure, costs, right)
        taken = exits_taken(test_sure, torch.tensor(policy.thresholds))
        accuracy = test_right.gather(0, taken[None]).float().mean().item()
        took = _milliseconds(model, policy.thresholds, test)
        found.append(Leaving(name, budget, whole[taken].mean().item(), accuracy, took))
    return found


@torch.inference_mode()
def _answers(model: _Leaving, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """How sure each exit is of each picture, and whether it is right: `(E,P)` each."""
    sure, right = [], []
    for pixels, labels in zip(pictures.pixels.split(BATCH), pictures.labels.split(BATCH), strict=True):
        confidences, classes = torch.stack(list(model.exits_in_turn(_numbers(pixels)))).softmax(-1).max(-1)
        sure.append(confidences)
        right.append(classes == labels)
    return torch.cat(sure, 1), torch.cat(right, 1)


def _milliseconds(model: _Leaving, thresholds: Sequence[float], pictures: Pictures) -> float:
    """Mean of a picture alone, which waits for no other."""
    took = [
        timed(lambda one=one: leave_when_sure(model.exits_in_turn(_numbers(one[None])), thresholds))  # type: ignore[misc]
        for one in pictures.pixels[:_TIMED]
    ]
    return 1e3 * statistics.fmean(took)
