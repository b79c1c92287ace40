"""Training on tasks: from a recipe, from other models, in stages and processes; resumes, dry runs, our recipes."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from perceiver_vl import PerceiverVLError, PerceiverVLProcessor, UsageError
from perceiver_vl.cli import main
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.synthetic.tasks import open_world
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.models.perceiver_vl.flops import encoder_flops
from perceiver_vl.tasks import EXAMPLE_TASKS, example_task_of
from perceiver_vl.training import TrainingResult, train
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.recipe import Recipe, read_recipe
from perceiver_vl.training.stages import part_of
from perceiver_vl.utils.launch import beside_others
from small_runs import log_of, training_log_of
from tiny import tiny_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WORLD_OF = {
    "question-answering": "frame",
    "vqa": "image",
    "counting": "count",
    "multiple-choice": "action",
    "nlvr2": "pairs",
    "captioning": "captions",
}
SMALL = ["model.hidden_size=16", "model.num_latents=4", "model.image_size=16", "model.patch_size=8"]
SHORT = ["training.max_steps=2", "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
HERE = ["training.use_cpu=true", "training.report_to=none", "training.save_strategy=no"]


def recipe_of(output: Path, task: str, **changes: Any) -> Recipe:
    """Six steps of four examples of a task of the world, or of `data`."""
    stages = changes.pop("stages", None)
    world = {"task": WORLD_OF.get(task, "frame"), "size": 16}
    data = {
        "train": {"world": {**world, "clips": 24}},
        "validation": {"split": "validation", "world": {**world, "clips": 10}},
    }
    changes["data"] = data | changes.get("data", {})
    values = tiny_recipe(output, **changes) | {"task": task}
    del values["objectives"]
    if stages:
        values["stages"] = stages
        del values["training"]["max_steps"]
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    return read_recipe(file)


def run(output: Path, task: str, resume: bool = False, **changes: Any) -> TrainingResult:
    return train(recipe_of(output, task, **changes), resume=resume, progress=False)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0.0, atol=tolerance)


def class_folders(folder: Path, classes: dict[str, int]) -> dict[str, Any]:
    """Pictures in a folder for each class, below folders of two splits; the last class is in training alone."""
    for number, (name, count) in enumerate(classes.items()):
        for split in ("train", "validation") if number < len(classes) - 1 else ("train",):
            (folder / split / name).mkdir(parents=True)
            for one in range(count):
                pixels = np.full((16, 16, 3), 5 * one, np.uint8)
                pixels[..., number] = 250 - one
                Image.fromarray(pixels).save(folder / split / name / f"{one}.png")
    return {name: {"folder": str(folder), "split": name} for name in ("train", "validation")}


# --- Every task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", EXAMPLE_TASKS)
def test_every_task_is_trained_validated_and_saved(task: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    data = {}
    if task == "image-classification":
        data = class_folders(tmp_path / "pictures", {"wren": 5, "owl": 4, "auk": 3})
    how = {"eval_strategy": "steps", "eval_steps": 3, "warmup_steps": 2}
    result = run(output, task, data=data, training=how)
    assert (result.steps, result.skipped, result.retrieval, result.fresh) == (6, [], None, [])
    assert result.task is not None
    assert result.task.labelled == result.task.examples == (9 if data else 10)

    recipe = read_recipe(output / "recipe.yaml")
    assert recipe == recipe_of(output, task, data=data, training=how)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["task"] == json.loads(json.dumps(result.task.to_dict()))
    measured = [line for line in log_of(output) if f"eval_{example_task_of(task).metrics[0]}" in line]
    assert [line["step"] for line in measured] == [3, 6]
    for name, value in result.task.metrics.items():
        assert measured[-1][f"eval_{name}"] == pytest.approx(value)
    losses = [line["loss"] for line in training_log_of(output)]
    assert len(losses) == 6
    assert all(loss > 0 for loss in losses)

    model = example_task_of(task).model_class.from_pretrained(output)
    processor = PerceiverVLProcessor.from_pretrained(output)
    assert len(processor.tokenizer) == model.config.vocab_size
    if data:
        assert model.config.id2label == {0: "auk", 1: "owl", 2: "wren"}
    card = ModelCard.load(output / "README.md")
    assert f"| task | {task} |" in card.text
    for name, value in result.task.metrics.items():
        assert f"| {name} | {value:.2f} |" in card.text
    assert {figure.metric_type for figure in card.data.eval_results} == set(result.task.metrics)
    assert str(tmp_path) not in (output / "README.md").read_text()


def test_a_small_model_learns_a_task(tmp_path: Path) -> None:
    """Which class a plain picture is of (the last is not asked for); chance is a third."""
    data = class_folders(tmp_path / "pictures", {"wren": 12, "owl": 12, "auk": 12})
    how = {"max_steps": 40, "learning_rate": 0.005, "per_device_train_batch_size": 12, "save_strategy": "no"}
    result = run(tmp_path / "run", "image-classification", data=data, training=how)
    assert result.task is not None
    assert result.task.metric("top1") >= 90.0


def test_the_best_model_is_the_one_with_the_least_error(tmp_path: Path) -> None:
    """Counting, whose metric is an error: unless told otherwise the best is the least."""
    how = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 8}
    wild = {"learning_rate": 0.2, "lr_scheduler_type": "constant"}
    result = run(tmp_path / "run", "counting", training=how | wild)
    log = log_of(tmp_path / "run")
    errors = {line["step"]: line["eval_mean_squared_error"] for line in log if "eval_accuracy" in line}
    assert sorted(errors) == [2, 4, 6, 8]
    assert len(set(errors.values())) > 1
    best = min(step for step in errors if errors[step] == min(errors.values()))
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}"))
    assert result.task is not None
    assert result.task.metric("mean_squared_error") == pytest.approx(errors[best])


# --- The same run again ---------------------------------------------------------------------------------------------


def test_a_mixture_of_pairs_is_resumed_bit_for_bit_with_any_number_of_workers(tmp_path: Path) -> None:
    """Files, shards of them and the world; the second pictures come from wherever the first do."""
    write_world(tmp_path / "files", clips=16, size=16, held_out=2, tasks=("pairs",))
    write_shards(read_folder(tmp_path / "files", need=None), tmp_path / "shards", samples_per_shard=7, workers=1)
    sources = [
        {"folder": str(tmp_path / "files"), "split": "train", "weight": 1},
        {"shards": str(tmp_path / "shards"), "split": "train", "weight": 1},
        {"world": {"task": "pairs", "clips": 8, "size": 16}, "weight": 1},
    ]
    augmentation = {"crop": 0.5, "flip": True, "randaugment": [1, 9]}
    data = {"train": sources, "bucket": 2, "augmentation": augmentation, "sampling": "random"}
    data["validation"] = {"shards": str(tmp_path / "shards"), "split": "validation"}
    model = {"layer_drop": 0.5, "hidden_dropout_prob": 0.1}
    changes: dict[str, Any] = {"data": data, "model": model}
    how = {"max_steps": 10, "save_steps": 3, "learning_rate": 0.01}
    output = tmp_path / "run"
    first = run(output, "nlvr2", training=how, **changes)
    assert first.skipped == []
    whole, log = weights(output), [line["loss"] for line in training_log_of(output)]
    for path in (output / "checkpoints").iterdir():
        if path.name != "checkpoint-6":  # an epoch is eight batches
            shutil.rmtree(path)
    again = run(output, "nlvr2", resume=True, training={**how, "dataloader_num_workers": 1}, **changes)
    assert_equal(weights(output), whole)
    assert [line["loss"] for line in training_log_of(output)] == log
    assert again.task is not None
    assert first.task is not None
    assert again.task.metrics == first.task.metrics


def test_accumulated_batches_and_two_processes_train_as_one_large_batch(tmp_path: Path) -> None:
    how = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3, "learning_rate": 0.1}
    found = {}
    for name, more in (
        ("one", {"per_device_train_batch_size": 8}),
        ("accumulated", {"gradient_accumulation_steps": 2}),
        ("two", {}),
    ):
        recipe = recipe_of(tmp_path / name, "multiple-choice", model={"layer_drop": 0.5}, training=how | more)
        with beside_others(2 if name == "two" else 1, ["train", str(tmp_path / f"{name}.yaml")]):
            result = train(recipe, progress=False)
        found[name] = weights(tmp_path / name)
        assert result.task is not None
        assert result.task.examples == 10
    assert_equal(found["one"], found["accumulated"], tolerance=1e-6)
    assert_equal(found["one"], found["two"], tolerance=1e-6)


def test_captions_in_small_batches_train_as_in_one_large(tmp_path: Path) -> None:
    """However long they are: the loss of each is its own."""
    how = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3, "learning_rate": 0.1}
    for number, more in enumerate(({"per_device_train_batch_size": 8}, {"gradient_accumulation_steps": 2})):
        run(tmp_path / str(number), "captioning", training=how | more, model={"layer_drop": 0.5})
    assert_equal(weights(tmp_path / "0"), weights(tmp_path / "1"), tolerance=1e-6)


def test_answers_in_words_are_learned_from_questions_and_from_the_frames_themselves(tmp_path: Path) -> None:
    """A run that is stopped goes on as it would have; what it starts from is kept, but for what says words."""
    pretraining = tiny_recipe(tmp_path / "first", training={"max_steps": 1})
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(pretraining))
    train(read_recipe(tmp_path / "first.yaml"), progress=False)
    world = {"task": "frame", "size": 16}
    data = {"train": [{"world": {**world, "clips": 24}}, {"world": {"clips": 24, "size": 16}}]}
    data |= {"validation": {"split": "validation", "world": {**world, "clips": 10}}}  # type: ignore[dict-item]
    changes: dict[str, Any] = {"data": data, "model": {"caption_prefix": "frames", "caption_cross_attentions": 2}}
    start = {"model": str(tmp_path / "first")}
    result = run(tmp_path / "run", "captioning", initialise=start, **changes)
    assert result.fresh == ["caption_decoder", "caption_words"]
    assert result.task is not None
    assert "colour" not in result.task.metrics
    whole = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-6")
    run(tmp_path / "run", "captioning", resume=True, initialise=start, **changes)
    assert_equal(weights(tmp_path / "run"), whole)


# --- Starting from another model, and in stages -----------------------------------------------------------------------


def test_a_task_starts_from_a_pre_trained_model_and_says_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretraining = tiny_recipe(tmp_path / "first", training={"max_steps": 1})
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(pretraining))
    train(read_recipe(tmp_path / "first.yaml"), progress=False)
    still = {"max_steps": 1, "learning_rate": 0.0}
    start = {"model": str(tmp_path / "first")}

    recipe = recipe_of(
        tmp_path / "second", "question-answering", initialise=start, training=still, model={"layer_drop": 0}
    )
    result = train(recipe, progress=True)
    assert result.fresh == ["answer_head", "answer_head.classifier", "answer_query"]
    assert f"{tmp_path / 'first'} has no answer_head, " in capsys.readouterr().err
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    kept = [name for name in after if name.startswith(("perceiver_vl.", "decoder."))]
    assert len(kept) > 20
    assert all(torch.equal(before[name], after[name]) for name in kept)
    answers = json.loads((tmp_path / "second" / "config.json").read_text())["id2label"]
    assert len(answers) == len(after["answer_head.classifier.bias"]) > 2

    chosen = run(tmp_path / "third", "multiple-choice", initialise=start, training=still)
    assert chosen.fresh == []
    assert torch.equal(weights(tmp_path / "third")["vtm_head.dense.weight"], before["vtm_head.dense.weight"])

    same = run(tmp_path / "same", "question-answering", initialise={"model": str(tmp_path / "second")}, training=still)
    assert same.fresh == []
    assert_equal(weights(tmp_path / "same"), after)
    other = {"train": {"world": {"task": "yesno", "clips": 24, "size": 16}}, "validation": None}
    start = {"model": str(tmp_path / "second")}
    moved = run(tmp_path / "other", "question-answering", initialise=start, training=still, data=other)
    assert moved.fresh == ["answer_head.classifier"]
    found = weights(tmp_path / "other")
    assert found["answer_head.classifier.weight"].shape[0] == 2
    assert all(torch.equal(found[name], after[name]) for name in after if "classifier" not in name)

    paired = run(tmp_path / "paired", "nlvr2", initialise=start, training=still)  # another head by the same name
    assert {"answer_head", "answer_queries"} <= set(paired.fresh)
    found = weights(tmp_path / "paired")
    assert all(torch.equal(found[name], after[name]) for name in kept)


def test_only_the_named_parts_of_a_task_learn_in_a_stage(tmp_path: Path) -> None:
    stages = [{"steps": 1, "learning_rate": 0.0}, {"steps": 2, "train": ["decoder"]}, {"steps": 2, "train": ["heads"]}]
    run(tmp_path / "run", "nlvr2", stages=stages, training={"save_steps": 1})
    states = [weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{step}") for step in (1, 3, 5)]
    moved = [
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(states)
    ]
    assert {part_of(name) for name in moved[0]} == {"decoder"}
    assert {"answer_queries.0.query", "answer_queries.1.query"} <= moved[0]
    assert {name.split(".")[0] for name in moved[1]} == {"answer_head"}


# --- Broken files, and what cannot work -------------------------------------------------------------------------------


def test_broken_files_of_a_task_are_passed_over_listed_and_counted(tmp_path: Path) -> None:
    world = tmp_path / "world"
    write_world(world, clips=34, size=16, num_frames=2, held_out=1, tasks=("yesno",))
    lines = [json.loads(line) for line in (world / "metadata.jsonl").read_text().splitlines()]
    names = [line["file_name"] for line in lines if line["split"] == "train"]
    (world / names[3]).write_bytes(b"no video")
    data = {name: {"folder": str(world), "split": name} for name in ("train", "validation")}
    result = run(tmp_path / "run", "question-answering", data=data, training={"max_steps": 9})
    assert [problem.file_name for problem in result.skipped] == [names[3]]
    listed = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in listed] == [names[3]]
    with pytest.raises(PerceiverVLError, match=r"^[^\n]*not a media file[^\n]*$"):
        run(tmp_path / "strict", "question-answering", data=data | {"strict": True}, training={"max_steps": 9})
    for name in names[:24]:
        (world / name).write_bytes(b"no video")
    with pytest.raises(PerceiverVLError, match=r"^\d+ of \d+ clips cannot be read[^\n]+max_failed_fraction=0.1[^\n]+$"):
        run(tmp_path / "many", "question-answering", data=data)


@pytest.mark.parametrize(
    ("task", "changes", "named"),
    [
        ("guessing", {}, "task=guessing"),
        ("nlvr2", {"data": {"train": {"world": {"task": "frame", "clips": 24, "size": 16}}}}, "no second picture"),
        ("vqa", {"data": {"train": {"world": {"task": "frame", "clips": 24, "size": 16}}}}, "several annotators"),
        (
            "counting",
            {"training": {"metric_for_best_model": "r1", "eval_strategy": "steps"}},
            "metric_for_best_model=r1",
        ),
        ("counting", {"evaluation": {"shortlist": 5}}, "evaluation: task=counting"),
        ("counting", {"data": {"validation": {"split": "test", "world": {"task": "pairs", "clips": 4}}}}, "counting"),
        ("counting", {"data": {"train": {"world": {"task": "length"}}}}, "world.task=length"),
        ("counting", {"data": {"train": {"world": {"task": "count", "seconds": 9}}}}, "world.seconds=9"),
        ("counting", {"training": {"per_device_train_batch_size": 30}}, "a batch of 30"),
        (
            "counting",
            {"stages": [{"steps": 2, "train": ["decoder"]}], "model": {"answers_from": "mean_latents"}},
            "decoder",
        ),
        ("counting", {"initialise": {"model": "nowhere"}}, "nowhere"),
    ],
)
def test_a_task_that_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, task: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        run(tmp_path / "run", task, **changes)
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_objectives_are_not_those_of_a_task(tmp_path: Path) -> None:
    recipe_of(tmp_path / "run", "nlvr2")
    with pytest.raises(UsageError, match=r"^[^\n]*objectives: those of pre-training[^\n]+$"):
        read_recipe(tmp_path / "run.yaml", ["objectives.vtc=1"])


# --- Dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_the_run_will_be_and_writes_nothing(tmp_path: Path) -> None:
    epochs = {"max_steps": -1, "num_train_epochs": 2.5, "gradient_accumulation_steps": 4}
    model = {"num_blocks": 2, "layer_drop": 0.5}
    recipe = recipe_of(tmp_path / "run", "question-answering", training=epochs, model=model)
    found = dry_run(recipe)
    assert not (tmp_path / "run").exists()
    result = train(recipe, progress=False)
    trained = example_task_of("question-answering").model_class.from_pretrained(tmp_path / "run")
    assert (found.model, found.task) == ("PerceiverVLForQuestionAnswering", "question-answering")
    assert sum(found.parameters.values()) == trained.num_parameters()
    assert (found.steps, found.batch, found.examples_per_step) == (result.steps, 4, 16)
    assert [(part.clips, part.usable) for part in found.data] == [(24, 24), (10, 10)]
    assert found.memory["weights"] == 16 * trained.num_parameters()
    least, most = (encoder_flops(trained.config, 2, words) for words in (4, 24))
    assert least < found.flops_per_example < 2 * most
    assert found.memory["activations"] > 0
    twice = dry_run(
        recipe_of(
            tmp_path / "run",
            "question-answering",
            training=epochs | {"per_device_train_batch_size": 8},
            model=model,
        )
    )
    assert twice.memory["activations"] == pytest.approx(2 * found.memory["activations"], rel=0.2)


def test_a_dry_run_of_pre_training_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", objectives={"vtc": 1})))
    for extra in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["perceiver-vl", "train", str(tmp_path / "recipe.yaml"), "--dry-run", *extra])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert "PerceiverVLForPreTraining" in said
        assert not (tmp_path / "run").exists()
    values = json.loads(said)
    assert values["steps"] == 6
    assert values["data"] == [{"split": "train: world", "clips": 24, "usable": 24}]


# --- The recipes of the project ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["world_questions", "world_actions", "world_pairs", "world_captions"])
def test_the_small_recipes_of_tasks_train(name: str, tmp_path: Path) -> None:
    sources = len(read_recipe(RECIPES / f"{name}.yaml").data.train)
    of_each = [f"data.train.{number}" for number in range(sources)] if sources > 1 else ["data.train"]
    data = [f"{one}.world.clips=40" for one in of_each]
    data += ["data.validation.world.clips=6", f"output={tmp_path / 'run'}"]
    some = [*SHORT, *HERE, "training.eval_strategy=no", "training.load_best_model_at_end=false"]
    recipe = read_recipe(RECIPES / f"{name}.yaml", [*data, *SMALL, *some])
    result = train(recipe, progress=False)
    assert result.task is not None
    assert (result.steps, result.task.task, result.task.examples) == (2, recipe.task, 6)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data in the layouts of the benchmarks, and a pre-trained model to start from."""
    folder = tmp_path_factory.mktemp("benchmarks")
    tasks = ("captions", "frame", "image", "pairs")
    write_world(folder, clips=40, size=16, num_frames=2, held_out=4, tasks=tasks, layout="official")
    write_world(folder / "clips", clips=24, size=16, num_frames=2, held_out=4)
    values = tiny_recipe(folder / "model", model={"max_frames": 16}, training={"max_steps": 1})
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    train(read_recipe(folder / "model.yaml"), progress=False)
    return folder


@pytest.mark.parametrize(
    ("name", "folder", "model"),
    [
        ("msrvtt", "captions", "PerceiverVLForPreTraining"),
        ("lsmdc", None, "PerceiverVLForPreTraining"),
        ("didemo", None, "PerceiverVLForPreTraining"),
        ("activitynet", None, "PerceiverVLForPreTraining"),
        ("flickr30k", None, "PerceiverVLForPreTraining"),
        ("tgif_qa", "frame", "PerceiverVLForQuestionAnswering"),
        ("msrvtt_qa", "frame", "PerceiverVLForQuestionAnswering"),
        ("vqav2", "image", "PerceiverVLForQuestionAnswering"),
        ("nlvr2", "pairs", "PerceiverVLForImagesAndTextClassification"),
    ],
)
def test_the_recipes_of_the_papers_data_sets_fit_their_data(
    name: str, folder: str | None, model: str, benchmarks: Path, tmp_path: Path
) -> None:
    """In the benchmark's own layout, or (without `folder`: the world has none of it) on clips with captions."""
    given = [f"initialise.model={benchmarks / 'model'}", f"output={tmp_path / 'run'}"]
    given += ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
    recipe = read_recipe(RECIPES / f"{name}.yaml", given)
    assert recipe.initialise.model == benchmarks / "model"
    for part in ("train", "validation"):
        if folder is None:
            given += [f"data.{part}={{folder: {benchmarks / 'clips'}, split: {part}}}"]
        else:
            given += [f"data.{part}.folder={benchmarks / folder}"]
    found = dry_run(read_recipe(RECIPES / f"{name}.yaml", given))
    assert found.model == model
    assert len(found.data) == 2
    assert all(0 < part.usable <= part.clips for part in found.data)
    batches = found.data[0].usable // 4
    assert found.steps == 10 * batches
    assert not (tmp_path / "run").exists()


def test_what_a_run_measured_is_what_evaluate_measures(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "multiple-choice")
    model = example_task_of("multiple-choice").model_class.from_pretrained(tmp_path / "run")
    processor = PerceiverVLProcessor.from_pretrained(tmp_path / "run")
    again = example_task_of("multiple-choice").evaluate(
        model, processor, open_world("action", "validation", 10, size=16), num_frames=2
    )
    assert result.task is not None
    assert again.metrics == result.task.metrics
    assert [one.label for one in again.predictions] == [one.label for one in result.task.predictions]


def test_a_large_world_is_not_drawn_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw all of it would take most of an hour; its first clips have all words and answers."""
    monkeypatch.setattr("perceiver_vl.data.mixture._TELLING", 200)
    world = {"task": "frame", "size": 16, "clips": 3_000_000}
    recipe = recipe_of(tmp_path / "run", "question-answering", data={"train": {"world": world}})
    assert train(recipe, progress=False).steps == 6
