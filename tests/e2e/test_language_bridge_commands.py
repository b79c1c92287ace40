"""A language model that says what clips show: begun, asked, scored and measured as typed."""

import json
from pathlib import Path

import pytest
from command_line import run_cli, run_program

from small_language_models import save_language_model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language") / "model"
    save_language_model(folder)
    return folder


@pytest.fixture(scope="module")
def bridge(world: Path, model: Path, language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that two steps have taught next to nothing."""
    folder = tmp_path_factory.mktemp("bridge") / "run"
    told = run_program("train", *words_of(model, language, world, folder), "--json")
    assert told.code == 0, told.err
    assert "weights learn" in told.err.replace("\n", " ")
    assert json.loads(told.out)["task"]["metrics"]["cider_d"] >= 0
    return folder


def words_of(model: Path, language: Path, world: Path, output: Path) -> list[str]:
    words = ["bridge_captions", f"initialise.model={model}", f"initialise.language_model={language}"]
    words += [f"data.train.folder={world}", f"data.validation.folder={world}", "data.num_frames=2", f"output={output}"]
    words += ["stages.0.steps=2", "training.warmup_steps=0", "training.per_device_train_batch_size=4"]
    return [
        *words,
        *(f"training.{name}" for name in ("eval_steps=1", "save_steps=1", "use_cpu=true", "report_to=none")),
    ]


def test_captions_and_answers_are_printed(bridge: Path, world: Path) -> None:
    first, second = sorted((world / "clips").rglob("*.mp4"))[:2]
    found = run_cli("caption", first, second, "--model", bridge, "--beams", 2, "--max-new-tokens", 4, "--json").json()
    assert [set(one) for one in found] == 2 * [{"clip", "caption", "score"}]
    questions = "which colour is it?", "how many are there?"
    results = run_cli("ask", "--model", bridge, first, *questions, "--budget", "latents=3", "--json").json()
    assert [result["question"] for result in results] == list(questions)
    assert all(len(result["answers"]) == 1 and 0 < result["answers"][0]["score"] < 1 for result in results)


def test_it_is_evaluated_beside_guessers(bridge: Path, world: Path) -> None:
    how = ("--model", bridge, "--data", world, "--task", "captioning", "--split", "test")
    found = run_cli("evaluate", *how, "--guess-from", "train", "--dtype", "bfloat16", "--json").json()
    assert {"cider_d", "colour", "all_attributes"} <= set(found["metrics"])
    assert set(found["beside"]) == {"most frequent", "nearest"}


def test_what_cannot_be_bridged_is_a_line(
    bridge: Path, model: Path, language: Path, world: Path, tmp_path: Path
) -> None:
    begin = words_of(model, language, world, tmp_path / "run")
    for other, said in (
        (model, "model_type='perceiver_vl' says no words"),
        (tmp_path / "none", "cannot be loaded"),
    ):
        error = run_cli("train", *begin, f"initialise.language_model={other}").error(2)
        assert f"language model {other}: {said}" in error
    assert "set task=captioning" in run_cli("train", *begin, "task=null").error(2)
    told = run_cli("train", *begin, "initialise.language_model=null").error(2)
    assert "this model has none, name the language model with initialise.language_model=FOLDER" in told
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    assert "this model has room for" in run_cli("caption", clip, "--model", bridge, "--max-new-tokens", 500).error(2)
    index = run_cli("index", "--model", bridge, "--media", world, "--out", tmp_path / "index")
    assert "says captions by a language model, give a model trained for" in index.error(2)
    told = run_cli("evaluate", "--model", bridge, "--data", world, "--task", "multiple-choice").error(2)
    assert "or choose --task captioning" in told
    told = run_cli("train", "world", f"initialise.model={bridge}", f"output={tmp_path / 'other'}")
    assert "reads no words itself" in told.error(2)
    assert "cannot be exported" in run_cli("export", tmp_path / "graphs", "--model", bridge).error(2)


def test_the_bench_runs_and_goes_on(tmp_path: Path) -> None:
    asked = ("bench", "language-bridge", "--quick", "--out", tmp_path / "kept", "--json")
    report = run_cli(*asked).json()
    told = {one["who"]: one for one in report["told"]}
    assert list(told) == ["soft tokens", "one soft token", "late layers", "captioner", "unseeing", "most frequent"]
    assert all(
        one["learning"] < 0.01 * one["parameters"] for who, one in told.items() if "token" in who or "late" in who
    )
    assert told["captioner"]["learning"] == told["captioner"]["parameters"]
    assert told["unseeing"]["learning"] is None
    assert "only=eyes: unknown, choose from soft tokens" in run_cli("bench", "language-bridge", "--only", "eyes").error(
        2
    )
    assert run_cli(*asked).json()["told"] == report["told"]
