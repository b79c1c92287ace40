"""One file a task: its examples, its query, its head, its loss, its metric and its submission file.

Retrieval ranks a whole split, pre-training asks two things of each caption; the others are answered example by example
(`ExampleTask`), and are what a recipe's `task` can be. A task is imported when it is asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from perceiver_vl.utils.errors import Setting, UsageError

if TYPE_CHECKING:
    from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
    from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
    from perceiver_vl.tasks.example_task import ExampleTask
    from perceiver_vl.tasks.task import Task

_BY_EXAMPLE = {
    "question-answering": "question_answering.QuestionAnswering",
    "vqa": "question_answering.VQA",
    "counting": "counting.Counting",
    "multiple-choice": "multiple_choice.MultipleChoice",
    "nlvr2": "image_pairs.NLVR2",
    "image-classification": "classification.ImageClassification",
    "captioning": "captioning.Captioning",
}
_CLASSES = {"retrieval": "retrieval.Retrieval", "pre-training": "pretraining.PreTraining", **_BY_EXAMPLE}

TASKS = tuple(_CLASSES)
"""What `evaluate --task` knows."""
EXAMPLE_TASKS = tuple(_BY_EXAMPLE)
"""What a recipe's `task` knows."""


def task_of(name: str) -> "Task[Any]":
    """A task by its name; raises `UsageError` for none of `TASKS`."""
    return cast("Task[Any]", _task(name, TASKS))


def example_task_of(name: str) -> "ExampleTask":
    """A task that is answered example by example; raises `UsageError` for none of `EXAMPLE_TASKS`."""
    return cast("ExampleTask", _task(name, EXAMPLE_TASKS))


def task_for(config: "PerceiverVLConfig") -> str | None:
    """The one of `EXAMPLE_TASKS` that a model of this configuration was trained for, as far as that tells."""
    if config.problem_type == "regression":
        return "counting"
    from perceiver_vl.models.language_bridge import class_for

    kinds = config.architectures or ()
    of_tasks = {name: class_for(example_task_of(name).model_class, config) for name in EXAMPLE_TASKS}
    return next((name for name, kind in of_tasks.items() if kind.__name__ in kinds), None)


def load_for(
    task: str, model_class: type[Any], model_folder: str | Path, *how: Any
) -> "tuple[Any, PerceiverVLProcessor]":
    """What `load_folder` loads for a task, which it calls by its name; an error about a model of another task names
    that one.
    """
    from perceiver_vl.models.loading import OtherKindError, load_folder

    try:
        return load_folder(model_class, task, model_folder, *how)
    except OtherKindError as error:
        if other := task_for(error.config):
            error.args = (*error.args, ", or choose ", Setting("task", other))
        raise


def _task(name: str, known: tuple[str, ...]) -> object:
    if name not in known:
        raise UsageError(f"task={name}: unknown, choose from {', '.join(known)}")
    module, _, of_module = _CLASSES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), of_module)()
