"""What is trained on the generated world, and what all trainings of this folder share.

Sizes are such that a run takes minutes on two cores: 64 wide, 3 blocks, 16 latents, frames of 64 × 64 pixels in 16
patches. Each training example is met a few times at most, so that what differs is how fast a model learns, not how
much it remembers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceiver_vl.bench.learning.runs import OURS, Architecture, Run, Test
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.training.recipe import Data, DataSource, Evaluation, Recipe, WorldSplit

MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_blocks": 3,
    "self_attentions_per_block": 1,
    "num_latents": 16,
    "num_text_latents": 8,
    "image_size": 64,
    "patch_size": 16,
    "max_frames": 8,
    "layer_drop": 0.1,
    # As in recipes/world.yaml: the published sizes suit width 768
    "initializer_range": 0.17,
    "latent_initializer_range": 0.1,
}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "save_strategy": "steps",
    "logging_steps": 50,
    "report_to": "none",
}
"""Of every run; those on the world and on real data have more."""
_WORLD_TRAINING = {"weight_decay": 0.05, "eval_strategy": "no", "save_steps": 250}
OBJECTIVES = Objectives({"vtc": 1, "ttc": 0.3, "mixed_vtc": 0.7, "vtm": 0.1, "mlm": 0}, joint_share=0.125)
FRAMES, MANY_FRAMES = 4, 8
OPEN_TASKS = ("frame", "yesno", "image")
CHOICE_TASKS = ("action", "transition")
_SMALL_PATCHES = {"patch_size": 8}
_MIN_CLIPS = 64  # a batch


@dataclass(frozen=True)
class Scale:
    """How much is done: steps of training and clips are those below times `factor`."""

    factor: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def steps(self, full: int) -> int:
        """Of a run that has `full` steps at full scale."""
        return max(2, round(full * self.factor))

    def clips(self, full: int) -> int:
        """Of a split that has `full` clips at full scale."""
        return max(min(full, _MIN_CLIPS), round(full * self.factor))


FULL, QUICK = Scale(), Scale(0.005, (0,))


def world_recipe(
    scale: Scale,
    steps: int,
    tasks: tuple[str, ...] = ("captions",),
    task: str | None = None,
    *,
    clips: int = 20_000,
    frames: int = FRAMES,
    learning_rate: float = 1e-3,
    seed: int = 0,
    model: dict[str, Any] | None = None,
    objectives: Objectives = OBJECTIVES,
    **training: Any,
) -> Recipe:
    """A recipe on clips of the world, `clips` of each of `tasks`."""
    train = tuple(DataSource(world=WorldSplit(clips=scale.clips(clips), seed=seed, task=one)) for one in tasks)
    given = {"max_steps": scale.steps(steps), "learning_rate": learning_rate, "seed": seed, **training}
    return Recipe(
        output=Path(),
        data=Data(train=train, num_frames=frames, sampling="uniform", cache=True),
        model=MODEL | (model or {}),
        objectives=objectives if task is None else Objectives(),
        evaluation=Evaluation(batch_size=50),
        training=TRAINING | _WORLD_TRAINING | given,
        task=task,
    )


def world_test(
    scale: Scale, task: str, clips: int, *, split: str = "test", frames: int = FRAMES, name: str = "", **options: Any
) -> Test:
    """A test on `clips` clips of the world that no training has seen; options: more of `Test`."""
    world = WorldSplit(clips=scale.clips(clips), task=task)
    return Test(name or task, DataSource(split=split, world=world), frames, **options)


def retrieval_run(scale: Scale, architecture: Architecture = OURS, *, steps: int = 600, **changes: Any) -> Run:
    """Retrieval of captioned clips; changes: of `world_recipe`."""
    recipe = world_recipe(scale, steps, clips=8000, learning_rate=2.5e-3, **changes)
    return Run(_name("retrieval", architecture, changes), recipe, architecture)


def open_run(scale: Scale, architecture: Architecture = OURS, **model: Any) -> Run:
    """Open questions of three kinds at once; model: changes of its configuration."""
    recipe = world_recipe(scale, 2500, OPEN_TASKS, "question-answering", frames=2, model=_SMALL_PATCHES | model)
    return Run(_name("open questions", architecture, model), recipe, architecture)


def count_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """How many times, how many."""
    recipe = world_recipe(scale, 1500, ("count",), "counting", frames=MANY_FRAMES)
    return Run(_name("counting", architecture), recipe, architecture)


def choice_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """One of five doings, from the model that retrieves: choosing is matching."""
    batch: dict[str, Any] = {"per_device_train_batch_size": 32}
    recipe = world_recipe(scale, 300, CHOICE_TASKS, "multiple-choice", frames=MANY_FRAMES, **batch)
    return Run(_name("choices", architecture), recipe, architecture, start=retrieval_run(scale, architecture))


def pair_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """Statements about two pictures, from the model that answers open questions."""
    recipe = world_recipe(scale, 600, ("pairs",), "nlvr2", frames=1, model=_SMALL_PATCHES)
    return Run(_name("pairs", architecture), recipe, architecture, start=open_run(scale, architecture))


def long_run(scale: Scale, frames: int, start: Run | None) -> Run:
    """Questions about an event of a minute, which 32 frames always show."""
    steps, model = 1000 if frames < 50 else 300, {"max_frames": 64}
    batch: dict[str, Any] = {"per_device_train_batch_size": 32}
    recipe = world_recipe(
        scale, steps, ("long",), "question-answering", clips=4000, frames=frames, model=model, **batch
    )
    return Run(f"long clips, {frames} frames", recipe, start=start)


def _name(what: str, architecture: Architecture, changes: dict[str, Any] | None = None) -> str:
    return ", ".join([what, architecture, *(f"{name}={value}" for name, value in (changes or {}).items())])
