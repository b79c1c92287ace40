"""The models as Hugging Face models: Auto classes, shards, attention implementations, checkpointing, half precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import perceiver_vl
import perceiver_vl.models.perceiver_vl
from perceiver_vl import (
    ComputeBudget,
    PerceiverVLConfig,
    PerceiverVLForCaptioning,
    PerceiverVLForImageClassification,
    PerceiverVLForImagesAndTextClassification,
    PerceiverVLForMultipleChoice,
    PerceiverVLForPreTraining,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    PerceiverVLProcessor,
    UsageError,
)
from perceiver_vl.layers.attention import Attention
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from tiny import (
    AGGREGATIONS,
    Kind,
    assert_same,
    checkpoint,
    differs,
    gradients,
    inputs_of,
    outputs_of,
    public_models,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_processor,
)

LABELS = {"id2label": {0: "red", 1: "blue", 2: "green"}, "label2id": {"red": 0, "blue": 1, "green": 2}}
KINDS = public_models()
AUTO_CLASSES = {
    "AutoModel": PerceiverVLModel,
    "AutoModelForPreTraining": PerceiverVLForPreTraining,
    "AutoModelForVisualQuestionAnswering": PerceiverVLForQuestionAnswering,
    "AutoModelForImageClassification": PerceiverVLForImageClassification,
    "AutoModelForMultipleChoice": PerceiverVLForMultipleChoice,
    "AutoModelForImageTextToText": PerceiverVLForCaptioning,
}

# Auto classes, saving and loading


def test_the_package_names_every_model() -> None:
    for kind in KINDS:
        assert getattr(perceiver_vl, kind.__name__) is getattr(perceiver_vl.models.perceiver_vl, kind.__name__) is kind
        assert kind.__name__ in dir(perceiver_vl)


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_an_auto_class_loads_its_model(auto_class: str, tmp_path: Path) -> None:
    kind = AUTO_CLASSES[auto_class]
    model, inputs = tiny_model(kind, **LABELS), inputs_of(kind)
    model.save_pretrained(tmp_path)
    again = getattr(transformers, auto_class).from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is kind
    for left, right in zip(outputs_of(again, inputs), outputs_of(model, inputs), strict=True):
        assert_same(left, right)


def test_one_folder_holds_all_that_the_auto_classes_need(tmp_path: Path) -> None:
    tiny_model(PerceiverVLForQuestionAnswering, **LABELS).save_pretrained(tmp_path)
    tiny_processor(["what colour is it"] * 2).save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, PerceiverVLConfig)
    assert config.architectures == ["PerceiverVLForQuestionAnswering"]
    assert config.id2label == LABELS["id2label"]
    assert config.num_labels == 3
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, PerceiverVLProcessor)
    model = transformers.AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path).eval()
    clip = np.random.default_rng(0).integers(256, size=(5, 20, 30, 3), dtype=np.uint8)
    assert model(**processor(text="what colour is it", videos=[clip])).logits.shape == (1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_several_shards_are_the_model_again(kind: Kind, tmp_path: Path) -> None:
    model, inputs = tiny_model(kind), inputs_of(kind)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) >= 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again, report = kind.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for left, right in zip(outputs_of(again, inputs), outputs_of(model, inputs), strict=True):
        assert_same(left, right)


def test_pre_trained_weights_start_the_models_that_answer(tmp_path: Path) -> None:
    pretrained, inputs = tiny_model(), tiny_inputs()
    pretrained.save_pretrained(tmp_path)
    for kind in (PerceiverVLForQuestionAnswering, PerceiverVLForImageClassification):
        model, report = kind.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True, **LABELS)
        assert {name.split(".")[0] for name in report["missing_keys"]} == {"answer_query", "answer_head"}
        assert not report["unexpected_keys"]
        assert model.config.num_labels == 3
        latents = pretrained.perceiver_vl(**inputs).last_hidden_state
        assert_same(model.perceiver_vl(**inputs).last_hidden_state, latents)
        assert_same(model.decoder(latents, latents[:, :1]), pretrained.decoder(latents, latents[:, :1]))


def test_pre_trained_weights_start_the_models_that_choose_and_that_compare(tmp_path: Path) -> None:
    pretrained = tiny_model()
    pretrained.save_pretrained(tmp_path)
    _, report = PerceiverVLForMultipleChoice.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]  # choosing is matching
    assert not report["unexpected_keys"]
    model, report = PerceiverVLForImagesAndTextClassification.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"answer_queries", "answer_head"}
    assert not report["unexpected_keys"]
    inputs = tiny_inputs()
    wanted = pretrained.perceiver_vl(**inputs).last_hidden_state
    assert_same(model.perceiver_vl(**inputs).last_hidden_state, wanted)


def test_the_image_classification_pipeline_of_transformers_takes_the_folder(tmp_path: Path) -> None:
    model = tiny_model(PerceiverVLForImageClassification, **LABELS).float()
    model.save_pretrained(tmp_path)
    tiny_processor(["a word"] * 2).save_pretrained(tmp_path)
    classify = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))
    found = classify(picture)
    wanted = model(**PerceiverVLProcessor.from_pretrained(tmp_path)(images=picture)).logits[0].softmax(-1)
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(LABELS["id2label"].values(), wanted.tolist(), strict=True)), rel=1e-4
    )


# Attention implementations


def implementations(model: PerceiverVLPreTrainedModel) -> set[str]:
    """Which implementations run, as the modules themselves say."""
    return {module.implementation for module in model.modules() if isinstance(module, Attention)}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_eager_and_sdpa_agree_where_words_and_frames_are_padded(kind: Kind, aggregation: str, tmp_path: Path) -> None:
    tiny_model(kind, modality_aggregation=aggregation).save_pretrained(tmp_path)
    inputs = inputs_of(kind, padded=True)
    found = {}
    for name in ("eager", "sdpa"):
        model = kind.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation=name)
        assert model.config._attn_implementation == name
        assert implementations(model) == {name}
        found[name] = outputs_of(model, inputs)
    for eager, sdpa in zip(found["eager"], found["sdpa"], strict=True):
        assert_same(eager, sdpa, 1e-12)


def test_the_implementation_can_come_from_the_configuration_and_change_later(tmp_path: Path) -> None:
    model = PerceiverVLForRetrieval(tiny_config(attn_implementation="eager"))
    assert implementations(model) == {"eager"}
    model.set_attn_implementation("sdpa")
    assert implementations(model) == {"sdpa"}
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation({"": "eager"})
    assert implementations(model) == {"eager"}
    model.save_pretrained(tmp_path)
    assert implementations(PerceiverVLForRetrieval.from_pretrained(tmp_path)) == {
        "sdpa"
    }  # the machine's, not the file's


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "paged|eager", "someone/kernel", "nonsense"])
def test_other_implementations_are_refused_by_name(name: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    wanted = rf"^attn_implementation='{name.replace('|', '[|]')}': choose 'eager' or 'sdpa'[^\n]+$"
    with pytest.raises(UsageError, match=wanted):
        PerceiverVLForPreTraining.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(UsageError, match=wanted):
        PerceiverVLForPreTraining(tiny_config(attn_implementation=name))
    with pytest.raises(UsageError, match=wanted):
        model.set_attn_implementation(name)
    assert implementations(model) == {"sdpa"}


# Gradient checkpointing


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_checkpointing_changes_no_gradient(aggregation: str) -> None:
    model = tiny_model(modality_aggregation=aggregation, layer_drop=0.5, hidden_dropout_prob=0.2).train()
    inputs = inputs_of(PerceiverVLForPreTraining, padded=True)
    patterns = set()
    for seed in range(6):
        model.seed_layer_drop(seed)
        patterns.add(str(model.perceiver_vl.encoder.attending_blocks()))
        found = []
        for enable in (False, True):
            torch.manual_seed(seed)  # of the dropout
            checkpoint(model, enable)
            found.append(gradients(model, inputs))
        plain, checkpointed = found
        assert plain.keys() == checkpointed.keys()
        for name, gradient in plain.items():
            assert_same(checkpointed[name], gradient, 1e-12)
    assert len(patterns) > 2  # LayerDrop took part


def test_checkpointing_computes_the_blocks_again() -> None:
    model, inputs = tiny_model(layer_drop=0.0).train(), tiny_inputs()
    calls: list[Any] = []
    block = model.perceiver_vl.encoder.blocks[1]
    watched = [
        block.cross_attention.attention,
        block.self_attentions[0].attention,
        model.decoder.block.attention,
    ]
    for module in watched:  # a hook of the block itself would stay outside of what is computed again
        module.register_forward_hook(lambda module, *_: calls.append(module))
    counts = []
    for enable in (False, True):
        checkpoint(model, enable)
        calls.clear()
        gradients(model, inputs)
        counts.append([calls.count(module) for module in watched])
    assert counts == [[1, 1, 1], [2, 2, 2]]


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_runs_in_half_precision(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(kind, latent_position="fourier").save_pretrained(tmp_path)
    inputs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in inputs_of(kind, padded=True).items()
    }
    wanted = outputs_of(kind.from_pretrained(tmp_path, dtype=torch.float32), inputs)
    model = kind.from_pretrained(tmp_path, dtype=dtype)
    assert {value.dtype for value in [*model.parameters(), *model.buffers()]} == {dtype}
    for half, single in zip(outputs_of(model, inputs), wanted, strict=True):
        assert half.dtype == dtype
        tolerance = 0.1 if dtype == torch.bfloat16 else 0.02  # of each number, and of small ones in units of 1
        torch.testing.assert_close(half.float(), single, rtol=tolerance, atol=tolerance)


def test_the_streams_of_retrieval_stay_in_half_precision() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval).to(torch.bfloat16), tiny_inputs(frames=5, size=24)
    pixel_values = inputs["pixel_values"].float()
    budget = ComputeBudget(frames=2, latents=3, text_latents=2, cross_attentions=1)
    for dials in (None, budget):
        vision = model.encode_vision(pixel_values, inputs["frame_mask"], dials)
        text = model.encode_text(inputs["input_ids"], inputs["attention_mask"], dials)
        results = [vision, text, model.pool_vision(vision), model.pool_text(text)]
        results += [model.match(vision, text), model.match_all(vision, text)]
        assert {result.dtype for result in results} == {torch.bfloat16}
    assert differs(model.pool_text(text)[0].float(), model.pool_text(text)[1].float())


def test_a_half_precision_model_trains() -> None:
    model, inputs = tiny_model().to(torch.bfloat16).train(), tiny_inputs()
    labels = torch.where(torch.arange(6) < 2, inputs["input_ids"], -100)
    loss = model(**inputs, mlm_labels=labels, vtm_labels=torch.tensor([0, 1])).loss
    loss.backward()
    grads = [value.grad for value in model.parameters() if value.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert sum(bool(grad.any()) for grad in grads) > 50
