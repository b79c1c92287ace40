"""`evaluate --task` on questions and choices, as typed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run_cli, run_program, world_recipe, write_recipe

from perceiver_vl import PerceiverVLConfig, PerceiverVLForQuestionAnswering, PerceiverVLProcessor
from perceiver_vl.data.shards.reading import ShardedDataset


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yes-or-no questions and actions to choose from, four of each held out."""
    folder = tmp_path_factory.mktemp("tasks") / "world"
    options = "--clips", 12, "--held-out", 4, "--size", 32, "--num-frames", 4
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
        (("--model", answering, "--data", actions, "--task", "nlvr2"), "give a model trained for nlvr2"),
        (("--model", model, "--data", clips, "--task", "multiple-choice"), "no example of it"),
        (("--model", model, "--data", actions, "--submission", tmp_path / "x"), "retrieval has none"),
        (("--model", model, "--data", clips, "--benchmark", "msrvtt9"), "msrvtt9"),
        (
            ("--model", answering, "--data", clips, "--task", "question-answering", "--num-frames", "99"),
            "num_frames=99",
        ),
    ):
        assert said in run_cli("evaluate", *words).error(2)


def test_folders_of_classes_keep_their_labels_in_shards(world: Path, tmp_path: Path) -> None:
    clips = sorted((world / "clips").rglob("*.mp4"))
    for split, name, clip in (("train", "cat", 0), ("train", "dog", 1), ("val", "dog", 2)):
        place = tmp_path / "classes" / split / name
        place.mkdir(parents=True)
        shutil.copy(clips[clip], place / "a.mp4")
    assert run_cli("data", "shard", "folder", tmp_path / "classes", tmp_path / "shards").code == 0
    shards = ShardedDataset(tmp_path / "shards", (16, 16), need="label")
    labels = {shards.record(index).file_name: shards.record(index).label for index in range(len(shards))}
    assert labels == {"train/cat/a.mp4": 0, "train/dog/a.mp4": 1, "val/dog/a.mp4": 1}
    assert shards.classes == ("cat", "dog")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# Pre-training as a task


def test_masked_words_and_matches_are_scored_and_come_out_again(model: Path, world: Path) -> None:
    words = "evaluate", "--model", model, "--data", world, "--task", "pre-training", "--split", "test"
    found, again = (run_cli(*words, "--json", "--batch-size", size).json() for size in (32, 1))
    assert (found["clips"], found["captions"], found["seed"]) == (6, 30, 0)
    assert found["masked_words"] > 10
    assert set(found["metrics"]) == set(found["trivial"]) == {"masked_word_accuracy", "matching_accuracy"}
    assert found["trivial"]["matching_accuracy"] == 50.0
    assert found["metrics"] == again["metrics"]
    assert found["record"]["split"] == "test"
    told = run_cli(*words, "--captions-per-clip", 1, "--seed", 3)
    assert told.code == 0, told.err
    assert "6 captions, 6 clips" in told.out
    assert "seed 3" in told.out
    assert "matching_accuracy" in told.out


def test_a_model_of_another_task_has_no_words_to_say(answering: Path, world: Path) -> None:
    words = "--model", answering, "--data", world, "--task", "pre-training"
    assert "give a model trained for pre-training" in run_cli("evaluate", *words).error(2)


def test_retrieval_in_parts(model: Path, world: Path) -> None:
    words = "evaluate", "--model", model, "--data", world, "--split", "test", "--streams", "multi"
    assert run_cli(*words, "--folds", 2, "--json").json()["folds"] == 2
    told = run_cli(*words, "--folds", 2)
    assert "6 clips in 2 parts" in told.out
    assert "R@1 33.3" in told.out
    assert "folds=4" in run_cli(*words, "--folds", 4).error(2)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("pre-training", ["--submission", "x"]),
        ("pre-training", ["--streams", "multi"]),
        ("vqa", ["--folds", "5"]),
        ("vqa", ["--shortlist", "5"]),
        ("counting", ["--captions-per-clip", "1"]),
        ("retrieval", ["--seed", "1"]),
    ],
)
def test_options_of_another_task_are_refused(task: str, words: list[str], model: Path, world: Path) -> None:
    said = run_cli("evaluate", "--model", model, "--data", world, "--task", task, *words).error(2)
    assert f"{words[0][2:].replace('-', '_')}={words[1]}: " in said
    assert task in said


# What data and models do not fit


def test_answers_that_the_head_does_not_have(answering: Path, questions: Path, tmp_path: Path) -> None:
    data = questions / "yesno"
    others = write_rows(tmp_path / "others.jsonl", [row | {"answer": "a zebra"} for row in rows_of(data)])
    words = "evaluate", "--model", answering, "--data", data, "--task", "question-answering", "--split", "test"
    assert "none of the 1 right answers, as 'a zebra', is among the model's 2" in run_cli(
        *words, "--metadata", others
    ).error(2)
    longer = Path(shutil.copytree(answering, tmp_path / "longer"))
    config = json.loads((longer / "config.json").read_text())
    config |= {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}}
    (longer / "config.json").write_text(json.dumps(config))
    said = run_cli(*words[:2], longer, *words[3:]).error(2)
    assert f"{longer}: weights of other shapes" in said


def test_choices_of_different_counts(model: Path, questions: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_of(questions / "action") if row["split"] == "test"]
    for count, row in zip((2, 3, 4, 5), rows, strict=True):
        right = row["choices"][row["label"]] if "label" in row else row["answer"]
        others = [choice for choice in row["choices"] if choice != right]
        row["choices"], row["label"] = [right, *others[: count - 1]], 0
        row.pop("answer", None)
    table = write_rows(tmp_path / "some.jsonl", rows)
    words = "--data", questions / "action", "--task", "multiple-choice", "--metadata", table
    found = run_cli("evaluate", "--model", model, *words, "--submission", tmp_path / "said.json", "--json").json()
    assert (found["examples"], found["labelled"], found["skipped"]) == (4, 4, [])
    said = {one["id"]: one["pred"] for one in json.loads((tmp_path / "said.json").read_text())}
    assert all(0 <= said[row["id"]] < len(row["choices"]) for row in rows)


def test_questions_about_missing_media(answering: Path, questions: Path, tmp_path: Path) -> None:
    data = questions / "yesno"
    rows = [row for row in rows_of(data) if row["split"] == "test"]
    gone = [row | {"file_name": f"gone/{place}.mp4"} for place, row in enumerate(rows)]
    words = "evaluate", "--model", answering, "--data", data, "--task", "question-answering", "--metadata"
    found = run_cli(*words, write_rows(tmp_path / "one.jsonl", [*rows[:3], gone[3]]), "--json").json()
    assert (found["examples"], [one["file_name"] for one in found["skipped"]]) == (3, ["gone/3.mp4"])
    said = run_cli(*words, write_rows(tmp_path / "all.jsonl", gone)).error(1)
    assert "gone/0.mp4: named in the metadata but not there" in said


@pytest.mark.parametrize("task", ["retrieval", "pre-training", "question-answering"])
def test_an_empty_evaluation_set(task: str, model: Path, answering: Path, questions: Path, tmp_path: Path) -> None:
    table = tmp_path / "empty.csv"
    table.write_text("file_name,text,question,answer\n")
    (tmp_path / "test_qa.json").write_text("[]")
    words = "evaluate", "--model", answering if task == "question-answering" else model, "--task", task, "--data"
    assert "empty.csv: no usable record: it has no rows" in run_cli(
        *words, questions / "yesno", "--metadata", table
    ).error(1)
    said = run_cli(*words, tmp_path, "--benchmark", "msrvtt-qa", "--split", "test").error(1)
    assert "no usable record of msrvtt-qa, the first: test: no rows" in said


def test_training_that_could_not_be_scored(questions: Path, tmp_path: Path) -> None:
    """A metric that the task does not have, and a validation split that does not say what is right."""
    recipe = world_recipe(tmp_path / "run", questions / "yesno") | {"task": "question-answering"}
    del recipe["objectives"]
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    metric = "training.metric_for_best_model=consistency", "training.eval_strategy=epoch"
    said = run_cli("train", path, *metric).error(2)
    assert "metric_for_best_model=consistency: not measured, choose from accuracy" in said
    rows = [{name: row[name] for name in ("file_name", "question", "split")} for row in rows_of(questions / "yesno")]
    silent = write_rows(tmp_path / "silent.jsonl", rows)
    said = run_cli("train", path, f"data.validation.metadata={silent}").error(2)
    assert "does not say what is right" in said
    others = write_rows(tmp_path / "others.jsonl", [row | {"answer": "a zebra"} for row in rows])
    said = run_cli("train", path, f"data.validation.metadata={others}").error(2)
    assert "as 'a zebra', is among the model's 2" in said
    assert not (tmp_path / "run").exists()
