"""Evidence on the generated world, in six parts: the tables, of which runs and tests they are made."""

from dataclasses import replace

from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.recipes import (
    FULL,
    OPEN_TASKS,
    SHORT,
    Scale,
    action_run,
    count_run,
    frame_run,
    long_run,
    pair_run,
    retrieval_run,
    world_test,
)
from perceiver_vl.bench.learning.runs import ARCHITECTURES, Architecture, Run, Test
from perceiver_vl.data.synthetic.grid import GENERALISATION

HELD_OUT = 256
QUESTIONS = 1000
MAX_SINGLE = 100  # items that the single stream ranks
RETRIEVAL_COLUMNS = (
    Column("multi R@1", ("multi", "r1")),
    Column("mixed R@1", ("mixed", "r1")),
    Column("single R@1", ("single", "r1"), test="single"),
)
_SHORT_NOTE = "Two frames of each clip, and fewer steps than in the recipe."
CHANCE = {"frame": 22, "image": 35, "yesno": 50, "count": 30, "action": 23, "transition": 23, "pairs": 50, "long": 28}
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
        "questions about a frame": frame_run,
        "what things do": action_run,
        "counting": count_run,
        "pairs": pair_run,
    }
    return [
        (label, make(scale, architecture=architecture))
        for label, make in makes.items()
        for architecture in ARCHITECTURES
    ]


def against_joint_transformer(scale: Scale) -> Part:
    """Every task, ours beside the joint transformer."""
    trained = (Column("steps", of_run="steps", digits=0), Column("minutes of training", of_run="seconds", unit=60.0))
    rows = []
    for one in ARCHITECTURES:
        run = retrieval_run(scale, architecture=one)
        rows.append(Row(one, (run,), _retrieval_tests(scale, run)))
    retrieval = Table(
        f"retrieval of {scale.clips(HELD_OUT)} clips (single: of {scale.clips(64)})",
        tuple(rows),
        (*RETRIEVAL_COLUMNS, *trained),
        notes=("Of the joint transformer, too, multi and mixed encode clip and words apart.",),
    )
    questions = Table(
        f"questions and statements, {scale.clips(QUESTIONS)} of each kind",
        tuple(Row(label, (run,), (_task_test(scale, task, run, QUESTIONS),)) for label, task, run in _task_runs(scale)),
        (Column("accuracy", ("accuracy",)), Column("of five choices", ("accuracy_of_choices",)), *trained),
        first="asked, model",
        notes=(
            "Each from the model before it: what retrieves, what answers of a frame, then one model for pictures, yes "
            "or no and what things do, and from that what counts and what judges pairs.",
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
        world_test(scale, "captions", HELD_OUT, frames=2, budget=f"cross_attentions={number}", name=str(number))
        for number in numbers
    )
    phases = {"neither": (0.0, 0.0), "the first": (rate, 0.0), "the second": (0.0, rate), "both": (rate, rate)}
    rows = []
    for label, (first, second) in phases.items():
        runs = []
        for seed in scale.seeds:
            before, run = (
                _short_run(scale, f"model.layer_drop={one}", f"training.max_steps={steps}", seed=number)
                for one, number in ((first, seed), (second, 100 + seed))
            )
            runs.append(replace(run, start=before, name=f"LayerDrop in {label}, seed {seed}"))
        rows.append(Row(label, tuple(runs), tests))
    table = Table(
        f"R@1 of multi, {scale.clips(HELD_OUT)} clips; LayerDrop {rate:g}, {len(scale.seeds)} seeds",
        tuple(rows),
        tuple(Column(f"{number} of 3 cross-attentions", ("multi", "r1"), test=str(number)) for number in numbers),
        first="LayerDrop in",
        notes=(f"Two phases of {scale.steps(steps)} steps, in other orders; two frames.",),
    )
    return Part("layer-drop", "LayerDrop in either phase, and cross-attentions at inference (Table 3)", (table,))


def latents_and_streams(scale: Scale) -> Part:
    """Figures 5 and 6."""
    numbers, items = (4, 8, 16, 32, 64), (10, 30, 100, 300, 1000)
    latents_rows = []
    for number in numbers:
        run = _short_run(scale, f"model.num_latents={number}", f"model.num_text_latents={min(number, 8)}")
        latents_rows.append(Row(str(number), (run,), _retrieval_tests(scale, run)))
    latents = Table(
        f"number of latents, R@1 of {scale.clips(HELD_OUT)} clips (Figure 5)",
        tuple(latents_rows),
        RETRIEVAL_COLUMNS,
        first="latents",
        x=tuple(map(float, numbers)),
        x_title="latents",
        y_title="R@1",
    )
    streams_rows = []
    for number in items:
        streams = ("multi", "mixed", "cascade", *(("single",) if number <= MAX_SINGLE else ()))
        run = retrieval_run(scale)
        test = world_test(scale, "captions", number, frames=run.recipe.data.num_frames, streams=streams)
        streams_rows.append(Row(str(number), (run,), (test,)))
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
    hard, uncontrasted = "objectives.hard_negatives=true", ("objectives.vtc=0", "objectives.ttc=0")
    published = (*uncontrasted, "objectives.mixed_vtc=0", "objectives.vtm=1", "objectives.mlm=1")
    tables: dict[str, dict[str, tuple[str, ...]]] = {
        "modality aggregation, 2 self-attentions a block (section 3.2)": {
            name: (f"model.modality_aggregation={name}", "model.self_attentions_per_block=2")
            for name in ("joint", "separate", "separate_plus", "text_first")
        },
        "positions of the latents": {
            "learned": (),
            **{name: (f"model.latent_position={name}",) for name in ("fourier", "none")},
        },
        "objectives": {
            "as in the recipe": (),
            "less VTM (a fifth, of half as many pairs)": ("objectives.vtm=0.1", "objectives.joint_share=0.125"),
            "hard negatives": (hard,),
            "no VTC, no TTC": uncontrasted,
            "VTM and MLM alone, as published": (*published, "objectives.joint_share=1"),
        },
        "latents of the text stream, of 32": {
            str(number): ("model.num_latents=32", f"model.num_text_latents={number}") for number in (8, 16, 32)
        },
    }
    retrieval_tables = []
    for title, changes in tables.items():
        runs = {label: _short_run(scale, *overrides) for label, overrides in changes.items()}
        rows = tuple(Row(label, (run,), _retrieval_tests(scale, run)) for label, run in runs.items())
        retrieval_tables.append(Table(title, rows, RETRIEVAL_COLUMNS, first="", notes=(_SHORT_NOTE,)))
    few = "training.max_steps=2000"
    heads = {
        "a learned query": frame_run(scale, few),
        "mean of the latents": frame_run(scale, few, "model.answers_from=mean_latents"),
    }
    queries = Table(
        f"what the head of answers sees: accuracy on questions about a frame, {scale.steps(2000)} steps",
        tuple(Row(label, (run,), (_task_test(scale, "frame", run, QUESTIONS),)) for label, run in heads.items()),
        (Column("accuracy", ("accuracy",)),),
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
        run = long_run(scale, number, rows[-1].runs[0] if rows else frame_run(scale))
        rows.append(Row(str(number), (run,), tests))
    table = Table(
        f"accuracy on {scale.clips(500)} clips of 60 s of which two to four decide",
        tuple(rows),
        tuple(Column(f"asked at {number}", ("accuracy",), test=str(number)) for number in asked),
        first="frames trained at",
        notes=(
            "The first starts from what answers of a frame, the second from the first. Who guesses is right in "
            f"{CHANCE['long']} % at best.",
        ),
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

    def run_of(task: str, architecture: Architecture) -> Run:
        if task == "frame":
            return frame_run(scale, architecture=architecture)
        return {"count": count_run, "pairs": pair_run}.get(task, action_run)(scale, architecture)

    return [
        (f"{task}, {architecture}", task, run_of(task, architecture))
        for task in (*OPEN_TASKS, "count", "pairs")
        for architecture in ARCHITECTURES
    ]


def _short_run(scale: Scale, *overrides: str, seed: int = 0) -> Run:
    return retrieval_run(scale, *SHORT, *overrides, seed=seed)


def _retrieval_tests(scale: Scale, run: Run) -> tuple[Test, Test]:
    frames = run.recipe.data.num_frames
    multi_and_mixed = world_test(scale, "captions", HELD_OUT, frames=frames, streams=("multi", "mixed"))
    single = world_test(scale, "captions", 64, frames=frames, streams=("single",), name="single")
    return multi_and_mixed, single


def _task_test(scale: Scale, task: str, run: Run, clips: int, split: str = "test") -> Test:
    frames = 1 if task == "frame" else run.recipe.data.num_frames
    return world_test(scale, task, clips, split=split, frames=frames, name=split)
