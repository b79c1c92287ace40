"""The formulas, held against the operations counted on built models."""

from typing import Any

import pytest
import torch
from small_s2t_perceiver import small_s2t_perceiver, small_speech
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.models.s2t_perceiver.flops import decoder_flops, encoder_flops


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"kernel_sizes": []}, {"kernel_sizes": [3]}])
@pytest.mark.parametrize("latents", [None, 6, 3])
@pytest.mark.parametrize("training", [False, True])
def test_encoding_costs_what_the_formula_says(changes: dict[str, Any], latents: int | None, training: bool) -> None:
    model = small_s2t_perceiver(num_train_latents=latents, **changes).model.train(training).requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(small_speech(1), num_latents=latents)
    assert counter.get_total_flops() == encoder_flops(model.config, 13, latents, training=training)


def test_decoding_costs_what_the_formula_says() -> None:
    model = small_s2t_perceiver()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.decode(torch.randn(1, 4, 12).double(), torch.arange(7)[None])
    assert counter.get_total_flops() == decoder_flops(model.config, 7, 4)
