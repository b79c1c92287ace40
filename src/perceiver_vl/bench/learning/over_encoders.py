"""Evidence over pretrained encoders: what they are worth alone, what is learned beside them, and what the latents do.

The sets are those of `real`. Everything reads the same tokens, which are made once: a ridge matrix between both
encoders, the base that a model begins with, ours, and a joint transformer in the place of its latents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.real import CLIPS, DESCRIBED, PHOTOGRAPHS, QUESTIONS, captions_of, questions_of
from perceiver_vl.bench.learning.recipes import FULL, Scale
from perceiver_vl.bench.learning.ridge import RidgeVectors, ridge_recall
from perceiver_vl.bench.learning.runs import ARCHITECTURES, JOINT, OURS, Architecture, Run, Test, digest
from perceiver_vl.bench.tables import Section
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.metadata import write_metadata
from perceiver_vl.data.records import Folder, Need, Record
from perceiver_vl.data.transcode.features import feature_settings
from perceiver_vl.data.transcode.prepare import prepare
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.tasks.question_answering import QuestionAnswering
from perceiver_vl.training.recipe import DataSource, Evaluation, Recipe, read_recipe
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

MORE_PHOTOGRAPHS, WEB_CLIPS = "flickr8k_extra", "panda70m_samples"
PARTS = ("encoders-retrieval", "encoders-unseen", "encoders-pairs", "encoders-sizes", "encoders-questions")
FRAMES, TOKEN_GRID = 6, 3
STREAMS = ("multi", "mixed", "cascade", "cascade-single")
PAIRS = (100, 300, 1000)
"""Training pairs, one caption a clip, of the curve; its last point has all clips, and then all captions."""
LATENTS, BLOCKS, TESTED_FRAMES = (4, 16, 64), (1, 2, 4), (1, 3, 6)
_LEARNED = (CLIPS, PHOTOGRAPHS, MORE_PHOTOGRAPHS)
_BLIND = "blind.jsonl"  # questions that all have one and the same picture
_TITLES = {PHOTOGRAPHS: "Flickr8k", CLIPS: "MSR-VTT key frames"}
_UNSEEN = {DESCRIBED: "AutoEval", WEB_CLIPS: "Panda-70M"}
_ALONE_STEPS = 200
_NO_BASE = {"base": "none", "base_anchors": 0, "base_queries": 0}
_KINDS = 3  # of questions that have a column of their own


@dataclass(frozen=True)
class OverEncoders:
    """The models and features of two encoders, below `output`; `data`: where the sets lie."""

    vision: str
    text: str
    data: Path
    output: Path
    scale: Scale = FULL

    @cached_property
    def _kept(self) -> Path:
        return self.output / "encoders" / digest([self.vision, self.text, FRAMES, TOKEN_GRID])

    def model(self, **config: Any) -> Path:
        """The folder of a model over the encoders that has learned nothing; config: of `PerceiverVLConfig`."""
        folder = self._kept / f"model-{digest(config)}"
        if not folder.is_dir():
            initialise(folder, vision=self.vision, text=self.text, num_frames=FRAMES, token_grid=TOKEN_GRID, **config)
        return folder

    def features(self, name: str) -> Path:
        """Where the features of a set are."""
        return self._kept / name

    def prepare(self, workers: int = 1, progress: bool = False) -> None:
        """Make the features of all sets that have none yet, and the metadata of smaller and of blind training.

        Raises `UsageError` where the folder of data lacks a set.
        """
        captioned = (CLIPS, PHOTOGRAPHS, MORE_PHOTOGRAPHS, DESCRIBED, WEB_CLIPS)
        missing = [f"{name}/captions.jsonl" for name in captioned]
        missing += [f"{name}/qa.jsonl" for name in QUESTIONS]
        missing = [name for name in missing if not (self.data / name).is_file()]
        if missing:
            raise UsageError(f"data={self.data}: no {missing[0]} in it, which models over encoders are measured on")
        settings = feature_settings(self.model(), FRAMES)
        for name in dict.fromkeys((*captioned, *QUESTIONS)):
            records: list[Record] = []
            if name in captioned:
                records += _records(captions_of(self.data, name, None), "text")
            if name in QUESTIONS:
                asked = [questions_of(self.data, name, split) for split in ("train", "val", "test")]
                records += [record for split in asked for record in _records(split, "question")]
            prepare(
                Folder(self.data / name, records), self.features(name), settings, workers=workers, progress=progress
            )
            if name in QUESTIONS:
                asked_of = _records(self.split(name), "question")
                first = asked_of[0].file_name
                write_metadata([replace(one, file_name=first) for one in asked_of], self.features(name) / _BLIND)
        for count in PAIRS:
            for name, records in self._shares(count):
                write_metadata([_one_caption(one) for one in records], self.features(name) / _pairs(count))
        for name in _LEARNED:
            records = _records(self.split(name, "train"), "text")
            write_metadata([_one_caption(one) for one in records], self.features(name) / _pairs(None))

    def split(self, name: str, split: str | None = None, metadata: str | None = None) -> DataSource:
        """Some of a set, as features; metadata: of these instead of all."""
        return DataSource(self.features(name), split, None if metadata is None else self.features(name) / metadata)

    def _shares(self, count: int) -> Iterable[tuple[str, list[Record]]]:
        """So many training clips, of each set as many as it has of all."""
        every = {name: _records(self.split(name, "train"), "text") for name in _LEARNED}
        total, left = sum(map(len, every.values())), count
        for place, (name, records) in enumerate(every.items()):
            share = left if place == len(every) - 1 else round(count * len(records) / total)
            left -= share
            yield name, records[:share]

    def training(self, metadata: str | None = None) -> tuple[DataSource, ...]:
        """Clips and photographs together."""
        return tuple(replace(self.split(name, "train", metadata), weight=1.0) for name in _LEARNED)

    def base_run(self, name: str, metadata: str | None = None) -> Run:
        """The base alone, fitted and chosen on the validation split of `name`, and nothing trained."""
        recipe = self._retrieval(name, metadata, max_steps=1, learning_rate=0.0, warmup_steps=0, eval_strategy="no")
        recipe = replace(recipe, initialise=replace(recipe.initialise, model=self.model()))
        return Run(f"base, {name}, {metadata or 'all'}", recipe)

    def trained_run(self, name: str, architecture: Architecture) -> Run:
        """What `recipes/encoders.yaml` trains beside the base."""
        steps = self.scale.steps(200)
        recipe = self._retrieval(name, max_steps=steps, eval_steps=max(1, steps // 4))
        return Run(f"beside the base, {name}, {architecture}", recipe, architecture, self.base_run(name))

    def alone_run(self, name: str, architecture: Architecture = OURS, **config: Any) -> Run:
        """Trained on the tokens without any base: all that is known of a pair is what the model has learned."""
        steps = self.scale.steps(_ALONE_STEPS)
        recipe = self._retrieval(name, max_steps=steps, eval_steps=max(1, steps // 4), learning_rate=1e-3)
        recipe = replace(recipe, initialise=replace(recipe.initialise, model=self.model(**_NO_BASE, **config)))
        return Run(f"alone, {name}, {architecture}, {config}", recipe, architecture)

    def question_run(self, name: str, architecture: Architecture = OURS, blind: bool = False) -> Run:
        """What `recipes/encoders_questions.yaml` trains; blind: with one and the same picture beside every question."""
        recipe = read_recipe("encoders_questions", ["training.report_to=none"])
        metadata = _BLIND if blind else None
        data = replace(
            recipe.data,
            train=(self.split(name, "train", metadata),),
            validation=self.split(name, "validation", metadata),
            num_frames=FRAMES,
        )
        stages = tuple(replace(one, steps=self.scale.steps(one.steps), warmup_steps=None) for one in recipe.stages)
        often = max(1, sum(one.steps for one in stages) // 10)
        training = recipe.training | {"eval_steps": often, "save_steps": often}
        training["warmup_steps"] = min(training["warmup_steps"], *(one.steps for one in stages))
        asked = len(_records(self.split(name, "train"), "question"))
        training["per_device_train_batch_size"] = min(training["per_device_train_batch_size"], asked)
        recipe = replace(recipe, data=data, stages=stages, training=training)
        title = f"questions, {name}, {architecture}{', blind' if blind else ''}"
        return Run(title, recipe, architecture, self.base_run(QUESTIONS[name].start))

    def _retrieval(self, name: str, metadata: str | None = None, **training: Any) -> Recipe:
        recipe = read_recipe("encoders", ["training.report_to=none"])
        data = replace(
            recipe.data, train=self.training(metadata), validation=self.split(name, "validation"), num_frames=FRAMES
        )
        of_run = recipe.training | {"save_total_limit": 1} | training
        if of_run["eval_strategy"] == "no":
            of_run |= {"load_best_model_at_end": False, "save_strategy": "no"}
        else:
            of_run["save_steps"] = of_run["eval_steps"]
        of_run["warmup_steps"] = min(of_run["warmup_steps"], of_run["max_steps"])
        fewest = min(len(_records(split, "text")) for split in self.training(metadata))  # a batch is of one set
        of_run["per_device_train_batch_size"] = min(of_run["per_device_train_batch_size"], fewest)
        return replace(recipe, data=data, evaluation=Evaluation(("multi",), batch_size=50), training=of_run)


def encoder_parts(over: OverEncoders) -> list[Part]:
    """Retrieval, clips that nothing is learned from, few pairs, sizes, and questions."""
    return [_retrieval_part(over), _unseen_part(over), _pairs_part(over), _sizes_part(over), _questions_part(over)]


def ridge_sections(over: OverEncoders, parts: Sequence[str], progress: bool = False) -> dict[str, list[Section]]:
    """The ridge matrix beside, for those of `parts` that it stands in."""
    asked = {"encoders-retrieval": (None,), "encoders-pairs": tuple(map(_pairs, (*PAIRS, None)))}
    asked = {part: trainings for part, trainings in asked.items() if part in parts}
    vectors = RidgeVectors(over.model(), FRAMES) if asked else None
    sections: dict[str, list[Section]] = {}
    with ProgressBars(progress) as bar:
        advance = bar.stage("Ridge matrices", len(_TITLES) * sum(map(len, asked.values())))
        for part, trainings in asked.items():
            rows = []
            for name, title in _TITLES.items():
                assert vectors is not None
                chosen_on, test = vectors.of(over.split(name, "validation")), vectors.of(over.split(name, "test"))
                for metadata in trainings:
                    found = ridge_recall(vectors.of_all(over.training(metadata)), chosen_on, test)
                    rows.append((title, f"{found.clips}, {found.captions}", *found.cells()))
                    advance(note=title)
            head = ("set", "clips, captions", "penalty", "R@1", "R@5", "R@10", "of texts R@1")
            note = "From the mean of a clip's tokens to the mean vector of its captions, penalty chosen on validation."
            sections[part] = [Section("one ridge matrix between both encoders", head, rows, (note,))]
    return sections


def _retrieval_part(over: OverEncoders) -> Part:
    tables = []
    for name, title in _TITLES.items():
        tests = (_test(over, name, STREAMS),)
        rows = [Row("base, nothing trained", (over.base_run(name),), tests)]
        rows.append(Row(f"base and {OURS}", (over.trained_run(name, OURS),), tests))
        ranked = (_test(over, name, STREAMS[:2]),)  # a joint transformer keeps nothing of a clip that texts could share
        rows.append(Row(f"base and {JOINT}", (over.trained_run(name, JOINT),), ranked))
        only = (_test(over, name, ("multi",)),)
        rows += [Row(f"{one} alone", (over.alone_run(name, one),), only) for one in ARCHITECTURES]
        columns = [Column(f"{stream} R@{k}", (stream, f"r{k}")) for stream in STREAMS for k in (1, 10)]
        columns.insert(1, Column("multi R@5", ("multi", "r5")))
        columns.append(Column("of texts, multi R@1", ("multi", "v2t_r1")))
        tables.append(Table(f"{title}, test", tuple(rows), (*columns, *_TRAINED), notes=(_ALONE,)))
    return Part("encoders-retrieval", "Retrieval over pretrained encoders", tuple(tables))


def _unseen_part(over: OverEncoders) -> Part:
    tables = []
    for name, title in _UNSEEN.items():
        test = Test(name, over.split(name), FRAMES, streams=("multi",), captions_per_clip=1)
        rows = [Row("base, nothing trained", (over.base_run(CLIPS),), (test,))]
        rows += [Row(f"base and {one}", (over.trained_run(CLIPS, one),), (test,)) for one in ARCHITECTURES]
        tables.append(
            Table(f"{title}, {len(_records(over.split(name), 'text'))} clips, one text each", tuple(rows), _RECALL)
        )
    return Part("encoders-unseen", "Clips of sets that nothing is learned from", tuple(tables))


def _pairs_part(over: OverEncoders) -> Part:
    tables = []
    for name, title in _TITLES.items():
        tests = (_test(over, name, ("multi",)),)
        rows, clips = [], sum(len(_records(over.split(one, "train"), "text")) for one in _LEARNED)
        for count in (*PAIRS, None):
            rows.append(Row(f"{count or clips} pairs", (over.base_run(name, _pairs(count)),), tests))
        x = tuple(map(float, (*PAIRS, clips)))
        tables.append(
            Table(f"{title}: the base of few pairs", tuple(rows), _RECALL, "learned from", (), x, "pairs", "R@k")
        )
        every = Row("all, with all captions", (over.base_run(name),), tests)
        tables.append(Table(f"{title}: of every caption", (every,), _RECALL, "learned from"))
    return Part("encoders-pairs", "With fewer training pairs", tuple(tables))


def _sizes_part(over: OverEncoders) -> Part:
    tests = (_test(over, CLIPS, ("multi",)),)
    latents = [Row(f"{n}", (over.alone_run(CLIPS, num_latents=n),), tests) for n in LATENTS]
    blocks = [Row(f"{k}", (over.alone_run(CLIPS, num_blocks=k),), tests) for k in BLOCKS]
    frames = [Row(f"{n}", (over.alone_run(CLIPS),), (_test(over, CLIPS, ("multi",), n),)) for n in TESTED_FRAMES]
    based = [Row(f"{n}", (over.base_run(CLIPS),), (_test(over, CLIPS, ("multi",), n),)) for n in TESTED_FRAMES]
    tables = [
        Table("latents, without a base", tuple(latents), (*_RECALL, *_TRAINED), "latents"),
        Table("cross-attentions, without a base", tuple(blocks), (*_RECALL, *_TRAINED), "cross-attentions"),
        Table("frames at the test, without a base", tuple(frames), _RECALL, "frames"),
        Table("frames at the test, the base alone", tuple(based), _RECALL, "frames"),
    ]
    return Part("encoders-sizes", "Latents, cross-attentions and frames, MSR-VTT key frames", tuple(tables))


def _questions_part(over: OverEncoders) -> Part:
    tables = []
    for name, asked in QUESTIONS.items():
        seen = Test(name, over.split(name, "test"), FRAMES)
        blind = Test(name, over.split(name, "test", _BLIND), FRAMES)
        kinds = _kinds(_records(over.split(name, "test"), "question"))
        rows = [Row(one, (over.question_run(name, one),), (seen,)) for one in ARCHITECTURES]
        rows.append(Row("without the picture", (over.question_run(name, blind=True),), (blind,)))
        columns = [Column("accuracy", ("accuracy",)), *(Column(kind, ("by_kind", kind, "score")) for kind in kinds)]
        tables.append(Table(f"{asked.title}, test", tuple(rows), (*columns, *_TRAINED)))
    return Part("encoders-questions", "Questions over pretrained encoders", tuple(tables))


_RECALL = (*(Column(f"R@{k}", ("multi", f"r{k}")) for k in (1, 5, 10)), Column("of texts R@1", ("multi", "v2t_r1")))
_TRAINED = (Column("steps", of_run="steps", digits=0), Column("minutes", of_run="seconds", unit=60.0))
_ALONE = (
    "Alone: of the same tokens without a base, whose mixed and single streams are not trained. A training that ends "
    "below the base is undone."
)


def _test(over: OverEncoders, name: str, streams: tuple[str, ...], frames: int = FRAMES) -> Test:
    return Test(f"{name}, {frames}", over.split(name, "test"), frames, streams=streams, captions_per_clip=None)


def _records(split: DataSource, need: Need) -> list[Record]:
    assert split.folder is not None
    return read_folder(
        split.folder, split=split.split, metadata=split.metadata, columns=split.columns, need=need
    ).records


def _one_caption(record: Record) -> Record:
    return replace(record, texts=record.texts[:1])


def _pairs(count: int | None) -> str:
    return f"pairs-{count or 'all'}.jsonl"


def _kinds(records: Sequence[Record]) -> list[str]:
    """The most frequent kinds of questions."""
    task = QuestionAnswering()
    counts: dict[str, int] = {}
    for record in records:
        for kind in task.kinds(record):
            counts[kind] = counts.get(kind, 0) + 1
    return sorted(counts, key=lambda kind: -counts[kind])[:_KINDS]
