"""`evaluate --task` on questions and choices, as typed."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import run_cli, run_program

from perceiver_vl import PerceiverVLConfig, PerceiverVLForQuestionAnswering, PerceiverVLProcessor
from perceiver_vl.data.shards import ShardedClips


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yes-or-no questions and actions to choose from, four of each held out."""
    folder = tmp_path_factory.mktemp("tasks") / "world"
    options = "--clips", 12, "--held-out", 4, "--size", 32, "--frames", 4
    assert run_cli("world", folder, "--tasks", "yesno,action", *options).code == 0
    return folder


@pytest.fixture(scope="module")
def answering(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says yes or no, on the trunk of the trained one."""
    folder = tmp_path_factory.mktemp("answers")
    config = PerceiverVLConfig.from_pretrained(model, id2label={0: "yes", 1: "no"})
    PerceiverVLForQuestionAnswering.from_pretrained(model, config=config).save_pretrained(folder)
    PerceiverVLProcessor.from_pretrained(model).save_pretrained(folder)
    return folder


def test_questions_are_scored_and_their_answers_written(answering: Path, questions: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--model", answering, "--data", questions / "yesno", "--task", "question-answering")
    words = (*words, "--split", "test")
    told = run_program(*words, "--submission", tmp_path / "answers.json")
    assert told.code == 0, told.err
    assert "accuracy" in told.out
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert {answer["answer"] for answer in answers} <= {"yes", "no"}
    result = run_cli(*words, "--json").json()
    assert (result["examples"], result["labelled"]) == (len(answers), len(answers)) == (4, 4)
    truth = [json.loads(line) for line in (questions / "yesno" / "metadata.jsonl").read_text().splitlines()]
    of_id = {row["id"]: row["answer"] for row in truth}
    right = sum(of_id[answer["id"]] == answer["answer"] for answer in answers)
    assert result["metrics"]["accuracy"] == pytest.approx(100 * right / 4)
    assert result["record"]["split"] == "test"


def test_a_matching_model_is_scored_on_choices(model: Path, questions: Path) -> None:
    words = "--model", model, "--data", questions / "action", "--task", "multiple-choice", "--split", "validation"
    result = run_cli("evaluate", *words, "--json").json()
    assert result["examples"] == 4
    assert result["metrics"]["accuracy"] in (0.0, 25.0, 50.0, 75.0, 100.0)


def test_a_split_without_answers_gives_a_submission(answering: Path, questions: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (questions / "yesno" / "metadata.jsonl").read_text().splitlines()]
    silent = [{name: row[name] for name in ("file_name", "question", "id", "split")} for row in rows]
    (tmp_path / "silent.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in silent))
    words = ("evaluate", "--model", answering, "--data", questions / "yesno", "--task", "question-answering")
    words = (*words, "--split", "test", "--metadata", tmp_path / "silent.jsonl")
    assert "write the predictions with --submission" in run_cli(*words).error(2)
    assert run_cli(*words, "--submission", tmp_path / "answers.json").code == 0
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 4


def test_what_cannot_be_scored(answering: Path, model: Path, questions: Path, tmp_path: Path) -> None:
    clips, actions = questions / "yesno", questions / "action"
    for words, said in (
        (("--model", model, "--data", clips, "--task", "question-answering"), "question-answering"),
        (("--model", answering, "--data", clips, "--task", "counting"), "task=counting"),
        (("--model", answering, "--data", clips, "--task", "vqa"), "needs those of several annotators"),
        (("--model", answering, "--data", actions, "--task", "pairs"), "give a model trained for pairs"),
        (("--model", model, "--data", clips, "--task", "multiple-choice"), "no example of it"),
        (("--model", model, "--data", actions, "--submission", tmp_path / "x"), "retrieval has none"),
        (("--model", model, "--data", clips, "--benchmark", "msrvtt9"), "msrvtt9"),
        (("--model", answering, "--data", clips, "--task", "question-answering", "--frames", "99"), "num_frames=99"),
    ):
        assert said in run_cli("evaluate", *words).error(2)


def test_folders_of_classes_keep_their_labels_in_shards(world: Path, tmp_path: Path) -> None:
    clips = sorted((world / "clips").iterdir())
    for split, name, clip in (("train", "cat", 0), ("train", "dog", 1), ("val", "dog", 2)):
        place = tmp_path / "classes" / split / name
        place.mkdir(parents=True)
        shutil.copy(clips[clip], place / "a.mp4")
    assert run_cli("data", "shard", "folder", tmp_path / "classes", tmp_path / "shards").code == 0
    shards = ShardedClips(tmp_path / "shards", (16, 16), need="label")
    labels = {shards.record(index).file_name: shards.record(index).label for index in range(len(shards))}
    assert labels == {"train/cat/a.mp4": 0, "train/dog/a.mp4": 1, "val/dog/a.mp4": 1}
    assert shards.classes == ("cat", "dog")
