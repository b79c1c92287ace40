"""Evidence on real data: what is trained on small public sets laid out in one folder, and what it is tested by.

Each set lies in a folder of its own, with `captions.jsonl` (`file`, `captions`, `split`) or `qa.jsonl` (`file`,
`question`, `answer` or `answers`, `split`) beside its media. Everything is learned from these alone, chosen on their
validation splits, and tested once on their test splits. Retrieval learns from clips and photographs together; what
answers questions starts from the model that retrieves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceiver_vl.bench.learning.blind_baselines import (
    Answerer,
    accuracy,
    bag_of_words,
    chance_accuracy,
    majority,
    majority_by_kind,
)
from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.recipes import FULL, MODEL, TRAINING, Scale
from perceiver_vl.bench.learning.runs import ARCHITECTURES, OURS, Architecture, Run, Test
from perceiver_vl.bench.tables import Section
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Need, Record
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.tasks.chance import chance_recall
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.training.recipe import Data, DataSource, Evaluation, Recipe, TokenizerConfig
from perceiver_vl.utils.errors import UsageError

CLIPS, PHOTOGRAPHS, DESCRIBED = "msrvtt_keyframes", "flickr8k", "autoeval_video"
ROOMS, DRAWINGS = "daquar", "nlvr"
FRAMES, QUESTION_FRAMES = 4, 1
EVALUATIONS = 5
"""How often a run is validated; the best of these is kept."""
_MODEL = MODEL | {"max_text_length": 32, "layer_drop": 0.0}  # with so few steps it costs more than it saves
_TRAINING = TRAINING | {
    "weight_decay": 1.0,  # far more than is usual: the sets are small
    "eval_strategy": "steps",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "seed": 0,
}
OBJECTIVES = Objectives({"vtm": 0, "mlm": 0, "vtc": 1, "ttc": 0.3, "mixed_vtc": 0.7})
STREAMS = ("multi", "mixed")
AUGMENTATION = Augmentation(crop=0.7, flip=True)


@dataclass(frozen=True)
class QuestionSet:
    """How a set of questions is learned. start: the set whose retrieval model it starts from."""

    title: str
    start: str
    steps: int
    learning_rate: float = 2e-3
    batch_size: int = 64


QUESTIONS = {
    CLIPS: QuestionSet("MSRVTT-QA", CLIPS, 600),
    ROOMS: QuestionSet("DAQUAR", PHOTOGRAPHS, 500),
    DRAWINGS: QuestionSet("NLVR", PHOTOGRAPHS, 200, learning_rate=1e-3, batch_size=32),
}
"""What is asked of each set."""


def captions_of(data: Path, name: str, split: str | None, weight: float | None = None) -> DataSource:
    """The captioned clips or photographs of one set; split None: of all its splits."""
    columns = {"file_name": "file", "text": "captions"}
    if name == DESCRIBED:
        columns |= {"start": "", "end": ""}  # those of the film that the clip was cut from
    return DataSource(data / name, split, data / name / "captions.jsonl", columns, weight=weight)


def questions_of(data: Path, name: str, split: str) -> DataSource:
    """The questions of one set."""
    return DataSource(data / name, split, data / name / "qa.jsonl", {"file_name": "file"})


def retrieval_run(data: Path, name: str, architecture: Architecture = OURS, scale: Scale = FULL) -> Run:
    """Clips and photographs together, chosen on the validation split of `name`."""
    recipe = _recipe(
        tuple(captions_of(data, one, "train", weight=1.0) for one in (CLIPS, PHOTOGRAPHS)),
        captions_of(data, name, "val"),
        FRAMES,
        _training(scale, 900, learning_rate=2e-3, metric_for_best_model="multi_r10"),
        objectives=OBJECTIVES,
        evaluation=Evaluation(STREAMS, batch_size=50),
        ema=0.98,
    )
    return Run(f"retrieval, {name}, {architecture}", recipe, architecture)


def question_run(data: Path, name: str, architecture: Architecture = OURS, scale: Scale = FULL) -> Run:
    """The questions of one set, as `QUESTIONS` says."""
    one = QUESTIONS[name]
    batch = {"per_device_train_batch_size": one.batch_size}
    recipe = _recipe(
        (questions_of(data, name, "train"),),
        questions_of(data, name, "val"),
        QUESTION_FRAMES,
        _training(scale, one.steps, learning_rate=one.learning_rate, **batch),
        evaluation=Evaluation(batch_size=50),
        task="question-answering",
    )
    start = retrieval_run(data, one.start, architecture, scale)
    return Run(f"questions, {name}, {architecture}", recipe, architecture, start)


def real_parts(data: Path, scale: Scale = FULL) -> list[Part]:
    """Retrieval and questions, ours beside the joint transformer.

    Raises `UsageError` where the folder lacks a set.
    """
    _check(data)
    return [retrieval_part(data, scale), questions_part(data, scale)]


def retrieval_part(data: Path, scale: Scale = FULL) -> Part:
    """Texts against what they describe: each test split, and all clips of a set that nothing is learned from."""
    tables = []
    for name, of, title, captions in (
        (CLIPS, CLIPS, "MSR-VTT key frames", None),
        (PHOTOGRAPHS, PHOTOGRAPHS, "Flickr8k", None),
        (DESCRIBED, CLIPS, "AutoEval, which nothing is learned from", 1),
    ):
        split = captions_of(data, name, None if name == DESCRIBED else "test")
        test = Test(name, split, FRAMES, streams=STREAMS, captions_per_clip=captions)
        records = _records(split)
        counts = [len(record.texts[:captions]) for record in records]
        chance = ", ".join(f"R@{k} {chance_recall(counts, k)[0]:.1f}" for k in (1, 5, 10))
        tables += [
            Table(
                f"{title}, {stream}: {sum(counts)} texts against {len(counts)}",
                tuple(Row(one, (retrieval_run(data, of, one, scale),), (test,)) for one in ARCHITECTURES),
                (
                    *(Column(f"R@{k}", (stream, f"r{k}")) for k in (1, 5, 10)),
                    Column("of texts R@1", (stream, "v2t_r1")),
                    *_TRAINED,
                ),
                notes=(f"Chance: {chance}; of texts for a clip R@1 {chance_recall(counts, 1)[1]:.1f}.",),
            )
            for stream in STREAMS
        ]
    return Part("real-retrieval", "Retrieval of real clips and photographs", tuple(tables))


def questions_part(data: Path, scale: Scale = FULL) -> Part:
    """Questions about clips, rooms and drawings."""
    rows = []
    for name, asked in QUESTIONS.items():
        test = Test(name, questions_of(data, name, "test"), QUESTION_FRAMES)
        rows += [
            Row(f"{asked.title}, {one}", (question_run(data, name, one, scale),), (test,)) for one in ARCHITECTURES
        ]
    table = Table(
        "questions about clips (MSRVTT-QA), rooms (DAQUAR) and drawings (NLVR: statements, true or false)",
        tuple(rows),
        (Column("accuracy", ("accuracy",)), *_TRAINED),
        first="asked, model",
    )
    return Part("real-questions", "Questions about real clips and pictures", (table,))


def blind_baselines_section(data: Path) -> Section:
    """What those score on the test splits who never see the picture; the bag of words takes a minute to fit.

    Raises `UsageError` where the folder lacks a set.
    """
    _check(data)
    rows = []
    for name, asked in QUESTIONS.items():
        training, validation, test = (_records(questions_of(data, name, split)) for split in ("train", "val", "test"))
        baselines: tuple[Answerer, ...] = (
            majority(training),
            majority_by_kind(training),
            bag_of_words(training, validation),
        )
        scores = chance_accuracy(training, test), *(accuracy(one, test) for one in baselines)
        rows.append((f"{asked.title}, {len(test)}", *(f"{score:.1f}" for score in scores)))
    return Section(
        "blind baselines, which never see the picture: accuracy",
        ("asked", "chance", "most frequent", "by first word", "bag of words"),
        rows,
        (
            "Chance: any answer of the training split; most frequent: always its most frequent one, or the one of the "
            "question's first word; bag of words: logistic regression on the words of the question.",
        ),
    )


_TRAINED = (Column("steps", of_run="steps", digits=0), Column("minutes", of_run="seconds", unit=60.0))


def _recipe(
    train: tuple[DataSource, ...], validation: DataSource, num_frames: int, training: dict[str, Any], **more: Any
) -> Recipe:
    return Recipe(
        output=Path(),
        data=Data(train, validation, num_frames, sampling="uniform", augmentation=AUGMENTATION, cache=True),
        model=_MODEL,
        tokenizer=TokenizerConfig(vocab_size=4000),
        training=training,
        **more,
    )


def _training(scale: Scale, steps: int, **given: Any) -> dict[str, Any]:
    steps = scale.steps(steps)
    often = max(1, steps // EVALUATIONS)
    return _TRAINING | {"max_steps": steps, "eval_steps": often, "save_steps": often} | given


def _records(split: DataSource) -> list[Record]:
    assert split.folder is not None
    need: Need = "text" if "text" in split.columns else "question"
    return read_folder(
        split.folder, split=split.split, metadata=split.metadata, columns=split.columns, need=need
    ).records


def _check(data: Path) -> None:
    needed = [f"{name}/captions.jsonl" for name in (CLIPS, PHOTOGRAPHS, DESCRIBED)]
    needed += [f"{name}/qa.jsonl" for name in QUESTIONS]
    missing = [name for name in needed if not (data / name).is_file()]
    if missing:
        raise UsageError(f"data={data}: no {missing[0]} in it, give a folder that has {', '.join(needed)}")
