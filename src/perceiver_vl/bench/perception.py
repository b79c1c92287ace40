"""How soon latents read: the smallest tasks of seeing, learned by small models that differ in one thing, with curves.

One thing in a clip: which of twelve motions, nine places, eight shapes. Then several, of which one is asked about: what
is to be learned beside is which belongs to which (binding).

A maximum over the tokens, each of which meets the question, is the reader that the latents are held against.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.actions import ACTIONS
from perceiver_vl.data.synthetic.grid import (
    CELLS,
    SEEN,
    GridScene,
    draw_cells,
    draw_grid_scene,
    draw_objects,
    pick,
    pick_some,
    repeated,
    settled,
)
from perceiver_vl.data.synthetic.render import frame_times
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.question_answering import PerceiverVLForQuestionAnswering
from perceiver_vl.training.muon import muon_with_adamw
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

SIZE, PATCH, FRAMES = 32, 8, 8
BATCH = 64
EVERY = 50
"""Steps between two points of a curve."""
LEARNED = 99.0
_SEEING: dict[str, Any] = {"patch_stem": "convolutional", "patch_norm": True, "sincos_positions": 0.5}
_MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_blocks": 3,
    "self_attentions_per_block": 1,
    "num_latents": 16,
    "num_text_latents": 8,
    "image_size": SIZE,
    "patch_size": PATCH,
    "max_frames": FRAMES,
    "frame_class_token": False,
    "layer_drop": 0.0,
    "initializer_range": 0.17,
    "latent_initializer_range": 0.1,
    "vocab_size": len(COLOURS) + 1,
    "mask_token_id": len(COLOURS),
    "max_text_length": 1,
}
Answers: TypeAlias = Literal["motion", "place", "shape"]


@dataclass(frozen=True)
class SmallTask:
    """What a thing does, where it is or what shape it has, `things` being there, each of a colour of its own, of which
    the question names that of the one that it is about. guess: who knows all but which, in per cent.
    """

    asked: Answers
    things: int

    @property
    def labels(self) -> int:
        """How many answers there are."""
        return {"motion": len(ACTIONS), "place": len(CELLS), "shape": len(SHAPES)}[self.asked]

    @property
    def guess(self) -> float:
        """All things differ in what is asked."""
        return 100 / self.things if self.things > 1 else 100 / self.labels

    def draw(self, rng: np.random.Generator) -> tuple[GridScene, int, int]:
        """A scene, the question's colour, the answer."""
        colours, shapes = (pick_some(rng, all_of, self.things) for all_of in (tuple(COLOURS), SHAPES))
        pairs = list(zip(colours, shapes, strict=True))
        if not set(pairs) <= set(SEEN):
            return self.draw(rng)
        objects = draw_objects(rng, draw_cells(rng, self.things), pairs, acting=self.asked == "motion")
        first, label = objects[0], 0
        if self.asked == "motion":
            acts = pick_some(rng, tuple(ACTIONS), self.things)
            times = [int(pick(rng, (1, 2, 3))) if ACTIONS[act].returns else 1 for act in acts]
            doing = [repeated(rng, act, number) for act, number in zip(acts, times, strict=True)]
            objects = [replace(one, actions=does) for one, does in zip(objects, doing, strict=True)]
            label = tuple(ACTIONS).index(acts[0])
        elif self.asked == "place":
            label = CELLS.index(first.cell)
        else:
            label = SHAPES.index(first.shape)
        scene = settled(draw_grid_scene(rng, pick_some(rng, objects, self.things)))
        return scene, tuple(COLOURS).index(first.colour), label

    def batch(self, rng: np.random.Generator, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Questions `(B,1)` int64, pixels `(B,T,3,H,W)` in [-1, 1], answers `(B,)` int64."""
        drawn = [self.draw(rng) for _ in range(number)]
        times = frame_times(FRAMES if self.asked == "motion" else 1)
        frames = np.stack([scene.render(times, SIZE) for scene, _, _ in drawn])
        pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        return torch.tensor([[colour] for _, colour, _ in drawn]), pixels, torch.tensor([label for *_, label in drawn])


TASKS: dict[str, SmallTask] = {
    "motion": SmallTask("motion", 1),
    "place": SmallTask("place", 1),
    "shape": SmallTask("shape", 1),
    "place-of-3": SmallTask("place", 3),
    "shape-of-3": SmallTask("shape", 3),
    "motion-of-2": SmallTask("motion", 2),
    "motion-of-3": SmallTask("motion", 3),
}


@dataclass(frozen=True)
class Variant:
    """What one of the models has: changes of the configuration, an optimizer, and who reads the tokens."""

    changes: Mapping[str, Any]
    optimizer: Literal["adamw", "muon"] = "adamw"
    reader: Literal["latents", "maximum"] = "latents"


VARIANTS: dict[str, Variant] = {
    "as-published": Variant({}),
    "seeing": Variant(_SEEING),
    "qk-norm": Variant({**_SEEING, "qk_norm": True}),
    "muon": Variant(_SEEING, "muon"),
    "qk-norm-muon": Variant({**_SEEING, "qk_norm": True}, "muon"),
    "separate": Variant({**_SEEING, "qk_norm": True, "modality_aggregation": "separate"}, "muon"),
    "text-first": Variant({**_SEEING, "qk_norm": True, "modality_aggregation": "text_first"}, "muon"),
    "soft-split": Variant({**_SEEING, "patch_stem": "soft_split", "qk_norm": True}, "muon"),
    "two-patch-sizes": Variant({**_SEEING, "qk_norm": True, "coarse_patch_size": 16}, "muon"),
    "tubelets": Variant({**_SEEING, "qk_norm": True, "tubelet_size": 2}, "muon"),
    "untied": Variant({**_SEEING, "qk_norm": True, "untied_modalities": True}, "muon"),
    "layer-scale": Variant({**_SEEING, "qk_norm": True, "layer_scale": 0.1}, "muon"),
    "maximum": Variant(_SEEING, reader="maximum"),
}
"""All but the first have tokens that see; of motions, neighbouring frames are mixed, too."""


class MaximumReader(nn.Module):
    """Each token meets the question (FiLM: Perez et al. 2018) and is thought about alone; then the maximum of all."""

    def __init__(self, model: PerceiverVLForQuestionAnswering) -> None:
        super().__init__()
        width = model.config.hidden_size
        self.embeddings = model.perceiver_vl.embeddings
        self.film = nn.Linear(width, 2 * width)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.answer = nn.Linear(width, model.config.num_labels)

    def forward(self, questions: Tensor, pixels: Tensor) -> Tensor:
        """→ logits `(B,labels)`."""
        tokens, _ = self.embeddings.embed_vision(pixels)
        words, _ = self.embeddings.embed_text(questions)
        scale, shift = self.film(words).chunk(2, dim=-1)
        logits: Tensor = self.answer((tokens + self.think(tokens * (1 + scale) + shift)).amax(1))
        return logits


@dataclass(frozen=True)
class Curve:
    """A training: accuracy in per cent on other scenes after so many steps, and so many seconds of processor time of
    the steps alone, without drawing and testing.
    """

    task: str
    variant: str
    guess: float
    steps: list[int]
    seconds: list[float]
    accuracy: list[float]

    def first(self, threshold: float) -> tuple[int, float] | None:
        """Steps and seconds to a threshold, where that was reached."""
        points = zip(self.steps, self.seconds, self.accuracy, strict=True)
        return next(((step, seconds) for step, seconds, score in points if score >= threshold), None)


@dataclass(frozen=True)
class PerceptionReport(BenchReport):
    """The curves, and how many processor seconds each had."""

    curves: list[Curve]
    most_seconds: float
    decay: bool = False

    def sections(self) -> list[Section]:
        """A table of all trainings, and one of their curves."""
        rows = []
        for one in self.curves:
            found, half = one.first(LEARNED), one.first(50.0)
            rows.append(
                (
                    f"{one.task}, {one.variant}",
                    f"{one.guess:.0f}",
                    f"{one.accuracy[-1]:.1f}",
                    str(one.steps[-1]),
                    f"{one.seconds[-1]:.0f}",
                    "–" if half is None else str(half[0]),
                    "–" if found is None else f"{found[0]} ({found[1]:.0f} s)",
                )
            )
        columns = ("task, model", "guess", "accuracy", "steps", "CPU s", "steps to 50 %", f"to {LEARNED:g} %")
        note = (
            f"At most {self.most_seconds:g} processor seconds of steps each, seed {self.seed}; fresh scenes throughout."
            + (" The learning rate falls to 0 over the steps." if self.decay else "")
        )
        curves = [
            (
                f"{one.task}, {one.variant}",
                " ".join(f"{step}:{score:.0f}" for step, score in zip(one.steps, one.accuracy, strict=True)),
            )
            for one in self.curves
        ]
        return [
            Section("the smallest tasks of seeing", columns, rows, (note,)),
            Section("accuracy over steps", ("task, model", "step:accuracy"), curves),
        ]


def measure_perception(
    *,
    tasks: Sequence[str] = ("motion", "place", "shape"),
    variants: Sequence[str] = ("seeing", "qk-norm", "muon", "qk-norm-muon", "maximum"),
    seconds: float = 180.0,
    most_steps: int = 5000,
    learning_rate: float = 2e-3,
    decay: bool = False,
    tested: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> PerceptionReport:
    """Train each of `variants` (of `VARIANTS`) on each of `tasks` (of `TASKS`), until it has learned it or its
    processor `seconds` or `most_steps` are over; accuracy is that on `tested` other scenes. `decay`: the learning rate
    falls to 0 in a straight line over `most_steps`.

    Raises `UsageError` for an unknown name.
    """
    for what, names, known in (("tasks", tasks, list(TASKS)), ("variants", variants, list(VARIANTS))):
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"{what}={unknown[0]}: unknown, choose from {', '.join(known)}")
        if not names:
            raise UsageError(f"{what}: none named, choose from {', '.join(known)}")
    curves = []
    with ProgressBars(progress) as bars:
        advance = bars.stage("Learning to see", len(tasks) * len(variants))
        for task in tasks:
            for variant in variants:
                curves.append(learn(task, variant, seconds, most_steps, learning_rate, decay, tested, seed))
                advance(note=f"{task}, {variant}")
    return PerceptionReport(curves, seconds, decay, runs=1, seed=seed)


def learn(
    task: str,
    variant: str,
    seconds: float,
    most_steps: int,
    learning_rate: float,
    decay: bool,
    tested: int,
    seed: int,
) -> Curve:
    """One training, and its curve."""
    small, made_of = TASKS[task], VARIANTS[variant]
    torch.manual_seed(seed)
    mixing = {"temporal_kernel": 7} if small.asked == "motion" and made_of.changes else {}
    config = PerceiverVLConfig(**_MODEL, **mixing, **made_of.changes, num_labels=small.labels)
    model: nn.Module = PerceiverVLForQuestionAnswering(config)
    answer: Callable[[Tensor, Tensor], Tensor]
    if made_of.reader == "maximum":
        model = MaximumReader(model)  # type: ignore[arg-type]
        answer = model
    else:
        answer = lambda questions, pixels: model(questions, pixel_values=pixels).logits  # noqa: E731
    optimizer = make_optimizer(model, made_of.optimizer, learning_rate)
    rng = np.random.default_rng([seed, 1])
    held_out = np.random.default_rng([seed, 2])
    tests = [small.batch(held_out, min(100, tested - start)) for start in range(0, tested, 100)]
    curve = Curve(task, variant, small.guess, [], [], [])
    used = 0.0
    for step in range(1, most_steps + 1):
        questions, pixels, labels = small.batch(rng, BATCH)
        start = time.process_time()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 30) * (1 - (step - 1) / most_steps if decay else 1)
        F.cross_entropy(answer(questions, pixels), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used += time.process_time() - start
        over = used >= seconds or step == most_steps
        if step % EVERY == 0 or over:
            curve.steps.append(step)
            curve.seconds.append(round(used, 1))
            curve.accuracy.append(accuracy(model, answer, tests))
            if over or curve.accuracy[-1] >= 99.5:
                break
    return curve


@torch.no_grad()
def accuracy(
    model: nn.Module, answer: Callable[[Tensor, Tensor], Tensor], tests: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> float:
    """In per cent."""
    model.eval()
    right = [answer(questions, pixels).argmax(-1) == labels for questions, pixels, labels in tests]
    model.train()
    return 100 * torch.cat(right).float().mean().item()


def make_optimizer(model: nn.Module, name: str, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW, or Muon of the matrices within the network and AdamW of the rest."""
    given: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}
    return muon_with_adamw(model, **given) if name == "muon" else torch.optim.AdamW(model.parameters(), **given)
