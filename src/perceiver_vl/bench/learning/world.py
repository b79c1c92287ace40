"""Evidence on the generated world, in six parts: the tables, of which runs and tests they are made."""

from dataclasses import replace

from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.recipes import (
    CHOICE_TASKS,
    FULL,
    OBJECTIVES,
    OPEN_TASKS,
    Scale,
    choice_run,
    count_run,
    long_run,
    open_run,
    pair_run,
    retrieval_run,
    world_test,
)
from perceiver_vl.bench.learning.runs import ARCHITECTURES, Run, Test
from perceiver_vl.data.synthetic.grid import GENERALISATION
from perceiver_vl.training.objectives import Objectives

HELD_OUT = 256
QUESTIONS = 1000
MAX_SINGLE = 100  # items that the single stream ranks
RETRIEVAL_COLUMNS = (
    Column("multi R@1", ("multi", "r1")),
    Column("mixed R@1", ("mixed", "r1")),
    Column("single R@1", ("single", "r1"), test="single"),
)
CHANCE = {"frame": 22, "yesno": 50, "image": 35, "count": 30, "action": 23, "transition": 23, "pairs": 50, "long": 28}
"""The best of guessers that do not know which thing is meant, in per cent, over all kinds (docs/world.md)."""


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


def cost_runs(scale: Scale = FULL) -> list[tuple[str, Run]]:
    """The runs whose costs are measured, by what they learn: each of ours, then that of the joint transformer."""
    makes = {
        "retrieval": retrieval_run,
        "open questions": open_run,
        "counting": count_run,
        "choices": choice_run,
        "pairs": pair_run,
    }
    return [(label, make(scale, architecture)) for label, make in makes.items() for architecture in ARCHITECTURES]


def against_joint_transformer(scale: Scale) -> Part:
    """Every task, ours beside the joint transformer."""
    trained = (Column("steps", of_run="steps", digits=0), Column("minutes of training", of_run="seconds", unit=60.0))
    retrieval = Table(
        f"retrieval of {scale.clips(HELD_OUT)} clips (single: of {scale.clips(64)})",
        tuple(Row(one, (retrieval_run(scale, one),), _retrieval_tests(scale)) for one in ARCHITECTURES),
        (*RETRIEVAL_COLUMNS, *trained),
        notes=("Of the joint transformer, too, multi and mixed encode clip and words apart.",),
    )
    questions = Table(
        f"questions and statements, {scale.clips(QUESTIONS)} of each kind",
        tuple(Row(label, (run,), (_task_test(scale, task, run, QUESTIONS),)) for label, task, run in _task_runs(scale)),
        (Column("accuracy", ("accuracy",)), *trained),
        first="asked, model",
        notes=(
            "frame, yesno and image are learned together, action and transition too, from the model that retrieves; "
            "pairs starts from the model of the former.",
            "Who does not know which thing is meant is right in "
            + ", ".join(f"{share} % of {task}" for task, share in CHANCE.items() if task != "long")
            + " at best.",
        ),
    )
    return Part("comparison", "Does it learn what a joint transformer learns?", (retrieval, questions))


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
    return Part("layer-drop", "LayerDrop in either phase, and cross-attentions at inference (Table 3)", (table,))


def latents_and_streams(scale: Scale) -> Part:
    """Figures 5 and 6."""
    numbers, items = (4, 8, 16, 32, 64), (10, 30, 100, 300, 1000)
    latents_rows = tuple(
        Row(
            str(number),
            (retrieval_run(scale, model={"num_latents": number, "num_text_latents": min(number, 8)}),),
            _retrieval_tests(scale),
        )
        for number in numbers
    )
    latents = Table(
        f"number of latents, R@1 of {scale.clips(HELD_OUT)} clips (Figure 5)",
        latents_rows,
        RETRIEVAL_COLUMNS,
        first="latents",
        x=tuple(map(float, numbers)),
        x_title="latents",
        y_title="R@1",
    )
    streams_rows = []
    for number in items:
        streams = ("multi", "mixed", "cascade", *(("single",) if number <= MAX_SINGLE else ()))
        test = world_test(scale, "captions", number, streams=streams)
        streams_rows.append(Row(str(number), (retrieval_run(scale),), (test,)))
    columns = tuple(
        Column(f"{stream} {title}", (stream, path), digits=digits)
        for stream in ("multi", "mixed", "cascade", "single")
        for title, path, digits in (("R@1", "r1", 1), ("ms", "milliseconds_per_query", 2))
    )
    streams_table = Table(
        "streams, n texts against n clips: R@1, and milliseconds a text (Figure 6)",
        tuple(streams_rows),
        columns,
        first="n",
        notes=(
            "The clips' encodings are made once, which is not in the time; of single every pair is encoded, with "
            f"nothing cached: it is left out beyond {MAX_SINGLE}.",
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
    retrieval_tables = tuple(
        Table(
            title,
            tuple(Row(label, (run,), _retrieval_tests(scale)) for label, run in runs.items()),
            RETRIEVAL_COLUMNS,
            first="",
        )
        for title, runs in tables.items()
    )
    heads = {"a learned query": open_run(scale), "mean of the latents": open_run(scale, answers_from="mean_latents")}
    tests = tuple(world_test(scale, task, QUESTIONS, frames=2) for task in OPEN_TASKS)
    queries = Table(
        "what the head of answers sees: accuracy on open questions",
        tuple(Row(label, (run,), tests) for label, run in heads.items()),
        tuple(Column(task, ("accuracy",), test=task) for task in OPEN_TASKS),
        first="",
    )
    title = "What matters: aggregation, positions, objectives, latents of words, queries"
    return Part("ablations", title, (*retrieval_tables, queries))


def long_clips(scale: Scale) -> Part:
    """Questions that one short event of a minute decides."""
    asked, numbers = (8, 32, 64), (32, 64)  # 8 frames miss most events, so nothing is trained at them
    tests = tuple(world_test(scale, "long", 500, frames=number, name=str(number)) for number in asked)
    rows: list[Row] = []
    for number in numbers:
        run = long_run(scale, number, rows[-1].runs[0] if rows else None)
        rows.append(Row(str(number), (run,), tests))
    table = Table(
        f"accuracy on {scale.clips(500)} clips of 60 s of which two to four decide",
        tuple(rows),
        tuple(Column(f"asked at {number}", ("accuracy",), test=str(number)) for number in asked),
        first="frames trained at",
        notes=(f"Each starts from the one above it. Who guesses is right in {CHANCE['long']} % at best.",),
        x=tuple(map(float, numbers)),
        x_title="frames trained at",
        y_title="accuracy",
    )
    return Part("long", "Long clips: one short event decides", (table,))


def generalisation(scale: Scale) -> Part:
    """The splits in which something is new."""
    splits = ("test", *GENERALISATION)
    table = Table(
        f"accuracy on {scale.clips(HELD_OUT * 2)} examples of each split",
        tuple(
            Row(label, (run,), tuple(_task_test(scale, task, run, HELD_OUT * 2, split) for split in splits))
            for label, task, run in _task_runs(scale)
        ),
        tuple(Column(split.removeprefix("test-"), ("accuracy",), test=split) for split in splits),
        first="asked, model",
        notes=(
            "distractor: more things about than ever in training; systematic: a combination of colour and shape shown "
            "nowhere else; productive: two or three steps instead of at most one.",
        ),
    )
    return Part("generalisation", "More things, new combinations, more steps", (table,))


def _task_runs(scale: Scale) -> list[tuple[str, str, Run]]:
    """What the row is called, the task, and the run that learns it, of every task and architecture."""
    makes = ((OPEN_TASKS, open_run), (("count",), count_run), (CHOICE_TASKS, choice_run), (("pairs",), pair_run))
    return [
        (f"{task}, {architecture}", task, make(scale, architecture))
        for tasks, make in makes
        for task in tasks
        for architecture in ARCHITECTURES
    ]


def _retrieval_tests(scale: Scale) -> tuple[Test, Test]:
    multi_and_mixed = world_test(scale, "captions", HELD_OUT, streams=("multi", "mixed"))
    return multi_and_mixed, world_test(scale, "captions", 64, streams=("single",), name="single")


def _task_test(scale: Scale, task: str, run: Run, clips: int, split: str = "test") -> Test:
    return world_test(scale, task, clips, split=split, frames=run.recipe.data.num_frames, name=split)
