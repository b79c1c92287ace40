"""Latents read the input array and think about it, k times over (paper 3.2 and 3.3, Figures 1 and 3).

Shapes: B batch, M inputs, N latents, D width, k blocks, l self-attentions a block.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.positions import fourier_features
from perceiver_vl.layers.token_selection import most_diverse
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.vision_cache import Reading, VisionCache


@dataclass
class InputArray:
    """What the latents read: vision `(B,M_v,D)`, text `(B,M_t,D)`, or both, with bool masks `(B,M)` True where real.

    `vision_cache` stands for the vision that it was made of; B texts are then about V clips, B/V of them about each.
    """

    vision: Tensor | None = None
    vision_mask: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    vision_cache: VisionCache | None = None

    @property
    def joined(self) -> tuple[Tensor, Tensor]:
        """Vision, then text, as one array `(B,M,D)` and its mask."""
        parts = [part for part in (self.vision, self.text) if part is not None]
        masks = [mask for mask in (self.vision_mask, self.text_mask) if mask is not None]
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    def by_block(self, reads: tuple[str, ...], num_blocks: int) -> list[dict[str, Reading]]:
        """The reads of each block, and what they attend to; a modality that is not there is left out."""
        if self.vision_cache is not None:
            return [self.vision_cache.readings(reads, k, self.text, self.text_mask) for k in range(num_blocks)]
        if reads == ("joint",):
            return [{"joint": partial(_read, *self.joined)}] * num_blocks
        parts = (("vision", self.vision, self.vision_mask), ("text", self.text, self.text_mask))
        return [{read: partial(_read, tokens, mask) for read, tokens, mask in parts if tokens is not None}] * num_blocks

    def seen_first(self, reads: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """What the first cross-attention of all attends to, and its mask: `(B,M,D)`, `(B,M)`; vision alone, unless it
        is joint.
        """
        is_joint, parts = reads == ("joint",), self
        if self.vision_cache is not None:
            texts = len(self.text) if is_joint and self.text is not None else None
            parts = InputArray(*self.vision_cache.seen_by(texts), self.text, self.text_mask)
        if not is_joint and parts.vision is not None:
            parts = InputArray(parts.vision, parts.vision_mask)
        return parts.joined

    @property
    def is_text_only(self) -> bool:
        """Whether this is the input of the text stream."""
        return self.vision is None and self.vision_cache is None

    def __len__(self) -> int:
        """The batch size B."""
        part = next((part for part in (self.text, self.vision, self.vision_cache) if part is not None), None)
        return 0 if part is None else len(part)


def _read(tokens: Tensor, mask: Tensor | None, block: AttentionBlock, latents: Tensor) -> Tensor:
    return block(latents, tokens, mask)


class EncoderBlock(nn.Module):
    """One block: the cross-attentions, then the self-attentions, in the order of the aggregation (Figure 3).

    joint: one cross-attention of vision and text together, l self-attentions. separate: a read of vision, a read of
    text, l self-attentions. separate_plus: a read of vision, l_V self-attentions, a read of text, l_T self-attentions,
    l_V + l_T = l with l_V the larger half (the paper does not give the two numbers; this keeps the depth of the other
    two).
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.aggregation = config.modality_aggregation
        modalities = ["joint"] if self.aggregation == "joint" else ["vision", "text"]
        self.cross_attentions = nn.ModuleDict({modality: cross_attention_block(config) for modality in modalities})
        self.self_attentions = nn.ModuleList(
            self_attention_block(config) for _ in range(config.self_attentions_per_block)
        )

    def forward(self, latents: Tensor, readings: dict[str, Reading], keep: dict[str, bool]) -> Tensor:
        """`latents (B,N,D)` → `(B,N,D)`; `readings` of the block as `InputArray.by_block` gives them, `keep` says which
        run.
        """
        if self.aggregation == "joint":
            latents = self._read("joint", latents, readings, keep)
            return self._think(latents, self.self_attentions)
        first = (len(self.self_attentions) + 1) // 2 if self.aggregation == "separate_plus" else 0
        latents = self._read("vision", latents, readings, keep)
        latents = self._think(latents, self.self_attentions[:first])
        latents = self._read("text", latents, readings, keep)
        return self._think(latents, self.self_attentions[first:])

    def cross_attention_of(self, read: str) -> AttentionBlock:
        """The cross-attention of the read of this name."""
        return cast(AttentionBlock, self.cross_attentions[read])

    def _read(self, read: str, latents: Tensor, readings: dict[str, Reading], keep: dict[str, bool]) -> Tensor:
        return readings[read](self.cross_attention_of(read), latents) if keep[read] and read in readings else latents

    def _think(self, latents: Tensor, self_attentions: nn.ModuleList) -> Tensor:
        for self_attention in self_attentions:
            latents = self_attention(latents)
        return latents


class PerceiverVLEncoder(nn.Module):
    """The latent array and the k blocks; every cross-attention but those of block 0 can be left out."""

    latent_positions: Tensor | None

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.layer_drop = config.layer_drop
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        if config.latent_position == "learned":
            self.latent_positions = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        else:
            fixed = (
                fourier_features(*self.latents.shape).to(self.latents) if config.latent_position == "fourier" else None
            )
            self.register_buffer("latent_positions", fixed, persistent=False)
        self.cross_attentions = ("joint",) if config.modality_aggregation == "joint" else ("vision", "text")
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_drop_seed: int | None = None

    def forward(
        self, inputs: InputArray, which: int | Tensor, reads: list[dict[str, bool]], kept: int | None = None
    ) -> Tensor:
        """Read `inputs` → latents `(B,N,D)`.

        `which` latents: the first so many, or those at these places `(N,)`. `reads`: of each block that runs which of
        its cross-attentions do, as `cross_attentions_to_run` says. `kept`: the most diverse so many go on after the
        first cross-attention; None: all.
        """
        latents = self.first_latents(which)
        if inputs.vision_cache is None:
            latents = latents.expand(len(inputs), -1, -1)
        readings = inputs.by_block(self.cross_attentions, len(self.blocks))
        if kept is not None:
            first = next(iter(readings[0]))
            readings[0] = readings[0] | {first: self._choosing(readings[0][first], inputs, kept)}
        for block, reading, keep in zip(self.blocks, readings, reads, strict=False):
            latents = block(latents, reading, keep)
        return self.norm(latents)

    def _choosing(self, reading: Reading, inputs: InputArray, kept: int) -> Reading:
        """A reading after which only the latents go on that attended to what is most diverse, all heads together."""

        def read(block: AttentionBlock, latents: Tensor) -> Tensor:
            tokens, mask = inputs.seen_first(self.cross_attentions)
            asking = block.norm1(latents.expand(len(tokens), -1, -1))
            attention = block.attention.weights(asking, block.input_norm(tokens), mask).mean(1)  # (B,N,M)
            chosen = most_diverse(attention, kept)[..., None]
            found = reading(block, latents)
            return found.gather(1, chosen.expand(-1, -1, found.shape[-1]))

        return read

    def first_latents(self, which: int | Tensor) -> Tensor:
        """The latents that read first, the same for every input, `(1,N,D)`: the first so many, or those at `(N,)`."""
        latents = self.latents if self.latent_positions is None else self.latents + self.latent_positions
        return latents[None, :which] if isinstance(which, int) else latents[which][None]

    @property
    def vision_cross_attentions(self) -> list[AttentionBlock]:
        """The read that vision comes in by, of each block."""
        return [cast(EncoderBlock, block).cross_attention_of(self.cross_attentions[0]) for block in self.blocks]

    @torch.no_grad()
    def resize_latents(self, num_latents: int) -> None:
        """Interpolate the latents linearly along their number N, and their learned positions with them."""
        for name in ("latents", "latent_positions"):
            old = getattr(self, name)
            if isinstance(old, nn.Parameter):
                new = F.interpolate(old.T[None], size=num_latents, mode="linear")[0].T.contiguous()
                setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))
            elif old is not None:
                self.latent_positions = fourier_features(num_latents, old.shape[1]).to(old)

    def cross_attentions_to_run(self, cross_attentions: int) -> list[dict[str, bool]]:
        """For each block whether its cross-attentions run: in the first blocks of the budget, less what LayerDrop
        takes.
        """
        drops = [[False] * len(self.cross_attentions) for _ in self.blocks]
        if self.training and self.layer_drop > 0:
            generator = None
            if self.layer_drop_seed is not None:
                generator = torch.Generator().manual_seed(self.layer_drop_seed)
            drawn = torch.rand(len(self.blocks) - 1, len(self.cross_attentions), generator=generator)
            drops[1:] = (drawn < self.layer_drop).tolist()
        return [
            {read: number < cross_attentions and not drops[number][i] for i, read in enumerate(self.cross_attentions)}
            for number in range(len(self.blocks))
        ]


def cross_attention_block(config: PerceiverVLConfig) -> AttentionBlock:
    """A cross-attention block of this model: a read of the encoder, or the decoder's."""
    return _block(config, config.cross_attention_residual)


def self_attention_block(config: PerceiverVLConfig) -> AttentionBlock:
    """A self-attention block of this model."""
    return _block(config, "queries")


def _block(config: PerceiverVLConfig, residual: Literal["queries", "normed_queries"]) -> AttentionBlock:
    return AttentionBlock(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.layer_norm_eps,
        config.hidden_dropout_prob,
        residual=residual,
        implementation=config._attn_implementation or "sdpa",
    )
