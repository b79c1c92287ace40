"""Experts that are chosen by what latents attend to, in whole models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLConfig,
    PerceiverVLForPreTraining,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.layers.expert_block import ExpertBlock
from perceiver_vl.layers.experts import ExpertLinear
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, encoder_flops
from perceiver_vl.models.quantization import set_dtype
from tiny import (
    assert_same,
    checkpoint,
    differs,
    gradients_of_all_streams,
    inputs_of,
    outputs_of,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

EXPERTS: dict[str, Any] = {"num_experts": 3}
WAYS = pytest.mark.parametrize("aggregation", ["joint", "separate", "separate_plus", "text_first"])


def blocks_with_experts(model: PerceiverVLModel) -> list[bool]:
    return [isinstance(one, ExpertBlock) for block in model.encoder.blocks for one in block.self_attentions]


def test_off_there_are_none_and_on_every_other_self_attention_has_some() -> None:
    assert PerceiverVLConfig().num_experts == 0
    assert not any(blocks_with_experts(tiny_model(PerceiverVLModel)))
    assert blocks_with_experts(tiny_model(PerceiverVLModel, **EXPERTS)) == [True, False] * 3
    alone = tiny_model(PerceiverVLModel, **EXPERTS, self_attentions_per_block=1)
    assert blocks_with_experts(alone) == [True, False, True]


@pytest.mark.parametrize("number", [-1, 1])
def test_one_expert_or_fewer_is_refused(number: int) -> None:
    with pytest.raises(UsageError, match=rf"^num_experts={number}: need 2 or more"):
        tiny_config(num_experts=number)


def test_more_experts_than_a_machine_holds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^num_experts=1000000000: with hidden_size=768 more than the"):
        PerceiverVLConfig(num_experts=1_000_000_000)


def without_choice(model: PerceiverVLModel, expert: int) -> PerceiverVLModel:
    """The model without experts that has the weights of one of them everywhere."""
    own = {}
    for name, value in model.state_dict().items():
        if ".gates." in name:
            continue
        part, _, kind = name.rpartition(".")
        is_of_experts = isinstance(model.get_submodule(part), ExpertLinear) and kind != "scale"
        own[name] = value[expert] if is_of_experts else value
    config = PerceiverVLConfig.from_dict(model.config.to_dict() | {"num_experts": 0})
    plain = PerceiverVLModel(config).double().eval()
    plain.load_state_dict(own)
    return plain


@WAYS
def test_what_is_attended_to_chooses(aggregation: Any) -> None:
    """Gates made to score one expert above all for clips, another for words: the models of these."""
    model = tiny_model(PerceiverVLModel, **EXPERTS, modality_aggregation=aggregation)
    inputs = inputs_of(PerceiverVLModel, padded=True)
    pixels = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    first = words["input_ids"], words["attention_mask"]
    for block in model.modules():
        if isinstance(block, ExpertBlock):
            for gate in block.gates.values():
                with torch.no_grad():
                    gate.norm.weight.fill_(1), gate.norm.bias.zero_()
                    gate.projection.weight.zero_(), gate.projection.bias.zero_()
                    gate.projection.weight[0, 0] = gate.projection.weight[1, 1] = 50.0
                    gate.scores.weight.zero_()
                    gate.scores.weight[0, 0] = gate.scores.weight[1, 1] = 100.0
    assert_same(model(**pixels)[0], without_choice(model, 0)(**pixels)[0])
    assert_same(model(**words)[0], without_choice(model, 1)(**words)[0])
    together = model(**inputs)[0]
    assert differs(together, without_choice(model, 0)(**inputs)[0])
    cache = model.cache_vision(pixels["pixel_values"], pixels["frame_mask"])
    assert_same(model(*first, vision_cache=cache)[0], together)
    assert_same(model(vision_cache=cache)[0], model(**pixels)[0])


def test_every_expert_that_is_chosen_learns_and_so_do_gates() -> None:
    model = tiny_model(PerceiverVLForRetrieval, **EXPERTS, layer_drop=0.0).train()
    wanted = gradients_of_all_streams(model)
    of_gates = {name: value for name, value in wanted.items() if ".gates." in name}
    assert len(of_gates) == 3 * 2 * 5
    assert all(value.abs().max() > 0 for value in of_gates.values())
    for name, value in wanted.items():
        part, _, kind = name.rpartition(".")
        if isinstance(model.get_submodule(part), ExpertLinear) and kind == "weight":
            assert sum(bool(one.abs().max() > 0) for one in value) >= 2, name
    checkpoint(model, True, use_reentrant=False)
    for name, value in gradients_of_all_streams(model).items():
        assert_same(value, wanted[name])


def test_blocks_in_turn_end_where_all_at_once_do() -> None:
    model = tiny_model(PerceiverVLModel, **EXPERTS)
    inputs = model.embed_inputs(**inputs_of(PerceiverVLModel, padded=True))
    *_, last = model.encode_in_turn(inputs)
    assert_same(last, model.encode(inputs))


@WAYS
@pytest.mark.parametrize("depth", [2, 3])
def test_operations_are_those_that_are_counted(aggregation: Any, depth: int) -> None:
    config = tiny_config(**EXPERTS, modality_aggregation=aggregation, self_attentions_per_block=depth)
    model = PerceiverVLModel(config).eval()
    inputs = tiny_inputs(batch=1, frames=3, words=6)
    cache = model.cache_vision(inputs["pixel_values"])
    for budget in (ComputeBudget(), ComputeBudget(latents=3, cross_attentions=1), ComputeBudget(blocks=2)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs["input_ids"], pixel_values=inputs["pixel_values"], budget=budget)
        assert counter.get_total_flops() == encoder_flops(config, 3, 6, budget)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs["input_ids"], vision_cache=cache)
    assert counter.get_total_flops() == cached_vision_flops(config, 3, 6)


@pytest.mark.parametrize("kind", [PerceiverVLForPreTraining, PerceiverVLForQuestionAnswering])
def test_it_is_kept_and_becomes_smaller(tmp_path: Path, kind: Any) -> None:
    model, inputs = tiny_model(kind, **EXPERTS), inputs_of(kind, padded=True)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).double().eval()
    for one, other in zip(outputs_of(again, inputs), outputs_of(model, inputs), strict=True):
        assert_same(one, other, 1e-5)
    small = kind.from_pretrained(tmp_path).eval()
    set_dtype(small, "int8")
    single = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    assert all(one.isfinite().all() for one in outputs_of(small, single))
