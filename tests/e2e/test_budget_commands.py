"""Budgets by what they may cost, data types, long clips and the benches of trained models, as typed."""

import shutil
from pathlib import Path

import pytest
from command_line import run_cli

from perceiver_vl import ComputeBudget
from perceiver_vl.inference import export
from perceiver_vl.inference.export import Exported

GRID = ("--num-frames", "4,2", "--latents", "6,3", "--text-latents", 3, "--cross-attentions", "2,1", "--runs", 1)


@pytest.fixture(scope="module")
def measured(model: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained model, with its front."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("measured") / "model"))
    svg = folder / "front.svg"
    told = run_cli("bench", "frontier", "--model", folder, "--data", world, "--split", "test", *GRID, "--svg", svg)
    assert told.code == 0, told.err
    assert all(said in told.out for said in ("mixed R@1", "a clip and a text of", "bfloat16", "int8", "frontier.json"))
    assert svg.read_text().startswith("<svg")
    return folder


def test_a_limit_picks_a_setting(measured: Path, world: Path, tmp_path: Path) -> None:
    evaluating = ("evaluate", "--model", measured, "--data", world, "--split", "test", "--json")
    answer = run_cli(*evaluating, "--budget", "1 TFLOPs", "--dtype", "int8")
    assert "budget 1000 GFLOPs: frames=" in answer.err
    found = answer.json()
    assert found["record"]["budget"] == found["budget"]
    assert found["budget"].startswith("frames=")
    assert found["record"]["dtype"] == "int8"
    assert "even the cheapest setting" in run_cli(*evaluating, "--budget", "0.000001MFLOPs").error(2)
    assert "budget 5 parsecs: need a time or operations" in run_cli(*evaluating, "--budget", "5 parsecs").error(2)
    timed = run_cli("index", "--model", measured, "--media", world, "--out", tmp_path / "index", "--budget", "60s")
    assert timed.code == 0, timed.err
    assert "ms here" in timed.err


def test_a_graph_takes_any_number_of_frames(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ComputeBudget] = []

    def exported(*_: object, budget: ComputeBudget, **__: object) -> Exported:
        asked.append(budget)
        return Exported(tmp_path, "torch", str(budget), ())

    monkeypatch.setattr(export, "export", exported)
    answer = run_cli("export", "--model", measured, tmp_path, "--format", "torch", "--budget", "1TFLOPs")
    assert answer.code == 0, answer.err
    (budget,) = asked
    assert (budget.frames, budget.text_latents) == (None, 3)


def test_without_a_front_the_command_is_named(model: Path, world: Path) -> None:
    error = run_cli("evaluate", "--model", model, "--data", world, "--budget", "50ms").error(2)
    assert f"run perceiver-vl bench frontier --model {model}" in error


def test_the_cascade_is_measured(model: Path) -> None:
    words = ("bench", "cascade", "--model", model, "--data", "world", "--items", "2,5", "--runs", 1)
    found = run_cli(*words, "--threads", 1, "--json").json()
    assert found["time_ratio"] > 0
    assert -100 <= found["r1_difference"] <= 100
    shown = run_cli(*words, "--most-seconds", 0)
    assert "extrapolated from 2" in shown.out.replace("\n", " ")


def test_the_elastic_model_is_compared(tmp_path: Path) -> None:
    small = ("training.max_steps=1", "data.train.world.clips=64", "data.validation.world.clips=4", "data.num_frames=4")
    words = ("bench", "elastic", "--out", tmp_path / "runs", "--budgets", "full;frames=2,blocks=1", *small)
    shown = run_cli(*words, "--elastic-steps", 2)
    assert shown.code == 0, shown.err
    said = " ".join(shown.out.split())
    assert "R@1 among 4 clips" in said
    assert "2 steps" in said
    assert "seeds 0;" in said
    assert run_cli(*words, "--elastic-steps", 2, "--metric", "r5", "--json").json()["metric"] == "r5"
    assert "metric=r7: choose from r1, r5, r10" in run_cli(*words, "--metric", "r7").error(2)


def test_an_index_keeps_its_dtype(model: Path, world: Path, tmp_path: Path) -> None:
    index = ("index", "--model", model, "--media", world, "--split", "test", "--out", tmp_path / "index")
    assert run_cli(*index, "--dtype", "bfloat16", "--json").json()["encoded"] == 6
    assert "made with dtype bfloat16, not int8" in run_cli(*index, "--dtype", "int8").error(2)
    (found,) = run_cli("search", "--index", tmp_path / "index", "a red circle", "--json").json()
    assert len(found["hits"]) == 6
    assert "dtype=half: choose from" in run_cli(*index, "--dtype", "half").error(2)


def test_every_frame_of_a_clip_is_asked_about(model: Path, world: Path, tmp_path: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    asking = ("ask", "--model", model, clip, "what is it?", "--choices", "a circle|a star", "--json")
    (decoded,) = run_cli(*asking, "--fps", 30).json()  # more frames than the model's temporal table has rows
    (spilt,) = run_cli(*asking, "--fps", 30, "--spill", tmp_path).json()
    assert [answer["score"] for answer in spilt["answers"]] == [answer["score"] for answer in decoded["answers"]]
    assert not any(tmp_path.iterdir())
    for words, said in (
        (("--fps", 0), "fps=0.0: need more than 0"),
        (("--fps", 1, "--budget", "frames=2"), "leave frames=2 out of the budget"),
        (("--spill", tmp_path), "give fps"),
    ):
        assert said in run_cli(*asking, *words).error(2)
