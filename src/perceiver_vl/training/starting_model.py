"""The model that a run starts from: fresh, of a folder, over pretrained parts, or a student."""

import re
from pathlib import Path
from typing import Any, Literal

import torch

from perceiver_vl.models.language_bridge import class_for
from perceiver_vl.models.language_bridge.language_model import load_language_model
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLPreTrainedModel,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.question_answering import TextAnswerHead
from perceiver_vl.models.perceiver_vl.warm_start import initialise_from
from perceiver_vl.tasks import example_task_of
from perceiver_vl.training.distillation import (
    LoadedTeacher,
    take_over_text,
)
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.stages import part_of
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import UsageError, within

_OF_FRAMES = "temporal_embeddings"
"""Tables of a row for each frame: where a recipe has more frames, those that a model knows are as they were."""
_OF_ITS_TEACHER = re.compile(r"(^|\.)(text|contrastive)")


def starting_model(
    recipe: Recipe,
    config: PerceiverVLConfig,
    seed: int,
    checkpoint: Path | None = None,
    teacher: LoadedTeacher | None = None,
) -> tuple[PerceiverVLPreTrainedModel, list[str]]:
    """The model at the start of a run, and its parts that `initialise.model` lacks. Of one that is resumed the Trainer
    loads the weights; but pretrained encoders are asked before that, and come from the checkpoint.
    """
    kind: type[PerceiverVLPreTrainedModel] = PerceiverVLForPreTraining
    if recipe.teacher is not None:
        kind = PerceiverVLForRetrieval
    elif recipe.task is not None:
        kind = class_for(example_task_of(recipe.task).model_class, config)
    if config.language_config is not None and recipe.task != "captioning":
        raise UsageError(
            f"initialise.model={recipe.initialise.model}: says captions by a language model and reads no words itself; "
            "name the Perceiver-VL that it was made of"
        )
    torch.manual_seed(seed)
    start = recipe.initialise
    fresh: list[str] = []
    pretrained = config.vision_config, config.text_config, config.language_config
    if checkpoint is not None and any(one is not None for one in pretrained):
        with quiet():
            model: PerceiverVLPreTrainedModel = kind.from_pretrained(checkpoint, config=config)
    elif teacher is not None:
        student = PerceiverVLForRetrieval(config)
        if start.model is not None:
            fresh = _take_vision(student, start.model)
        take_over_text(student, teacher)
        model = student
    elif checkpoint is not None or start.model is None:
        model = kind(config)
    else:
        model, fresh = _model_of(kind, start.model, config, start.latents)
    if checkpoint is None and (start.vision or start.text):
        with within("model"):
            initialise_from(model, vision=start.vision, text=start.text)
    if checkpoint is None and start.language_model is not None:
        part: Any = model.pretrained_parts()["language"]
        part.model = load_language_model(start.language_model)
        fresh = [name for name in fresh if name != "language_model"]
    return model, fresh


def _take_vision(student: PerceiverVLForRetrieval, folder: Path) -> list[str]:
    """Give a student all of a model that fits it, → what does not, of vision; its vectors are those of another."""
    with quiet():
        theirs = PerceiverVLForRetrieval.from_pretrained(folder).state_dict()
    own = {name: weight for name, weight in student.state_dict().items() if not _OF_ITS_TEACHER.search(name)}
    fitting = {name for name, weight in own.items() if name in theirs and theirs[name].shape == weight.shape}
    student.load_state_dict({name: theirs[name] for name in fitting}, strict=False)
    return sorted({name.removeprefix("perceiver_vl.").split(".")[0] for name in own.keys() - fitting})


def _model_of(
    kind: type[PerceiverVLPreTrainedModel],
    folder: Path,
    config: PerceiverVLConfig,
    latents: Literal["fresh", "interpolate"],
) -> tuple[PerceiverVLPreTrainedModel, list[str]]:
    """The model of a folder with the recipe's changes to its configuration, another number of latents, more frames and
    other labels among them, and the names of its parts that are new.
    """
    own = PerceiverVLConfig.from_pretrained(folder)
    kept = ("num_latents", "num_text_latents", "id2label", "label2id", "problem_type")
    of_it = {name: getattr(own, name) for name in kept}
    changed = {name: value for name, value in config.to_dict().items() if name != "num_labels"}
    with quiet():
        model, loading = kind.from_pretrained(
            folder,
            config=PerceiverVLConfig.from_dict(changed | of_it),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    known, longer = None, []
    for name, theirs, ours in loading["mismatched_keys"]:
        if name.endswith(_OF_FRAMES) and theirs[0] < ours[0] and theirs[1:] == ours[1:]:
            known = known or _quietly_loaded(kind, folder)
            with torch.no_grad():
                model.get_parameter(name)[: theirs[0]] = known.get_parameter(name)
            longer.append(name)
        elif part_of(name) not in (
            "heads",
            "base_answers",
            "bridge",
            "language_model",
        ):  # of another task: starts fresh
            raise UsageError(
                f"initialise.model={folder}: does not fit the recipe's model: {name} is {tuple(theirs)}, "
                f"need {tuple(ours)}"
            )
    new = {*loading["missing_keys"], *(one[0] for one in loading["mismatched_keys"])} - {*longer}
    fresh = {name.split(".")[-1 if name.endswith(".length_weight") else 0] for name in new}
    if longer:
        fresh.add(f"frames above {own.max_frames}")
    if config.num_latents != own.num_latents:
        model.resize_latents(config.num_latents, latents)
    model.config.num_text_latents, model.config.problem_type = config.num_text_latents, config.problem_type
    if config.id2label != own.id2label:
        fresh |= _rename_labels(model, config)
    return model, sorted(fresh)


def _quietly_loaded(kind: type[PerceiverVLPreTrainedModel], folder: Path) -> PerceiverVLPreTrainedModel:
    with quiet():
        model: PerceiverVLPreTrainedModel = kind.from_pretrained(folder)
    return model


def _rename_labels(model: PerceiverVLPreTrainedModel, config: PerceiverVLConfig) -> set[str]:
    """Give a model other labels: the last layer of each of its heads starts fresh; → the names of these."""
    model.config.id2label, model.config.label2id = config.id2label, config.label2id
    names = [name for name in ("answer_head", "base_answers") if getattr(model, name, None) is not None]
    for name in names:
        head = getattr(model, name)
        if isinstance(head, TextAnswerHead):  # what it has learned is of any text
            model.config.label_token_ids = config.label_token_ids
            return set()
        head.classifier = type(head.classifier)(head.classifier.in_features, config.num_labels)
        model._init_weights(head.classifier)
    return {f"{name}.classifier" for name in names}
