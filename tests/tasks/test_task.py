"""The table of tasks: every name has its class, which is imported when it is asked for."""

import subprocess
import sys

import pytest

from perceiver_vl import UsageError
from perceiver_vl.tasks import EXAMPLE_TASKS, TASKS, example_task_of, task_of
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.tasks.retrieval_result import RetrievalResult


@pytest.mark.parametrize("name", TASKS)
def test_every_name_has_its_task(name: str) -> None:
    task = task_of(name)
    assert task.name == name
    assert isinstance(task, ExampleTask) == (name in EXAMPLE_TASKS)
    if isinstance(task, ExampleTask):
        assert type(example_task_of(name)) is type(task)


@pytest.mark.parametrize("name", ["retrieval", "pre-training", "juggling"])
def test_a_recipe_takes_those_alone_that_are_answered_example_by_example(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^task={name}: unknown, choose from question-answering, vqa, [^\n]+$"):
        example_task_of(name)


def test_an_unknown_task_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UsageError, match=r"^task=juggling: unknown, choose from retrieval, pre-training, [^\n]+$"):
        task_of("juggling")


def test_a_task_without_a_submission_says_so() -> None:
    with pytest.raises(UsageError, match=r"^task=retrieval: has no submission file, its figures are its result$"):
        task_of("retrieval").submission(RetrievalResult(2, 2, 2, "full", 0.0, 0.0, []))


def test_the_names_alone_import_nothing_heavy() -> None:
    code = "import sys; from perceiver_vl.tasks import TASKS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
