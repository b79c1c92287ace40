"""Keys, values and norms that vision and words have of their own, and layer scale, in whole models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLConfig,
    PerceiverVLForCaptioning,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, encoder_flops
from perceiver_vl.models.quantization import Int8Linear, set_dtype
from perceiver_vl.training.statistics import encoder_statistics
from tiny import (
    assert_same,
    checkpoint,
    differs,
    gradients,
    gradients_of_all_streams,
    inputs_of,
    outputs_of,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

UNTIED: dict[str, Any] = {"untied_modalities": True}
EVERYTHING: dict[str, Any] = {**UNTIED, "qk_norm": True, "layer_scale": 0.3}
SWITCHES = pytest.mark.parametrize("changes", [UNTIED, {"layer_scale": 0.1}, EVERYTHING])


def fresh(kind: Any = PerceiverVLForPreTraining, **changes: Any) -> Any:
    """As training begins, of seed 0."""
    torch.manual_seed(0)
    return kind(tiny_config(**changes)).double().eval()


def test_off_is_how_the_paper_has_it() -> None:
    config = PerceiverVLConfig()
    assert (config.untied_modalities, config.layer_scale) == (False, None)
    with torch.device("meta"):
        names = PerceiverVLForPreTraining(tiny_config(qk_norm=True)).state_dict().keys()
    assert not any(
        part in name for name in names for part in ("untied", "text_norm", "scale", "twin") if "logit" not in name
    )


@pytest.mark.parametrize("qk_norm", [False, True])
def test_untied_begins_as_tied_with_the_same_draws(qk_norm: bool) -> None:
    tied, untied = fresh(qk_norm=qk_norm), fresh(qk_norm=qk_norm, **UNTIED)
    own = untied.state_dict()
    for name, value in tied.state_dict().items():
        assert torch.equal(own[name], value), name
    more = own.keys() - tied.state_dict().keys()
    assert more
    assert all("untied" in name or "text_norm" in name for name in more)
    inputs = inputs_of(PerceiverVLForPreTraining, padded=True)
    for one, other in zip(outputs_of(tied, inputs), outputs_of(untied, inputs), strict=True):
        assert_same(one, other, 1e-12)


def test_layer_scale_of_one_is_none_with_the_same_draws() -> None:
    plain, scaled = fresh(), fresh(layer_scale=1.0)
    inputs = inputs_of(PerceiverVLForPreTraining, padded=True)
    for one, other in zip(outputs_of(plain, inputs), outputs_of(scaled, inputs), strict=True):
        assert torch.equal(one, other)
    scales = {name: value for name, value in fresh(layer_scale=0.1).state_dict().items() if name.endswith(".scale")}
    blocks = 3 * (1 + 2) + 1  # and the decoder's
    assert len(scales) == 2 * blocks
    assert all((value - 0.1).abs().max() < 1e-6 for value in scales.values())
    captions = fresh(PerceiverVLForCaptioning, layer_scale=0.1).state_dict()
    assert any("caption_decoder" in name and name.endswith(".scale") for name in captions)


def forgets_which(model: PerceiverVLModel, inputs: dict[str, Tensor]) -> Tensor:
    """Latents of the model in whose place one has the keys and values of vision for words, too."""
    tied = fresh(PerceiverVLModel, qk_norm=model.config.qk_norm, layer_scale=model.config.layer_scale)
    tied.load_state_dict(model.state_dict(), strict=False)
    found: Tensor = tied(**inputs)[0]
    return found


@pytest.mark.parametrize("changes", [UNTIED, EVERYTHING])
def test_words_go_their_own_way_and_pixels_as_before(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    inputs = inputs_of(PerceiverVLModel, padded=True)
    pixels = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**pixels)[0], forgets_which(model, pixels))
    assert differs(model(**words)[0], forgets_which(model, words))
    assert differs(model(**inputs)[0], forgets_which(model, inputs))
    copied = model.state_dict()  # words' own weights in the place of those of vision, all else the same
    for name, value in model.state_dict().items():
        if ".untied." in name:
            copied[name.replace("untied.", "")] = value
        if "text_norm" in name:
            copied[name.replace("text_norm", "norm")] = value
    tied = fresh(PerceiverVLModel, qk_norm=model.config.qk_norm, layer_scale=model.config.layer_scale)
    tied.load_state_dict(copied, strict=False)
    assert_same(model(**words)[0], tied(**words)[0])


@SWITCHES
@pytest.mark.parametrize("checkpointed", [False, True])
def test_everything_learns_and_padding_says_nothing(changes: dict[str, Any], checkpointed: bool) -> None:
    model = tiny_model(PerceiverVLForRetrieval, **changes, layer_drop=0.0)
    inputs = inputs_of(PerceiverVLForRetrieval, padded=True)
    wanted = gradients(model, inputs)
    model.train()
    checkpoint(model, checkpointed)
    found = gradients(model, inputs)
    checkpoint(model, False)
    model.eval()
    new = {name for name, _ in model.named_parameters() if "untied" in name or "text_norm" in name or ".scale" in name}
    assert new
    for name in new:
        assert name in found, name
        assert_same(found[name], wanted[name], 1e-8)
        if not name.endswith("k_proj.bias") and not name.endswith("k_norm.bias"):
            assert found[name].abs().max() > 0, name
    before = outputs_of(model, inputs)
    inputs["pixel_values"][1, -1:] += 3  # padding
    inputs["input_ids"][0, -2:] = 7
    for one, other in zip(before, outputs_of(model, inputs), strict=True):
        assert_same(one, other)


def test_streams_apart_and_together_learn_under_checkpointing() -> None:
    model = tiny_model(PerceiverVLForRetrieval, **UNTIED, layer_drop=0.0).train()
    wanted = gradients_of_all_streams(model)
    checkpoint(model, True, use_reentrant=False)
    for name, value in gradients_of_all_streams(model).items():
        assert_same(value, wanted[name])


@SWITCHES
@pytest.mark.parametrize("latents", [None, 3])
def test_a_cached_clip_answers_as_the_clip(changes: dict[str, Any], latents: int | None) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    inputs = inputs_of(PerceiverVLModel, padded=True)
    budget = ComputeBudget(latents=latents, latent_choice="diverse" if latents else "first")
    cache = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"], budget)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**words, vision_cache=cache)[0], model(**inputs, budget=budget)[0])
    assert_same(
        model(vision_cache=cache)[0], model(**{n: v for n, v in inputs.items() if n not in words}, budget=budget)[0]
    )


@SWITCHES
def test_a_long_clip_and_stored_attention_are_exact(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    inputs = tiny_inputs(frames=4)
    pixels = inputs["pixel_values"]
    found = model.encode_long([pixels[:, :3], pixels[:, 3:]], inputs["input_ids"])
    assert_same(found, model(inputs["input_ids"], pixel_values=pixels)[0])
    budget = ComputeBudget(cross_attentions=1)
    packed = model.cache_vision(pixels, budget=budget).first.pack()
    stored = model.cache_from_partial_attention(packed, budget)
    assert_same(
        model(inputs["input_ids"], vision_cache=stored)[0],
        model(inputs["input_ids"], pixel_values=pixels, budget=budget)[0],
    )


@pytest.mark.parametrize("changes", [UNTIED, EVERYTHING])
def test_a_changed_weight_makes_a_cache_void(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    cache = model.cache_vision(tiny_inputs()["pixel_values"])
    with torch.no_grad():
        model.encoder.blocks[0].cross_attention.attention.k_proj.weight[0, 0] += 1
    with pytest.raises(UsageError, match="before its weights changed"):
        model(tiny_inputs()["input_ids"], vision_cache=cache)


@SWITCHES
def test_attentions_that_are_shown_are_those_that_were(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    inputs = inputs_of(PerceiverVLModel, padded=True)
    told = model(**inputs, output_attentions=True)
    assert_same(told[0], model(**inputs)[0])
    eager = tiny_model(PerceiverVLModel, **changes, attn_implementation="eager")
    assert_same(told[0], eager(**inputs)[0])


@SWITCHES
def test_saved_is_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(PerceiverVLForPreTraining, **changes)
    model.save_pretrained(tmp_path)
    loaded = PerceiverVLForPreTraining.from_pretrained(tmp_path).eval()
    inputs = tiny_inputs()
    for one, other in zip(outputs_of(loaded, inputs), outputs_of(model, inputs), strict=True):
        assert_same(one, other)


def test_a_tied_checkpoint_goes_on_untied(tmp_path: Path) -> None:
    tied = tiny_model(PerceiverVLForPreTraining, qk_norm=True)
    tied.save_pretrained(tmp_path)
    inputs = inputs_of(PerceiverVLForPreTraining, padded=True)
    untied = PerceiverVLForPreTraining.from_pretrained(tmp_path, **UNTIED).eval()
    for one, other in zip(outputs_of(untied, inputs), outputs_of(tied, inputs), strict=True):
        assert_same(one, other)
    scaled = PerceiverVLForPreTraining.from_pretrained(tmp_path, layer_scale=0.1)
    assert (scaled.perceiver_vl.encoder.blocks[0].cross_attention.mlp.fc2.scale - 0.1).abs().max() < 1e-6


def counted(call: Any, *args: Any, **kwargs: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*args, **kwargs)
    return counter.get_total_flops()


@SWITCHES
@pytest.mark.parametrize("latents", [None, 1, 4])
@pytest.mark.parametrize("heads", [1, 4])
def test_costs_are_counted(changes: dict[str, Any], heads: int, latents: int | None) -> None:
    config, budget = tiny_config(**changes, num_attention_heads=heads), ComputeBudget(latents=latents)
    model = PerceiverVLModel(config).requires_grad_(False).double().eval()
    inputs = tiny_inputs(batch=1, frames=3, words=6)
    assert counted(model, **inputs, budget=budget) == encoder_flops(config, 3, 6, budget)
    assert counted(model, pixel_values=inputs["pixel_values"], budget=budget) == encoder_flops(config, 3, 0, budget)
    assert counted(model, inputs["input_ids"], budget=budget) == encoder_flops(config, 0, 6, budget)
    cache = model.cache_vision(inputs["pixel_values"], budget=budget)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert counted(model, **words, vision_cache=cache) == cached_vision_flops(config, 3, 6, budget)


def test_at_the_sizes_of_the_demo_untied_costs_as_much_as_tied() -> None:
    demo: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "self_attentions_per_block": 1,
        "num_latents": 16,
        "num_text_latents": 8,
        "image_size": 64,
        "patch_size": 8,
        "max_frames": 8,
    }
    tied, untied = tiny_config(**demo), tiny_config(**demo, **UNTIED)
    for frames, words in ((8, 0), (0, 8), (8, 8)):
        assert encoder_flops(tied, frames, words) == encoder_flops(untied, frames, words)


@pytest.mark.parametrize("changes", [UNTIED, {**UNTIED, "layer_scale": 0.3}])
def test_few_latents_meet_both_kinds_in_their_own_space(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes, num_attention_heads=1)
    inputs = inputs_of(PerceiverVLModel, padded=True)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pixels = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    budget = ComputeBudget(latents=1, text_latents=1)
    assert encoder_flops(model.config, 3, 6, budget) < encoder_flops(tiny_config(qk_norm=True), 3, 6, budget)
    for given in (inputs, words, pixels):
        found = model(**given, budget=budget)[0]
        model.train()  # where keys and values are made
        model.encoder.layer_drop = 0.0
        assert_same(found, model(**given, budget=budget)[0])
        model.eval()


def test_the_diagnostics_look_at_words_as_the_model_does() -> None:
    model = tiny_model(PerceiverVLModel, **UNTIED)
    words = {name: tiny_inputs()[name] for name in ("input_ids", "attention_mask")}
    found = encoder_statistics(model, lambda: model(**words))
    weights = model(**words, output_attentions=True).cross_attentions[1]
    entropy = torch.special.entr(weights.float()).sum(-1) / torch.tensor(6.0).log()
    assert found["cross_attention_2_entropy"] == pytest.approx(entropy.mean().item(), rel=1e-5)


def test_whole_numbers_take_scales_and_twins_with_them() -> None:
    torch.manual_seed(0)
    model = PerceiverVLModel(tiny_config(**EVERYTHING, initializer_range=0.2)).eval()
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in tiny_inputs().items()}
    wanted = model(**inputs)[0]
    set_dtype(model, "int8")
    attention = model.encoder.blocks[0].cross_attention.attention
    assert isinstance(attention.untied.k_proj, Int8Linear)
    assert isinstance(attention.out_proj, Int8Linear)
    found = model(**{n: v.bfloat16() if v.is_floating_point() else v for n, v in inputs.items()})[0].float()
    assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**UNTIED, "modality_aggregation": "separate"},
            "untied_modalities=True: of modality_aggregation=joint; separ",
        ),
        ({"layer_scale": 0.0}, "layer_scale=0.0: need a number above 0"),
        ({"layer_scale": 2000.0}, "layer_scale=2000.0: need a number above 0, at most 1000"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)
