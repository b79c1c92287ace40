"""The comparison of one elastic checkpoint with individual models, at a tiny size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from perceiver_vl import PerceiverVLConfig, UsageError
from perceiver_vl.bench import elastic
from perceiver_vl.bench.elastic import BUDGETS, RECIPE, measure_elastic, parse_budgets
from perceiver_vl.training.recipe import read_recipe
from tiny import tiny_recipe


def recipe_in(folder: Path, **changes: object) -> Path:
    validation = {"validation": {"split": "validation", "world": {"clips": 6, "size": 16}}}
    values = tiny_recipe(
        folder / "unused",
        data=validation,
        objectives={"vtm": 0, "mlm": 0, "vtc": 1, "mixed_vtc": 1},
        training={"max_steps": 2, "eval_strategy": "steps", "load_best_model_at_end": True, "eval_steps": 2},
        elastic={"frames": 1, "latents": 2, "cross_attentions": 1, "exits": 1},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_what_is_trained_is_compared_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = "full;frames=1,latents=2,cross_attentions=1"
    path, runs = recipe_in(tmp_path), tmp_path / "runs"
    report = measure_elastic(runs, path, budgets=budgets, seeds=(0, 1), stream="multi")
    assert [one.budget for one in report.scores] == budgets.split(";")
    assert (report.clips, report.steps, report.seeds, report.stream) == (6, 2, [0, 1], "multi")
    for one in report.scores:
        assert len(one.elastic) == len(one.individual) == 2
        assert all(0 <= score <= 100 for score in one.elastic + one.individual)
        assert one.difference == pytest.approx(sum(one.elastic) / 2 - sum(one.individual) / 2)
        assert one.standard_error is not None
    assert report.within_a_point == sum(one.difference >= -1 for one in report.scores)
    assert report.scores[1].gflops_per_clip < report.scores[0].gflops_per_clip
    assert json.loads(json.dumps(report.to_dict()))["scores"][1]["budget"] == budgets.split(";")[1]
    assert len(report.sections()[0].rows) == 2
    assert min(report.seconds, report.seconds_individual) > 0

    small = "frames-1-latents-2-cross_attentions-1"
    names = {"elastic", "full", small}
    assert {folder.name for folder in runs.iterdir()} == {f"{name}-{seed}" for name in names for seed in (0, 1)}
    config = PerceiverVLConfig.from_pretrained(runs / f"{small}-0")
    assert (config.num_latents, config.layer_drop) == (2, 1.0)
    assert read_recipe(runs / f"{small}-0" / "recipe.yaml").data.num_frames == 1
    assert read_recipe(runs / "full-1" / "recipe.yaml").elastic is None

    monkeypatch.setattr(elastic, "train", lambda *_, **__: pytest.fail("trained again"))
    again = measure_elastic(runs, path, budgets=budgets, seeds=(0, 1), stream="multi")
    assert replace(again, command="") == replace(report, command="")
    with pytest.raises(UsageError, match=r"^out=[^\n]*: holds a run of another recipe, [^\n]+$"):
        measure_elastic(runs, path, ["training.max_steps=3"], budgets=budgets, seeds=(0,), stream="multi")


def test_the_elastic_model_may_train_longer_and_another_recall_be_compared(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    report = measure_elastic(runs, recipe_in(tmp_path), budgets="full", elastic_steps=3, metric="r5")
    assert (report.steps, report.elastic_steps) == (2, 3)
    first = measure_elastic(runs, recipe_in(tmp_path), budgets="full", elastic_steps=3)
    (at_5,), (at_1,) = report.scores, first.scores
    assert (at_5.elastic[0], at_5.individual[0]) >= (at_1.elastic[0], at_1.individual[0])
    assert "R@5 among 6 clips" in report.sections()[0].title
    with pytest.raises(UsageError, match=r"^metric=r7: choose from r1, r5, r10$"):
        measure_elastic(runs, recipe_in(tmp_path), metric="r7")


@pytest.mark.parametrize(
    ("budgets", "named"),
    [
        ("", "budgets="),
        ("full;latents=2;latents=2", "each once"),
        ("latents=2;blokcs=1", "blokcs"),
        ("cross_attentions=2", "budget cross_attentions=2"),
        ("latents=2,latent_choice=diverse", "latent_choice"),
    ],
)
def test_budgets_that_cannot_be_compared_are_refused(tmp_path: Path, budgets: str, named: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        measure_elastic(tmp_path / "runs", recipe_in(tmp_path), budgets=budgets)
    assert named in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_is_not_elastic_and_seeds_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^recipe [^\n]+: need one of retrieval with an elastic section"):
        measure_elastic(tmp_path / "runs", recipe_in(tmp_path, elastic=None))
    with pytest.raises(UsageError, match=r"^seeds=1,1: "):
        measure_elastic(tmp_path / "runs", recipe_in(tmp_path), seeds=(1, 1))


def test_the_recipe_and_the_budgets_that_are_compared_by_default_fit_each_other() -> None:
    recipe, budgets = read_recipe(RECIPE), parse_budgets(BUDGETS)
    assert len(budgets) >= 6
    assert recipe.elastic is not None
    config = PerceiverVLConfig(**recipe.model)
    recipe.elastic.check(config, recipe.data.num_frames)
    for budget in budgets:
        config.check_budget(budget)
