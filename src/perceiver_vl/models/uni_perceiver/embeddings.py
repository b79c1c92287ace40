"""What Uni-Perceiver reads, as tokens: words, and patches of images or of frames.

Shapes: B batch, L words, T frames, D width.
"""

import torch
from torch import Tensor, nn

from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.utils.errors import UsageError


class Embeddings(nn.Module):
    """Tables of words and places, and a linear map of patches; a norm after each."""

    def __init__(self, config: UniPerceiverConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.text_positions = nn.Embedding(config.max_position_embeddings, width)
        self.patches = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.patch_positions = nn.Embedding(config.num_patches, width)
        self.frame_positions = nn.Embedding(config.max_frames, width)
        self.text_type, self.vision_type = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.text_norm, self.vision_norm = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))

    def text(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """`input_ids (B,L)`, at places `(L,)`, 0 to L - 1 if None → `(B,L,D)`. Raises `UsageError` for too many."""
        most = self.config.max_position_embeddings
        if input_ids.shape[1] > most and positions is None:
            raise UsageError(f"{input_ids.shape[1]} words: need at most {most} (max_position_embeddings)")
        places = torch.arange(input_ids.shape[1], device=input_ids.device) if positions is None else positions
        return self.text_norm(self.words(input_ids) + self.text_positions(places) + self.text_type)

    def vision(self, pixel_values: Tensor) -> Tensor:
        """`(B,3,H,W)` or `(B,T,3,H,W)` → `(B,T·patches,D)`. Raises `UsageError` for frames of other sizes, or more."""
        pixels = pixel_values[:, None] if pixel_values.ndim == 4 else pixel_values
        config, side = self.config, self.config.image_size
        if pixels.shape[1] > config.max_frames or pixels.shape[2:] != (config.num_channels, side, side):
            raise UsageError(
                f"pixel_values {tuple(pixel_values.shape)}: need (batch, up to {config.max_frames} frames, "
                f"{config.num_channels}, {side}, {side})"
            )
        patches = self.patches(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B·T,patches,D)
        patches = patches.unflatten(0, pixels.shape[:2]) + self.patch_positions.weight
        patches = patches + self.frame_positions.weight[: pixels.shape[1], None]
        return self.vision_norm(patches.flatten(1, 2) + self.vision_type)
