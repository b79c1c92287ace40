"""Settings of all tests, and what is too slow to be made twice."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

from launching import in_processes
from small_media import save_model
from tiny import tiny_recipe

# The same few examples on every run, and no deadline that a busy machine could miss
settings.register_profile("perceiver-vl", max_examples=25, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("perceiver-vl")

_cache = tempfile.TemporaryDirectory(prefix="perceiver-vl-cache-")  # gone at the end of the process
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.set_num_threads(1)  # models this small only wait for further threads; a command before may have set others
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here")


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `two_processes.py` has run: a recipe of batches of 4, and its `run`."""
    folder = tmp_path_factory.mktemp("two_processes")
    recipe = tiny_recipe(folder / "run", objectives={"vtm": 1, "mlm": 0, "vtc": 1}, training={"optim": "sgd"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    in_processes(2, "two_processes.py", folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny retrieval model with its processor."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another of the same size."""
    return save_model(tmp_path_factory.mktemp("other_model"), seed=1)
