"""Other models of the same width and depth with random weights, built from `transformers`, to be measured beside ours.

All take the same clip and the same words. ViLT and TimeSformer get the fused attention that ours has, which
transformers does not give them: the comparison is one of architectures, not of kernels.
Shapes: B batch, T frames, P patches a frame, L text tokens, M inputs, N latents, D width, E length of a vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DistilBertConfig,
    DistilBertModel,
    PerceiverConfig,
    PerceiverModel,
    TimesformerConfig,
    TimesformerModel,
    ViltConfig,
    ViltModel,
)
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention
from transformers.models.vilt.modeling_vilt import ViltSelfAttention

from perceiver_vl.layers.positions import resize_positions
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings


class JointTransformer(nn.Module):
    """ViLT (Kim et al., 2021): the patches of all frames and the words through one transformer, M² everywhere."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        words = {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_text_length}
        self.model = ViltModel(ViltConfig(**_transformer(config), **_patches(config), **words))
        fuse_attention(self.model)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)` → the pooled class token `(B,D)`."""
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings(pixel_values.flatten(0, 1))  # (B·T,D,rows,columns)
        table, grid = embeddings.position_embeddings[0], int((embeddings.position_embeddings.shape[1] - 1) ** 0.5)
        positions = resize_positions(table[1:], (grid, grid), (patches.shape[2], patches.shape[3]))
        frames = patches.flatten(2).transpose(1, 2) + positions
        tokens = frames.unflatten(0, pixel_values.shape[:2]).flatten(1, 2)
        class_token = (embeddings.cls_token + table[:1]).expand(len(tokens), -1, -1)
        image_embeds = torch.cat([class_token, tokens], dim=1)
        # Its parts one by one: as a whole it would ask whether masks of ones are ones
        real, image = torch.ones_like(input_ids), torch.ones_like(image_embeds[..., 0])
        embedded, _ = embeddings(input_ids, real, None, None, image, None, image_embeds)
        return self.model.pooler(self.model.layernorm(self.model.encoder(embedded).last_hidden_state))


class DividedAttention(nn.Module):
    """The encoders of Frozen in Time (Bain et al., 2021): a TimeSformer for the clip, a DistilBERT for the words.

    Frames attend to each other patch by patch, then patches within their frame.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        frames = {"num_frames": config.max_frames}
        self.video = TimesformerModel(TimesformerConfig(**_transformer(config), **_patches(config), **frames))
        fuse_attention(self.video)
        self.text = DistilBertModel(
            DistilBertConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.max_text_length,
                dim=config.hidden_size,
                n_heads=config.num_attention_heads,
                n_layers=max(1, _depth(config) // 2),
                hidden_dim=config.intermediate_size,
            )
        )

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)`, or one of them → the class tokens' product `(B,)`, or one
        class token `(B,D)`.
        """
        vectors = []
        if pixel_values is not None:
            self.video.config.num_frames = pixel_values.shape[1]  # which its layers fold the tokens by
            self.video.config.image_size = pixel_values.shape[-1]
            vectors.append(self.video(pixel_values).last_hidden_state[:, 0])
        if input_ids is not None:
            vectors.append(self.text(input_ids).last_hidden_state[:, 0])
        return _product(vectors)


class FramesApart(nn.Module):
    """CLIP (Radford et al., 2021), its vectors of the frames averaged: no frame sees another, nor the words."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.video = CLIPVisionModelWithProjection(CLIPVisionConfig(**_transformer(config), **_patches(config)))
        heads = max(1, 2 * config.num_attention_heads // 3)  # 8 heads, 512 wide at base size, as CLIP ViT-B/32
        width = heads * config.hidden_size // config.num_attention_heads
        words = {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_text_length}
        words |= {"bos_token_id": config.vocab_size - 2, "eos_token_id": config.vocab_size - 1}
        text = {
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": config.intermediate_ratio * width,
        }
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**(_transformer(config) | text | words)))

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)`, or one of them → cosines `(B,)`, or one vector `(B,E)`."""
        vectors = []
        if pixel_values is not None:
            frames = self.video(pixel_values.flatten(0, 1), interpolate_pos_encoding=True).image_embeds
            vectors.append(F.normalize(frames.unflatten(0, pixel_values.shape[:2]).mean(1), dim=-1))
        if input_ids is not None:
            vectors.append(F.normalize(self.text(input_ids).text_embeds, dim=-1))
        return _product(vectors)


class ReadOnce(nn.Module):
    """The Perceiver IO of transformers (Jaegle et al., 2022), as deep and as wide, with as many latents: one
    cross-attention.

    It has no embeddings of frames and words; it is given ours.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.embeddings = InputEmbeddings(config)
        heads, wide = config.num_attention_heads, config.intermediate_ratio
        self.model = PerceiverModel(
            PerceiverConfig(
                num_latents=config.num_latents,
                d_latents=config.hidden_size,
                d_model=config.hidden_size,
                num_self_attends_per_block=_depth(config),
                num_self_attention_heads=heads,
                num_cross_attention_heads=heads,
                self_attention_widening_factor=wide,
                cross_attention_widening_factor=wide,
            )
        )

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)` → mean of the latents `(B,D)`."""
        vision, _ = self.embeddings.embed_vision(pixel_values)
        text, _ = self.embeddings.embed_text(input_ids)
        latents = self.model.embeddings(len(text))
        return self.model.encoder(latents, inputs=torch.cat([vision, text], dim=1)).last_hidden_state.mean(1)


@dataclass(frozen=True)
class Peer:
    """One of the others: its plain name, what a person calls it, and how it is built for a width and depth."""

    name: str
    title: str
    passes: str
    build: Callable[[PerceiverVLConfig], nn.Module]


PEERS = (
    Peer(
        "vilt", "ViLT, all frames", "one transformer over all patches and words, class token pooled", JointTransformer
    ),
    Peer("timesformer", "TimeSformer + text", "TimeSformer over the clip, DistilBERT over the words", DividedAttention),
    Peer("clip", "CLIP a frame + text", "CLIP's ViT over each frame, its text transformer over the words", FramesApart),
    Peer(
        "perceiver",
        "Perceiver IO, 1 cross-attention",
        "one cross-attention of all patches and words, then the latents alone",
        ReadOnce,
    ),
)


def build_peer(peer: Peer, config: PerceiverVLConfig, device: str | torch.device) -> nn.Module:
    """A peer in evaluation mode, of the width, depth, patches and words of `config`; "meta" for counting only."""
    with torch.device(device):
        return peer.build(config).eval().requires_grad_(False)


def fuse_attention(model: nn.Module) -> None:
    """Have ViLT's and TimeSformer's attentions run `scaled_dot_product_attention`; transformers writes them out."""
    for part in model.modules():
        if isinstance(part, ViltSelfAttention):
            part.forward = partial(_fused_vilt, part)
        elif isinstance(part, TimesformerSelfAttention):
            part.forward = partial(_fused_timesformer, part)


def _fused_vilt(attention: Any, hidden: Tensor, mask: Tensor | None = None, output_attentions: bool = False) -> Any:
    q, k, v = (
        projection(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for projection in (attention.query, attention.key, attention.value)
    )
    return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2),)


def _fused_timesformer(attention: Any, hidden: Tensor, output_attentions: bool = False) -> Any:
    q, k, v = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),)


def _product(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else (vectors[0] * vectors[1]).sum(-1)


def _depth(config: PerceiverVLConfig) -> int:
    return config.num_blocks * config.self_attentions_per_block


def _transformer(config: PerceiverVLConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": _depth(config),
        "intermediate_size": config.intermediate_size,
    }


def _patches(config: PerceiverVLConfig) -> dict[str, Any]:
    return {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.num_channels}
