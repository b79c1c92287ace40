"""`scripts/nine_recipes.py` on some of the nine: official files, a tiny model, its metric and a submission file."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from command_line import SHARED_DATA, needs_shared_data, run_cli

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "nine_recipes.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, its commands run in this process."""
    spec = importlib.util.spec_from_file_location("nine_recipes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nine_recipes"] = module
    spec.loader.exec_module(module)
    module.command = lambda *words: run_cli(*words, "--json").json()  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def pretrained(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("nine")
    for outcome in script.pretrain(SHARED_DATA, work):
        assert outcome.trained == outcome.stand_in_media > 0
        assert set(outcome.metrics) == {"masked_word_accuracy", "matching_accuracy"}
    return work


def test_each_of_the_nine_is_there(script: ModuleType) -> None:
    assert len(script.CASES) == 9
    assert all((SCRIPT.parents[1] / "recipes" / f"{name}.yaml").is_file() for name in script.CASES)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "metrics", "submitted", "real_media"),
    [
        ("flickr30k", {"R@1", "median rank"}, None, 60),
        ("vqav2", {"vqa_accuracy"}, 3, 1),
        ("nlvr2", {"accuracy", "consistency"}, 50, 16),
    ],
)
def test_a_recipe_runs_from_official_files_to_a_submission(
    name: str, metrics: set[str], submitted: int | None, real_media: int, script: ModuleType, pretrained: Path
) -> None:
    outcome = script.fine_tune(name, SHARED_DATA, pretrained)
    assert set(outcome.metrics) == metrics
    assert outcome.submitted == submitted
    assert outcome.real_media == real_media
    assert outcome.trained > 0
    assert outcome.scored > 0


@needs_shared_data
def test_the_recommended_pre_training_can_be_looked_at_before_it_is_run(script: ModuleType, pretrained: Path) -> None:
    folders = [f"data.train.{place}.folder={pretrained / name}" for place, name in enumerate(script.SOURCES)]
    small = [*script.TINY, "training.per_device_train_batch_size=4"]
    recipe = script.RECIPES / "pretrain.yaml"
    found = run_cli("train", recipe, *folders, *small, "--dry-run", "--json").json()
    assert found["steps"] == 100_000
    assert [split["usable"] for split in found["data"]] == [50, 9]
