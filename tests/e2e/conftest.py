"""A small generated world, a tiny model trained on it and an index made with that, all by the commands themselves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Answer, run_program, world_recipe, write_recipe


@pytest.fixture(scope="session")
def written_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    folder = tmp_path_factory.mktemp("written") / "world"
    answer = run_program("world", folder, "--clips", 24, "--held-out", 6, "--size", 32, "--num-frames", 4, "--json")
    return folder, answer


@pytest.fixture(scope="session")
def world(written_world: tuple[Path, Answer]) -> Path:
    """Twelve clips to train on, six of validation, six of test; not to be changed."""
    folder, answer = written_world
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy of the world to be spoilt."""
    return Path(shutil.copytree(world, tmp_path / "world"))


@pytest.fixture(scope="session")
def training(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The folder of a run and what the command said."""
    folder = tmp_path_factory.mktemp("training")
    recipe = write_recipe(folder / "recipe.yaml", world_recipe(folder / "never", world))
    overrides = f"output={folder / 'model'}", "training.learning_rate=1.0e-3", "data.sampling=uniform"
    return folder / "model", run_program("train", recipe, *overrides, "--json")


@pytest.fixture(scope="session")
def model(training: tuple[Path, Answer]) -> Path:
    """A trained model; not to be changed."""
    folder, answer = training
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture(scope="session")
def indexing(world: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The index of the test split and what the command said."""
    folder = tmp_path_factory.mktemp("indexing") / "index"
    return folder, run_program(
        "index", "--model", model, "--media", world, "--split", "test", "--out", folder, "--json"
    )


@pytest.fixture(scope="session")
def index(indexing: tuple[Path, Answer]) -> Path:
    """An index of six clips; not to be changed."""
    folder, answer = indexing
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe, to be changed."""
    return world_recipe(tmp_path / "run", world)
