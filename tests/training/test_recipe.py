"""Recipes: YAML and overrides into dataclasses, everything misspelt refused by name."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from perceiver_vl import UsageError
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.training import train
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.training.recipe import (
    RECIPES,
    Data,
    DataSource,
    Evaluation,
    Initialise,
    Recipe,
    TokenizerConfig,
    WorldSplit,
    read_recipe,
)
from tiny import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, values: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_every_section_arrives_as_its_own_type(tmp_path: Path) -> None:
    values = {
        "output": "runs/one",
        "data": {
            "train": {"folder": "clips", "split": "train", "metadata": "list.csv", "columns": {"text": "caption"}},
            "validation": {"world": {"clips": 32, "seed": 3, "size": 48}, "split": "validation"},
            "num_frames": 4,
            "sampling": "uniform",
            "cache": True,
            "strict": True,
        },
        "model": {"hidden_size": 64, "layer_drop": 0.25},
        "objectives": {"vtc": 0.5, "hard_negatives": True},
        "tokenizer": {"vocab_size": 100},
        "evaluation": {"streams": ["multi", "single"], "captions_per_clip": 1, "shortlist": 5, "batch_size": 8},
        "training": {"max_steps": 10, "learning_rate": 1e-3},
        "optimizer": "adam",
        "initialise": {"model": "runs/zero", "vision": "vit"},
    }
    assert read_recipe(write(tmp_path, values)) == Recipe(
        output=Path("runs/one"),
        data=Data(
            train=(
                DataSource(folder=Path("clips"), split="train", metadata=Path("list.csv"), columns={"text": "caption"}),
            ),
            validation=DataSource(world=WorldSplit(clips=32, seed=3, size=48), split="validation"),
            num_frames=4,
            sampling="uniform",
            cache=True,
            strict=True,
        ),
        model={"hidden_size": 64, "layer_drop": 0.25},
        objectives=Objectives({"vtc": 0.5}, hard_negatives=True),
        tokenizer=TokenizerConfig(vocab_size=100),
        evaluation=Evaluation(streams=("multi", "single"), captions_per_clip=1, shortlist=5, batch_size=8),
        training={"max_steps": 10, "learning_rate": 1e-3},
        optimizer="adam",
        initialise=Initialise(model=Path("runs/zero"), vision="vit"),
    )


def test_what_is_left_out_is_the_papers_pair_on_random_frames(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, {"output": "o", "data": {"train": {"world": {}}}}))
    assert {name: weight for name, weight in recipe.objectives.weights.items() if weight} == {"vtm": 1.0, "mlm": 1.0}
    assert (recipe.data.num_frames, recipe.data.sampling, recipe.data.validation) == (8, "random", None)
    assert (recipe.optimizer, recipe.initialise, recipe.training) == ("adamw", Initialise(), {})


def test_a_mixture_is_a_list_of_sources_with_weights(tmp_path: Path) -> None:
    sources = [
        {"benchmark": "msrvtt", "folder": "msrvtt", "split": "train", "weight": 1},
        {"shards": "s3://bucket/web", "weight": 2.5},
        {"world": {}, "weight": 1},
    ]
    data = {"train": sources, "augmentation": {"crop": 0.5, "flip": True, "randaugment": [2, 9]}, "bucket": 50}
    path = write(tmp_path, {"output": "o", "data": {**data, "max_failed_fraction": 0.05}})
    found = read_recipe(path).data
    assert found == Data(
        train=(
            DataSource(folder=Path("msrvtt"), benchmark="msrvtt", split="train", weight=1.0),
            DataSource(shards="s3://bucket/web", weight=2.5),
            DataSource(world=WorldSplit(), weight=1.0),
        ),
        augmentation=Augmentation(0.5, True, (2, 9)),
        bucket=50,
        max_failed_fraction=0.05,
    )
    changed = read_recipe(path, ["data.train.1.weight=3", "data.train.2.world.clips=9"]).data.train
    assert (changed[1].weight, changed[2].world) == (3.0, WorldSplit(clips=9))
    for override in ("data.train.3.weight=1", "data.train.one.weight=1"):
        with pytest.raises(UsageError, match=rf"^override {override[:-2]}: [^\n]+ is no place in a list of 3"):
            read_recipe(path, [override])
    alone = read_recipe(write(tmp_path, {"output": "o", "data": {"train": sources[0]}}))
    assert alone.data.train == found.train[:1]


def test_an_empty_section_is_as_good_as_none(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "output: o\ndata: {train: {world: {}}}\ntraining:\nmodel:\n"))
    assert (recipe.training, recipe.model) == ({}, {})


def test_overrides_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_recipe(tmp_path / "run"))
    before = read_recipe(path)
    overrides = ["training.max_steps=7", "data.train.world.clips=9", "objectives.vtc=2", "optimizer=adam"]
    after = read_recipe(path, overrides)
    assert after.training == before.training | {"max_steps": 7}
    assert after.data.train[0].world == WorldSplit(clips=9, size=16)
    assert (after.objectives.weights["vtc"], after.optimizer) == (2.0, "adam")
    assert (after.model, after.output, after.data.num_frames) == (before.model, before.output, before.data.num_frames)
    assert read_recipe(path, ["evaluation.streams=[multi]"]).evaluation.streams == ("multi",)
    assert read_recipe(path, ["output=a=b"]).output == Path("a=b")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("objectives.vtx=1", "vtx"),
        ("objectiv.vtc=1", "objectiv"),
        ("data.frames=8", "frames"),
        ("data.train.world.clip=8", "clip"),
        ("objectives.vtc=much", "much"),
        ("data.num_frames=0", "data.num_frames=0"),
        ("data.num_frames=two", "two"),
        ("data.sampling=all", "all"),
        ("data.cache=true", "data.cache=true"),
        ("data.bucket=-1", "data.bucket=-1"),
        ("data.max_failed_fraction=1.5", "data.max_failed_fraction=1.5"),
        ("data.augmentation.crop=0", "data.augmentation.crop=0"),
        ("data.augmentation.randaugment=[2, 40]", "randaugment=[2, 40]"),
        ("data.augmentation.mirror=true", "mirror"),
        ("data.train=[]", "data.train=[]"),
        ("data.train=[{folder: a, weight: 1}, {folder: b}]", "data.train[1]"),
        ("data.train=[{folder: a}, {foldr: b}]", "data.train[1]: foldr: unknown key"),
        ("data.train=[3]", "data.train[0]: a int"),
        ("objectives=null", "objectives=null: need a mapping, or leave it out"),
        ("data.train={folder: a, num_frames: 9}", "num_frames=9: of a source, need 1 to 2, data.num_frames"),
        ("data.train={folder: a, num_frames: 0}", "num_frames=0"),
        ("data.train={folder: a, weight: 0}", "weight=0"),
        ("data.train={benchmark: msrvtt}", "one of them"),
        ("data.train={benchmark: msrvtt, shards: a}", "benchmark=msrvtt"),
        ("data.train={shards: a, metadata: b}", "metadata"),
        ("optimizer=sgd", "sgd"),
        ("objectives.vtm=-1", "objectives.vtm=-1"),
        ("data.train.folder=clips", "folder or a world"),
        ("evaluation.streams=[multi, mixde]", "mixde"),
        ("evaluation.shortlist=0", "evaluation.shortlist=0"),
        ("evaluation.captions_per_clip=0", "evaluation.captions_per_clip=0"),
        ("training.max_steps", "training.max_steps"),
        ("=7", "=7"),
        ("model={", "model={"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, override: str, named: str) -> None:
    path = write(tmp_path, tiny_recipe(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        read_recipe(path, [override])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("output: [", "not YAML"),
        ("- output", "need a mapping"),
        ("", "need a mapping"),
        ("output: o", "data"),
        ("data: {train: {world: {}}}", "output"),
        ("output: o\ndata: {train: {}}", "folder or a world"),
    ],
)
def test_files_that_are_no_recipe_are_refused(tmp_path: Path, content: str, named: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        read_recipe(path)
    assert named in str(refused.value)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^recipe [^\n]+nowhere.yaml: cannot be read[^\n]+$"):
        read_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"^recipe [^\n]+bytes.yaml: cannot be read[^\n]+$"):
        read_recipe(tmp_path / "bytes.yaml")


def test_a_recipe_is_data_and_never_code(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not YAML"):
        read_recipe(write(tmp_path, "output: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_project_can_be_read(path: Path) -> None:
    assert read_recipe(path).training


def test_a_number_may_be_written_without_its_point(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: runs/a\ndata: {train: {world: {}}}\nmodel: {layer_norm_eps: 1e-5}\n", encoding="utf-8")
    recipe = read_recipe(path, ["model.initializer_range=2E-2"])
    assert recipe.model == {"layer_norm_eps": 1e-5, "initializer_range": 2e-2}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train.world.fewest_things=9", "fewest_things=9: need 1 to 3, or leave it out for as many as there are"),
        ("data.train.world.task=foo", "data: world.task=foo: unknown, choose from captions, action, transition"),
    ],
)
def test_what_a_section_says_is_said_alone(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"data\.train: {re.escape(said)}") as found:
        read_recipe("world_questions", [override])
    assert "Namespace" not in str(found.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("elastic.latents=few", "elastic.latents=few: need a whole number or null"),
        ("optimizer=sgd", "optimizer=sgd: need 'adamw', 'adam', 'muon'"),
        ("data.num_frames=x", "data.num_frames=x: need a whole number"),
        ("data.train.world.clips=many", "data.train: world.clips=many: need a whole number"),
        ("data.train=[{world: {clips: many}}]", "data.train[0]: world.clips=many: need a whole number"),
        ("stages=[{steps: a}]", "stages.steps=a: need a whole number"),
        ("data.cache=7", "data.cache=7: need true or false"),
        ("initialise.model=[1]", "initialise.model=[1]: need a path or null"),
        ("model=3", "model=3: need a mapping"),
    ],
)
def test_a_value_of_another_kind_is_said_with_the_kinds_that_it_may_be_of(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^recipe \S+: {re.escape(said)}$"):
        read_recipe("world", [override])


@pytest.mark.parametrize("name", ["world", "world.yaml", "recipes/world.yaml"])
def test_a_recipe_of_the_package_is_found_by_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()  # as `perceiver-vl world world` writes
    assert read_recipe(name) == read_recipe(RECIPES / "world.yaml")
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    if not own.is_dir():
        own.write_text("output: mine\ndata: {train: {world: {clips: 9}}}\n")
        assert read_recipe(name).output == Path("mine"), "a file of one's own comes first"


def test_all_recipes_go_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "perceiver_vl"
    ]
    package = ROOT / "src" / "perceiver_vl"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    of_the_repository = {path.resolve() for path in (ROOT / "recipes").glob("*.yaml")}
    assert of_the_repository == set(RECIPES.glob("*.yaml")) <= packed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("outptu=x", "outptu: unknown key, did you mean output?"),
        ("data.num_frame=3", "data.num_frame: unknown key, did you mean num_frames?"),
        ("data.train.foldr=x", "data.train: foldr: unknown key, did you mean folder?"),
        ("data.train.world.clip=3", "data.train: world.clip: unknown key, did you mean clips?"),
        ("objectives.mixed_vtk=1", "objectives.mixed_vtk: unknown key, did you mean mixed_vtm?"),
        ("elastic.token=0.5", "elastic.token: unknown key, did you mean tokens?"),
        ("stages.0.step=4", "stages.step: unknown key, did you mean steps?"),
        ("evaluation.qqq=4", "evaluation.qqq: unknown key, choose from batch_size, captions_per_clip"),
    ],
)
def test_the_nearest_key_is_named(override: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run") | {"stages": [{"steps": 4}]}))
    with pytest.raises(UsageError, match=re.escape(said)):
        read_recipe(path, [override])


def test_the_nearest_names_of_recipes_arguments_and_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^recipe wrold: cannot be read [^\n]+ did you mean world.yaml\?$"):
        read_recipe("wrold")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")))
    with pytest.raises(UsageError, match=r"training.max_step=4: [^\n]+ did you mean max_steps\?"):
        train(read_recipe(path, ["training.max_step=4"]))
    with pytest.raises(UsageError, match=r"hidden_sise=8: unknown, did you mean hidden_size\?"):
        train(read_recipe(path, ["model.hidden_sise=8"]))
