"""What a dry run says of memory: of a batch, of a chunk of it, and of the share of it that is encoded jointly."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.recipe import read_recipe
from tiny import tiny_recipe


def memory_of(folder: Path, batch: int, elastic: dict[str, Any] | None = None, **objectives: Any) -> dict[str, int]:
    recipe = tiny_recipe(folder / "run", objectives=objectives, training={"per_device_train_batch_size": batch})
    recipe |= {"elastic": elastic} if elastic else {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return dry_run(read_recipe(folder / "recipe.yaml")).memory


def test_a_chunk_holds_its_share_of_the_batch(tmp_path: Path) -> None:
    whole, chunk = memory_of(tmp_path, 16, vtc=1), memory_of(tmp_path, 16, vtc=1, chunk=4)
    assert chunk["activations"] == pytest.approx(whole["activations"] / 4, rel=0.01)
    assert chunk["weights"] == whole["weights"] > 0
    assert memory_of(tmp_path, 4, vtc=1, chunk=64)["activations"] == pytest.approx(whole["activations"] / 4, rel=0.1)


def test_objectives_on_a_share_of_the_batch_hold_that_share(tmp_path: Path) -> None:
    joint, eighth = (
        memory_of(tmp_path, 16, vtm=1, mlm=0, vtc=0, joint_share=share) for share in (1.0, 0.125)
    )  # of 16: 16, 2
    assert eighth["activations"] == pytest.approx(joint["activations"] / 8, rel=0.3)


def test_an_elastic_run_holds_all_its_budgets(tmp_path: Path) -> None:
    plain = memory_of(tmp_path, 8, vtc=1)["activations"]
    two, three = (
        memory_of(tmp_path, 8, {"latents": 1, "smallest": smallest}, vtc=1)["activations"] for smallest in (False, True)
    )
    assert 1.7 * plain < two < 2.3 * plain
    assert two < three < 1.7 * two


def test_what_the_program_holds_is_part_of_it(tmp_path: Path) -> None:
    assert memory_of(tmp_path, 4)["program"] > 50e6
