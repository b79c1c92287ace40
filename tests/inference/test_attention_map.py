"""Where a model looked, held against weights that are looked up one by one."""

from typing import Any

import pytest
import torch

from perceiver_vl import ComputeBudget, PerceiverVLForRetrieval
from perceiver_vl.inference.attention_map import attention_map
from tiny import assert_same, tiny_model, tiny_processor

WORDS = ["a red circle", "a blue star moves left"]


@pytest.mark.parametrize(
    ("changes", "frames"),
    [
        ({}, None),
        ({}, 2),
        ({"tubelet_size": 2}, None),
        ({"coarse_patch_size": 16}, None),
        ({"coarse_patch_size": 4, "tubelet_size": 2, "untied_modalities": True}, None),
        ({"coarse_patch_size": 16, "modality_aggregation": "separate", "frame_class_token": False}, None),
    ],
)
def test_a_map_is_what_the_query_saw_through_the_latents(changes: dict[str, Any], frames: int | None) -> None:
    processor = tiny_processor(WORDS)
    model = tiny_model(PerceiverVLForRetrieval, vocab_size=len(processor.tokenizer), **changes)
    clip = torch.randint(256, (3, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    budget = ComputeBudget(frames=frames)
    found = attention_map(model, processor, clip, WORDS[0], num_frames=4, budget=budget)
    shown = frames or 3
    assert found.shape == (shown, 2, 2)
    assert_same(found.sum(), torch.tensor(1.0, dtype=found.dtype), 1e-5)

    inputs = processor(text=[WORDS[0]], videos=[clip], num_frames=4)
    out = model.perceiver_vl(**inputs, budget=budget, output_attentions=True)
    asked = model.decoder.block.weights(model.vtm_query(1), out.last_hidden_state)[0].mean(0)[0]
    vision = model.config.vision_tokens_of(min(frames or 4, inputs["frame_mask"].shape[1]))
    of_vision = [
        w for w in out.cross_attentions if model.config.modality_aggregation == "joint" or w.shape[3] == vision
    ]
    size, each, first = model.config.tubelet_size, model.config.tokens_per_frame, int(model.config.frame_class_token)
    wanted = torch.zeros(shown, 2, 2, dtype=torch.float64)
    for frame in range(shown):
        beside = [other for other in range(shown) if other // size == frame // size]  # in the same tubelet
        for place in range(4):
            token = frame // size * each + first + place
            looked = [(asked * weights[0].mean(0)[:, token]).sum() for weights in of_vision]
            wanted[frame, place // 2, place % 2] = sum(looked) / len(looked) / len(beside)
    assert_same(found.double(), (wanted / wanted.sum()).detach(), 1e-5)
