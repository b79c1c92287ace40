"""Another number of latents for a trained model (paper 5.2.2)."""

from typing import Any

import pytest
import torch

from perceiver_vl import PerceiverVLForRetrieval, PerceiverVLModel, UsageError
from tiny import assert_same, differs, tiny_inputs, tiny_model


@pytest.mark.parametrize("latent_position", ["learned", "fourier", "none"])
@pytest.mark.parametrize("how", ["fresh", "interpolate"])
@pytest.mark.parametrize("number", [3, 6, 12])
def test_a_resized_model_runs_is_saved_and_loads(tmp_path: Any, number: int, how: Any, latent_position: str) -> None:
    model = tiny_model(PerceiverVLForRetrieval, latent_position=latent_position)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    model.resize_latents(number, how)
    assert model.config.num_latents == number
    assert model.encode_vision(tiny_inputs()["pixel_values"]).shape == (2, number, 16)
    assert model.get_text_features(tiny_inputs()["input_ids"]).shape == (2, 12)
    after = model.state_dict()
    moved = {name.split(".")[-1] for name in after if not torch.equal(after[name], before[name])}
    assert moved <= {"latents", "latent_positions"}
    assert bool(moved) == (number != 6 or how == "fresh")
    model.save_pretrained(tmp_path)
    again = PerceiverVLForRetrieval.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same(again.match_jointly(**tiny_inputs()), model.match_jointly(**tiny_inputs()))


def test_interpolated_latents_lie_between_their_neighbours() -> None:
    model = tiny_model(PerceiverVLModel)
    old = model.encoder.latents.clone()
    model.resize_latents(11, "interpolate")
    new = model.encoder.latents
    for row, value in enumerate(new):
        place = (row + 0.5) * 6 / 11 - 0.5
        below, above = old[max(0, int(place // 1))], old[min(5, max(0, int(place // 1 + 1)))]
        share = min(max(place, 0.0), 5.0) % 1
        assert_same(value, (1 - share) * below + share * above)


def test_fresh_latents_are_drawn_as_those_of_a_new_model() -> None:
    model = tiny_model(PerceiverVLModel, latent_initializer_range=3.0)
    model.resize_latents(500)
    assert 2.7 < model.encoder.latent_positions.std() < 3.3
    assert model.encoder.latents.std() < 0.1
    assert differs(model.encoder.latents[:250], model.encoder.latents[250:])


@pytest.mark.parametrize(("text", "number", "wanted"), [(6, 9, 9), (4, 9, 4), (4, 3, 3), (6, 3, 3)])
def test_latents_of_the_text_stream(text: int, number: int, wanted: int) -> None:
    model = tiny_model(PerceiverVLModel, num_text_latents=text)
    model.resize_latents(number)
    assert model.config.num_text_latents == wanted
    assert model(tiny_inputs()["input_ids"]).last_hidden_state.shape == (2, wanted, 16)


def test_no_latents_are_refused() -> None:
    model = tiny_model(PerceiverVLModel)
    with pytest.raises(UsageError, match="num_latents=0"):
        model.resize_latents(0)
    assert model.config.num_latents == 6
    assert model(**tiny_inputs()).last_hidden_state.shape == (2, 6, 16)
