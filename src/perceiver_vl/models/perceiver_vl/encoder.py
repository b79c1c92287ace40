"""What the latents of Perceiver-VL attend to, and in which order (paper 3.2 and 3.3, Figures 1 and 3).

Shapes: B batch, M inputs, N latents, D width, k blocks, l self-attentions a block.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import Inputs, LatentEncoder
from perceiver_vl.layers.positions import fourier_features
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.fewer_keys import Choice, join_masks
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache


@dataclass
class InputArray:
    """What the latents attend to: vision `(B,M_v,D)`, text `(B,M_t,D)`, or both, with bool masks `(B,M)` True where
    real. A sound, or what else is no text, is vision here.

    `vision_cache` stands for the vision that it was made of; B texts are then about V clips, B/V of them about each.
    `vision_base`, `text_base` `(B,E)`: what pretrained encoders alone say of each, where a model has them.
    The vision mask may also be numbers, the logarithm of how many patches each token stands for, minus infinity for
    padding (`fewer_keys`). `frames`: how many frames (or tubelets) the vision is of, where it is whole frames.
    `vision_places (B,T,P)`: which token of its frame each patch is in, where patches were merged.
    """

    vision: Tensor | None = None
    vision_mask: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    vision_cache: VisionCache | None = None
    vision_base: Tensor | None = None
    text_base: Tensor | None = None
    frames: int | None = None
    vision_places: Tensor | None = None

    def beside(self, other: "InputArray") -> "InputArray":
        """Both clips as one, the vision of `other` behind its own: a video and its sound. Texts come from either."""
        assert self.vision is not None
        assert self.vision_mask is not None
        assert other.vision is not None
        assert other.vision_mask is not None
        text, text_mask = (self.text, self.text_mask) if other.text is None else (other.text, other.text_mask)
        return InputArray(
            torch.cat([self.vision, other.vision], dim=1),
            join_masks([self.vision_mask, other.vision_mask]),
            text,
            text_mask,
            vision_base=self.vision_base,
            text_base=self.text_base,
        )

    @property
    def joined(self) -> tuple[Tensor, Tensor]:
        """Vision, then text, as one array `(B,M,D)` and its mask."""
        parts = [part for part in (self.vision, self.text) if part is not None]
        masks = [mask for mask in (self.vision_mask, self.text_mask) if mask is not None]
        return torch.cat(parts, dim=1), join_masks(masks)

    def by_block(
        self, modalities: tuple[str, ...], num_blocks: int, choose: Choice | None = None
    ) -> list[Inputs | None]:
        """What each block of a `PerceiverVLEncoder` attends to; None for a modality that is not there. `choose`: of
        cross-attentions to vision after the first, as of `Inputs`.
        """
        rounds = range(num_blocks // len(modalities))
        if self.vision_cache is not None:
            return [
                one
                for number in rounds
                for one in self.vision_cache.inputs(number, modalities, self.text, self.text_mask)
            ]
        if modalities == ("joint",):
            first = Inputs(*self.joined, boundary=self.vision_tokens)
            return [first, *[replace(first, choose=choose)] * (num_blocks - 1)]
        vision = None if self.vision is None else Inputs(self.vision, self.vision_mask)
        text = None if self.text is None else Inputs(self.text, self.text_mask)
        later = None if vision is None else replace(vision, choose=choose)
        seen = [vision, *[later] * (len(rounds) - 1)]
        return [seen[number] if modality == "vision" else text for number in rounds for modality in modalities]

    @property
    def vision_tokens(self) -> int | None:
        """How many of the joined array are vision, which comes first; None: all."""
        if self.text is None:
            return None
        return 0 if self.vision is None else self.vision.shape[1]

    @property
    def is_text_only(self) -> bool:
        """Whether this is the input of the text stream."""
        return self.vision is None and self.vision_cache is None

    def __len__(self) -> int:
        """The batch size B."""
        part = next((part for part in (self.text, self.vision, self.vision_cache) if part is not None), None)
        return 0 if part is None else len(part)


def self_attentions_by_block(config: PerceiverVLConfig) -> list[int]:
    """How many self-attentions each block of a `PerceiverVLEncoder` has."""
    number = config.self_attentions_per_block
    early = (number + 1) // 2 if config.modality_aggregation == "separate_plus" else 0
    each = [number] if config.modality_aggregation == "joint" else [early, number - early]
    return each * config.num_blocks


def modalities_of(config: PerceiverVLConfig) -> tuple[str, ...]:
    """What the cross-attentions of a `PerceiverVLEncoder` attend to, in turn."""
    apart = ("text", "vision") if config.modality_aggregation == "text_first" else ("vision", "text")
    return ("joint",) if config.modality_aggregation == "joint" else apart


def block_arguments(config: PerceiverVLConfig) -> dict[str, Any]:
    """The arguments of every `AttentionBlock` of a configuration."""
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "eps": config.layer_norm_eps,
        "dropout": config.hidden_dropout_prob,
        "layer_scale": config.layer_scale,
        "implementation": config._attn_implementation or "sdpa",
    }


def cross_attention_arguments(config: PerceiverVLConfig) -> dict[str, Any]:
    """The arguments in which its cross-attentions, those of the decoder too, differ from its self-attentions."""
    return {"residual": config.cross_attention_residual, "qk_norm": config.qk_norm}


class PerceiverVLEncoder(LatentEncoder):
    """The latent encoder of a configuration: latents that have positions, and modalities in the order of Figure 3.

    joint: k blocks of one cross-attention to vision and text together and l self-attentions. separate: a
    cross-attention to vision, one to text, then l self-attentions, k times. separate_plus: a cross-attention to vision,
    l_V self-attentions, a cross-attention to text, l_T self-attentions, k times; l_V + l_T = l with l_V the larger half
    (the paper does not give the two numbers; this keeps the depth of the other two). text_first, which is not the
    paper's: separate, with the words first, so that already the first cross-attention to vision looks for what they
    ask. Of all but joint each cross-attention is a block of `LatentEncoder` of its own, 2k in all.
    """

    latents: nn.Parameter
    latent_positions: Tensor | None

    def __init__(self, config: PerceiverVLConfig) -> None:
        modalities = modalities_of(config)
        super().__init__(
            **block_arguments(config),
            num_blocks=config.num_blocks * len(modalities),
            self_attentions_per_block=self_attentions_by_block(config),
            layer_drop=config.layer_drop,
            undropped=len(modalities),
            cross_attention=cross_attention_arguments(config) | {"untied": config.untied_modalities},
            experts={"num_attributes": 2, "num_experts": config.num_experts} if config.num_experts else None,
        )
        self.modalities = modalities
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        if config.latent_position == "learned":
            self.latent_positions = nn.Parameter(torch.zeros_like(self.latents))
        else:
            fixed = fourier_positions(self.latents) if config.latent_position == "fourier" else None
            self.register_buffer("latent_positions", fixed, persistent=False)

    def first_latents(self, which: int | Tensor) -> Tensor:
        """The latents that attend first, the same for every input, `(1,N,D)`: the first so many, or those at `(N,)`."""
        latents = self.latents if self.latent_positions is None else self.latents + self.latent_positions
        return latents[None, :which] if isinstance(which, int) else latents[which][None]

    @property
    def vision_cross_attentions(self) -> list[AttentionBlock]:
        """The cross-attentions that vision comes in by, k of them."""
        own = self.blocks[int(self.modalities[0] == "text") :: len(self.modalities)]
        return [block.get_submodule("cross_attention") for block in own]  # type: ignore[misc]

    @torch.no_grad()
    def resize_latents(self, num_latents: int) -> None:
        """Interpolate the latents linearly along their number N, and their learned positions with them."""
        for name in ("latents", "latent_positions"):
            old = getattr(self, name)
            if isinstance(old, nn.Parameter):
                new = F.interpolate(old.T[None], size=num_latents, mode="linear")[0].T.contiguous()
                setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))
            elif old is not None:
                self.latent_positions = fourier_positions(self.latents)


def fourier_positions(latents: Tensor) -> Tensor:
    """Fourier features of the places of `latents (N,D)`, D even → `(N,D)`."""
    return fourier_features(latents.shape[:1], latents.shape[1] // 2).to(latents)
