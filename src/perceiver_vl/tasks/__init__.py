"""One file a task: its examples, its query, its head, its loss, its metric and its submission file.

`TASKS` has those that are answered example by example; retrieval, which ranks a whole split, and pre-training, which
asks two things of each caption, go their own way.
"""

from perceiver_vl.tasks.classification import CLASSIFICATION
from perceiver_vl.tasks.counting import COUNTING
from perceiver_vl.tasks.image_pairs import PAIRS
from perceiver_vl.tasks.multiple_choice import MULTIPLE_CHOICE
from perceiver_vl.tasks.question_answering import QUESTION_ANSWERING, VQA
from perceiver_vl.tasks.task import Task
from perceiver_vl.utils.errors import UsageError

TASKS = {task.name: task for task in (VQA, QUESTION_ANSWERING, COUNTING, MULTIPLE_CHOICE, PAIRS, CLASSIFICATION)}
"""By the names that recipes and `evaluate --task` know."""


def task_of(name: str) -> Task:
    """A task by its name; raises `UsageError` for another."""
    if name not in TASKS:
        raise UsageError(f"task={name}: unknown, choose from {', '.join(TASKS)}")
    return TASKS[name]
