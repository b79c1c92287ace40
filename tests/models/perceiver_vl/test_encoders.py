"""Perceiver-VL over pretrained encoders: against the encoders themselves, saved, moved, and of what does not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEModel

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLConfig,
    PerceiverVLForImageClassification,
    PerceiverVLForImagesAndTextClassification,
    PerceiverVLForMultipleChoice,
    PerceiverVLForPreTraining,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLProcessor,
    UsageError,
)
from perceiver_vl.models.perceiver_vl.encoders import TextEncoder
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from small_encoders import SMALL, TEXTS, TOWER, save_dual, save_onnx, save_text, save_vision


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def roots(tokens: Tensor) -> Tensor:
    return tokens.sign() * tokens.abs().sqrt()


def pixels_of(size: int = 32, clips: int = 3, frames: int = 4) -> Tensor:
    return torch.randn(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_untrained_it_is_the_mean_pooling_of_the_dual_encoder(tmp_path: Path, kind: str) -> None:
    theirs = save_dual(tmp_path / "dual", kind)
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    ours = PerceiverVLForRetrieval.from_pretrained(tmp_path / "made").eval()
    processor = PerceiverVLProcessor.from_pretrained(tmp_path / "made")
    pixels, words = pixels_of(), processor(text=TEXTS)
    given = processor.tokenizer(
        TEXTS, return_tensors="pt", padding="max_length" if kind == "siglip" else True, max_length=16, truncation=True
    )
    mask = {} if kind == "siglip" else {"attention_mask": given["attention_mask"]}

    frames = unit(theirs.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output).unflatten(0, (3, 4))
    text = unit(theirs.get_text_features(input_ids=given["input_ids"], **mask).pooler_output)
    assert torch.allclose(ours.get_vision_features(pixels), unit(frames.mean(1)), atol=1e-5)
    assert torch.allclose(ours.get_text_features(words["input_ids"], words["attention_mask"]), text, atol=1e-5)

    logits = theirs(input_ids=given["input_ids"], pixel_values=pixels[:, 0], **mask).logits_per_text
    features = ours.get_text_features(words["input_ids"], words["attention_mask"])
    mine = ours.logit_scale * features @ ours.get_vision_features(pixels[:, :1]).T + ours.logit_bias
    assert torch.allclose(mine, logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "convnext", "onnx"])
@torch.no_grad()
def test_every_form_of_vision_encoder_gives_its_tokens(tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        save_onnx(tmp_path / "vision")
    else:
        save_vision(tmp_path / "vision", kind)
    save_text(tmp_path / "text")
    made = initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text", **SMALL)
    shutil.rmtree(tmp_path / "vision")
    shutil.rmtree(tmp_path / "text")
    model, loading = PerceiverVLForRetrieval.from_pretrained(made.folder, output_loading_info=True)
    assert not any(loading.values())
    size, grid = model.config.image_size, model.config.token_grid
    pixels = pixels_of(size)
    encoded = model.eval().perceiver_vl.encode_frames(pixels)
    assert grid == {"vit": 4, "dinov2_with_registers": 4, "convnext": 2, "onnx": 4}[kind]
    assert model.config.frame_class_token == (kind in ("vit", "dinov2_with_registers"))
    assert encoded.shape[:3] == (3, 4, 1 + grid**2 + model.config.frame_class_token)
    if not model.config.frame_class_token:
        assert torch.allclose(encoded[:, :, 0], roots(encoded[:, :, 1:]).mean(2), atol=1e-5)
    assert model.encode_vision(pixels).isfinite().all()
    assert torch.equal(model.encode_vision(pixels), model.encode_vision(encoded))


@torch.no_grad()
def test_a_grid_is_averaged_to_the_one_asked_for(tmp_path: Path) -> None:
    save_onnx(tmp_path / "vision")
    save_text(tmp_path / "text")
    sources = {"vision": tmp_path / "vision", "text": tmp_path / "text"}
    whole = PerceiverVLForRetrieval.from_pretrained(initialise(tmp_path / "a", **sources, **SMALL).folder)
    small = PerceiverVLForRetrieval.from_pretrained(initialise(tmp_path / "b", token_grid=2, **sources, **SMALL).folder)
    pixels = pixels_of()
    tokens = whole.perceiver_vl.encode_frames(pixels)[:, :, 1:].unflatten(2, (4, 4))
    found = small.perceiver_vl.encode_frames(pixels)[:, :, 1:].unflatten(2, (2, 2))
    assert torch.allclose(found, tokens.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)), atol=1e-5)
    assert small.config.tokens_per_frame == 4
    with pytest.raises(UsageError, match=r"^token_grid=9: [^\n]+ gives 4 rows of tokens, set at most that$"):
        initialise(tmp_path / "c", token_grid=9, **sources)


@torch.no_grad()
def test_pixels_are_normalised_as_the_encoder_wants_them(tmp_path: Path) -> None:
    save_onnx(tmp_path / "vision")
    save_text(tmp_path / "text")
    initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text", **SMALL)
    processor = PerceiverVLProcessor.from_pretrained(tmp_path / "made")
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = processor(images=[frame])["pixel_values"][0, 0]
    assert torch.allclose(found, (torch.from_numpy(frame).permute(2, 0, 1).float() - 127) / 128, atol=1e-5)


def test_encoders_stay_as_they_are_until_a_recipe_says_otherwise(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "clip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    model = PerceiverVLForPreTraining.from_pretrained(tmp_path / "made").train()
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen
    assert all(".vision_encoder." in name or ".text_encoder." in name for name in frozen)
    assert not any(module.training for module in model.perceiver_vl.vision_encoder.modules())  # no dropout
    words = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    model(**words, pixel_values=pixels_of(clips=2), vtm_labels=torch.tensor([1.0, 0.0])).loss.backward()
    learned = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert any("token_projection" in name for name in learned)
    assert not set(learned) & set(frozen)


@torch.no_grad()
def test_answers_and_caches_take_encoded_frames_too(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "siglip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    model = PerceiverVLForRetrieval.from_pretrained(tmp_path / "made").eval()
    torch.manual_seed(3)
    for weight in (model.vtm_head.classifier.weight, model.contrastive.vision_projection.weight):
        torch.nn.init.normal_(weight)
    pixels = pixels_of(clips=1)
    words = {"input_ids": torch.randint(5, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    pairs = model.match_jointly(**words, pixel_values=pixels.expand(2, -1, -1, -1, -1))
    cached = model.match_jointly(**words, vision_cache=model.cache_vision(pixels))
    assert torch.allclose(pairs, cached, atol=1e-4)
    encoded = model.perceiver_vl.encode_frames(pixels)
    assert torch.allclose(model.get_vision_features(encoded), model.get_vision_features(pixels), atol=1e-6)
    long = model.encode_long([pixels[:, :3], pixels[:, 3:]], num_frames=4)
    assert torch.allclose(long, model.encode_vision(pixels), atol=1e-4)
    answering = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path / "made").eval()
    logits = [answering(**words, pixel_values=one.expand(2, *one.shape[1:])).logits for one in (pixels, encoded)]
    assert torch.allclose(*logits, atol=1e-5)


@torch.no_grad()
def test_answers_begin_with_what_the_encoders_say_of_question_and_clip(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "clip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    torch.manual_seed(3)
    model = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path / "made", num_labels=5).eval()
    assert model.base_answers is not None
    pixels, ids = pixels_of(clips=2), torch.randint(5, 20, (2, 6))
    embed = model.perceiver_vl.embed_inputs
    vision, text = embed(pixel_values=pixels), embed(ids)
    assert vision.vision_base is not None
    assert text.text_base is not None
    logits = model(ids, pixel_values=pixels).logits
    assert torch.equal(logits, model.base_answers(vision.vision_base, text.text_base)), "latents add nothing at first"
    assert not torch.allclose(logits, model(ids, pixel_values=pixels.flip(0)).logits)
    assert not torch.allclose(logits, model(ids.flip(0), pixel_values=pixels).logits)
    torch.nn.init.normal_(model.answer_head.classifier.weight)
    added = model(ids, pixel_values=pixels).logits
    assert not torch.allclose(logits, added)
    questions = ids.repeat_interleave(2, 0)
    pairs = model(questions, pixel_values=pixels.repeat_interleave(2, 0)).logits
    assert torch.allclose(pairs[::2], added, atol=1e-5)
    cached = model.answer_inputs(embed(questions, vision_cache=model.cache_vision(pixels)))
    assert torch.allclose(pairs, cached, atol=1e-4)
    model.save_pretrained(tmp_path / "answers")
    again = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path / "answers").eval()
    assert torch.equal(again(ids, pixel_values=pixels).logits, added)
    classes = PerceiverVLForImageClassification.from_pretrained(tmp_path / "made", num_labels=5).eval()
    assert classes.base_answers is None
    assert classes(pixels).logits.abs().max() > 0


@pytest.mark.parametrize("base", ["dual", "linear"])
@torch.no_grad()
def test_what_the_encoders_say_of_a_clip_is_the_same_however_it_is_read(tmp_path: Path, base: str) -> None:
    save_dual(tmp_path / "dual", "clip")
    save_vision(tmp_path / "vision", "vit")
    save_text(tmp_path / "text")
    sources = (
        {"dual": tmp_path / "dual"} if base == "dual" else {"vision": tmp_path / "vision", "text": tmp_path / "text"}
    )
    initialise(tmp_path / "made", **sources, **SMALL)
    torch.manual_seed(3)
    model = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path / "made", num_labels=5).eval()
    for weight in (*model.perceiver_vl.base.parameters(), model.base_answers.classifier.weight):
        torch.nn.init.normal_(weight)
    pixels, ids = pixels_of(clips=2), torch.randint(5, 20, (2, 6))
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    whole = model(ids, pixel_values=pixels, frame_mask=mask).logits
    cached = model(ids, vision_cache=model.cache_vision(pixels, mask)).logits
    with model.long_vision(lambda: zip(pixels.split(2, 1), mask.split(2, 1), strict=True)) as cache:
        streamed = [model(ids, vision_cache=cache).logits for _ in range(2)]
    for found in (cached, *streamed):
        assert torch.allclose(found, whole, atol=1e-4)
    base_of = model.perceiver_vl.embed_inputs(pixel_values=pixels, frame_mask=mask).vision_base
    assert torch.allclose(cache.base, base_of, atol=1e-6)
    packed = torch.zeros(1, model.config.num_latents, model.config.hidden_size + model.config.num_attention_heads)
    with pytest.raises(UsageError, match=f"base={base}: a first cross-attention does not hold"):
        model.cache_from_partial_attention(packed, ComputeBudget(cross_attentions=1))


@torch.no_grad()
def test_of_several_texts_the_one_that_the_encoders_find_nearest_is_chosen_at_first(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "clip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    model = PerceiverVLForMultipleChoice.from_pretrained(tmp_path / "made").eval()
    finds = PerceiverVLForRetrieval.from_pretrained(tmp_path / "made").eval()
    pixels, ids = pixels_of(clips=2), torch.randint(5, 20, (2, 3, 6), generator=torch.Generator().manual_seed(6))
    logits = model(ids, pixel_values=pixels).logits
    cosines = torch.einsum(
        "be,bce->bc", finds.get_vision_features(pixels), finds.get_text_features(ids.flatten(0, 1)).unflatten(0, (2, 3))
    )
    assert model.base_matching is not None
    scale, threshold = model.base_matching.scale, model.base_matching.threshold
    assert torch.allclose(logits, scale * (cosines - threshold), atol=1e-4)
    torch.nn.init.normal_(model.vtm_head.classifier.weight)
    assert not torch.allclose(model(ids, pixel_values=pixels).logits, logits, atol=1e-3)


@torch.no_grad()
def test_pairs_of_pictures_are_taken_as_the_encoder_saw_them(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "siglip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", **SMALL)
    model = PerceiverVLForImagesAndTextClassification.from_pretrained(tmp_path / "made").eval()
    pixels = pixels_of(clips=4, frames=1)
    words = {"input_ids": torch.randint(5, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    given = (pixels, model.perceiver_vl.encode_frames(pixels))
    logits = [model(**words, pixel_values=one.unflatten(0, (2, 2))).logits for one in given]
    assert torch.allclose(*logits, atol=1e-5)
    with pytest.raises(UsageError, match=r"need two pictures an example"):
        model(**words, pixel_values=pixels)


@torch.no_grad()
def test_a_cache_of_another_graph_is_refused(tmp_path: Path) -> None:
    save_onnx(tmp_path / "vision")
    save_text(tmp_path / "text")
    initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text", **SMALL)
    model = PerceiverVLForRetrieval.from_pretrained(tmp_path / "made").eval()
    words = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    cache = model.cache_vision(pixels_of(clips=1))
    model.match_jointly(**words, vision_cache=cache)
    model.perceiver_vl.vision_encoder.model.graph += 1
    with pytest.raises(UsageError, match=r"^vision_cache: made by another model"):
        model.match_jointly(**words, vision_cache=cache)


@torch.no_grad()
def test_the_processor_batches_encoded_frames(tmp_path: Path) -> None:
    save_dual(tmp_path / "dual", "clip")
    initialise(tmp_path / "made", dual=tmp_path / "dual", num_frames=2, **SMALL)
    processor = PerceiverVLProcessor.from_pretrained(tmp_path / "made")
    clips = [np.ones((frames, 18, 32), np.float16) * frames for frames in (1, 5)]
    batch = processor(videos=clips)
    assert batch["pixel_values"].shape == (2, 2, 18, 32)
    assert batch["frame_mask"].tolist() == [[1, 0], [1, 1]]
    assert (batch["pixel_values"][1] == 5).all()
    with pytest.raises(UsageError, match=r"^encoded frames of shapes [^\n]+: need those of one encoder"):
        processor(videos=[clips[0], np.ones((1, 9, 32), np.float16)])
    pictures = [np.ones((3, 16, 16), np.float32)] * 2  # one clip of two, colours first
    assert processor(videos=pictures)["pixel_values"].shape == (1, 2, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "nothing"}, r"ONNX encoder: cannot be run \([^\n]+\)"),
        ({"width": 13}, r"ONNX encoder: its tokens have shape \(1, 16, 12\), encoder.json says \(1, 16, 13\)"),
        ({"grid": [3, 3]}, r"ONNX encoder: its tokens have shape"),
        ({"grid": [3, 4]}, r"grid=\[3, 4\]: need as many rows as columns"),
        ({"file": "../other.onnx"}, r"file='../other.onnx': not a file in this folder"),
        ({"rescale": "pixel / 0"}, r"no normalisation, give"),
        ({"resample": "nearest"}, r"resample='nearest': frames are resized bicubic"),
        ({"image_size": "big"}, r"image_size is missing or not of type int"),
    ],
)
def test_an_encoder_json_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_onnx(tmp_path / "vision", **changes)
    save_text(tmp_path / "text")
    with pytest.raises(Exception, match=message) as raised:
        initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    save_onnx(tmp_path / "vision")
    save_text(tmp_path / "text")
    (tmp_path / "vision" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(Exception, match=r"vision: ONNX encoder: not a graph that loads \([^\n]+\)$"):
        initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text")


def test_encoders_in_the_wrong_place_are_refused(tmp_path: Path) -> None:
    save_vision(tmp_path / "vision", "vit")
    save_text(tmp_path / "text")
    for wrong, message in (
        ({"vision": tmp_path / "text", "text": tmp_path / "text"}, r"model_type='bert' takes no pictures"),
        ({"vision": tmp_path / "vision", "text": tmp_path / "vision"}, r"model_type='vit' takes no text"),
        ({"dual": tmp_path / "text"}, r"model_type='bert', not a dual encoder"),
        ({"vision": tmp_path / "vision"}, r"give a vision and a text source, or a dual one"),
        ({"vision": tmp_path / "nothing", "text": tmp_path / "text"}, r"nothing: cannot be loaded"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            initialise(tmp_path / "made", **wrong)
        assert "\n" not in str(raised.value)


def test_a_vision_model_that_takes_no_single_frames_is_refused(tmp_path: Path) -> None:
    save_vision(tmp_path / "vision", "vit")
    save_text(tmp_path / "text")
    video = VideoMAEModel(VideoMAEConfig(**TOWER, image_size=32, patch_size=8, num_frames=4))
    video.save_pretrained(tmp_path / "vision")
    with pytest.raises(UsageError, match=r"vision: does not take one frame of 32x32 pixels \([^\n]+\), name another"):
        initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text")


def test_a_vision_encoder_without_a_processor_is_refused(tmp_path: Path) -> None:
    save_vision(tmp_path / "vision", "vit")
    save_text(tmp_path / "text")
    (tmp_path / "vision" / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"no image processor \([^\n]+\), save the encoder's preprocessor_config.json"):
        initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "linear"}, "base=linear: needs a vision_config and a text_config"),
        ({"base_of_vision": False}, "base_of_vision=False: of a model whose text alone has a base"),
        ({"text_config": {"model_type": "bert"}, "tie_word_embeddings": True}, "tie_word_embeddings=True: of the"),
        ({"base_queries": 9}, "base_queries=9: need 0 to 100000, and base=linear"),
        ({"token_grid": 3}, "token_grid=3: of the tokens of a vision_config"),
        ({"vision_config": {"model_type": "vit", "num_hidden_layers": 10**8}}, r"vision_config.num_hidden_layers="),
        ({"text_config": {"model_type": "bert", "hidden_size": 10**12}}, r"text_config.hidden_size="),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PerceiverVLConfig(**changes)


def test_licences_that_are_not_open_are_said(tmp_path: Path) -> None:
    save_onnx(tmp_path / "vision", license="CC-BY-NC-4.0")
    save_text(tmp_path / "text")
    (tmp_path / "text" / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    made = initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text", **SMALL)
    [warning] = made.warnings()
    assert "licence CC-BY-NC-4.0, which is not an open one" in warning


@torch.inference_mode()
def test_a_clip_near_to_everything_loses_what_it_has_with_any(tmp_path: Path) -> None:
    save_vision(tmp_path / "vision", "vit")
    save_text(tmp_path / "text")
    initialise(tmp_path / "made", vision=tmp_path / "vision", text=tmp_path / "text", **SMALL)
    base: Any = PerceiverVLForRetrieval.from_pretrained(tmp_path / "made").perceiver_vl.base
    for tensor in (*base.parameters(), base.anchors, base.queries):
        tensor.data.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
    base.queries /= base.queries.norm(dim=1, keepdim=True)
    for linear in base.maps.values():  # as they are fitted: the last component is left free
        linear.weight.data[-1], linear.bias.data[-1] = 0, 0
    frames, words = torch.randn(7, 2, base.size), torch.randn(5, base.queries.shape[1])
    mask = torch.ones(7, 2, dtype=torch.bool)
    clips, texts = base.of_vision(frames, mask), base.of_text(words)
    assert torch.allclose(clips[:, -1], torch.zeros(7)), "nothing, before it has a weight"
    near = (clips[:, :-1] @ base.of_text(base.queries)[:, :-1].T).topk(len(base.queries) // 100).values.mean(1)
    base.hubness_weight.fill_(0.4)
    corrected, asked = base.of_vision(frames, mask), base.of_text(words)
    for vectors in (corrected, asked):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
    lengths = (1.4 * (1 + 0.4 * near**2)).sqrt()
    assert torch.allclose(asked @ corrected.T, (texts @ clips.T - 0.4 * near) / lengths, atol=1e-5)


def text_encoder_of_clip(folder: Path) -> TextEncoder:
    save_dual(folder / "dual", "clip")
    initialise(folder / "made", dual=folder / "dual", **SMALL)
    encoder = PerceiverVLForRetrieval.from_pretrained(folder / "made").perceiver_vl.text_encoder
    assert encoder is not None
    return encoder


@torch.no_grad()
def test_a_text_encoder_that_remembers_takes_no_text_at_all(tmp_path: Path) -> None:
    encoder = text_encoder_of_clip(tmp_path)
    encoder.remembered = {}
    none = torch.zeros(0, 6, dtype=torch.long)
    tokens, vectors = encoder(none, none)
    assert tokens.shape == (0, 6, 32)
    assert vectors.shape == (0, 20)


@torch.no_grad()
def test_what_a_text_encoder_remembers_is_what_it_says_whatever_is_beside(tmp_path: Path) -> None:
    encoder = text_encoder_of_clip(tmp_path)
    ids = torch.tensor([[1, 5, 2, 0], [1, 2, 0, 0], [1, 5, 2, 0]])
    mask = (ids > 0).long()
    tokens, vectors = encoder(ids, mask)
    encoder.remembered = {}
    assert len(set(encoder.remember(ids, mask))) == len(encoder.remembered) == 2
    for rows in ([0, 1, 2], [1]):
        again, summed = encoder(ids[rows], mask[rows])
        assert again.shape == (len(rows), 4, 32)
        assert torch.allclose(again, tokens[rows] * mask[rows][..., None], atol=2e-3)
        assert torch.allclose(summed, vectors[rows], atol=2e-3)
