"""What a run starts from: its clips, its processor and configuration, and its model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from perceiver_vl.data.mixture import (
    Mixture,
    Pool,
    SkipReason,
    any_clip,
    make_pools,
    no_caption,
    no_moment,
    telling_places,
)
from perceiver_vl.data.open import open_dataset, open_moments
from perceiver_vl.data.records import Need, Record, SkippedSample
from perceiver_vl.data.sources import CachedDataset, EncodedDataset, VideoDataset
from perceiver_vl.data.synthetic.moment_clips import MomentClips
from perceiver_vl.data.synthetic.moments import MomentsWorld
from perceiver_vl.data.synthetic.sounds import SoundWorld
from perceiver_vl.data.synthetic.tasks import open_world
from perceiver_vl.data.transcode.features import check_features
from perceiver_vl.data.transcode.prepared import has_features
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.models.folder import check_model_folder
from perceiver_vl.models.language_bridge.language_model import language_fields
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLPreTrainedModel,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.question_answering import label_token_ids
from perceiver_vl.models.perceiver_vl.tokenizer import load_tokenizer, train_tokenizer
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.training.distillation import (
    LoadedTeacher,
    keep_vectors,
    kept_vectors,
    load_teacher,
    look_at,
    student_config,
)
from perceiver_vl.training.encoder_training import encoded, frame_encoder, sees_each_clip_once, tune_encoders
from perceiver_vl.training.recipe import MOMENTS, SOUNDS, Data, DataSource, Recipe
from perceiver_vl.training.stages import check_pretrained_parts
from perceiver_vl.training.starting_model import starting_model
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import Setting, UsageError, within

_OF_A_SOURCE = ("metadata", "columns")
_OBJECTIVES_OF_FRAMES = ("structure", "mpm")
_OF_A_HEAD = ("id2label", "label2id", "num_labels", "problem_type")


@dataclass
class Start:
    """Everything at the beginning of a run.

    source, pools: the training clips, and which of them a batch can be made of. problems: records that were left out.
    fresh: the parts of the model that `initialise.model` does not have, nothing where there is none. tuned: how many
    weights of its pretrained encoders learn, by side. teacher: of a student that is not resumed.
    """

    task: ExampleTask | None
    processor: PerceiverVLProcessor
    config: PerceiverVLConfig
    source: Mixture
    pools: list[Pool]
    validation: VideoDataset | None
    problems: list[SkippedSample]
    model: PerceiverVLPreTrainedModel
    fresh: list[str]
    tuned: dict[str, int]
    teacher: LoadedTeacher | None = None

    def texts(self) -> Iterator[str]:
        """All that a model may read in training and validation."""
        for source in (self.source, *([self.validation] if self.validation is not None else [])):
            for index in range(len(source)):
                yield from _words_of(source.record(index), self.task)


def prepare_start(recipe: Recipe, checkpoint: Path | None, batch: int, seed: int) -> Start:
    """Open the data of a recipe, and make its model, or the one of `checkpoint`, whose weights the Trainer loads.

    batch: clips of a batch, of all processes. Raises `UsageError` for what cannot work; `PerceiverVLError` where more
    records than `data.max_failed_fraction` allows cannot be used.
    """
    task = None if recipe.task is None else example_task_of(recipe.task)
    data = recipe.data
    teacher = None if recipe.teacher is None or checkpoint is not None else load_teacher(recipe.teacher)
    processor, config = processor_and_config(recipe, checkpoint, teacher)
    if recipe.elastic is not None:
        recipe.elastic.check(config, data.num_frames)
    size = processor.image_processor.size["height"], processor.image_processor.size["width"]
    known = _class_names(config, task) if checkpoint else ()
    need = need_of(recipe)
    source, problems = open_training(data, size, task, known, need, config.modalities)
    pools, few = make_pools(source, [split.weight for split in data.train], batch, lacks_of(recipe))
    problems += few
    _check_modalities(recipe, config, {pool.kind for pool in pools} - {"videos", "images"})
    if task is not None and checkpoint is None:
        config = _with_head(config, task, source, pools, processor.tokenizer)
    validation = None
    if data.validation is not None:
        with within("data.validation", *_OF_A_SOURCE):
            validation, more = open_split(
                data.validation, size, data, task, _class_names(config, task), need, config.modalities
            )
        problems += more
        if task is not None:
            labelled, _ = task.usable_examples(validation, labelled=True)
            task.check_head(config, [validation.record(index) for index in labelled])
    model, fresh = starting_model(recipe, config, seed, checkpoint, teacher)
    tuned = tune_encoders(model, recipe.encoders)
    check_pretrained_parts(model, recipe.stages)
    if task is None:
        recipe.objectives.check_model(model)
    for split in data.sources:
        if split.folder is not None:
            encoder = model.base_model.vision_encoder
            changing = data.augmentation != Augmentation() or (encoder is not None and encoder.trainable)
            if has_features(split.folder) and changing:
                raise UsageError(
                    f"data: {split.folder}: features of frozen frames, which no augmentation and no tuning of the "
                    "encoder can change; leave those out, or name the media"
                )
            check_features(split.folder, model, processor, split.num_frames or data.num_frames)
    for split in data.train if data.stretch is not None else ():
        if split.shards is not None:
            raise UsageError(f"data: shards={split.shards}: hold clips, moments are learned from videos in a folder")
    if sees_each_clip_once(recipe, model):
        encode = frame_encoder(model, processor)
        source.sources = [encoded(one, encode) for one in source.sources]
        validation = validation and encoded(validation, encode)
    return Start(task, processor, config, source, pools, validation, problems, model, fresh, tuned, teacher)


def teacher_vectors(recipe: Recipe, start: Start, progress: bool) -> dict[str, Tensor]:
    """What the teacher of a recipe makes of its clips, unit vectors `(C,E)` of `train` and `validation`.

    A run that goes on finds them in its folder.
    """
    assert recipe.teacher is not None
    if start.teacher is None:
        known = kept_vectors(recipe.output)
        if len(known.get("train", ())) == len(start.source):
            return known
    teacher = start.teacher or load_teacher(recipe.teacher)
    data = replace(recipe.data, cache=False, augmentation=Augmentation())  # clips as they are, once
    size = teacher.processor.image_processor.size["height"], teacher.processor.image_processor.size["width"]
    sources: dict[str, VideoDataset] = {"train": open_training(data, size, need=None)[0]}
    if data.validation is not None:
        sources["validation"] = open_split(data.validation, size, data, need=None)[0]
    found = {
        name: look_at(teacher, source, recipe, f"What {teacher.name} says, {name}", progress)
        for name, source in sources.items()
    }
    if ProcessGroup(shared=True).rank == 0:
        keep_vectors(recipe.output, found)
    return found


def open_split(
    split: DataSource,
    size: tuple[int, int],
    data: Data,
    task: ExampleTask | None = None,
    classes: Sequence[str] = (),
    need: Need | None = "text",
    modalities: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[VideoDataset, list[SkippedSample]]:
    """The clips of one split of a recipe, at `size` (height, width), and the records that had to be left out.

    classes, modalities: of the model, classes in their order. need: what every record must have, as of `need_of`.
    Raises `PerceiverVLError` where more records than `data.max_failed_fraction` allows cannot be used.
    """
    source: VideoDataset
    problems: list[SkippedSample] = []
    if split.world is not None and split.world.task == MOMENTS:
        world = split.world
        source = MomentClips(MomentsWorld(split.split or "train", world.clips, world.seed, world.seconds, world.size))
    elif split.world is not None and split.world.task == SOUNDS:
        source = SoundWorld(split.split or "train", split.world.clips, split.world.seed)
    elif split.moments is not None:
        assert split.folder is not None
        source, problems = open_moments(
            split.folder, split.moments, size, strict=data.strict, max_failed_fraction=data.max_failed_fraction
        )
    elif split.world is not None:
        world = split.world
        part = split.split or "train"
        given = world.task, part, world.clips, world.seed, data.num_frames, world.size, world.seconds
        source = open_world(*given, questions_per_clip=world.questions_per_clip, fewest_things=world.fewest_things)
    else:
        where = split.shards if split.folder is None else split.folder
        assert where is not None
        source, problems = open_dataset(
            where,
            size,
            benchmark=split.benchmark,
            split=split.split,
            metadata=split.metadata,
            columns=split.columns,
            need=need if task is None else task.need,
            classes=classes,
            strict=data.strict,
            max_failed_fraction=data.max_failed_fraction,
            modalities=modalities,
        )
    found = classes_of(source)
    if classes and found and found != tuple(classes):
        raise UsageError(
            f"data: {split.folder or split.shards}: has other classes than those trained on, or in another order"
        )
    return CachedDataset(source) if data.cache else source, problems


def open_training(
    data: Data,
    size: tuple[int, int],
    task: ExampleTask | None = None,
    classes: Sequence[str] = (),
    need: Need | None = "text",
    modalities: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Mixture, list[SkippedSample]]:
    """The clips that a recipe trains on, decoded for frames of `size`, and the records that had to be left out.

    Labels that are names of classes are numbered alike in all sources: as in `classes`, or as in the first source.
    """
    sources: list[VideoDataset] = []
    problems: list[SkippedSample] = []
    for split in data.train:
        known = classes or (classes_of(sources[0]) if sources else ())
        with within("data.train" if len(data.train) == 1 else f"data.train.{len(sources)}", *_OF_A_SOURCE):
            decoded = data.augmentation.decoding_size(size)
            source, left = open_split(split, decoded, data, task, known, need, modalities)
        sources.append(source)
        problems += left
    return Mixture(sources, [split.num_frames for split in data.train]), problems


def lacks_of(recipe: Recipe) -> SkipReason:
    """What a record lacks to be trained on."""
    if recipe.teacher is not None:
        return any_clip
    if recipe.task is None:
        return no_moment if recipe.objectives.needs_stretches else no_caption
    task = example_task_of(recipe.task)
    return lambda record: task.missing(record) or (None if task.is_labelled(record) else "does not say what is right")


def classes_of(source: VideoDataset) -> tuple[str, ...]:
    """The names that the labels of a source are indices of; nothing where they are numbers."""
    bare = source.source if isinstance(source, CachedDataset | EncodedDataset) else source
    return tuple(getattr(bare, "classes", ()))


def need_of(recipe: Recipe) -> Need | None:
    """What every record of a recipe must have; of other tasks the records themselves tell."""
    if recipe.teacher is not None:
        return None
    return _need_of(None if recipe.task is None else example_task_of(recipe.task))


def _need_of(task: ExampleTask | None) -> Need | None:
    """The same without a teacher."""
    return "text" if task is None else task.need


def _class_names(config: PerceiverVLConfig, task: ExampleTask | None) -> tuple[str, ...]:
    """The names of the classes that a model tells apart, where it has been told names."""
    names = tuple(config.id2label[label] for label in sorted(config.id2label))
    return names if _need_of(task) == "label" and names[0] != "0" else ()


def _with_head(
    config: PerceiverVLConfig, task: ExampleTask, source: Mixture, pools: Sequence[Pool], tokenizer: Any
) -> PerceiverVLConfig:
    """The configuration with the head that the training clips ask for."""
    head = task.head(source.record(place) for pool in pools for place in telling_places(source, pool.clips).tolist())
    names = classes_of(source.sources[0])
    if names and _need_of(task) == "label":
        head |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    without = {name: value for name, value in config.to_dict().items() if name not in _OF_A_HEAD}
    found = PerceiverVLConfig.from_dict(without | head | task.words(tokenizer))
    if found.answers_as_text:
        labels = [found.id2label[label] for label in sorted(found.id2label)]
        found.label_token_ids = label_token_ids(labels, tokenizer, found.max_text_length)
    return found


def processor_and_config(
    recipe: Recipe, checkpoint: Path | None, teacher: LoadedTeacher | None = None
) -> tuple[PerceiverVLProcessor, PerceiverVLConfig]:
    """The processor and configuration of a run: of the checkpoint, of the model it starts from, or new ones; of a
    student the words are its teacher's.
    """
    if teacher is not None:
        return _of_student(recipe, teacher)
    start, asked = checkpoint or recipe.initialise.model, _fields_asked(recipe)
    if start is not None:
        folder = check_model_folder(start)
        config = PerceiverVLConfig.from_pretrained(folder)
        if checkpoint is None:
            text = config.text_latents_of(asked.get("num_latents", config.num_latents))
            tokenizer, of_language = _of_language_model(recipe, config.max_text_length)
            changes = {"num_text_latents": text} | of_language | asked
            config = PerceiverVLConfig.from_dict(config.to_dict() | changes)
        for name, value in asked.items():
            if value is not None and getattr(config, name, None) != value:
                raise UsageError(
                    f"model.{name}={value}: {folder} has {getattr(config, name, 'no such key')}, resume with that"
                )
        with quiet():
            processor = PerceiverVLProcessor.from_pretrained(folder)
        processor.modalities, processor.image_processor.num_frames = dict(config.modalities), recipe.data.num_frames
        if checkpoint is None and tokenizer is not None:
            processor.tokenizer = tokenizer
    else:
        for name in ("vocab_size", "mask_token_id", "pad_token_id"):
            if name in recipe.model:
                raise UsageError(
                    f"model.{name}={recipe.model[name]}: comes from the tokenizer, see tokenizer in the recipe"
                )
        longest = recipe.model.get("max_text_length", PerceiverVLConfig.max_text_length)
        tokenizer, words = _of_language_model(recipe, longest)
        if tokenizer is None:
            tokenizer = _tokenizer(recipe, longest)
            words = {
                "vocab_size": len(tokenizer),
                "mask_token_id": tokenizer.mask_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
        config = PerceiverVLConfig(**(words | asked))
        size = {"height": config.image_size, "width": config.image_size}
        processor = PerceiverVLProcessor(
            PerceiverVLImageProcessor(size=size, num_frames=recipe.data.num_frames), tokenizer, config.modalities
        )
    _check_frames(recipe, config)
    return processor, config


def _fields_asked(recipe: Recipe) -> dict[str, Any]:
    """Fields of the model's configuration: those that the recipe says, and what its objectives need of it."""
    if recipe.task is not None or not recipe.objectives.weights["mpm"]:
        return recipe.model
    if recipe.model.get("masked_patches") is False:
        raise UsageError(
            f"model.masked_patches=false: objectives.mpm={recipe.objectives.weights['mpm']:g} asks for masked patches, "
            "leave one of them out"
        )
    return recipe.model | {"masked_patches": True}


def _of_language_model(recipe: Recipe, longest: int) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of the language model that a recipe names, and what of the configuration it says; else None."""
    name = recipe.initialise.language_model
    if name is None:
        return None, {}
    tokenizer, fields = language_fields(name, recipe.model.get("max_text_length", longest))
    return tokenizer, {"caption_prefix": "latents"} | fields  # whatever words of its own the Perceiver-VL attended with


def _of_student(recipe: Recipe, teacher: LoadedTeacher) -> tuple[PerceiverVLProcessor, PerceiverVLConfig]:
    own: dict[str, Any] = {}
    if recipe.initialise.model is not None:
        folder = check_model_folder(recipe.initialise.model)
        own = PerceiverVLConfig.from_pretrained(folder).to_dict() | {"num_text_latents": None}
        with quiet():
            images = PerceiverVLImageProcessor.from_pretrained(folder)
        images.num_frames = recipe.data.num_frames
    config = student_config(teacher, own, recipe.model)
    if recipe.initialise.model is None:
        size = {"height": config.image_size, "width": config.image_size}
        images = PerceiverVLImageProcessor(size=size, num_frames=recipe.data.num_frames)
    _check_frames(recipe, config)
    return PerceiverVLProcessor(images, teacher.processor.tokenizer), config


def _check_frames(recipe: Recipe, config: PerceiverVLConfig) -> None:
    if recipe.data.num_frames > config.max_frames:
        raise UsageError(
            f"data.num_frames={recipe.data.num_frames}: more than model.max_frames={config.max_frames}, "
            "the rows of the temporal table"
        )


def _check_modalities(recipe: Recipe, config: PerceiverVLConfig, kinds: set[str]) -> None:
    """Refuse data that are neither pictures nor videos, where what is asked of them is of frames."""
    for kind in sorted(kinds):
        if kind not in config.modalities:
            raise UsageError(
                f"data: files of {kind}, which the model does not take; name its settings, as in ",
                Setting(f"model.modalities.{kind}", "{}", in_recipe=True),
            )
        of_frames = {
            f"task={recipe.task}": recipe.task is not None,
            "teacher": recipe.teacher is not None,
            "data.augmentation": recipe.data.augmentation != Augmentation(),
            "elastic.frames": recipe.elastic is not None and recipe.elastic.frames is not None,
            **{f"objectives.{name}": name in recipe.objectives.asked for name in _OBJECTIVES_OF_FRAMES},
        }
        for name, is_asked in of_frames.items():
            if is_asked:
                raise UsageError(f"{name}: of frames, which {kind} has none of; leave it out")


def _tokenizer(recipe: Recipe, longest: int) -> Any:
    """The tokenizer by name, or of the text model that the run starts from, or one trained on the clips' words."""
    name = recipe.tokenizer.name or recipe.initialise.text
    if name is None:
        task = None if recipe.task is None else example_task_of(recipe.task)
        source, _ = open_training(recipe.data, (1, 1), task)
        records = map(source.record, telling_places(source, np.arange(len(source))).tolist())
        words = [text for record in records for text in _words_of(record, task)]
        if not words and _need_of(task) == "label":  # a model of classes reads none, but is saved with a tokenizer
            words = [*classes_of(source.sources[0])] or ["a picture"]
        return train_tokenizer(words, vocab_size=recipe.tokenizer.vocab_size, max_length=longest)
    tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = longest
    return tokenizer


def _words_of(record: Record, task: ExampleTask | None) -> tuple[str, ...]:
    """What a model may read of a record; of classes, which no model reads, their names."""
    asked = () if task is None else (record.question or "", *record.choices, *record.answers)
    return *record.texts, *filter(None, asked)
