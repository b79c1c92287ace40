"""The S2T Perceiver: its latents in training and in use, its decoder, its folder, what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_s2t_perceiver import SMALL, small_s2t_perceiver, small_speech
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

from perceiver_vl.layers.token_selection import drawn_latents
from perceiver_vl.models.s2t_perceiver import (
    S2TPerceiverConfig,
    S2TPerceiverForConditionalGeneration,
    S2TPerceiverModel,
)
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, checkpoint, differs

LABELS = torch.tensor([[4, 5, 2, -100], [6, 7, 8, 2]])


def test_a_folder_gives_the_model_again(tmp_path: Path) -> None:
    model = small_s2t_perceiver()
    model.save_pretrained(tmp_path)
    again = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert type(again) is S2TPerceiverForConditionalGeneration
    assert_same(again(small_speech(), labels=LABELS).logits, model(small_speech(), labels=LABELS).logits)
    assert again.output.weight is again.word_embeddings.weight
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is S2TPerceiverModel
    assert_same(base(small_speech()).last_hidden_state, model.model(small_speech()).last_hidden_state)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()


def test_training_draws_latents_for_each_example_with_the_function_of_the_elastic_recipe() -> None:
    model = small_s2t_perceiver(num_train_latents=3).model.train()
    torch.manual_seed(5)
    found = model(small_speech(4))
    torch.manual_seed(5)
    choice = drawn_latents(6, 3, int(torch.randint(2**62, ())), 4)
    assert torch.equal(found.kept, choice)
    assert len({tuple(row) for row in choice.tolist()}) > 1
    assert_same(found.last_hidden_state, model(small_speech(4), choice=choice).last_hidden_state)
    for row in range(4):
        alone = model(small_speech(4)[row : row + 1], choice=choice[row : row + 1])
        assert_same(alone.last_hidden_state, found.last_hidden_state[row : row + 1])


def test_any_number_of_latents_serves_and_all_is_no_choice() -> None:
    model = small_s2t_perceiver(num_train_latents=3).model
    everything = model(small_speech())
    assert everything.kept is None
    assert everything.last_hidden_state.shape == (2, 6, 12)
    assert torch.equal(model(small_speech(), num_latents=6).last_hidden_state, everything.last_hidden_state)
    before: list[Tensor] = []
    for number in range(1, 6):
        found = model(small_speech(), num_latents=number)
        assert found.last_hidden_state.shape == (2, number, 12)
        assert all(len(set(row)) == number for row in found.kept.tolist())
        assert not before or torch.equal(found.kept[:, :-1], before[-1])  # greedy: fewer are the first of more
        before.append(found.kept)


def test_what_is_behind_the_end_is_not_seen() -> None:
    """But by convolutions, which reach over it as the authors' do: they see zeros there."""
    model, lengths = small_s2t_perceiver(kernel_sizes=[]).model, torch.tensor([13, 8])
    padded = small_speech()
    found = model(padded, lengths).last_hidden_state
    padded[1, 8:] = 7.0
    assert_same(model(padded, lengths).last_hidden_state, found)
    assert_same(model(padded[1:, :8]).last_hidden_state, found[1:])
    assert differs(model(padded).last_hidden_state, found)


def test_strides_shorten_the_input_array() -> None:
    model = small_s2t_perceiver(stride=2).model
    tokens, mask = model.input_array(small_speech(), torch.tensor([13, 6]))
    assert tokens.shape == (2, 4, 10)
    assert mask.sum(1).tolist() == [4, 2]


def test_words_do_not_see_those_to_come_and_transcribing_is_decoding() -> None:
    model = small_s2t_perceiver()
    words = torch.tensor([[0, 4, 5, 6, 7]])
    latents = model.model(small_speech(1)).last_hidden_state
    changed = words.clone()
    changed[:, 3:] = 8
    before, after = model.decode(latents, words), model.decode(latents, changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert differs(before[:, 3], after[:, 3])
    found = model.transcribe(small_speech(), num_latents=3, max_length=5)
    latents = model.model(small_speech(), num_latents=3).last_hidden_state
    for row, given in zip(found, latents, strict=True):
        words = [0]
        while len(words) <= found.shape[1] and words[-1] != 2:
            words.append(int(model.decode(given[None], torch.tensor([words]))[0, -1].argmax()))
        assert row.tolist()[: len(words) - 1] == words[1:]
        assert set(row.tolist()[len(words) - 1 :]) <= {1}


def test_gradients_reach_every_weight_and_checkpointing_changes_none() -> None:
    gradients = []
    for enable in (False, True):
        model = small_s2t_perceiver(num_train_latents=4).train()
        checkpoint(model, enable)
        torch.manual_seed(3)
        model(small_speech(), labels=LABELS).loss.backward()
        assert all(weight.grad is not None for weight in model.parameters())
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_latents": 0}, "num_latents=0: need at least 1"),
        ({"num_train_latents": 7}, "num_train_latents=7: drawn from num_latents=6, need no more"),
        ({"kernel_sizes": [4]}, "kernel_sizes=[4], conv_channels=8: need odd sizes, even channels"),
        ({"num_attention_heads": 5}, "num_attention_heads=5: must divide hidden_size=12 evenly"),
        ({"dropout": 1.0}, "dropout=1.0: need a share"),
        ({"num_decoder_layers": -1}, "num_hidden_layers=2, num_decoder_layers=-1: need 0 or more of each"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        S2TPerceiverConfig(**(SMALL | changes))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_features": torch.zeros(2, 9, 4)}, "input_features (2, 9, 4): need (batch, frames, 5)"),
        ({"input_features": torch.zeros(1, 41, 5)}, "input_features: 41 frames, max_frames=40"),
        ({"num_latents": 7}, "num_latents=7: need 1 to 6"),
        ({"labels": torch.ones(2, 9, dtype=torch.long)}, "9 words: max_target_length=8"),
        ({"labels": None}, "labels=None, decoder_input_ids=None: need one of them"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_s2t_perceiver()(**({"input_features": small_speech(), "labels": LABELS} | inputs))
