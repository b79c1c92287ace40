"""Warm starts: the source's blocks and embeddings are computed again by ours, and nothing else has changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from perceiver_vl import PerceiverVLError, PerceiverVLForPreTraining, PerceiverVLModel, UsageError, initialise_from
from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from tiny import assert_same, tiny_model

EXACT = 1e-12
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8}
WORDS: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 12}
QKV = [f"{letter}_proj" for letter in "qkv"]

Builder = Callable[..., PreTrainedModel]


def vit(kind: Builder = ViTModel, **changes: Any) -> PreTrainedModel:
    return noisy(kind(ViTConfig(**(SIZES | IMAGE | changes))))


def clip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> PreTrainedModel:
    vision_config, text_config = SIZES | IMAGE | (vision or {}), SIZES | WORDS | (text or {})
    return noisy(CLIPModel(CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=8)))


def clip_tower(kind: Builder, **changes: Any) -> PreTrainedModel:
    if kind is CLIPTextModel:
        return noisy(kind(CLIPTextConfig(**(SIZES | WORDS | changes))))
    return noisy(kind(CLIPVisionConfig(**(SIZES | IMAGE | changes))))


def bert(kind: Builder = BertModel, **changes: Any) -> PreTrainedModel:
    return noisy(kind(BertConfig(**(SIZES | WORDS | {"layer_norm_eps": 1e-12} | changes))))


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """With no parameter at its start, where biases are zeros and norms do nothing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> PreTrainedModel:
    """Written to `folder` in float32, and given back in float64."""
    model.save_pretrained(folder, **options)
    return model.double()


def self_attentions(model: PerceiverVLPreTrainedModel) -> list[AttentionBlock]:
    return [self_attention for block in model.base_model.encoder.blocks for self_attention in block.self_attentions]


def vision_tokens(model: PerceiverVLPreTrainedModel, images: Tensor) -> Tensor:
    """What the input array holds of images of one frame, before the norm."""
    return model.base_model.embeddings.vision(images[:, None], torch.ones(len(images), 1, dtype=torch.bool))[0]


def images(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def latents() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def layers_of(source: PreTrainedModel) -> nn.ModuleList:
    return source.layers if isinstance(source, ViTModel) else source.encoder.layers


def linears_and_norms(layer: nn.Module) -> dict[str, nn.Module]:
    """The parts of a block of ViT or of CLIP, as ours are called."""
    if hasattr(layer, "self_attn"):
        attention, output, norms = layer.self_attn, layer.self_attn.out_proj, (layer.layer_norm1, layer.layer_norm2)
    else:
        attention, output = layer.attention, layer.attention.o_proj
        norms = (layer.layernorm_before, layer.layernorm_after)
    parts = {f"attention.{name}": getattr(attention, name) for name in QKV}
    parts |= {"attention.out_proj": output, "norm1": norms[0], "norm2": norms[1]}
    return parts | {"mlp.fc1": layer.mlp.fc1, "mlp.fc2": layer.mlp.fc2}


def write_config(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | values))
    return folder


# The blocks


@pytest.mark.parametrize(("num_blocks", "length"), [(3, 2), (2, 3), (6, 1), (1, 6)])
@pytest.mark.parametrize("family", ["vit", "clip"])
def test_every_self_attention_is_a_block_of_the_source(
    tmp_path: Path, family: str, num_blocks: int, length: int
) -> None:
    source = saved(vit() if family == "vit" else clip(), tmp_path)
    tower = source if family == "vit" else source.vision_model
    model = tiny_model(num_blocks=num_blocks, self_attentions_per_block=length)
    initialise_from(model, vision=tmp_path)
    assert len(self_attentions(model)) == len(layers_of(tower)) == 6
    for ours, theirs in zip(self_attentions(model), layers_of(tower), strict=True):
        for name, part in linears_and_norms(theirs).items():
            assert torch.equal(ours.get_submodule(name).weight, part.weight), name
            assert torch.equal(ours.get_submodule(name).bias, part.bias), name
        wanted = theirs(latents()) if family == "vit" else theirs(latents(), attention_mask=None)
        assert_same(ours(latents()), wanted, EXACT)


@pytest.mark.parametrize("aggregation", ["joint", "separate", "separate_plus"])
def test_without_cross_attentions_the_encoder_is_the_source_s(tmp_path: Path, aggregation: str) -> None:
    source = saved(vit(), tmp_path)
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation)
    initialise_from(model, vision=tmp_path)
    found = wanted = latents()
    for ours, theirs in zip(self_attentions(model), source.layers, strict=True):
        found, wanted = ours(found), theirs(wanted)
    assert_same(model.encoder.norm(found), source.layernorm(wanted), EXACT)


def test_a_source_without_query_key_and_value_biases(tmp_path: Path) -> None:
    source = saved(vit(qkv_bias=False), tmp_path)
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    for ours, theirs in zip(self_attentions(model), source.layers, strict=True):
        assert_same(ours(latents()), theirs(latents()), EXACT)


# The picture's embeddings


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ViTModel, {}),
        (ViTModel, {"max_shard_size": "5KB"}),
        (ViTForImageClassification, {}),
        (ViTForImageClassification, {"max_shard_size": "5KB"}),
        (ViTForMaskedImageModeling, {}),
    ],
)
def test_a_frame_is_embedded_as_by_the_vit(tmp_path: Path, kind: Builder, options: dict[str, Any]) -> None:
    source = saved(vit(kind, encoder_stride=8), tmp_path, **options)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(options)
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    assert_same(vision_tokens(model, images()), source.base_model.embeddings(images()), EXACT)


@pytest.mark.parametrize("kind", [CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection])
def test_a_frame_is_embedded_as_by_the_clip(tmp_path: Path, kind: Builder) -> None:
    source = saved(clip() if kind is CLIPModel else clip_tower(kind), tmp_path)
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    tower = source if kind is CLIPVisionModel else source.vision_model
    assert_same(vision_tokens(model, images()), tower.embeddings(as_clip_has_it(images())), EXACT)


def as_clip_has_it(
    frames: Tensor, mean: Sequence[float] = OPENAI_CLIP_MEAN, std: Sequence[float] = OPENAI_CLIP_STD
) -> Tensor:
    """Our pixels in [-1, 1], normalised by channel."""
    by_channel = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (mean, std))
    return (frames / 2 + 0.5 - next(by_channel)) / next(by_channel)


@pytest.mark.parametrize("build", [vit, clip])
def test_a_source_that_says_how_it_normalises_pixels(tmp_path: Path, build: Builder) -> None:
    source = saved(build(), tmp_path)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    model = tiny_model()
    report = initialise_from(model, vision=tmp_path)
    embeddings = source.embeddings if build is vit else source.vision_model.embeddings
    assert_same(vision_tokens(model, images()), embeddings(as_clip_has_it(images(), mean, std)), EXACT)
    assert "pixels in [-1, 1]" in report.loaded["perceiver_vl.embeddings.vision.patch_projection.weight"]


def test_older_files_of_a_clip_tower(tmp_path: Path) -> None:
    """Until transformers 5, a tower of its own was saved under the name it has in the whole."""
    source = saved(clip_tower(CLIPVisionModel), tmp_path)
    weights = tmp_path / "model.safetensors"
    older = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in load_file(weights).items()}
    save_file(older | {"vision_model.embeddings.position_ids": torch.arange(5)}, weights, metadata={"format": "pt"})
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    assert_same(vision_tokens(model, images()), source.embeddings(as_clip_has_it(images())), EXACT)


def test_weights_that_are_not_safetensors_are_read_as_tensors(tmp_path: Path) -> None:
    source = saved(vit(), tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    assert_same(vision_tokens(model, images()), source.embeddings(images()), EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_more(tmp_path: Path, dtype: torch.dtype) -> None:
    source = saved(vit().to(dtype), tmp_path)
    model = tiny_model()
    initialise_from(model, vision=tmp_path)
    assert_same(vision_tokens(model, images()), source.embeddings(images()), EXACT)


def test_without_a_class_token_the_patches_are_the_same(tmp_path: Path) -> None:
    source = saved(vit(), tmp_path)
    model = tiny_model(frame_class_token=False)
    result = initialise_from(model, vision=tmp_path)
    assert_same(vision_tokens(model, images()), source.embeddings(images())[:, 1:], EXACT)
    assert "frame_class_token=False" in result.left["vit: embeddings.cls_token"]


def positions_from(folder: Path, image_size: int | list[int], ours: int) -> tuple[Tensor, Tensor]:
    """Theirs `(rows,columns,D)` of patches of 8 pixels, and ours of frames of `ours` pixels a side."""
    source = saved(vit(image_size=image_size), folder)
    model = tiny_model(image_size=ours)
    result = initialise_from(model, vision=folder)
    name = "perceiver_vl.embeddings.vision.position_embeddings"
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    grids = f"resized from {height // 8}x{width // 8} to {ours // 8}x{ours // 8}"
    assert result.loaded[name] == f"vit: embeddings.position_embeddings[1:], {grids}"
    assert_same(model.perceiver_vl.embeddings.vision.class_position, source.embeddings.position_embeddings[0, 0], EXACT)
    theirs = source.embeddings.position_embeddings[0, 1:].unflatten(0, (height // 8, width // 8))
    return theirs, model.perceiver_vl.embeddings.vision.position_embeddings.unflatten(0, (ours // 8, ours // 8))


def test_positions_of_a_larger_grid_have_their_means_between_them(tmp_path: Path) -> None:
    theirs, ours = positions_from(tmp_path, 16, 24)
    assert_same(ours[::2, ::2], theirs, EXACT)
    assert_same(ours[1, 1], theirs.mean((0, 1)), EXACT)
    assert_same(ours[0, 1], theirs[0].mean(0), EXACT)


@pytest.mark.parametrize("image_size", [24, [16, 24], [24, 16]])
def test_positions_of_a_smaller_grid_keep_the_corners(tmp_path: Path, image_size: int | list[int]) -> None:
    theirs, ours = positions_from(tmp_path, image_size, 16)
    assert_same(ours, torch.stack([theirs[0, [0, -1]], theirs[-1, [0, -1]]]), EXACT)


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), 8), ((5, 5), 7), ((7, 7), 8), ((2, 2), 16), ((4, 6), 8), ((8, 5), 9)]
)
def test_a_larger_patch_projects_as_the_patch_before_it_was_enlarged(
    tmp_path: Path, old: tuple[int, int], new: int
) -> None:
    height, width = old
    source = saved(vit(image_size=[2 * height, 2 * width], patch_size=list(old)), tmp_path)
    model = tiny_model(image_size=2 * new, patch_size=new)
    result = initialise_from(model, vision=tmp_path)
    patch = images(16)[..., :height, :width]
    enlarged = F.interpolate(patch, (new, new), mode="bilinear", align_corners=False)
    found = model.perceiver_vl.embeddings.vision.project_patches(enlarged)[:, 0]
    assert_same(found, source.embeddings.patch_embeddings.projection(patch)[:, :, 0, 0], 1e-10)
    change = result.loaded["perceiver_vl.embeddings.vision.patch_projection.weight"]
    assert change.endswith(f"resized from {height}x{width} to {new}x{new}")


def test_a_tubelet_begins_by_seeing_its_central_frame(tmp_path: Path) -> None:
    source = saved(vit(), tmp_path)
    model = tiny_model(tubelet_size=3)
    result = initialise_from(model, vision=tmp_path)
    frames = torch.cat([images(), images() + 1, images().flip(3)], dim=1)
    found = model.perceiver_vl.embeddings.vision.project_patches(frames)
    central = source.embeddings.patch_embeddings.projection(images() + 1)
    assert_same(found, central.flatten(2).transpose(1, 2), 1e-10)
    change = result.loaded["perceiver_vl.embeddings.vision.patch_projection.weight"]
    assert change.endswith("of the central one of 3 frames")


@pytest.mark.parametrize(("old", "new"), [(8, 4), (12, 8), (7, 5)])
def test_a_smaller_patch_projects_as_nearly_the_same_as_can_be(tmp_path: Path, old: int, new: int) -> None:
    """No kernel is nearer, over all patches that are made smaller: what it misses has no part that one could see."""

    def smaller(patch: Tensor) -> Tensor:
        return F.interpolate(patch, (new, new), mode="bilinear", antialias=True)

    source = saved(vit(image_size=2 * old, patch_size=old), tmp_path)
    model = tiny_model(image_size=2 * new, patch_size=new)
    initialise_from(model, vision=tmp_path)
    kernel = source.embeddings.patch_embeddings.projection.weight.detach()
    resized = model.perceiver_vl.embeddings.vision.patch_projection.weight.detach()
    _, seen_before_it_is_made_smaller = torch.func.vjp(smaller, kernel)
    missed = seen_before_it_is_made_smaller(resized)[0] - kernel
    assert missed.abs().max() > 0.01
    assert_same(smaller(missed), torch.zeros_like(resized), 1e-10)


# The words' embeddings


@pytest.mark.parametrize("segments", [0, 2])
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_words_are_embedded_as_by_the_bert(tmp_path: Path, kind: Builder, segments: int) -> None:
    source = saved(bert(kind), tmp_path)
    model = tiny_model(type_vocab_size=segments)
    initialise_from(model, text=tmp_path)
    words = torch.arange(3, 11).expand(2, -1)
    wanted = source.base_model.embeddings(words)
    assert_same(model.perceiver_vl.embeddings.text(words), wanted, EXACT)


def test_older_files_of_a_bert(tmp_path: Path) -> None:
    source = saved(bert(BertForMaskedLM), tmp_path)
    weights = tmp_path / "model.safetensors"
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(weights).items()
    }
    assert any(name.endswith("gamma") for name in older)
    save_file(older, weights, metadata={"format": "pt"})
    model = tiny_model()
    initialise_from(model, text=tmp_path)
    words = torch.arange(3, 11)[None]
    assert_same(model.perceiver_vl.embeddings.text(words), source.bert.embeddings(words), EXACT)


@pytest.mark.parametrize("kind", [CLIPModel, CLIPTextModel])
def test_words_are_summed_as_by_the_clip(tmp_path: Path, kind: Builder) -> None:
    source = saved(clip() if kind is CLIPModel else clip_tower(kind), tmp_path)
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = initialise_from(model, text=tmp_path)
    text = model.perceiver_vl.embeddings.text
    words = torch.arange(3, 11)[None]
    tower = source if kind is CLIPTextModel else source.text_model
    assert_same(text(words), text.norm(tower.embeddings(words)), EXACT)
    assert torch.equal(text.norm.weight, before["perceiver_vl.embeddings.text.norm.weight"])
    assert "perceiver_vl.embeddings.text.norm.weight" in result.fresh


def test_tied_words_are_not_called_fresh(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path)
    model = tiny_model(tie_word_embeddings=True)
    result = initialise_from(model, text=tmp_path)
    assert torch.equal(model.mlm_head.projection.weight, source.embeddings.word_embeddings.weight)
    assert "mlm_head.projection.weight" not in result.fresh
    assert "mlm_head.bias" in result.fresh


# The report


@pytest.mark.parametrize("kind", [PerceiverVLModel, PerceiverVLForPreTraining])
def test_every_tensor_is_loaded_or_as_it_was(tmp_path: Path, kind: Any) -> None:
    saved(vit(), tmp_path / "vit")
    saved(bert(), tmp_path / "bert")
    model = tiny_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = initialise_from(model, vision=tmp_path / "vit", text=str(tmp_path / "bert"))
    after = model.state_dict()
    assert sorted([*result.loaded, *result.fresh]) == sorted(after)
    assert not [name for name in result.fresh if not torch.equal(before[name], after[name])]
    assert not [name for name in result.loaded if torch.equal(before[name], after[name])]
    for part in (
        ".cross_attention.",
        "encoder.latent",
        "temporal_embeddings",
        "modality_embeddings",
        "embeddings.norm.",
    ):
        assert [name for name in result.fresh if part in name]
        assert not [name for name in result.loaded if part in name]
    assert {name.split(":")[0] for name in result.loaded.values()} == {"vit", "bert"}


def test_what_of_a_whole_clip_is_left_has_its_reason(tmp_path: Path) -> None:
    saved(clip(vision={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}), tmp_path)
    result = initialise_from(tiny_model(), vision=tmp_path, text=tmp_path)
    assert result.left["clip: vision_model.pre_layrnorm.weight"] == "the input norm is shared with text"
    assert result.left["clip: visual_projection.weight"] == result.left["clip: logit_scale"]
    assert "the one encoder" in result.left["clip: text_model.encoder.layers.0.self_attn.q_proj.weight"]
    assert result.left["hidden_act"] == "quick_gelu: these blocks use the exact GELU"
    assert result.left["layer_norm_eps"] == "1e-05: this model has 1e-06"
    taken = {name.split(",")[0].split("[")[0] for name in result.loaded.values()}
    assert not taken & result.left.keys()
    assert "clip: text_model.embeddings.token_embedding.weight" in taken


def test_what_of_a_vit_and_a_bert_is_left_has_its_reason(tmp_path: Path) -> None:
    saved(vit(ViTForImageClassification), tmp_path / "vit")
    saved(bert(BertForPreTraining, layer_norm_eps=1e-5), tmp_path / "bert")
    result = initialise_from(tiny_model(), vision=tmp_path / "vit", text=tmp_path / "bert")
    assert result.left["vit: classifier.weight"] == "a head of the source's own task"
    assert result.left["bert: cls.seq_relationship.weight"] == "a head of the source's own task"
    assert "first row" in result.left["bert: embeddings.token_type_embeddings.weight"]
    assert "the one encoder" in result.left["bert: encoder.layer.0.attention.self.query.weight"]
    assert result.left["text_layer_norm_eps"] == "1e-05: this model has 1e-12"
    assert "hidden_act" not in result.left
    assert "layer_norm_eps" not in result.left


def test_with_no_source_all_is_fresh() -> None:
    model = tiny_model()
    result = initialise_from(model)
    assert (result.loaded, result.left, result.fresh) == ({}, {}, list(model.state_dict()))


# What is refused


def refused(model: PerceiverVLPreTrainedModel, **sources: Any) -> PerceiverVLError:
    """The error, in one line, of a model that is as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PerceiverVLError) as caught:
        initialise_from(model, **sources)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return caught.value


@pytest.mark.parametrize(
    ("source", "ours", "said"),
    [
        ({"hidden_size": 32}, {}, "hidden_size=32, but the model needs 16, set hidden_size=32"),
        ({"num_attention_heads": 2}, {}, "num_attention_heads=2, but the model needs 4, set num_attention_heads=2"),
        ({"intermediate_size": 32}, {}, "intermediate_size=32, but the model needs 64, set intermediate_ratio=2"),
        ({"intermediate_size": 40}, {}, "intermediate_size=40, but the model needs 64, name another"),
        ({"num_hidden_layers": 5}, {}, "num_hidden_layers=5, but the model needs 6, set num_blocks"),
        ({"num_hidden_layers": 12}, {}, "num_hidden_layers=12, but the model needs 6, set num_blocks"),
        ({"num_channels": 1}, {}, "num_channels=1, but the model needs 3, name a source of colour"),
        ({"num_channels": 1}, {"num_channels": 1}, "num_channels=1, but the model needs 3, name a source of colour"),
        ({}, {"num_channels": 1}, "num_channels=3, but the model needs 1, set num_channels=3"),
    ],
)
@pytest.mark.parametrize("family", ["vit", "clip"])
def test_a_vision_source_of_other_sizes(
    tmp_path: Path, family: str, source: dict[str, Any], ours: dict[str, Any], said: str
) -> None:
    (vit(**source) if family == "vit" else clip(vision=source)).config.save_pretrained(tmp_path)  # no weights read
    error = refused(tiny_model(**ours), vision=tmp_path)
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"vision {tmp_path}: {said}")


@pytest.mark.parametrize(
    ("source", "ours", "said"),
    [
        ({"hidden_size": 32}, {}, "hidden_size=32, but the model needs 16, set hidden_size=32"),
        ({"vocab_size": 41}, {}, "vocab_size=41, but the model needs 40, use that source's own tokenizer"),
        ({"max_position_embeddings": 7}, {}, "max_position_embeddings=7, but the model needs 8, set max_text_length=7"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "clip"])
def test_a_text_source_of_other_sizes(
    tmp_path: Path, family: str, source: dict[str, Any], ours: dict[str, Any], said: str
) -> None:
    (bert(**source) if family == "bert" else clip(text=source)).config.save_pretrained(tmp_path)  # no weights read
    error = refused(tiny_model(**ours), text=tmp_path)
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"text {tmp_path}: {said}")


def test_a_bert_of_another_number_of_segments(tmp_path: Path) -> None:
    saved(bert(), tmp_path)
    error = refused(tiny_model(type_vocab_size=3), text=tmp_path)
    assert str(error).endswith("type_vocab_size=2, but the model needs 3, set type_vocab_size=2 or 0")


def test_a_text_source_that_cannot_be_used_leaves_the_vision_source_unused(tmp_path: Path) -> None:
    saved(vit(), tmp_path / "vit")
    saved(bert(vocab_size=41), tmp_path / "bert")
    assert "vocab_size=41" in str(refused(tiny_model(), vision=tmp_path / "vit", text=tmp_path / "bert"))


def test_a_source_of_another_kind(tmp_path: Path) -> None:
    saved(vit(), tmp_path / "vit")
    saved(bert(), tmp_path / "bert")
    SiglipVisionConfig(**SIZES).save_pretrained(tmp_path / "siglip")
    tiny_model().config.save_pretrained(tmp_path / "ours")
    unknown = write_config(tmp_path / "unknown", model_type="unheard_of")
    assert "model_type='bert', need one of vit, clip" in str(refused(tiny_model(), vision=tmp_path / "bert"))
    assert "model_type='vit', need one of bert, clip" in str(refused(tiny_model(), text=tmp_path / "vit"))
    assert "model_type='siglip_vision_model'" in str(refused(tiny_model(), vision=tmp_path / "siglip"))
    assert "model_type='perceiver_vl'" in str(refused(tiny_model(), vision=tmp_path / "ours"))
    assert "unheard_of" in str(refused(tiny_model(), vision=unknown))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    empty, damaged = tmp_path / "empty", write_config(tmp_path / "damaged")
    empty.mkdir()
    (damaged / "config.json").write_text('{"model_type": "vit"')
    wrong = write_config(tmp_path / "wrong", model_type="vit", hidden_size="wide")
    for folder in (tmp_path / "nowhere", empty, damaged, wrong):
        error = refused(tiny_model(), vision=folder)
        assert isinstance(error, UsageError)
        assert str(error).startswith(f"vision {folder}: cannot be loaded (")
        assert str(error).endswith("name a folder or a hub model")


def test_a_folder_without_weights_or_with_some_that_are_cut_short(tmp_path: Path) -> None:
    saved(vit(), tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for length in (4, 500, len(content) - 100):
        weights.write_bytes(content[:length])
        assert f"vision {tmp_path}: cannot be loaded (" in str(refused(tiny_model(), vision=tmp_path))
    weights.unlink()
    assert f"vision {tmp_path}: cannot be loaded (" in str(refused(tiny_model(), vision=tmp_path))


@pytest.mark.parametrize("lost", ["embeddings.cls_token", "patch_embeddings.projection.bias", "layernorm_after.weight"])
def test_weights_that_lack_a_tensor(tmp_path: Path, lost: str) -> None:
    saved(vit(), tmp_path)
    weights = tmp_path / "model.safetensors"
    found = {name: value for name, value in load_file(weights).items() if not name.endswith(lost)}
    save_file(found, weights, metadata={"format": "pt"})
    assert lost in str(refused(tiny_model(), vision=tmp_path))


def test_weights_of_other_shapes_than_the_configuration_says(tmp_path: Path) -> None:
    saved(vit(), tmp_path)
    write_config(tmp_path, image_size=24)
    assert "no weights that fit embeddings.position_embeddings" in str(refused(tiny_model(), vision=tmp_path))


def test_heads_that_do_not_make_up_the_width(tmp_path: Path) -> None:
    saved(vit(head_dim=8), tmp_path)
    assert "layers.0.attention.q_proj.weight has shape (32, 16)" in str(refused(tiny_model(), vision=tmp_path))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_of_a_source_is_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickled = tmp_path / "pickled"
    saved(vit(), pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({"layernorm.weight": Trap(sprung)}, pickled / "pytorch_model.bin")
    assert "never run" in str(refused(tiny_model(), vision=pickled))

    of_its_own = write_config(tmp_path / "own", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (of_its_own / "own.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    refused(tiny_model(), vision=of_its_own)

    saved(vit(), tmp_path / "kernel")
    write_config(tmp_path / "kernel", attn_implementation="somebody/kernel")
    initialise_from(tiny_model(), vision=tmp_path / "kernel")
    assert not sprung.exists()


OFFLINE = """
from tiny import tiny_model
from perceiver_vl import UsageError, initialise_from
try:
    initialise_from(tiny_model(), vision="somebody/a-vit-that-is-not-here")
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE keeps the hub from being asked"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer (HF_ENDPOINT"),
    ],
)
def test_a_hub_name_without_a_network(tmp_path: Path, setting: dict[str, str], said: str) -> None:
    left = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = left | setting | {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.startswith("vision somebody/a-vit-that-is-not-here: cannot be loaded ("), done.stderr
    assert said in done.stdout
    assert done.stdout.count("\n") == 1
    assert "retry" not in done.stderr.lower(), "asked once"
