"""Checkpoints in transformers' layout, made by its own classes: the same answers, and folders that load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    PerceiverConfig,
    PerceiverForImageClassificationConvProcessing,
    PerceiverForImageClassificationFourier,
    PerceiverForImageClassificationLearned,
    PerceiverForMaskedLM,
    PerceiverForMultimodalAutoencoding,
    PerceiverForOpticalFlow,
    PerceiverForSequenceClassification,
    PerceiverTokenizer,
    PreTrainedModel,
    pipeline,
)

from perceiver_vl.models.perceiver_io import PerceiverIOForMaskedLM
from perceiver_vl.models.perceiver_io.convert import converted
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same

SMALL: dict[str, Any] = {
    "num_latents": 7,
    "d_latents": 48,
    "d_model": 24,
    "num_blocks": 2,
    "num_self_attends_per_block": 3,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "self_attention_widening_factor": 2,
    "max_position_embeddings": 11,
    "num_labels": 5,
    "attention_probs_dropout_prob": 0.0,
}
LANGUAGE = {"qk_channels": 8, "v_channels": 48, "num_cross_attention_heads": 4}
VIDEO: dict[str, Any] = {"num_frames": 2, "image_size": 8, "audio_samples_per_frame": 32, "output_shape": [1, 2, 8, 8]}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens() -> dict[str, Tensor]:
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 6:] = 0
    ids = torch.randint(262, (2, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


def classes(kind: type[PreTrainedModel], size: int) -> tuple[Any, ...]:
    return kind, {"image_size": size}, {"pixel_values": drawn(2, 3, size, size)}, None


KINDS: dict[str, tuple[Any, ...]] = {
    "language": (PerceiverForMaskedLM, LANGUAGE, tokens(), None),
    "text": (PerceiverForSequenceClassification, LANGUAGE, tokens(), None),
    "learned": classes(PerceiverForImageClassificationLearned, 6),
    "fourier": classes(PerceiverForImageClassificationFourier, 9),
    "conv": classes(PerceiverForImageClassificationConvProcessing, 22),
    "flow": (
        PerceiverForOpticalFlow,
        {"train_size": [5, 6]},
        {"inputs": drawn(2, 2, 27, 5, 6)},
        {"frames": drawn(2, 2, 27, 5, 6)},
    ),
    "multimodal": (
        PerceiverForMultimodalAutoencoding,
        VIDEO,
        {
            "inputs": {"image": drawn(1, 2, 3, 8, 8), "audio": drawn(1, 64, 1), "label": drawn(1, 5)},
            "subsampled_output_points": {"image": torch.arange(128), "audio": torch.arange(4)},
        },
        {"image": drawn(1, 2, 3, 8, 8), "audio": drawn(1, 64, 1), "label": drawn(1, 5)},
    ),
}


def theirs(kind: str) -> PreTrainedModel:
    """With random weights, none of them a constant."""
    model_class, changes, *_ = KINDS[kind]
    torch.manual_seed(0)
    model = model_class(PerceiverConfig(**(SMALL | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer += torch.rand_like(buffer)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_answers_as_transformers_does(kind: str) -> None:
    model, (_, _, their_inputs, our_inputs) = theirs(kind), KINDS[kind]
    ours = converted(model.state_dict(), model.config.to_dict())
    with torch.no_grad():
        wanted = model(**their_inputs).logits
        found = ours(**(our_inputs or their_inputs)).logits
    for name in wanted if isinstance(wanted, dict) else [None]:
        one, other = (found, wanted) if name is None else (found[name], wanted[name])
        assert other.std() > 1e-3
        assert_same(one, other)


@pytest.mark.parametrize("kind", ["language", "flow", "multimodal"])
def test_a_folder_gives_the_model_again(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    ours = converted(model.state_dict(), model.config.to_dict())
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert again.config.to_dict() | {"_name_or_path": ""} == ours.config.to_dict()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("perceiver.embeddings.latents", "weight embeddings.latents: missing, give a whole checkpoint"),
        (
            "perceiver.encoder.self_attends.1.mlp.dense1.bias",
            "blocks.0.self_attentions.1.mlp.fc1.bias: missing, give a",
        ),
        ("perceiver.encoder.cross_attention.attention.self.query.weight", "weights: of no Perceiver IO that is known"),
        ("embedding_decoder.bias", "weight decoder.decoder.decoding_cross_attention.attention.self.layernorm1.weight"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_in_a_line(name: str, said: str) -> None:
    model = theirs("language")
    state = model.state_dict()
    del state[name]
    with pytest.raises(UsageError, match=said):
        converted(state, model.config.to_dict())


def test_what_no_weight_tells_is_asked_for() -> None:
    state = theirs("language").state_dict()
    with pytest.raises(UsageError, match="num_attention_heads: no shape of these weights tells it"):
        converted(state)
    with pytest.raises(UsageError, match="weight more: not known here"):
        converted(state | {"more": torch.zeros(1)}, theirs("language").config.to_dict())


def test_masked_bytes_are_filled_by_transformers_pipeline(tmp_path: Path) -> None:
    model = theirs("language").float()
    ours = converted(model.state_dict(), model.config.to_dict())
    ours.save_pretrained(tmp_path)
    PerceiverTokenizer(model_max_length=11).save_pretrained(tmp_path)
    filler = pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path))
    assert type(filler.model) is PerceiverIOForMaskedLM
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is PerceiverIOForMaskedLM
    text = "a bir[MASK]"
    answers = filler(text, top_k=2)
    ids = filler.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        padded = torch.nn.functional.pad(ids.input_ids, (0, 11 - ids.input_ids.shape[1]))
        mask = torch.nn.functional.pad(ids.attention_mask, (0, 11 - ids.input_ids.shape[1]))
        logits = model(padded, mask).logits[0]
    place = ids.input_ids[0].tolist().index(filler.tokenizer.mask_token_id)
    assert [answer["token"] for answer in answers] == logits[place].topk(2).indices.tolist()
