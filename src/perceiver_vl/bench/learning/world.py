"""Evidence on the generated world, in six parts: what is trained, and what it is tested by.

Sizes are such that a run takes minutes on two cores: 64 wide, 3 blocks, 16 latents, frames of 64 × 64 pixels in 16
patches. Each training example is met a few times at most, so that what differs is how fast a model learns, not how
much it remembers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.runs import JOINT, OURS, Architecture, Run, Test
from perceiver_vl.data.synthetic import GENERALISATION
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
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 250,
    "logging_steps": 50,
    "report_to": "none",
}
OBJECTIVES = Objectives({"vtc": 1, "ttc": 0.3, "mixed_vtc": 0.7, "vtm": 0.1, "mlm": 0}, joint_share=0.125)
BOTH: tuple[Architecture, ...] = (OURS, JOINT)
OPEN = ("frame", "yesno", "image")
CHOICES = ("action", "transition")
FRAMES, MANY_FRAMES = 4, 8
_FINE = {"patch_size": 8}
HELD_OUT = 256
_LEAST = 64  # a batch
QUESTIONS = 1000
CHANCE = {"frame": 17, "yesno": 53, "image": 28, "count": 20, "action": 21, "transition": 22, "pairs": 50, "long": 23}
"""The best of three guessers that never see a clip, in per cent (docs/world.md)."""


@dataclass(frozen=True)
class Scale:
    """How much is done: steps of training and clips are those below times `share`."""

    share: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def steps(self, full: int) -> int:
        """Of a run that has `full` steps at full scale."""
        return max(2, round(full * self.share))

    def clips(self, full: int) -> int:
        """Of a split that has `full` clips at full scale."""
        return max(min(full, _LEAST), round(full * self.share))


FULL, QUICK = Scale(), Scale(0.005, (0,))


def world_recipe(
    scale: Scale,
    steps: int,
    tasks: tuple[str, ...] = ("captions",),
    task: str | None = None,
    *,
    clips: int,
    frames: int = FRAMES,
    learning_rate: float = 2e-3,
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
        training=TRAINING | given,
        task=task,
    )


def world_test(
    scale: Scale, task: str, clips: int, *, split: str = "test", frames: int = FRAMES, name: str = "", **how: Any
) -> Test:
    """A test on `clips` clips of the world that no training has seen."""
    world = WorldSplit(clips=scale.clips(clips), task=task)
    return Test(name or task, DataSource(split=split, world=world), frames, **how)


def retrieval_run(scale: Scale, kind: Architecture = OURS, *, steps: int = 600, clips: int = 8000, **how: Any) -> Run:
    """Retrieval of captioned clips."""
    recipe = world_recipe(scale, steps, clips=clips, learning_rate=2.5e-3, **how)
    return Run(f"retrieval, {kind}" + "".join(f", {name}={value}" for name, value in how.items()), recipe, kind)


def open_run(scale: Scale, kind: Architecture = OURS, **model: Any) -> Run:
    """Open questions of three kinds at once."""
    how: dict[str, Any] = {"clips": 20_000, "frames": 2, "learning_rate": 1e-3, "model": _FINE | model}
    recipe = world_recipe(scale, 2500, OPEN, "question-answering", **how)
    return Run(f"open questions, {kind}" + "".join(f", {name}={value}" for name, value in model.items()), recipe, kind)


def count_run(scale: Scale, kind: Architecture) -> Run:
    """How many times, how many."""
    recipe = world_recipe(scale, 1500, ("count",), "counting", clips=20_000, frames=MANY_FRAMES, learning_rate=1e-3)
    return Run(f"counting, {kind}", recipe, kind)


def choice_run(scale: Scale, kind: Architecture) -> Run:
    """One of five doings, from the model that retrieves: choosing is matching."""
    recipe = world_recipe(
        scale,
        300,
        CHOICES,
        "multiple-choice",
        clips=20_000,
        frames=MANY_FRAMES,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
    )
    return Run(f"choices, {kind}", recipe, kind, start=retrieval_run(scale, kind))


def pair_run(scale: Scale, kind: Architecture) -> Run:
    """Statements about two pictures, from the model that answers open questions."""
    how: dict[str, Any] = {"clips": 20_000, "frames": 1, "learning_rate": 1e-3, "model": _FINE}
    recipe = world_recipe(scale, 600, ("pairs",), "nlvr2", **how)
    return Run(f"pairs, {kind}", recipe, kind, start=open_run(scale, kind))


def long_run(scale: Scale, frames: int, start: Run | None) -> Run:
    """Questions about an event of a minute."""
    recipe = world_recipe(
        scale,
        1000 if frames < 100 else 300,
        ("long",),
        "question-answering",
        clips=4000,
        frames=frames,
        learning_rate=1e-3,
        model={"max_frames": 128},
        per_device_train_batch_size=32,
    )
    return Run(f"long clips, {frames} frames", recipe, start=start)


def world_parts(scale: Scale = FULL) -> list[Part]:
    """The six parts, each with its own runs; runs that are equal are made once."""
    return [
        against_joint_transformer(scale),
        layer_drop(scale),
        latents_and_streams(scale),
        ablations(scale),
        long_clips(scale),
        generalisation(scale),
    ]


def compared(scale: Scale = FULL) -> list[tuple[str, Run]]:
    """The runs whose costs are measured, ours and the comparator in turn."""
    makes = {
        "retrieval": retrieval_run,
        "open questions": open_run,
        "counting": count_run,
        "choices": choice_run,
        "pairs": pair_run,
    }
    return [(label, make(scale, kind)) for label, make in makes.items() for kind in BOTH]


def against_joint_transformer(scale: Scale) -> Part:
    """Every task, ours beside the comparator."""
    trained = (Column("steps", of_run="steps", digits=0), Column("minutes of training", of_run="seconds", unit=60.0))
    found = Table(
        f"retrieval of {scale.clips(HELD_OUT)} clips (single: of {scale.clips(64)})",
        tuple(Row(kind, (retrieval_run(scale, kind),), _retrieval_tests(scale)) for kind in BOTH),
        (*_RETRIEVAL_COLUMNS, *trained),
        notes=("Of the joint transformer, too, multi and mixed encode clip and words apart.",),
    )
    asked = Table(
        f"questions and statements, {scale.clips(QUESTIONS)} of each kind",
        tuple(
            Row(f"{task}, {kind}", (run,), (_task_test(scale, task, run, QUESTIONS),))
            for tasks, make in _TASKS
            for task in tasks
            for kind in BOTH
            for run in [make(scale, kind)]
        ),
        (Column("accuracy", ("accuracy",)), *trained),
        first="asked, model",
        notes=(
            "frame, yesno and image are learned together, action and transition too, from the model that retrieves; "
            "pairs starts from the model of the former.",
            "Who never sees the clip is right in "
            + ", ".join(f"{share} % of {task}" for task, share in CHANCE.items() if task != "long")
            + " at best.",
        ),
    )
    return Part("comparison", "Does it learn what a joint transformer learns?", (found, asked))


def layer_drop(scale: Scale) -> Part:
    """Table 3 in miniature: LayerDrop in the first phase, the second, both or neither, tested at 1, 2 and 3
    cross-attentions.
    """
    rate, steps, numbers = 0.5, 400, (1, 2, 3)
    tests = tuple(
        world_test(scale, "captions", HELD_OUT, budget=f"cross_attentions={number}", name=str(number))
        for number in numbers
    )
    phases = {"neither": (0.0, 0.0), "the first": (rate, 0.0), "the second": (0.0, rate), "both": (rate, rate)}
    rows = []
    for label, (first, second) in phases.items():
        runs = []
        for seed in scale.seeds:
            before = retrieval_run(scale, seed=seed, model={"layer_drop": first}, steps=steps)
            run = retrieval_run(scale, seed=100 + seed, model={"layer_drop": second}, steps=steps)
            runs.append(replace(run, start=before, name=f"LayerDrop in {label}, seed {seed}"))
        rows.append(Row(label, tuple(runs), tests))
    table = Table(
        f"R@1 of multi, {scale.clips(HELD_OUT)} clips; LayerDrop {rate:g}, {len(scale.seeds)} seeds",
        tuple(rows),
        tuple(Column(f"{number} of 3 cross-attentions", ("multi", "r1"), test=str(number)) for number in numbers),
        first="LayerDrop in",
        notes=(f"Two phases of {scale.steps(steps)} steps, on other clips.",),
    )
    return Part("layer-drop", "LayerDrop in either phase, and reads at inference (Table 3)", (table,))


def latents_and_streams(scale: Scale) -> Part:
    """Figures 5 and 6."""
    numbers, items = (4, 8, 16, 32, 64), (10, 30, 100, 300, 1000)
    of_latents = tuple(
        Row(
            str(number),
            (retrieval_run(scale, model={"num_latents": number, "num_text_latents": min(number, 8)}),),
            _retrieval_tests(scale),
        )
        for number in numbers
    )
    latents = Table(
        f"number of latents, R@1 of {scale.clips(HELD_OUT)} clips (Figure 5)",
        of_latents,
        _RETRIEVAL_COLUMNS,
        first="latents",
        x=tuple(map(float, numbers)),
        x_title="latents",
        y_title="R@1",
    )
    of_streams = []
    for number in items:
        streams = ("multi", "mixed", "cascade", *(("single",) if number <= _MOST_JOINT else ()))
        test = world_test(scale, "captions", number, streams=streams)
        of_streams.append(Row(str(number), (retrieval_run(scale),), (test,)))
    columns = [
        Column(title, (stream, path), digits=digits)
        for stream in ("multi", "mixed", "cascade", "single")
        for title, path, digits in (
            (f"{stream} R@1", "r1", 1),
            (f"{stream} ms", "milliseconds_per_query", 2),
        )
    ]
    streams_table = Table(
        "streams, n texts against n clips: R@1, and milliseconds a text (Figure 6)",
        tuple(of_streams),
        tuple(columns),
        first="n",
        notes=(
            "The clips' encodings are made once, which is not in the time; of single every pair is encoded, with "
            f"nothing cached: it is left out beyond {_MOST_JOINT}.",
        ),
    )
    return Part("latents-and-streams", "How many latents, which stream (Figures 5 and 6)", (latents, streams_table))


def ablations(scale: Scale) -> Part:
    """Aggregation of modalities, positions of latents, contrast, hard negatives, latents of words."""
    more_vtm = replace(OBJECTIVES, weights={**OBJECTIVES.weights, "vtm": 1.0}, joint_share=0.5)
    uncontrasted = {**OBJECTIVES.weights, "vtc": 0.0, "ttc": 0.0}
    self_attentions = {"self_attentions_per_block": 2}
    tables = {
        "modality aggregation, 2 self-attentions a block (section 3.2)": {
            name: retrieval_run(scale, model={"modality_aggregation": name, **self_attentions})
            for name in ("joint", "separate", "separate_plus")
        },
        "positions of the latents": {
            name: retrieval_run(scale, model={} if name == "learned" else {"latent_position": name})
            for name in ("learned", "fourier", "none")
        },
        "objectives": {
            "as everywhere here": retrieval_run(scale),
            "more VTM": retrieval_run(scale, objectives=more_vtm),
            "more VTM, hard negatives": retrieval_run(scale, objectives=replace(more_vtm, hard_negatives=True)),
            "no VTC, no TTC": retrieval_run(scale, objectives=replace(OBJECTIVES, weights=uncontrasted)),
            "VTM and MLM alone, as published": retrieval_run(scale, objectives=Objectives()),
        },
        "latents of the text stream, of 32": {
            str(number): retrieval_run(scale, model={"num_latents": 32, "num_text_latents": number})
            for number in (8, 16, 32)
        },
    }
    of_retrieval = tuple(
        Table(
            title,
            tuple(Row(label, (run,), _retrieval_tests(scale)) for label, run in runs.items()),
            _RETRIEVAL_COLUMNS,
            first="",
        )
        for title, runs in tables.items()
    )
    readers = {"a learned query": open_run(scale), "mean of the latents": open_run(scale, answers_from="mean_latents")}
    asked = tuple(
        Row(label, (run,), tuple(world_test(scale, task, QUESTIONS, frames=2, name=task) for task in OPEN))
        for label, run in readers.items()
    )
    columns = tuple(Column(task, ("accuracy",), test=task) for task in OPEN)
    queries = Table("what the head of answers sees: accuracy on open questions", asked, columns, first="")
    title = "What matters: aggregation, positions, objectives, latents of words, queries"
    return Part("ablations", title, (*of_retrieval, queries))


def long_clips(scale: Scale) -> Part:
    """Questions that one short event of a minute decides."""
    numbers = (8, 32, 128)
    tests = tuple(world_test(scale, "long", 500, frames=number, name=str(number)) for number in numbers)
    rows: list[Row] = []
    for number in numbers:
        run = long_run(scale, number, rows[-1].runs[0] if rows else None)
        rows.append(Row(str(number), (run,), tests))
    table = Table(
        f"accuracy on {scale.clips(500)} clips of 60 s of which one to three decide",
        tuple(rows),
        tuple(Column(f"asked at {number}", ("accuracy",), test=str(number)) for number in numbers),
        first="frames trained at",
        notes=(f"Each starts from the one above it. Who never sees the clip is right in {CHANCE['long']} % at best.",),
        x=tuple(map(float, numbers)),
        x_title="frames trained at",
        y_title="accuracy",
    )
    return Part("long", "Long clips: one short event decides", (table,))


def generalisation(scale: Scale) -> Part:
    """The splits in which something is new."""
    splits = ("test", *GENERALISATION)
    rows = []
    for tasks, make in _TASKS:
        for task in tasks:
            for kind in BOTH:
                run = make(scale, kind)
                tests = tuple(_task_test(scale, task, run, HELD_OUT * 2, split) for split in splits)
                rows.append(Row(f"{task}, {kind}", (run,), tests))
    table = Table(
        f"accuracy on {scale.clips(HELD_OUT * 2)} examples of each split",
        tuple(rows),
        tuple(Column(split.removeprefix("test-"), ("accuracy",), test=split) for split in splits),
        first="asked, model",
        notes=(
            "distractor: more things about than ever in training; systematic: a combination of colour and shape shown "
            "nowhere else; productive: two or three steps instead of at most one.",
        ),
    )
    return Part("generalisation", "More things, new combinations, more steps", (table,))


_TASKS = ((OPEN, open_run), (("count",), count_run), (CHOICES, choice_run), (("pairs",), pair_run))
_MOST_JOINT = 100
_RETRIEVAL_COLUMNS = (
    Column("multi R@1", ("multi", "r1")),
    Column("mixed R@1", ("mixed", "r1")),
    Column("single R@1", ("single", "r1"), test="single"),
)


def _retrieval_tests(scale: Scale) -> tuple[Test, Test]:
    apart = world_test(scale, "captions", HELD_OUT, streams=("multi", "mixed"))
    return apart, world_test(scale, "captions", 64, streams=("single",), name="single")


def _task_test(scale: Scale, task: str, run: Run, clips: int, split: str = "test") -> Test:
    return world_test(scale, task, clips, split=split, frames=run.recipe.data.num_frames, name=split)
