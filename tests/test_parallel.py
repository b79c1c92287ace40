"""Training in several processes of this machine, as `perceiver-vl train --processes` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perceiver_vl import UsageError
from perceiver_vl.parallel import beside_others, is_first_process
from tiny import tiny_recipe


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perceiver_vl", "train", str(recipe), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")), encoding="utf-8")
    return path


def test_two_processes_write_one_run(recipe: Path) -> None:
    done = run(recipe, "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(done.stdout)
    output = Path(written["output"])
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8"))["steps"] == written["steps"]
    assert (output / "model.safetensors").is_file()
    assert "Warning" not in done.stderr


def test_a_mistake_is_told_once(recipe: Path) -> None:
    done = run(recipe, "model.num_heads=3", "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "num_heads" in done.stderr


def test_one_process_is_left_alone() -> None:
    before = dict(os.environ)
    with beside_others(1, ["train"]):
        assert dict(os.environ) == before
    assert is_first_process()


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="processes=0"), beside_others(0, ["train"]):
        pass
