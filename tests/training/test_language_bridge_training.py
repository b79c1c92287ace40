"""A language model in a recipe: what begins with it, what of it all learns, and what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from perceiver_vl import LanguageBridgeForConditionalGeneration, PerceiverVLProcessor, UsageError
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.tasks import task_for
from perceiver_vl.training import TrainingResult, train
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.recipe import Recipe, read_recipe
from small_encoders import SMALL, save_dual, save_text, save_vision
from small_language_models import END, save_language_model
from small_runs import log_of, run
from tiny import lose_the_end, tiny_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Perceiver-VL that searches, and a language model."""
    folder = tmp_path_factory.mktemp("models")
    save_language_model(folder / "language")
    run(folder / "searches", training={"max_steps": 2})
    return folder


def recipe_of(output: Path, models: Path, *, world: str = "captions", **changes: Any) -> Recipe:
    """Four steps over the two models, of which the bridge learns unless `stages` says otherwise."""
    values = tiny_recipe(output, data={"train": {"world": {"clips": 12, "size": 16, "task": world}}})
    values |= {"task": "captioning", "stages": [{"steps": 4, "train": ["bridge"]}], "model": {}}
    values |= {"initialise": {"model": str(models / "searches"), "language_model": str(models / "language")}}
    for name in ("objectives", "max_steps"):
        values.pop(name, None)
        values["training"].pop(name, None)
    for name, value in changes.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    if values["stages"] is None:
        del values["stages"]
        values["training"]["max_steps"] = 4
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    return read_recipe(file)


def trained(output: Path, models: Path, **changes: Any) -> TrainingResult:
    return train(recipe_of(output, models, **changes), progress=False)


def language_of(folder: Path) -> dict[str, torch.Tensor]:
    return LanguageBridgeForConditionalGeneration.from_pretrained(folder).language_model.model.state_dict()


@pytest.mark.parametrize("world", ["captions", "frame"])
def test_the_bridge_learns_and_nothing_else(world: str, models: Path, tmp_path: Path) -> None:
    found = trained(tmp_path / "run", models, world=world)
    assert (found.steps, found.fresh) == (4, ["bridge"])
    state, begun = (
        load_file(tmp_path / "run" / "model.safetensors"),
        load_file(models / "searches" / "model.safetensors"),
    )
    assert not any(name.startswith("perceiver_vl.embeddings.text") for name in state)
    for name, weight in state.items():
        if name.startswith("perceiver_vl."):
            assert torch.equal(weight, begun[name]), name
    language = AutoModelForCausalLM.from_pretrained(models / "language").state_dict()
    assert all(torch.equal(weight, language[name]) for name, weight in language_of(tmp_path / "run").items())
    line = log_of(tmp_path / "run")[0]
    assert line["grad_norm_bridge"] > 0
    assert not {f"grad_norm_{part}" for part in ("latents", "language_model", "heads")} & line.keys()

    model = LanguageBridgeForConditionalGeneration.from_pretrained(tmp_path / "run")
    processor = PerceiverVLProcessor.from_pretrained(tmp_path / "run")
    assert processor.tokenizer.eos_token == END
    assert (model.config.eos_token_id, model.config.max_text_length) == (processor.tokenizer.eos_token_id, 24)
    assert task_for(model.config) == "captioning"
    assert "LanguageBridgeForConditionalGeneration" in (tmp_path / "run" / "README.md").read_text()


def test_how_little_learns_is_said(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe_of(tmp_path / "run", models))
    model = LanguageBridgeForConditionalGeneration.from_pretrained(tmp_path / "run")
    few, all_of_them = model.bridge.weight.numel() + len(model.bridge.bias), model.num_parameters()
    told = " ".join(capsys.readouterr().err.split())
    assert f"{few:,} of {all_of_them:,} weights learn ({100 * few / all_of_them:.2f} %)" in told


def test_a_run_that_goes_on_gives_what_one_run_gives(models: Path, tmp_path: Path) -> None:
    """All but the language model learns here, and layers of it find what is shown."""
    layers = {"bridge_blocks": [0, 1, 2], "bridge_layers": [0, 1, 2], "bridge_tokens": 2}
    for name in ("whole", "parts"):
        trained(tmp_path / name, models, stages=None, model=layers)
    lose_the_end(tmp_path / "parts", "checkpoint-4")
    assert (
        train(recipe_of(tmp_path / "parts", models, stages=None, model=layers), resume=True, progress=False).steps == 4
    )
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    begun = load_file(models / "searches" / "model.safetensors")
    assert not torch.equal(whole["perceiver_vl.encoder.latents"], begun["perceiver_vl.encoder.latents"])
    # A bridge goes on from its own folder, without the language model's
    again = {"initialise": {"model": str(tmp_path / "whole"), "language_model": None}}
    assert trained(tmp_path / "more", models, **again).fresh == []


@pytest.mark.parametrize("dual", [False, True])
def test_a_model_over_pretrained_encoders_is_shown_without_its_words(dual: bool, models: Path, tmp_path: Path) -> None:
    if dual:
        save_dual(tmp_path / "dual", "clip")
        initialise(tmp_path / "begun", dual=tmp_path / "dual", **SMALL)
    else:
        save_vision(tmp_path / "sees", "vit")
        save_text(tmp_path / "reads")
        initialise(tmp_path / "begun", vision=tmp_path / "sees", text=tmp_path / "reads", **SMALL)
    data = {"train": {"world": {"clips": 12, "size": 32}}, "sampling": "uniform", "cache": True}
    begin = {"model": str(tmp_path / "begun"), "language_model": str(models / "language")}
    assert trained(tmp_path / "run", models, data=data, initialise=begin).fresh == ["bridge"]
    state, begun = (
        load_file(tmp_path / "run" / "model.safetensors"),
        load_file(tmp_path / "begun" / "model.safetensors"),
    )
    assert not any(part in name for name in state for part in ("text", "base", "vision_encoder.projection"))
    seen = [name for name in state if name.startswith("perceiver_vl.vision_encoder.model.")]
    assert seen
    assert all(torch.equal(state[name], begun[name]) for name in seen)


def test_adapters_of_the_language_model_are_merged(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    stages = [{"steps": 4, "train": ["bridge", "language_model"]}]
    trained(tmp_path / "run", models, encoders={"language_lora": 2}, stages=stages)
    before, after = (
        AutoModelForCausalLM.from_pretrained(models / "language").state_dict(),
        language_of(tmp_path / "run"),
    )
    assert after.keys() == before.keys()
    moved = {name.split(".")[-2] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {"c_attn"}
    stages = [{"steps": 4, "train": ["language_model"]}]
    trained(tmp_path / "last", models, encoders={"language_blocks": 1}, stages=stages)
    after = language_of(tmp_path / "last")
    moved = {name.split(".")[2] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {"2"}


def test_it_begins_with_what_a_captioner_sees_too(models: Path, tmp_path: Path) -> None:
    words = ["task=captioning", "model.caption_prefix=frames", f"output={tmp_path / 'captioner'}"]
    values = {name: value for name, value in tiny_recipe(tmp_path / "captioner").items() if name != "objectives"}
    (tmp_path / "captioner.yaml").write_text(yaml.safe_dump(values))
    train(read_recipe(tmp_path / "captioner.yaml", [*words, "training.max_steps=1"]), progress=False)
    trained(tmp_path / "run", models, initialise={"model": str(tmp_path / "captioner")})


def test_a_dry_run_counts_it(models: Path, tmp_path: Path) -> None:
    found = dry_run(recipe_of(tmp_path / "run", models))
    assert found.model == "LanguageBridgeForConditionalGeneration"
    assert found.parameters["language_model"] > found.parameters["bridge"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "question-answering", "stages": None}, "says captions and answers, set task=captioning"),
        ({"tokenizer": {"name": "x"}}, "by its own tokenizer; leave out tokenizer"),
        ({"encoders": {"language_blocks": 4}}, "the language model has 3 blocks that can learn"),
        (
            {"model": {"max_text_length": 93}},
            "with 4 soft tokens more than the 96 positions.*set max_text_length=92 or",
        ),
        ({"encoders": {"language_lora": 2}}, "no stage trains it; add language_model to"),
        ({"stages": [{"steps": 1, "train": ["bridge", "language_model"]}]}, "train=language_model: nothing of it"),
        ({"initialise": {"language_model": None}}, "this model has none, name the language model"),
        ({"stages": [{"steps": 1, "train": ["language_model"]}]}, "encoders.language_blocks"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes: Any, said: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        trained(tmp_path / "run", models, **changes)
