"""The sizes of DeepMind's checkpoints (appendix of the paper)."""

from typing import Any

_CLASSES = {"kind": "image", "num_latents": 512, "hidden_size": 1024, "num_blocks": 8, "self_attentions_per_block": 6}
_CLASSES |= {"num_cross_attention_heads": 1, "num_labels": 1000, "decoder_residual": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "language": {"qk_size": 256, "v_size": 1280, "cross_qk_size": 256, "cross_v_size": 1280},
    "image-fourier": _CLASSES,
    "image-learned": _CLASSES | {"image_positions": "learned"},
    "image-conv": _CLASSES | {"image_positions": "conv", "pixel_channels": 64, "max_resolution": [56, 56]},
    "flow": {
        "kind": "flow",
        "num_latents": 2048,
        "hidden_size": 512,
        "self_attentions_per_block": 24,
        "num_attention_heads": 16,
        "num_cross_attention_heads": 1,
        "num_channels": 27,
        "pixel_channels": 64,
        "image_size": [368, 496],
    },
    "multimodal": {
        "kind": "multimodal",
        "num_latents": 784,
        "hidden_size": 512,
        "self_attentions_per_block": 8,
        "num_cross_attention_heads": 1,
        "num_bands": 32,
        "num_labels": 700,
    },
}
"""Fields of `PerceiverIOConfig`, by the task."""
