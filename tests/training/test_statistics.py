"""Figures of a run's health: that they are what they say, and that looking changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import PerceiverVLForPreTraining, PerceiverVLForRetrieval
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.flops import encoder_flops
from perceiver_vl.training import train
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.recipe import OF_ENCODERS, PARTS, read_recipe
from perceiver_vl.training.stages import part_of
from perceiver_vl.training.statistics import (
    encoder_statistics,
    encoding_flops,
    gradient_norms,
    is_statistics_step,
    mean_cosine_similarity,
    memory,
    norms_by_part,
    pretraining_flops,
    task_flops,
)
from small_runs import training_log_of
from tiny import tiny_config, tiny_inputs, tiny_model, tiny_recipe


def test_looks_are_rare_and_come_with_lines_of_the_log() -> None:
    assert [step for step in range(1, 301) if is_statistics_step(step, 1)] == [1, 100, 200, 300]
    assert [step for step in range(10, 301, 10) if is_statistics_step(step, 10)] == [10, 100, 200, 300]
    assert [step for step in range(30, 301, 30) if is_statistics_step(step, 30)] == [30, 120, 210, 300]
    assert [step for step in range(250, 1001, 250) if is_statistics_step(step, 250)] == [250, 500, 750, 1000]


# --- Norms ----------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_the_parts_and_clipping_does_not_change_them() -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    whole: dict[str, float] = {}
    for part in set(PARTS) - {"all", *OF_ENCODERS}:
        own = [p.grad.flatten() for name, p in model.named_parameters() if part_of(name) == part and p.grad is not None]
        whole[part] = torch.cat(own).norm().item()
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    assert gradient_norms(model, total) == pytest.approx(whole, rel=1e-5)
    assert sum(norm**2 for norm in whole.values()) ** 0.5 == pytest.approx(total)
    assert norms_by_part([("vtm_head.x", torch.tensor([3.0, 4.0])), ("other", None)]) == {"heads": 5.0}
    assert norms_by_part([]) == {}


def test_what_is_not_finite_has_no_norms_and_what_is_frozen_none_of_its_own() -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    assert gradient_norms(model, 0.0) == {}
    model.vtm_query.query.grad = torch.zeros_like(model.vtm_query.query)
    assert gradient_norms(model, 0.0) == {"decoder": 0.0}
    model.vtm_query.query.grad += float("nan")
    assert gradient_norms(model, float("nan")) == {}


# --- Looking into the model -----------------------------------------------------------------------------------------


def looked_into(model: Any, **inputs: Tensor) -> dict[str, float]:
    return encoder_statistics(model, lambda: model.perceiver_vl(**inputs))


def test_likeness_is_the_mean_cosine_of_two() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(3, 5, 7)
    for rows, found in zip(vectors, mean_cosine_similarity(vectors), strict=True):
        pairs = [torch.cosine_similarity(rows[i], rows[j], dim=0).item() for i in range(5) for j in range(5) if i != j]
        assert found.item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert mean_cosine_similarity(vectors[:, :1].expand(-1, 4, -1)).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_statistics_name_every_cross_attention_and_draw_and_change_nothing() -> None:
    model: PerceiverVLForPreTraining = tiny_model(layer_drop=0.5, hidden_dropout_prob=0.5).train()
    inputs = tiny_inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = looked_into(model, **inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    reads = {f"cross_attention_{number}_{what}" for number in (1, 2, 3) for what in ("entropy", "update")}
    assert found.keys() == {"latent_similarity", "example_similarity", *reads}
    assert found == looked_into(model, **inputs)  # the hooks of the first look are gone
    apart = looked_into(tiny_model(modality_aggregation="separate"), **inputs)
    assert {"cross_attention_1_vision_entropy", "cross_attention_3_text_update"} <= apart.keys()


def test_a_cross_attention_that_is_uniform_or_not_used_is_seen() -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    inputs = tiny_inputs(words=6)
    inputs["attention_mask"][:, 3:] = 0  # what is padded is not looked at, however uniform the rest
    first, second = (block.cross_attention.attention for block in model.perceiver_vl.encoder.blocks[:2])
    with torch.no_grad():
        for parameter in first.q_proj.parameters():
            parameter.zero_()
        for parameter in second.out_proj.parameters():
            parameter.zero_()
    found = looked_into(model, **inputs)
    assert found["cross_attention_1_entropy"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < found["cross_attention_2_entropy"] < 0.999
    assert found["cross_attention_2_update"] == 0.0
    assert found["cross_attention_1_update"] > 0.01


def test_collapse_is_seen() -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    inputs = tiny_inputs()
    found = looked_into(model, **inputs)
    assert max(found["latent_similarity"], found["example_similarity"]) < 0.99
    same = {name: value[:1].expand(3, *value.shape[1:]) for name, value in inputs.items()}
    assert looked_into(model, **same)["example_similarity"] == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        model.perceiver_vl.encoder.latents[:] = 0.0
        assert model.perceiver_vl.encoder.latent_positions is not None
        model.perceiver_vl.encoder.latent_positions[:] = 0.0
    assert looked_into(model, **inputs)["latent_similarity"] == pytest.approx(1.0, abs=1e-5)
    assert "example_similarity" not in looked_into(model, **{name: value[:1] for name, value in inputs.items()})


# --- Operations -----------------------------------------------------------------------------------------------------

EACH = [
    Objectives(),
    Objectives({"vtm": 0, "mlm": 0, "vtc": 1, "ttc": 1}),
    Objectives({"vtm": 1, "mlm": 0, "vtc": 1, "mixed_vtm": 1}, hard_negatives=True, joint_share=0.5),
]


@pytest.mark.parametrize("objectives", EACH)
def test_operations_of_the_losses_are_those_that_are_counted(objectives: Objectives) -> None:
    config = tiny_config(hidden_size=64, vocab_size=8, layer_drop=0.0, num_text_latents=6)
    model = PerceiverVLForPreTraining(config).train()
    given = {
        name: value.float() if value.is_floating_point() else value for name, value in tiny_inputs(batch=4).items()
    }
    ids = given["input_ids"] % 8
    batch = given | {
        "input_ids": ids,
        "masked_input_ids": ids,
        "mlm_labels": torch.where(torch.arange(6) < 2, ids, -100),
        "other_input_ids": ids,
        "other_attention_mask": given["attention_mask"],
        "negative_draws": torch.full((4,), 2**23),
    }
    model.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        PreTrainingModule(model, objectives)(PreTrainingBatch.from_dict(batch), [FULL_BUDGET])
    assert pretraining_flops(config, batch, objectives) / 3 == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_layer_drop_and_budgets_take_their_share_of_the_operations() -> None:
    everything = encoder_flops(tiny_config(), 3, 6)
    first = encoder_flops(tiny_config(), 3, 6, ComputeBudget(cross_attentions=1))
    assert encoding_flops(tiny_config(layer_drop=0.0), 3, 6) == everything
    assert encoding_flops(tiny_config(layer_drop=1.0), 3, 6) == first
    assert encoding_flops(tiny_config(layer_drop=0.5), 3, 6) == pytest.approx((everything + first) / 2)
    one = tiny_config(layer_drop=0.0)
    pair = {"pixel_values": torch.zeros(2, 2, 3, 3, 16, 16), "input_ids": torch.zeros(2, 6)}
    choices = {"pixel_values": torch.zeros(2, 3, 3, 16, 16), "input_ids": torch.zeros(2, 5, 6)}
    picture = {"pixel_values": torch.zeros(2, 1, 3, 16, 16)}
    assert task_flops(one, pair) == 3 * 2 * 2 * everything
    assert task_flops(one, choices) == 3 * 2 * 5 * everything
    assert task_flops(one, picture) == 3 * 2 * encoder_flops(one, 1)


def test_the_memory_of_this_process_is_known() -> None:
    assert memory(torch.device("cpu"))["memory_mib"] > 50


# --- In a run -------------------------------------------------------------------------------------------------------


def run(output: Path, **changes: Any) -> list[dict[str, Any]]:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_recipe(output, **changes)))
    train(read_recipe(file), progress=False)
    return training_log_of(output)


def test_looking_into_a_run_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {
        "objectives": {"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtm": 1, "hard_negatives": True},
        "model": {"layer_drop": 0.5, "hidden_dropout_prob": 0.1, "num_blocks": 3},
        "training": {"max_steps": 4, "learning_rate": 0.01, "save_strategy": "no"},
    }
    monkeypatch.setattr("perceiver_vl.training.monitored_trainer.is_statistics_step", lambda step, every: True)
    looked = run(tmp_path / "looked", **changes)
    monkeypatch.setattr("perceiver_vl.training.monitored_trainer.is_statistics_step", lambda step, every: False)
    left_alone = run(tmp_path / "alone", **changes)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("looked", "alone"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert [line["loss"] for line in looked] == [line["loss"] for line in left_alone]
    assert all(0 < line["cross_attention_3_entropy"] <= 1 for line in looked)
    assert "cross_attention_3_entropy" not in left_alone[0]
    for line in looked:
        parts = [line[f"grad_norm_{part}"] for part in set(PARTS) - {"all", *OF_ENCODERS}]
        assert sum(norm**2 for norm in parts) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-3)
        assert line["clips_per_second"] > 0
        assert 0 < line["share_of_peak"] < 1
        assert (line["nonfinite_steps"], line["skipped_files"]) == (0, 0)
    last = load_file(tmp_path / "looked" / "model.safetensors")
    norm = (
        torch.cat([value.flatten() for name, value in last.items() if part_of(name) == "cross_attentions"])
        .norm()
        .item()
    )
    assert looked[-1]["weight_norm_cross_attentions"] == pytest.approx(norm, rel=1e-3)


def test_a_model_of_one_task_is_looked_into_as_well(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", training={"max_steps": 1, "save_strategy": "no"}) | {"task": "nlvr2"}
    recipe["data"]["train"] = {"world": {"clips": 12, "size": 16, "task": "pairs"}}
    del recipe["objectives"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    line = training_log_of(tmp_path / "run")[0]
    assert 0 < line["cross_attention_1_entropy"] <= 1
    assert 0 < line["share_of_peak"] < 1


@pytest.mark.parametrize("prefix", ["latents", "frames"])
def test_a_model_of_captions_is_looked_into_as_far_as_it_is_run(prefix: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", training={"max_steps": 1, "save_strategy": "no"}) | {"task": "captioning"}
    recipe["model"]["caption_prefix"] = prefix
    del recipe["objectives"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    line = training_log_of(tmp_path / "run")[0]
    assert ("cross_attention_1_entropy" in line) == (prefix == "latents")
    assert 0 < line["share_of_peak"] < 1


def test_a_retrieval_model_has_the_same_cross_attentions() -> None:
    model = tiny_model(PerceiverVLForRetrieval)
    assert "cross_attention_3_update" in looked_into(model, **{n: v for n, v in tiny_inputs().items() if "pixel" in n})
