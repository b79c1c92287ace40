"""What cannot work is refused in one line that names it, and leaves nothing behind; broken files are passed over."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from command_line import Answer, run_cli, run_program, tiny_recipe, world_recipe, write_recipe


def fails_naming(answer: Answer, code: int, *parts: object) -> None:
    message = answer.error(code)
    missing = [part for part in map(str, parts) if part not in message]
    assert not missing, f"{missing} not in: {message}"


# A process of its own for each exit code and command


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["world", "{tmp}/w", "--clips", "0"], 2, ["clips=0", "at least 3"]),
        (["world", "{file}/w"], 1, ["{file}/w", "Not a directory"]),
        (["evaluate", "--model", "{tmp}", "--data", "{tmp}", "--task", "juggling"], 2, ["task=juggling", "retrieval"]),
        (["evaluate", "--model", "{tmp}", "--data", "{tmp}", "--budget", "speed=9"], 2, ["speed", "cross_attentions"]),
        (["index", "--model", "{tmp}", "--media", "{tmp}", "--out", "x", "--columns", "text"], 2, ["'text'", "="]),
        (["search", "--index", "{tmp}", "words"], 2, ["{tmp}: not an index", "perceiver-vl index"]),
        (["train", "{tmp}/none.yaml"], 2, ["{tmp}/none.yaml", "cannot be read"]),
    ],
)
def test_exit_code_and_message_of_a_process(words: list[str], code: int, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    words, parts = ([part.format(tmp=tmp_path, file=file) for part in some] for some in (words, parts))
    fails_naming(run_program(*words), code, *parts)
    assert list(tmp_path.iterdir()) == [file]


# The world


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--clips", 8, "--held-out", 4], ["held_out=4", "1 to 3"]),
        (["--num-frames", 0], ["frames=0"]),
        (["--size", 33], ["size=33", "34"]),
        (["--seed", -1], ["seed=-1"]),
    ],
)
def test_world_that_cannot_be(words: list[object], parts: list[str], tmp_path: Path) -> None:
    fails_naming(run_cli("world", tmp_path / "out", *words), 2, *parts)
    assert not (tmp_path / "out").exists()


def test_world_does_not_write_over_other_things(tmp_path: Path, own_world: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("four years of work")
    fails_naming(run_cli("world", mine, "--clips", 8), 2, mine, "empty folder")
    fails_naming(run_cli("world", own_world, "--clips", 8), 2, own_world, "other arguments")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


# Recipes


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["outptu=x"], ["outptu"]),
        (["data.num_frame=3"], ["num_frame"]),
        (["data.train.foldr=x"], ["foldr"]),
        (["objectives.vtn=1"], ["vtn"]),
        (["data.num_frames=many"], ["num_frames", "many"]),
        (["data.sampling=sometimes"], ["sampling", "sometimes", "uniform"]),
        (["data.num_frames=0"], ["data.num_frames=0", "at least one"]),
        (["data.num_frames=9"], ["data.num_frames=9", "max_frames=8"]),
        (["data.train={}"], ["data", "folder", "world"]),
        (["data.train.world={clips: 9}"], ["data", "folder", "world", "one of them"]),
        (["data.cache=true"], ["data.cache=true", "sampling=uniform"]),
        (["data.train.columns={texts: text}"], ["texts", "did you mean text?"]),
        (["data.train.metadata=none.csv"], ["none.csv", "no such file"]),
        (["data.train.split=rehearsal"], ["split=rehearsal", "train", "validation"]),
        (["data.train={world: {clips: 0}}"], ["clips=0"]),
        (["model.hidden_sizes=64"], ["hidden_sizes=64", "did you mean hidden_size?"]),
        (["model.hidden_size=wide"], ["hidden_size='wide'", "int"]),
        (["model.num_attention_heads=5"], ["num_attention_heads=5", "hidden_size=32"]),
        (["model.num_blocks=0"], ["num_blocks=0", "at least 1"]),
        (["model.patch_size=5"], ["patch_size=5", "image_size=32"]),
        (["model.vocab_size=5"], ["model.vocab_size=5", "tokenizer"]),
        (["tokenizer.vocab_size=3"], ["vocab_size=3", "at least"]),
        (["tokenizer.name={tmp}/none"], ["tokenizer {tmp}/none"]),
        (["initialise.model={tmp}/none"], ["{tmp}/none", "no such folder"]),
        (["objectives={vtm: 0, mlm: 0}"], ["objectives", "at least one"]),
        (["evaluation.streams=[mulit]"], ["mulit", "multi, mixed"]),
        (["evaluation.shortlist=0"], ["shortlist=0"]),
        (["training.max_step=4"], ["training.max_step=4"]),
        (["training.output_dir=x"], ["training.output_dir='x'"]),
        (["training.max_steps=many"], ["training", "max_steps", "many"]),
        (["training.per_device_train_batch_size=0"], ["batch_size=0", "at least 2"]),
        (["training.per_device_train_batch_size=13"], ["batch of 13", "12"]),
        (["training.eval_strategy=hourly"], ["hourly", "'steps'"]),
        (["training.eval_strategy=epoch", "data.validation=null"], ["eval_strategy=epoch", "data.validation"]),
        (
            ["training.eval_strategy=epoch", "training.metric_for_best_model=accuracy"],
            ["metric_for_best_model=accuracy", "multi_r1"],
        ),
        (["training.max_steps"], ["'training.max_steps'", "key=value"]),
        (["=4"], ["'=4'", "key=value"]),
        (["model={"], ["model={", "YAML"]),
    ],
)
def test_recipe_that_cannot_work(
    overrides: list[str], parts: list[str], recipe: dict[str, Any], tmp_path: Path
) -> None:
    overrides, parts = ([part.replace("{tmp}", str(tmp_path)) for part in some] for some in (overrides, parts))
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    fails_naming(run_cli("train", path, *overrides), 2, *parts)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "part"), [("output: [1,\n b: {", "not YAML"), ("", "mapping"), ("- a\n- b\n", "mapping")]
)
def test_recipe_that_is_not_one(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    fails_naming(run_cli("train", path), 2, path, part)
    path.write_bytes(b"output: \xff\xfe")
    fails_naming(run_cli("train", path), 2, path, "cannot be read")


def test_initialise_with_a_model_of_another_width(recipe: dict[str, Any], model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", {**recipe, "initialise": {"model": str(model)}, "model": {}})
    fails_naming(run_cli("train", path, "model.hidden_size=64"), 2, f"initialise.model={model}", "does not fit")


# Models


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def make_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


@pytest.mark.parametrize(
    ("spoil", "code", "parts"),
    [
        (shutil.rmtree, 2, ["no such folder"]),
        (empty, 2, ["no config.json"]),
        (make_a_file, 2, ["no such folder"]),
        (lambda folder: change_config(folder, model_type="bert"), 2, ["model_type='bert'", "perceiver_vl"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), 2, ["no tokenizer"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), 1, ["cannot be loaded"]),
        (cut_weights, 1, ["cannot be loaded"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), 1, ["cannot be loaded"]),
    ],
)
def test_model_folder_that_is_not_one(
    spoil: Callable[[Path], object], code: int, parts: list[str], model: Path, world: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    spoil(folder)
    fails_naming(run_cli("evaluate", "--model", folder, "--data", world, "--split", "test"), code, folder, *parts)
    answer = run_cli("index", "--model", folder, "--media", world, "--out", tmp_path / "index")
    fails_naming(answer, code, folder, *parts)
    assert not (tmp_path / "index").exists()


def test_damaged_weights_in_a_process_of_its_own(model: Path, world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    cut_weights(folder)
    fails_naming(run_program("evaluate", "--model", folder, "--data", world), 1, folder, "cannot be loaded")


# Evaluation


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--streams", "mulit"], ["'mulit'", "multi, mixed"]),
        (["--streams", ""], ["''", "multi, mixed"]),
        (["--split", "rehearsal"], ["split=rehearsal", "test, train, validation"]),
        (["--metadata", "none.csv"], ["none.csv", "no such file"]),
        (["--columns", "caption=text"], ["caption=text", "file_name, text, question"]),
        (["--columns", "text=caption"], ["text=caption", "metadata.jsonl"]),
        (["--shortlist", "0"], ["shortlist=0"]),
        (["--captions-per-clip", "0"], ["captions_per_clip=0"]),
        (["--captions-per-clip", "-1"], ["captions_per_clip=-1"]),
        (["--num-frames", "0"], ["num_frames=0"]),
        (["--num-frames", "9"], ["num_frames=9", "max_frames"]),
        (["--device", "abacus"], ["device=abacus", "cpu"]),
        (["--budget", "cross_attentions=3"], ["cross_attentions=3", "2"]),
        (["--budget", "latents=7"], ["latents=7", "6"]),
        (["--budget", "frames=9"], ["frames=9", "8"]),
        (["--budget", "frames=-1"], ["frames=-1", "whole number"]),
    ],
)
def test_evaluation_that_cannot_work(words: list[str], parts: list[str], model: Path, world: Path) -> None:
    fails_naming(run_cli("evaluate", "--model", model, "--data", world, *words), 2, *parts)


# Search


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["", "--top-k", 3], ["query ''", "word"]),
        (["  \t "], ["query", "word"]),
        (["red", "--top-k", 0], ["top_k=0", "at least 1"]),
        (["red", "--shortlist", 0], ["shortlist=0", "at least 1"]),
        (["red", "--rerank", "single"], ["rerank='single'", "combined, mixed, none"]),
        (["red", "--model", "/none"], ["model /none", "no such folder"]),
    ],
)
def test_search_that_cannot_work(words: list[object], parts: list[str], index: Path) -> None:
    fails_naming(run_cli("search", "--index", index, *words), 2, *parts)


def test_index_that_is_not_one(model: Path, world: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path, model, world / "metadata.jsonl"):
        fails_naming(run_cli("search", "--index", folder, "red"), 2, folder, "not an index", "perceiver-vl index")
    manifest = tmp_path / "clips.lance" / "_versions" / f"{2**64 - 2}.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    fails_naming(run_cli("search", "--index", tmp_path, "red"), 1, tmp_path, "damaged")


def test_index_of_another_model(model: Path, world: Path, index: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    change_config(other, layer_drop=0.25)
    answer = run_cli("index", "--model", other, "--media", world, "--split", "test", "--out", index)
    fails_naming(answer, 2, index, "another model", model, "--out")
    fails_naming(run_cli("search", "--index", index, "red", "--model", other), 2, index, "another model", other)


def test_index_with_other_settings_or_media(model: Path, world: Path, index: Path) -> None:
    words = "index", "--model", model, "--media", world, "--split", "test", "--out", index
    fails_naming(run_cli(*words, "--budget", "latents=4"), 2, index, "latents=4", "--out")
    fails_naming(run_cli(*words, "--num-frames", 2), 2, index, "frames 4, not 2", "--out")
    words = "index", "--model", model, "--media", world / "clips", "--out", index
    fails_naming(run_cli(*words), 2, index, world / "clips", "--out")


# Places that cannot be written


def test_output_that_cannot_be_made(model: Path, world: Path, index: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    recipe = write_recipe(tmp_path / "recipe.yaml", world_recipe(file / "run", world))
    fails_naming(run_cli("train", recipe), 1, file / "run")
    fails_naming(run_cli("train", recipe, f"output={file}"), 1, file)
    words = "index", "--model", model, "--media", world
    fails_naming(run_cli(*words, "--out", file), 2, file, "another folder")
    fails_naming(run_cli(*words, "--out", file / "index"), 2, file / "index", "another folder")
    fails_naming(run_cli(*words, "--out", model), 2, model, "new or empty")
    fails_naming(run_cli("world", file, "--clips", 8), 2, file, "is a file")
    fails_naming(
        run_cli("search", "--index", index, "red", "--html", file / "page.html"), 2, f"{file} is a file, not a folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "recipe.yaml"]
    assert file.read_text() == "not a folder"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux")
def test_output_in_a_file_system_that_takes_nothing(model: Path, world: Path) -> None:
    fails_naming(run_cli("world", "/proc/world", "--clips", 8), 1, "/proc/world")
    words = "index", "--model", model, "--media", world
    fails_naming(run_cli(*words, "--out", "/proc/index"), 2, "/proc/index", "another folder")


# Folders of media


def edit_metadata(world: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rows = [json.loads(line) for line in (world / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (world / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def long_jobs(model: Path, world: Path, run: Path, *, strict: bool = False) -> dict[str, tuple[object, ...]]:
    """The words of each command that reads the clips to train on."""
    recipe = write_recipe(run.parent / "recipe.yaml", world_recipe(run, world))
    flag = ["--strict"] if strict else []
    return {
        "train": ("train", recipe, f"data.strict={str(strict).lower()}"),
        "evaluate": ("evaluate", "--model", model, "--data", world, "--split", "train", "--streams", "multi", *flag),
        "index": ("index", "--model", model, "--media", world, "--split", "train", "--out", run, *flag),
    }


LONG_JOBS = ("train", "evaluate", "index")


def write_sound(path: Path) -> None:
    """A file without a video stream."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def damaged_world(own_world: Path) -> tuple[Path, dict[str, str]]:
    """A world with six of twelve training clips spoilt, and what should be said of each."""
    names = [f"clips/train/{number:06d}.mp4" for number in range(6)]
    gone, empty, text, cut, sound, mute = (own_world / name for name in names)
    gone.unlink()
    empty.write_bytes(b"")
    text.write_text("This is not a film.")
    cut.write_bytes(cut.read_bytes()[:700])
    write_sound(sound)
    edit_metadata(own_world, lambda row: row.update(text=["", "  "]) if row["file_name"] == names[5] else None)
    assert mute.exists()
    reasons = "not there", "empty file", "not a media file", "truncated", "no video stream", "no caption"
    return own_world, dict(zip(names, reasons, strict=True))


@pytest.mark.parametrize("job", LONG_JOBS)
def test_long_jobs_pass_over_broken_files(
    job: str, damaged_world: tuple[Path, dict[str, str]], model: Path, tmp_path: Path
) -> None:
    world, reasons = damaged_world
    if job == "index":
        reasons = {name: reason for name, reason in reasons.items() if reason != "no caption"}  # needs no captions
    answer = run_cli(*long_jobs(model, world, tmp_path / "run")[job], "--json")
    skipped = {problem["file_name"]: problem["reason"] for problem in answer.json()["skipped"]}
    assert set(skipped) == set(reasons)
    assert all(reason in skipped[name] for name, reason in reasons.items())


def test_broken_files_are_counted_and_listed(
    damaged_world: tuple[Path, dict[str, str]], model: Path, tmp_path: Path
) -> None:
    world, reasons = damaged_world
    answer = run_cli(*long_jobs(model, world, tmp_path / "run")["evaluate"])
    assert answer.code == 0
    assert "6 clips" in answer.out
    first, *listed = answer.err.splitlines()
    assert first == "skipped 6 files:"
    assert all(any(name in line and reason in line for line in listed) for name, reason in reasons.items())


@pytest.mark.parametrize("job", LONG_JOBS)
def test_strict_stops_at_the_first_broken_file(job: str, own_world: Path, model: Path, tmp_path: Path) -> None:
    broken = own_world / "clips" / "train" / "000003.mp4"
    broken.write_bytes(b"")
    words = long_jobs(model, own_world, tmp_path / "run", strict=True)[job]
    fails_naming(run_cli(*words), 1, broken, "empty file")
    broken.unlink()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    fails_naming(run_cli(*words), 1, broken, "not there", "metadata.jsonl")


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_nothing_readable_is_a_failure(job: str, own_world: Path, model: Path, tmp_path: Path) -> None:
    words = long_jobs(model, own_world, tmp_path / "run")[job]
    for path in (own_world / "clips" / "train").glob("*.mp4"):
        path.write_bytes(b"")
    fails_naming(run_cli(*words), 1, "can be read", "empty file")


@pytest.mark.parametrize("job", LONG_JOBS)
def test_metadata_that_names_only_files_that_are_gone(job: str, own_world: Path, model: Path, tmp_path: Path) -> None:
    words = long_jobs(model, own_world, tmp_path / "run")[job]
    for path in (own_world / "clips" / "train").glob("*.mp4"):
        path.unlink()
    fails_naming(run_cli(*words), 1, own_world / "metadata.jsonl", "train/000000.mp4", "not there")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_captions_that_are_all_empty(job: str, own_world: Path, model: Path, tmp_path: Path) -> None:
    edit_metadata(own_world, lambda row: row.update(text=""))
    words = long_jobs(model, own_world, tmp_path / "run")[job]
    fails_naming(run_cli(*words), 1, own_world / "metadata.jsonl", "no caption")


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ('{"file_name": 3, "text": "a", "split": "train"}\n', 2, ["row 1", "file_name=3"]),
        ('{"file_name": "a.mp4"}\n{"file_name"\n', 2, ["line 2", "JSON"]),
        ('{"file": "a.mp4"}\n', 2, ["'file_name'", "file", "columns"]),
        # one row of many that cannot be is left out; here none is left
        ('{"file_name": "a.mp4", "text": 7, "split": "train"}\n', 1, ["no usable record", "row 1", "text=7", "string"]),
    ],
)
def test_metadata_that_cannot_be_read(
    text: str, code: int, parts: list[str], own_world: Path, model: Path, tmp_path: Path
) -> None:
    (own_world / "metadata.jsonl").write_text(text)
    for words in long_jobs(model, own_world, tmp_path / "run").values():
        fails_naming(run_cli(*words), code, own_world / "metadata.jsonl", *parts)


def test_folders_without_media(model: Path, world: Path, tmp_path: Path) -> None:
    empty, none, index = tmp_path / "empty", tmp_path / "none", tmp_path / "index"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing to see")
    for folder, part in ((none, "no such folder"), (empty, "no "), (world / "metadata.jsonl", "no such folder")):
        recipe = write_recipe(tmp_path / "recipe.yaml", tiny_recipe(tmp_path / "run", {"folder": str(folder)}, None))
        fails_naming(run_cli("train", recipe), 2, folder, part)
        fails_naming(run_cli("evaluate", "--model", model, "--data", folder), 2, folder, part)
        fails_naming(run_cli("index", "--model", model, "--media", folder, "--out", index), 2, folder, part)
    words = "index", "--model", model, "--media", world / "clips", "--split", "test", "--out", index
    fails_naming(run_cli(*words), 2, "split=test", world / "clips")
    assert not index.exists()
    assert not (tmp_path / "run").exists()


def test_learning_over_encoders_is_refused_before_a_clip_is_looked_at(tmp_path: Path) -> None:
    words = ("bench", "learning", "--out", tmp_path / "out", "--data", tmp_path, "--vision", "seeing")
    assert "give vision, text and data together" in run_cli(*words).error(2)
    unknown = run_cli(*words, "--text", "reading", "--parts", "encoders-sizes,encoders").error(2)
    assert "parts=encoders: unknown, choose from encoders-retrieval, " in unknown
    assert "no msrvtt_keyframes/captions.jsonl in it" in run_cli(*words, "--text", "reading").error(2)
    assert not (tmp_path / "out").exists()
