"""`perceiver-vl merge`, as typed: an average that is searched with, and what lies between two models."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import run_cli, run_program
from safetensors.torch import load_file, save_file

from perceiver_vl.models.loading import load_retriever


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, had it been trained a little otherwise."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("other") / "other"))
    state = load_file(folder / "model.safetensors")
    moved = {name: value + 0.02 * value.std() if value.ndim > 1 else value for name, value in state.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_two_models_become_one(model: Path, other: Path, tmp_path: Path) -> None:
    told = run_program("merge", tmp_path / "merged", model, other, "--weights", "3,1")
    assert told.code == 0, told.err
    assert f"{model.name} 75 %, other 25 %" in told.out.replace("\n", " ")
    load_retriever(tmp_path / "merged")
    assert "| `other` | 25 % |" in (tmp_path / "merged" / "README.md").read_text()


def test_the_path_between_two_models_is_measured_and_drawn(
    model: Path, other: Path, world: Path, tmp_path: Path
) -> None:
    merge = "merge", tmp_path / "merged", model, other
    path = "--path", 3, "--data", world, "--split", "test"
    found = run_cli(*merge, *path, "--json").json()
    assert [point["share"] for point in found["path"]] == [0.0, 0.5, 1.0]
    for folder, point in zip((model, tmp_path / "merged", other), found["path"], strict=True):
        alone = run_cli("evaluate", "--model", folder, "--data", world, "--split", "test", "--json").json()
        for stream in alone["streams"]:
            assert point[f"{stream['stream'].replace('-', '_')}_r1"] == pytest.approx(stream["text_to_video"]["r1"])
    assert (tmp_path / "merged" / "path.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(tmp_path / "merged")
    lines = run_cli(*merge, *path)
    assert lines.code == 0, lines.err
    assert "multi_r1" in lines.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_what_cannot_be_merged_is_one_line(model: Path, other: Path, world: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(other, tmp_path / "changed"))
    settings = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(settings | {"layer_drop": 0.75}))
    out = tmp_path / "merged"
    for arguments, said in (
        ((out, model), "need at least two models"),
        ((out, model, changed), "layer_drop is 0.75, not"),
        ((out, model, other, "--weights", "1"), "need 2, one of each model"),
        ((out, model, other, "--weights", "half,half"), "need numbers, as in 0.7,0.3"),
        ((out, model, other, "--path", 3, "--task", "moments"), "task=moments: unknown, choose from retrieval"),
        ((out, model, other, model, "--path", 3, "--data", world), "goes from one model to another, not along 3"),
        ((out, model, other, "--path", 2, "--data", tmp_path / "none"), "none: no such"),
        ((out, model, other, "--path", 2, "--data", world, "--split", "none"), "none"),
        ((out, model, other, "--path", 2, "--data", world, "--num-frames", 999), "num_frames=999"),
        ((out, model, other, "--path", 2, "--data", world, "--task", "captioning"), f"{model}: "),
        ((out, model, other, "--num-frames", 2), "num_frames=2: of the path between two models"),
    ):
        told = run_cli("merge", *arguments)
        assert told.code == 2, told.out
        assert told.err.count("\n") == 1
        assert said in told.err
        assert not out.exists()


def test_what_a_message_says_to_type_works(model: Path, other: Path, world: Path, tmp_path: Path) -> None:
    merge = "merge", tmp_path / "merged", model, other, "--split", "test"
    told = run_cli(*merge)
    assert "of the path between two models" in told.err
    assert "--path 11" in told.err
    told = run_cli(*merge, "--path", 2)
    assert "is scored on clips, name them with --data DIR" in told.err
    assert run_cli(*merge, "--path", 2, "--data", world).code == 0
