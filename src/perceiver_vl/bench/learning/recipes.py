"""What is trained on the generated world: the small recipes that come with the package, and these with one thing
changed; and what trainings on real data share.

Each training example is met once or a few times, so that what differs is how fast a model learns, not how much it
remembers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from perceiver_vl.bench.learning.runs import OURS, Architecture, Run, Test
from perceiver_vl.training.recipe import DataSource, Recipe, WorldSplit, read_recipe

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
"""Of every model on real data, which has seen nothing before."""
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
"""Of every run on real data."""
UNVALIDATED = (
    *("training.eval_strategy=no", "training.load_best_model_at_end=false", "training.save_steps=250"),
    *("training.report_to=none", "training.logging_steps=50", "evaluation.batch_size=50"),
)
"""Of a recipe whose last model is tested, none being chosen."""
OPEN_TASKS = ("frame", "image", "yesno", "action", "transition")
SHORT = ("data.num_frames=2", "training.max_steps=600")
"""Of retrieval where one thing is changed at a time: half the frames cost half, and are learned from sooner."""
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


FULL, QUICK = Scale(), Scale(0.002, (0,))


def small_recipe(scale: Scale, name: str, overrides: Sequence[str] = (), seed: int = 0) -> Recipe:
    """One of the recipes that come with the package, with `overrides` as on the command line, and not validated."""
    found = _of_package(name, (*UNVALIDATED, *overrides))
    train = tuple(
        split
        if split.world is None
        else replace(split, world=replace(split.world, clips=scale.clips(split.world.clips)))
        for split in found.data.train
    )
    return replace(
        found,
        output=Path(),
        data=replace(found.data, train=train, validation=None),
        training=found.training | {"max_steps": scale.steps(found.training["max_steps"]), "seed": seed},
    )


_of_package = cache(read_recipe)  # hundreds of runs are of a few dozen recipes


def world_test(
    scale: Scale, task: str, clips: int, *, split: str = "test", frames: int, name: str = "", **options: Any
) -> Test:
    """A test on `clips` clips of the world that no training has seen; options: more of `Test`."""
    world = WorldSplit(clips=scale.clips(clips), task=task)
    return Test(name or task, DataSource(split=split, world=world), frames, **options)


def retrieval_run(scale: Scale, *overrides: str, architecture: Architecture = OURS, seed: int = 0) -> Run:
    """Retrieval of captioned clips, by `recipes/world.yaml`."""
    recipe = small_recipe(scale, "world", overrides, seed)
    return Run(_name("retrieval", architecture, overrides, seed), recipe, architecture)


def frame_run(scale: Scale, *overrides: str, architecture: Architecture = OURS) -> Run:
    """What a frame shows, by `recipes/world_questions.yaml`, from the model that retrieves."""
    recipe, start = small_recipe(scale, "world_questions", overrides), retrieval_run(scale, architecture=architecture)
    return Run(_name("questions about a frame", architecture, overrides), recipe, architecture, start)


def action_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """What things do, yes or no, before and after, by `recipes/world_actions.yaml`, from the model that answers of
    frames.
    """
    recipe = small_recipe(scale, "world_actions")
    return Run(_name("actions", architecture), recipe, architecture, frame_run(scale, architecture=architecture))


def count_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """How many times, how many: a number, from the model that knows what things do."""
    counted = "data.train={world: {task: count, clips: 40000, fewest_things: 1}}"
    recipe = small_recipe(scale, "world_actions", ["task=counting", counted, "training.max_steps=1500"])
    return Run(_name("counting", architecture), recipe, architecture, action_run(scale, architecture))


def pair_run(scale: Scale, architecture: Architecture = OURS) -> Run:
    """Statements about two pictures, by `recipes/world_pairs.yaml`, from the model that knows how many there are."""
    recipe = small_recipe(scale, "world_pairs")
    return Run(_name("pairs", architecture), recipe, architecture, action_run(scale, architecture))


def long_run(scale: Scale, frames: int, start: Run | None) -> Run:
    """Questions about an event of a minute, which 32 frames always show; start: a model of fewer frames."""
    overrides = [
        "data.train={world: {task: long, clips: 4000}}",
        *(f"data.num_frames={frames}", "model.max_frames=64", "training.per_device_train_batch_size=16"),
        f"training.max_steps={1000 if frames < 50 else 300}",
    ]
    return Run(f"long clips, {frames} frames", small_recipe(scale, "world_actions", overrides), start=start)


def _name(what: str, architecture: Architecture, overrides: Sequence[str] = (), seed: int = 0) -> str:
    return ", ".join([what, architecture, *overrides, *([f"seed {seed}"] if seed else [])])
