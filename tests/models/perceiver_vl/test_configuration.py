"""Configurations: the paper's numbers by default, a round trip, and values that cannot work refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from perceiver_vl import ComputeBudget, PerceiverVLConfig, UsageError
from tiny import tiny_config


def test_the_defaults_are_the_base_size_of_the_paper() -> None:
    config = PerceiverVLConfig()
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (768, 12, 3072)
    assert config.num_blocks * config.self_attentions_per_block == 12
    assert (config.num_latents, config.num_text_latents, config.layer_drop) == (128, 128, 0.5)
    assert (config.image_size, config.patch_size, config.max_text_length, config.vocab_size) == (384, 32, 40, 30522)
    assert config.tokens_per_frame == 145
    assert PerceiverVLConfig(frame_class_token=False).tokens_per_frame == 144


def test_what_is_left_open_follows_the_width_and_the_latents() -> None:
    config = PerceiverVLConfig(hidden_size=48, num_latents=10)
    assert (config.projection_dim, config.num_text_latents) == (48, 10)


def test_a_saved_configuration_is_the_same_again(tmp_path: Path) -> None:
    config = tiny_config(modality_aggregation="separate", latent_position="fourier", layer_drop=0.25)
    config.save_pretrained(tmp_path)
    assert PerceiverVLConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_block": 3}, "num_block=3"),
        ({"hidden_size": 30}, "hidden_size=30"),
        ({"num_attention_heads": 3}, "num_attention_heads=3"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_latents": -1}, "num_latents=-1"),
        ({"num_latents": 3, "num_text_latents": 4}, "num_text_latents=4"),
        ({"patch_size": 7}, "patch_size=7"),
        ({"max_frames": 0}, "max_frames=0"),
        ({"mask_token_id": 40}, "mask_token_id=40"),
        ({"mask_token_id": -1}, "mask_token_id=-1"),
        ({"layer_drop": 1.5}, "layer_drop=1.5"),
        ({"layer_drop": -0.1}, "layer_drop=-0.1"),
        ({"layer_drop": float("nan")}, "layer_drop=nan"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
        ({"initializer_range": -0.02}, "initializer_range=-0.02"),
        ({"latent_initializer_range": -1.0}, "latent_initializer_range=-1.0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0"),
        ({"modality_aggregation": "separate_plus", "self_attentions_per_block": 1}, "self_attentions_per_block=1"),
        ({"modality_aggregation": "seperate"}, "modality_aggregation='seperate': need 'joint' or 'separate'"),
        ({"latent_position": "sine"}, "latent_position='sine'"),
        ({"latent_position": "fourier", "hidden_size": 15, "num_attention_heads": 3}, "latent_position='fourier'"),
        ({"hidden_size": "32"}, "hidden_size='32': need int"),
        ({"hidden_size": 32.5}, "hidden_size=32.5: need int"),
        ({"num_latents": True}, "num_latents=True: need int"),
        ({"projection_dim": "wide"}, "projection_dim='wide': need int or None"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+: [^\n]+$") as refused:
        tiny_config(**changes)
    assert named in str(refused.value)


def test_a_whole_number_may_stand_for_a_probability() -> None:
    config = tiny_config(layer_drop=1, hidden_dropout_prob=0)
    assert (config.layer_drop, config.hidden_dropout_prob) == (1.0, 0.0)


def test_a_misspelt_key_in_a_file_is_refused_too(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_blokcs": 2}))
    with pytest.raises(UsageError, match=r"^configuration key num_blokcs=2: [^\n]+$"):
        PerceiverVLConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("dial", ["frames", "latents", "text_latents", "cross_attentions"])
def test_a_budget_may_ask_for_all_that_the_model_has_and_no_more(dial: str) -> None:
    config = tiny_config()
    most = {"frames": 5, "latents": 6, "text_latents": 6, "cross_attentions": 3}[dial]
    config.check_budget(ComputeBudget(**{dial: most}))
    with pytest.raises(UsageError, match=rf"^budget {dial}={most + 1}: more than {most}, [^\n]+$"):
        config.check_budget(ComputeBudget(**{dial: most + 1}))


@pytest.mark.parametrize(
    "values",
    [
        {"num_blocks": 10**6},
        {"self_attentions_per_block": 10**9},
        {"vocab_size": 10**30},
        {"hidden_size": 12 * 10**7},
        {"num_latents": 10**12},
        {"image_size": 2**40, "patch_size": 2},
        {"max_text_length": 10**20},
        {"max_frames": 10**15},
        {"type_vocab_size": 10**15},
        {"projection_dim": 10**15},
    ],
)
def test_sizes_that_no_machine_holds_are_refused_before_anything_is_built(values: dict[str, int]) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(UsageError, match=rf"^[^\n]*{name}={value}[^\n]+(are built|a smaller one)") as error:
        PerceiverVLConfig(**values)
    assert "\n" not in str(error.value)
