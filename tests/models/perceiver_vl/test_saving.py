"""Weights written and read again, by every class from every class."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import perceiver_vl.models.perceiver_vl
from perceiver_vl import (
    PerceiverVLConfig,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from tiny import assert_same, tiny_config, tiny_inputs, tiny_model

KINDS = [PerceiverVLModel, PerceiverVLForRetrieval, PerceiverVLForPreTraining]


def load(kind: type[PerceiverVLPreTrainedModel], folder: Path) -> PerceiverVLPreTrainedModel:
    """The model, which must have found all its weights."""
    model, report = kind.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return model


@pytest.mark.parametrize("position", ["learned", "fourier"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_same_again(kind: type[PerceiverVLPreTrainedModel], position: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(kind, latent_position=position), tiny_inputs()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = load(kind, tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    for left, right in zip(again(**inputs).to_tuple(), model(**inputs).to_tuple(), strict=True):
        assert_same(left, right)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (PerceiverVLForPreTraining, PerceiverVLForRetrieval),
        (PerceiverVLForPreTraining, PerceiverVLModel),
        (PerceiverVLForRetrieval, PerceiverVLModel),
    ],
)
def test_a_smaller_model_loads_from_a_larger_one(
    saved: type[PerceiverVLPreTrainedModel], loaded: type[PerceiverVLPreTrainedModel], tmp_path: Path
) -> None:
    model, inputs = tiny_model(saved), tiny_inputs()
    model.save_pretrained(tmp_path)
    found = load(loaded, tmp_path)
    if isinstance(found, PerceiverVLForRetrieval):
        assert_same(found(**inputs).vtm_logits, model(**inputs).vtm_logits)
        assert_same(found.get_text_features(inputs["input_ids"]), model.get_text_features(inputs["input_ids"]))
    else:
        wanted = model.perceiver_vl(**inputs).last_hidden_state
        assert_same(found(**inputs).last_hidden_state, wanted)


def test_a_larger_model_takes_what_a_smaller_one_has(tmp_path: Path) -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs()
    model.save_pretrained(tmp_path)
    larger = PerceiverVLForPreTraining.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same(larger.perceiver_vl(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_the_auto_classes_know_the_model(tmp_path: Path) -> None:
    assert perceiver_vl.models.perceiver_vl.PerceiverVLModel is PerceiverVLModel
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PerceiverVLConfig)
    found = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(found) is PerceiverVLModel
    assert_same(found(**inputs).last_hidden_state, model.perceiver_vl(**inputs).last_hidden_state)
    assert type(AutoModel.from_config(tiny_config())) is PerceiverVLModel


def test_importing_the_model_is_what_registers_it(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    load = f"transformers.AutoConfig.from_pretrained({str(tmp_path)!r})"
    script = f"import perceiver_vl.models.perceiver_vl, transformers; print({load}.num_latents)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "6", done.stderr


def test_tied_words_are_one_table_and_stay_one(tmp_path: Path) -> None:
    model, inputs = tiny_model(tie_word_embeddings=True), tiny_inputs()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    untied = tiny_model()
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = load(PerceiverVLForPreTraining, tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert_same(again(**inputs).mlm_logits, model(**inputs).mlm_logits)
    with torch.no_grad():
        again.get_input_embeddings().weight[11] += 1.0
    assert torch.equal(again.get_output_embeddings().weight, again.get_input_embeddings().weight)


def test_a_tied_folder_serves_retrieval(tmp_path: Path) -> None:
    model, inputs = tiny_model(tie_word_embeddings=True), tiny_inputs()
    model.save_pretrained(tmp_path)
    assert_same(load(PerceiverVLForRetrieval, tmp_path)(**inputs).vtm_logits, model(**inputs).vtm_logits)


def test_new_models_start_as_the_documentation_says() -> None:
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=64, num_latents=64, vocab_size=500, initializer_range=0.05, latent_initializer_range=2.0
    )
    model = PerceiverVLForPreTraining(config)
    core = model.perceiver_vl
    assert core.encoder.latent_positions.std().item() == pytest.approx(2.0, rel=0.1)
    assert core.encoder.latents.std().item() == pytest.approx(0.05, rel=0.1)
    assert core.embeddings.text.word_embeddings.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert core.encoder.blocks[0].self_attentions[0].mlp.fc1.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert core.embeddings.vision.patch_projection.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert not core.embeddings.vision.temporal_embeddings.any()
    assert core.embeddings.vision.class_token.std().item() == pytest.approx(0.05, rel=0.5)
    assert model.vtm_query.query.std().item() == pytest.approx(0.05, rel=0.5)
    assert model.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert not model.mlm_head.bias.any()
    biases = [value for name, value in model.named_parameters() if name.endswith("proj.bias")]
    assert biases
    assert not any(bias.any() for bias in biases)


def test_another_width_is_refused_rather_than_filled_with_noise(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        PerceiverVLForPreTraining.from_pretrained(tmp_path, config=tiny_config(hidden_size=32))


def test_a_misspelt_override_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises((UsageError, TypeError), match="num_latentz"):
        PerceiverVLForRetrieval.from_pretrained(tmp_path, num_latentz=3)


def test_threads_may_load_at_once(tmp_path: Path) -> None:
    """What transformers takes away while it loads is there again afterwards, whoever else loads."""
    tied = tiny_model(PerceiverVLForPreTraining, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    tie_weights = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: PerceiverVLForPreTraining.from_pretrained(tmp_path), range(24)))
    assert PreTrainedModel.tie_weights is tie_weights
    for model in loaded:
        assert model.mlm_head.projection.weight is model.get_input_embeddings().weight
