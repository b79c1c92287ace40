"""What switches are tried on: the small recipes of the generated world, and real data over pretrained encoders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from perceiver_vl.bench.components.switches import QUESTIONS, REAL_QUESTIONS, REAL_RETRIEVAL, RETRIEVAL, Switch
from perceiver_vl.bench.learning.over_encoders import FRAMES, OverEncoders
from perceiver_vl.bench.learning.parts import Column, Row
from perceiver_vl.bench.learning.real import CLIPS
from perceiver_vl.bench.learning.runs import Run, Test
from perceiver_vl.training.recipe import DataSource, Recipe, WorldSplit, read_recipe
from perceiver_vl.utils.files import write_text

TESTED = 512
"""Clips, and questions, that models are tested with, and others by which the best are chosen."""
_STREAMS = ("multi", "mixed", "cascade")
_SHARED = ("training.report_to=none", "training.logging_steps=50")
_LAST = ("training.eval_strategy=no", "training.load_best_model_at_end=false", "training.save_steps=250")
_PLAIN = (
    *("model.patch_stem=linear", "model.patch_norm=false", "model.sincos_positions=null", "model.temporal_kernel=0"),
    *("model.frame_class_token=true", "model.qk_norm=false", "model.modality_aggregation=joint", "optimizer=adamw"),
)
"""The small recipes without what they have beyond the paper, which are switches here."""
_PLAIN_RETRIEVAL = (
    *("data.num_frames=8", "objectives.vtm=0.1", "objectives.joint_share=0.125", "training.max_steps=1300"),
)
_PLAIN_QUESTIONS = (
    *("data.num_frames=2", "training.max_steps=2000", "data.train.world.clips=8000"),
    *("data.train.world.questions_per_clip=1", "data.train.world.fewest_things=null"),
)
_QUICK = (
    *("model.hidden_size=16", "model.num_attention_heads=2", "model.num_blocks=2", "model.num_latents=4"),
    *("model.patch_size=32", "data.num_frames=2", "training.per_device_train_batch_size=4"),
)


@dataclass(frozen=True)
class Trial:
    """Something to learn. recipe: of the baseline; start: whose model it starts from; splits: where the figures
    are from, and where the best are chosen; score: what is compared; beside: other figures; frames: that the baseline
    is trained with, too, so as to see what operations are worth without a switch.
    """

    name: str
    title: str
    recipe: Recipe
    splits: tuple[DataSource, DataSource]
    score: Column
    beside: tuple[Column, ...] = ()
    streams: tuple[str, ...] = ("multi",)
    captions_per_clip: int | None = 1
    frames: tuple[int, ...] = ()
    start: Run | None = None

    def with_frames(self, number: int) -> Switch:
        """The baseline at another number of frames, as a switch."""
        sizes = [f"data.num_frames={number}"]
        if number > self.recipe.model.get("max_frames", number):
            sizes.append(f"model.max_frames={number}")
        return Switch(f"baseline, {number} frames", "", "", tuple(sizes), (self.name,), is_baseline=True)

    def changed(self, switch: Switch | None) -> Recipe:
        """The recipe with a switch on, at the baseline's steps."""
        return self.recipe if switch is None else _read(self.recipe, switch.overrides)

    def row(self, switch: Switch | None, steps: int, seeds: Sequence[int]) -> Row:
        """The runs of a switch (None: the baseline), and what they are tested by."""
        name = "baseline" if switch is None else switch.name
        recipe = lasting(self.changed(switch), steps)
        runs = []
        for seed in seeds:
            seeded = replace(recipe, training=recipe.training | {"seed": seed})
            runs.append(Run(f"{self.name}, {name}, seed {seed}", seeded, start=self.start))
        tests = tuple(
            Test(kind, source, recipe.data.num_frames, streams=self.streams, captions_per_clip=self.captions_per_clip)
            for kind, source in zip(("test", "validation"), self.splits, strict=True)
        )
        return Row(name, tuple(runs), tests)


def world_trials(steps: int | None = None, quick: bool = False, recipes: bool = False) -> list[Trial]:
    """Retrieval and questions of the generated world; steps: of the baseline (None: as in the recipes); recipes: the
    baseline is each recipe as it is, not the paper's model.
    """
    clips = 16 if quick else TESTED
    small = (*_QUICK, "data.train.world.clips=32") if quick else ()

    def recipe(name: str, plain: tuple[str, ...], *few: str) -> Recipe:
        found = read_recipe(name, [*_SHARED, *_LAST, *(() if recipes else (*_PLAIN, *plain)), *small, *few])
        found = replace(found, output=Path(), data=replace(found.data, validation=None))
        return found if steps is None else lasting(found, steps)

    def held_out(task: str) -> tuple[DataSource, DataSource]:
        world = WorldSplit(clips=clips, task=task)
        return DataSource(split="test", world=world), DataSource(split="validation", world=world)

    few = ["model.num_text_latents=2"] if quick else []
    retrieval, questions = recipe("world", _PLAIN_RETRIEVAL, *few), recipe("world_questions", _PLAIN_QUESTIONS)
    figures = {"multi R@1": ("multi", "r1"), "mixed R@1": ("mixed", "r1"), "multi R@10": ("multi", "r10")}
    return [
        Trial(
            RETRIEVAL,
            f"retrieval of {clips} clips of the world",
            retrieval,
            held_out("captions"),
            score=Column("cascade R@1", ("cascade", "r1"), test="test"),
            beside=tuple(Column(title, path, test="test") for title, path in figures.items()),
            streams=_STREAMS,
            frames=() if quick else (2, 8) if recipes else (2, 4, 12),
        ),
        Trial(
            QUESTIONS,
            f"{clips} questions about a thing in a clip of the world",
            questions,
            held_out("frame"),
            score=Column("accuracy", ("accuracy",), test="test"),
            frames=() if quick else (2,) if recipes else (1, 4),
        ),
    ]


def encoder_trials(over: OverEncoders, steps: int | None = None) -> list[Trial]:
    """MSR-VTT key frames over pretrained encoders: retrieval by what latents learn without a base, and questions."""
    alone, asked = over.alone_run(CLIPS), over.question_run(CLIPS)
    splits = over.split(CLIPS, "test"), over.split(CLIPS, "validation")
    recipes = [one.recipe if steps is None else lasting(one.recipe, steps) for one in (alone, asked)]
    frames = (1, FRAMES // 2)
    figures = {"R@1": ("multi", "r1"), "R@5": ("multi", "r5")}
    return [
        Trial(
            REAL_RETRIEVAL,
            "retrieval of MSR-VTT key frames over pretrained encoders, without a base",
            recipes[0],
            splits,
            score=Column("R@10", ("multi", "r10"), test="test"),
            beside=tuple(Column(title, path, test="test") for title, path in figures.items()),
            captions_per_clip=None,
            frames=frames,
        ),
        Trial(
            REAL_QUESTIONS,
            "MSRVTT-QA over pretrained encoders",
            recipes[1],
            splits,
            score=Column("accuracy", ("accuracy",), test="test"),
            frames=frames,
            start=asked.start,
        ),
    ]


def steps_of(recipe: Recipe) -> int:
    """How long it trains."""
    return sum(stage.steps for stage in recipe.stages) or int(recipe.training["max_steps"])


def lasting(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps; its stages, its warm-up and how often it is validated keep their shares."""
    share = steps / steps_of(recipe)

    def part(number: int) -> int:
        return max(1, round(share * number))

    training: dict[str, Any] = dict(recipe.training)
    for name in ("eval_steps", "save_steps", "warmup_steps"):
        if name in training:
            training[name] = min(part(training[name]), steps)
    stages = tuple(
        replace(one, steps=part(one.steps), warmup_steps=one.warmup_steps and part(one.warmup_steps))
        for one in recipe.stages
    )
    if not stages:
        training["max_steps"] = steps
    return replace(recipe, training=training, stages=stages)


def _read(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """As the recipe's file would be read with these behind it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        write_text(path, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        return read_recipe(path, overrides)
