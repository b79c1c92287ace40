"""MonoXiver's head: a tiny Perceiver for each of thousands of candidate boxes, which then compete (Liu et al. 2023).

Its latents and its query are no parameters: both are made of the candidate, from outside the Perceiver.
Shapes: C candidates of all pictures, I pictures, P points, F channels of a feature map, S × S places of a region, G
numbers of a box, N latents, D width, K classes.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import Inputs, LatentEncoder, QueryDecoder
from perceiver_vl.models.monoxiver.configuration import MonoXiverConfig
from perceiver_vl.models.shared_blocks import SharedBlocksMixin
from perceiver_vl.utils.errors import UsageError


@dataclass
class MonoXiverOutput(ModelOutput):
    """`logits (C,K)`, a sigmoid away from probabilities; what is to be added to the boxes' places, `position (C,3)`,
    and to their sizes, `size (C,3)`, in metres; the `loss`, where there are labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    position: Tensor | None = None
    size: Tensor | None = None


class MonoXiverModel(SharedBlocksMixin):
    """Candidates → which of them are right, and what is left to correct."""

    config_class = MonoXiverConfig
    main_input_name = "points"
    _no_split_modules = ["AttentionBlock"]
    supports_gradient_checkpointing = True

    def __init__(self, config: MonoXiverConfig) -> None:
        super().__init__(config)
        width, features = config.hidden_size, config.point_size
        alike: dict[str, Any] = {
            "intermediate_size": config.intermediate_size,
            "norm_first": False,
            "eps": config.layer_norm_eps,
        }
        self.point_embedding = _embedding(features, width)
        self.geometry_embedding = _embedding(config.geometry_size, config.num_latents * width)
        self.region_embedding = _embedding(features * config.region_size**2, width)
        self.encoder = LatentEncoder(
            width,
            config.num_attention_heads,
            self_attentions_per_block=config.num_self_attentions,
            final_norm=False,
            **alike,
        )
        self.decoder = QueryDecoder(width, config.num_attention_heads, final_norm=False, **alike)
        if config.share_decoder_mlp:
            self.decoder.block.mlp = cast(AttentionBlock, self.encoder.blocks[0].cross_attention).mlp
        self.competition = AttentionBlock(width, config.num_attention_heads, **alike)
        self.class_head = _branch(width, config.num_class_layers, config.num_labels)
        self.position_head = _branch(width, config.num_box_layers, 3)
        self.size_head = _branch(width, config.num_box_layers, 3)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: Tensor,
        geometry: Tensor,
        regions: Tensor,
        per_image: Tensor | None = None,
        labels: Tensor | None = None,
        corrections: Tensor | None = None,
        **_: Any,
    ) -> MonoXiverOutput:
        """`points (C,P,F)`: features where the box's corners and centre are seen; `geometry (C,G)`; `regions
        (C,F,S,S)`: features of the box in the picture. `per_image (I,)` int64: candidates of each picture, one picture
        after the other (None: all are of one); candidates compete with those of their picture alone.

        `labels (C,)` int64: the class of a candidate that is the best of an object, -1 for all others; `corrections
        (C,6)`: what takes it to the object, in metres. Raises `UsageError` for shapes that do not fit.
        """
        self._check(points, geometry, regions, per_image)
        latents = self.geometry_embedding(geometry).unflatten(-1, (self.config.num_latents, -1))
        latents = self.encoder([Inputs(self.point_embedding(points))], latents=latents)
        query = self.region_embedding(regions.flatten(1))[:, None]
        found = self._compete(self.decoder(latents, query)[:, 0], per_image)
        logits, position, size = self.class_head(found), self.position_head(found), self.size_head(found)
        loss = None
        if labels is not None and corrections is not None:
            loss = denoising_loss(logits, torch.cat([position, size], dim=-1), labels, corrections)
        return MonoXiverOutput(loss, logits, position, size)

    def _compete(self, candidates: Tensor, per_image: Tensor | None) -> Tensor:
        """Self-attention among the candidates of each picture, `(C,D)` → `(C,D)`."""
        if per_image is None:
            return self.competition(candidates[None])[0]
        padded = pad_sequence(candidates.split(per_image.tolist()), batch_first=True)
        mask = torch.arange(padded.shape[1], device=padded.device) < per_image[:, None].to(padded.device)
        return self.competition(padded, mask=mask)[mask]

    def _check(self, points: Tensor, geometry: Tensor, regions: Tensor, per_image: Tensor | None) -> None:
        config = self.config
        if points.ndim != 3 or points.shape[-1] != config.point_size:
            raise UsageError(f"points {tuple(points.shape)}: need (candidates, points, {config.point_size})")
        whole = (len(points), config.geometry_size), (len(points), config.point_size, *[config.region_size] * 2)
        for name, given, wanted in zip(("geometry", "regions"), (geometry, regions), whole, strict=True):
            if given.shape != wanted:
                raise UsageError(f"{name} {tuple(given.shape)}: need {wanted}")
        if per_image is not None and int(per_image.sum()) != len(points):
            raise UsageError(f"per_image: of {int(per_image.sum())} candidates, there are {len(points)}")


def denoising_loss(logits: Tensor, residuals: Tensor, labels: Tensor, corrections: Tensor) -> Tensor:
    """Focal loss of the classes (γ 2, α 0.25), 5 × L1 of the places and 1 × L1 of the sizes of those that are right,
    over their number; arguments as of `MonoXiverModel.forward`.
    """
    right = labels >= 0
    wanted = F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits.dtype) * right[:, None]
    likely = torch.where(wanted > 0, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.where(wanted > 0, 0.25, 0.75) * (1 - likely) ** 2
    focal = (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()
    off = (residuals - corrections)[right].abs().sum(0)
    return (focal + 5 * off[:3].sum() + off[3:].sum()) / right.sum().clamp(min=1)


def _embedding(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width, bias=False), nn.LayerNorm(width), nn.ReLU())


def _branch(width: int, layers: int, outputs: int) -> nn.Sequential:
    parts = [part for _ in range(layers) for part in _embedding(width, width)]
    return nn.Sequential(*parts, nn.Linear(width, outputs))
