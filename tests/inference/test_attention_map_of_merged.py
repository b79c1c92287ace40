"""Where a model looked, if it looked at merged patches: each patch has its share of what its token was attended to."""

from typing import Any

import pytest
import torch

from perceiver_vl import PerceiverVLForRetrieval, UsageError
from perceiver_vl.inference.attention_map import attention_map
from tiny import assert_same, tiny_model, tiny_processor

WORDS = ["a red circle moves left"]


def map_of(**changes: Any) -> torch.Tensor:
    model = tiny_model(PerceiverVLForRetrieval, image_size=32, **changes).float()
    frames = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return attention_map(model, tiny_processor(WORDS, size=32), frames, WORDS[0], num_frames=3).double()


@pytest.mark.parametrize("aggregation", ["joint", "separate"])
def test_patches_share_what_their_token_was_attended_to(aggregation: str) -> None:
    found = map_of(merged_patches=5, modality_aggregation=aggregation)
    assert found.shape == (3, 4, 4)
    assert_same(found.sum(), torch.tensor(1.0).double(), 1e-6)
    for frame in found:
        assert len({round(float(share), 9) for share in frame.flatten()}) <= 5
    whole, as_whole = (
        map_of(modality_aggregation=aggregation),
        map_of(merged_patches=16, modality_aggregation=aggregation),
    )
    assert_same(as_whole, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"rolled_tokens": 0.5},
        {"frame_summaries": 2},
        {"text_guided_tokens": 8},
        {"sampled_points": 2},
        {"routed_regions": 2},
    ],
)
def test_no_map_is_made_of_what_are_not_the_patches_of_a_frame(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"{name}=.*: what this model attends to are not the patches of a frame"):
        map_of(**changes)
