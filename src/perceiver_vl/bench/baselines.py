"""Other models of the same width and depth with random weights, to be measured beside ours.

All take the same clip and the same words. ViLT and Perceiver IO have our embeddings; TimeSformer gets the fused
attention that ours has, which transformers does not give it: the comparison is one of architectures, not of kernels.
Shapes: B batch, T frames, L text tokens, M inputs, D width, E length of a vector.
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
)
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

from perceiver_vl.bench.joint_transformer import JointTransformer
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings


class Vilt(nn.Module):
    """ViLT (Kim et al., 2021): the patches of all frames and the words through one transformer, M² everywhere."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        one_class_token = config.to_dict() | {"frame_class_token": False}  # of all frames, not one of each
        self.embeddings = InputEmbeddings(PerceiverVLConfig.from_dict(one_class_token))
        self.transformer = JointTransformer(config, _depth(config))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)` → the pooled class token `(B,D)`."""
        hidden = self.transformer.encode(_input_array(self.embeddings, input_ids, pixel_values))
        return self.pooler(hidden[:, 0]).tanh()


class FrozenInTime(nn.Module):
    """The encoders of Frozen in Time (Bain et al., 2021): a TimeSformer for the clip, a DistilBERT for the words.

    Divided attention: frames attend to each other patch by patch, then patches within their frame.
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
        return _similarity(vectors)


class ClipMeanPooling(nn.Module):
    """CLIP (Radford et al., 2021) frame by frame, its vectors averaged, as in CLIP4Clip (Luo et al., 2021): no frame
    sees another, nor the words.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.video = CLIPVisionModelWithProjection(CLIPVisionConfig(**_transformer(config), **_patches(config)))
        heads = max(1, 2 * config.num_attention_heads // 3)  # 8 heads, 512 wide at base size, as CLIP ViT-B/32
        width = heads * config.hidden_size // config.num_attention_heads
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.max_text_length,
                bos_token_id=config.vocab_size - 2,
                eos_token_id=config.vocab_size - 1,
                hidden_size=width,
                num_attention_heads=heads,
                num_hidden_layers=_depth(config),
                intermediate_size=config.intermediate_ratio * width,
            )
        )

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        """`input_ids (B,L)`, `pixel_values (B,T,3,H,W)`, or one of them → cosines `(B,)`, or one vector `(B,E)`."""
        vectors = []
        if pixel_values is not None:
            frames = self.video(pixel_values.flatten(0, 1), interpolate_pos_encoding=True).image_embeds
            vectors.append(F.normalize(frames.unflatten(0, pixel_values.shape[:2]).mean(1), dim=-1))
        if input_ids is not None:
            vectors.append(F.normalize(self.text(input_ids).text_embeds, dim=-1))
        return _similarity(vectors)


class PerceiverIO(nn.Module):
    """The Perceiver IO of transformers (Jaegle et al., 2022), as deep and as wide, with as many latents: one
    cross-attention.
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
        inputs = _input_array(self.embeddings, input_ids, pixel_values)
        return self.model.encoder(self.model.embeddings(len(inputs)), inputs=inputs).last_hidden_state.mean(1)


@dataclass(frozen=True)
class Baseline:
    """One of the others: its plain name, what a person calls it, what it does, how it is built."""

    name: str
    title: str
    description: str
    build: Callable[[PerceiverVLConfig], nn.Module]


BASELINES = (
    Baseline("vilt", "ViLT, all frames", "one transformer over all patches and words, class token pooled", Vilt),
    Baseline("timesformer", "TimeSformer + text", "TimeSformer over the clip, DistilBERT over the words", FrozenInTime),
    Baseline(
        "clip",
        "CLIP a frame + text",
        "CLIP's ViT over each frame, its text transformer over the words",
        ClipMeanPooling,
    ),
    Baseline(
        "perceiver",
        "Perceiver IO",
        "one cross-attention of all patches and words, then the latents alone",
        PerceiverIO,
    ),
)


def build_baseline(name: str, config: PerceiverVLConfig, device: str | torch.device) -> nn.Module:
    """The baseline of this name in evaluation mode, of the width, depth, patches and words of `config`; device "meta":
    for counting only.
    """
    (baseline,) = (one for one in BASELINES if one.name == name)
    with torch.device(device):
        return baseline.build(config).eval().requires_grad_(False)


def fuse_attention(model: TimesformerModel) -> None:
    """Have TimeSformer's attentions run `scaled_dot_product_attention`; transformers writes them out."""
    for part in model.modules():
        if isinstance(part, TimesformerSelfAttention):
            part.forward = partial(_fused_timesformer, part)


def _fused_timesformer(attention: Any, hidden: Tensor, output_attentions: bool = False) -> Any:
    q, k, v = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),)


def _input_array(embeddings: InputEmbeddings, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """Patches of all frames, then words → `(B,M,D)`."""
    return torch.cat([embeddings.embed_vision(pixel_values)[0], embeddings.embed_text(input_ids)[0]], dim=1)


def _similarity(vectors: list[Tensor]) -> Tensor:
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
