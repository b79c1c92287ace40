"""Latents read the input array and think about it, k times over (paper 3.2 and 3.3, Figures 1 and 3).

Shapes: B batch, M inputs, N latents, D width, k blocks, l self-attentions a block.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.model.attention import AttentionBlock, fourier_features


@dataclass
class InputArray:
    """What the latents read: vision `(B,M_v,D)`, text `(B,M_t,D)`, or both, with bool masks `(B,M)` True where real."""

    vision: Tensor | None = None
    vision_mask: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None

    @cached_property
    def joined(self) -> tuple[Tensor, Tensor]:
        """Vision, then text, as one array `(B,M,D)` and its mask."""
        parts = [part for part in (self.vision, self.text) if part is not None]
        masks = [mask for mask in (self.vision_mask, self.text_mask) if mask is not None]
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    @property
    def is_text_only(self) -> bool:
        """Whether this is the input of the text stream."""
        return self.vision is None

    def __len__(self) -> int:
        """The batch size B."""
        part = self.text if self.vision is None else self.vision
        return 0 if part is None else len(part)


class EncoderBlock(nn.Module):
    """One block: the reads, then the self-attentions, in the order of the aggregation (Figure 3).

    joint: one read of vision and text together, l thoughts. separate: a read of vision, a read of text, l thoughts.
    separate_plus: a read of vision, l_V thoughts, a read of text, l_T thoughts, l_V + l_T = l with l_V the larger half
    (the paper does not give the two numbers; this keeps the depth of the other two).
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.aggregation = config.modality_aggregation
        modalities = ["joint"] if self.aggregation == "joint" else ["vision", "text"]
        self.reads = nn.ModuleDict({modality: _block(config) for modality in modalities})
        self.thoughts = nn.ModuleList(_block(config) for _ in range(config.self_attentions_per_block))

    def forward(self, latents: Tensor, inputs: InputArray, keep: dict[str, bool]) -> Tensor:
        """`latents (B,N,D)` → `(B,N,D)`; `keep` says which reads run."""
        if self.aggregation == "joint":
            if keep["joint"]:
                latents = self.reads["joint"](latents, *inputs.joined)
            return self._think(latents, self.thoughts)
        first = (len(self.thoughts) + 1) // 2 if self.aggregation == "separate_plus" else 0
        if keep["vision"] and inputs.vision is not None:
            latents = self.reads["vision"](latents, inputs.vision, inputs.vision_mask)
        latents = self._think(latents, self.thoughts[:first])
        if keep["text"] and inputs.text is not None:
            latents = self.reads["text"](latents, inputs.text, inputs.text_mask)
        return self._think(latents, self.thoughts[first:])

    def _think(self, latents: Tensor, thoughts: nn.ModuleList) -> Tensor:
        for thought in thoughts:
            latents = thought(latents)
        return latents


class PerceiverVLEncoder(nn.Module):
    """The latent array and the k blocks; every read but those of block 0 can be left out."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.layer_drop = config.layer_drop
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        if config.latent_position == "learned":
            self.latent_positions = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        else:
            self.register_buffer("latent_positions", fourier_features(*self.latents.shape), persistent=False)
        self.reads = ("joint",) if config.modality_aggregation == "joint" else ("vision", "text")
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_drop_seed: int | None = None

    def forward(self, inputs: InputArray, num_latents: int, cross_attentions: int) -> Tensor:
        """Read `inputs` with the first `num_latents` latents, in the first `cross_attentions` blocks → `(B,N,D)`."""
        latents = (self.latents + self.latent_positions)[:num_latents].expand(len(inputs), -1, -1)
        for block, keep in zip(self.blocks, self._reads_to_keep(cross_attentions), strict=True):
            latents = block(latents, inputs, keep)
        return self.norm(latents)

    def _reads_to_keep(self, cross_attentions: int) -> list[dict[str, bool]]:
        """For each block whether its reads run: in the first blocks of the budget, less what LayerDrop takes."""
        drops = torch.zeros(len(self.blocks), len(self.reads), dtype=torch.bool)
        if self.training and self.layer_drop > 0:
            generator = None
            if self.layer_drop_seed is not None:
                generator = torch.Generator().manual_seed(self.layer_drop_seed)
            drops[1:] = torch.rand(len(self.blocks) - 1, len(self.reads), generator=generator) < self.layer_drop
        return [
            {read: number < cross_attentions and not drops[number, i].item() for i, read in enumerate(self.reads)}
            for number in range(len(self.blocks))
        ]


def _block(config: PerceiverVLConfig) -> AttentionBlock:
    return AttentionBlock(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.layer_norm_eps,
        config.hidden_dropout_prob,
    )
