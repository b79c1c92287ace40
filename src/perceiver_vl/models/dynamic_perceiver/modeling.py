"""Dynamic Perceiver: features and latents exchange what they know at every stage, and the latents may answer early (Han
et al. 2023).

Shapes: B batch, H × W places of a feature map, L latents of a stage, C width of a stage, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.models.dynamic_perceiver.backbone import NormedConvolution, regnet_stages
from perceiver_vl.models.dynamic_perceiver.configuration import DynamicPerceiverConfig
from perceiver_vl.models.early_exit import ExitsInTurn, leave_when_sure
from perceiver_vl.utils.errors import UsageError

EXITS = ("latents of stage 3", "latents of stage 4", "features", "features and latents")


@dataclass
class DynamicPerceiverOutput(ModelOutput):
    """`logits (B,K)` of the last exit, or of those that were taken; `exit_logits`: of all four, in their order; `exits
    (B,)` int64: which were taken, from 0, where thresholds were given; the `loss`, where there are labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_logits: tuple[Tensor, ...] | None = None
    exits: Tensor | None = None


class FeatureRead(nn.Module):
    """Latents attend to a feature map, which is met as a fixed number of tokens whatever its size (3.1, X2Z)."""

    def __init__(self, config: DynamicPerceiverConfig, width: int) -> None:
        super().__init__()
        self.size, self.convolution = config.pooled_size, None
        if config.depthwise_convolutions:
            self.convolution = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.block = AttentionBlock(
            width, 1, width, norm_inputs=True, bias=False, key_positions=self.size**2, eps=config.layer_norm_eps
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """`(B,L,C)`, `(B,C,H,W)` → `(B,L,C)`."""
        if self.convolution is not None:
            features = features + self.convolution(features)
        return self.block(latents, _tokens(F.adaptive_avg_pool2d(features, self.size)))


class FeatureWrite(nn.Module):
    """Every place of a feature map attends to the latents, by an eighth of its channels (3.1, Z2X)."""

    def __init__(self, config: DynamicPerceiverConfig, width: int, latent_width: int) -> None:
        super().__init__()
        narrow = max(1, width // 8)
        alike: dict[str, Any] = {"qk_size": narrow, "v_size": narrow, "bias": False, "eps": config.layer_norm_eps}
        self.block = AttentionBlock(width, 1, width, input_size=latent_width, norm_inputs=True, **alike)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """`(B,C,H,W)`, `(B,L,C')` → `(B,C,H,W)`."""
        return self.block(_tokens(features), latents).transpose(1, 2).view_as(features)


class TokenMixer(nn.Module):
    """Fewer latents, made of all, then of another width (3.1)."""

    def __init__(self, tokens: int, new_tokens: int, width: int, new_width: int, eps: float) -> None:
        super().__init__()
        self.token_norm, self.tokens = nn.LayerNorm(tokens, eps=eps), nn.Linear(tokens, new_tokens)
        self.channel_norm, self.channels = nn.LayerNorm(width, eps=eps), nn.Linear(width, new_width)

    def forward(self, latents: Tensor) -> Tensor:
        """`(B,L,C)` → `(B,L',C')`."""
        mixed = self.tokens(self.token_norm(latents.transpose(1, 2))).transpose(1, 2)
        return self.channels(self.channel_norm(mixed))


class KnowledgeTransfer(nn.Module):
    """What an exit says, for the next one to know (3.2)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.projection, self.norm = nn.Linear(classes, width), nn.BatchNorm1d(width)

    def forward(self, logits: Tensor) -> Tensor:
        """`(B,K)` → `(B,C)`."""
        return F.relu(self.norm(self.projection(logits)))


class DynamicPerceiverForImageClassification(PreTrainedModel):
    """Pictures → classes, at the first of four exits that is sure enough."""

    config_class = DynamicPerceiverConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["AttentionBlock", "Bottleneck"]
    supports_gradient_checkpointing = True

    def __init__(self, config: DynamicPerceiverConfig) -> None:
        super().__init__(config)
        widths, numbers, classes = config.latent_widths, config.latents_of_stages, config.num_labels
        eps, last = config.layer_norm_eps, config.widths[-1]
        self.latents = nn.Parameter(config.initializer_range * torch.randn(config.num_latents, widths[0]))
        self.stem = NormedConvolution(config.num_channels, config.stem_width, 3, stride=2)
        self.stages = regnet_stages(config)
        self.reads = nn.ModuleList(FeatureRead(config, width) for width in widths)
        self.latent_stages = nn.ModuleList(
            nn.Sequential(
                *(
                    AttentionBlock(width, heads, config.intermediate_ratio * width, bias=False, eps=eps)
                    for _ in range(depth)
                )
            )
            for width, heads, depth in zip(widths, config.num_attention_heads, config.latent_depths, strict=True)
        )
        self.mixers = nn.ModuleList(
            TokenMixer(numbers[stage], numbers[stage + 1], widths[stage], widths[stage + 1], eps) for stage in range(3)
        )
        self.writes = nn.ModuleList()
        if config.write_features:
            self.writes.extend(FeatureWrite(config, width, width) for width in widths[1:])
        self.last_write = FeatureWrite(config, last, widths[-1]) if config.last_write else None
        self.transfers, known = nn.ModuleList(), 0
        if config.transfer_knowledge:
            known = widths[-1]
            self.transfers.extend(KnowledgeTransfer(classes, known) for _ in range(2))
        merged = last + widths[-1] + known
        self.classifiers = nn.ModuleList(
            [
                nn.Linear(widths[2], classes),
                nn.Linear(widths[3] + known, classes),
                nn.Linear(last, classes),
                nn.Sequential(nn.BatchNorm1d(merged), nn.Linear(merged, classes)),
            ]
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions: as He's, of what goes out; all else: `initializer_range`."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        thresholds: Sequence[float] | None = None,
        **_: Any,
    ) -> DynamicPerceiverOutput:
        """`pixel_values (B,3,H,W)` → logits of all exits, and with `labels (B,)` the loss of all.

        `thresholds`, four numbers (`early_exit.solve_budget`): each example leaves where it is sure enough, and is
        computed no further; for evaluation. Raises `UsageError` for what does not fit.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise UsageError(
                f"pixel_values {tuple(pixel_values.shape)}: need (batch, {self.config.num_channels}, H, W)"
            )
        if thresholds is not None:
            if len(thresholds) != len(EXITS) or self.training:
                raise UsageError(f"thresholds: {len(thresholds)}, need {len(EXITS)}, and a model in evaluation mode")
            logits, taken = leave_when_sure(self.exits_in_turn(pixel_values), thresholds)
            return DynamicPerceiverOutput(logits=logits, exits=taken)
        exits = tuple(self.exits_in_turn(pixel_values))
        loss = None if labels is None else self_distillation_loss(exits, labels)
        return DynamicPerceiverOutput(loss, exits[-1], exits)

    def exits_in_turn(self, pixel_values: Tensor) -> ExitsInTurn:
        """`pixel_values (B,3,H,W)` → the logits of each exit. The latents of a stage do not depend on what the stage
        makes of the features, so they go first, and the stage is left out where they answer (3.3).
        """
        features = F.relu(self.stem(pixel_values))
        latents = self.latents.expand(len(features), -1, -1)
        said = torch.empty(0)
        for stage, convolutions in enumerate(self.stages):
            if stage:
                latents = self.mixers[stage - 1](latents)
            if stage and self.config.write_features:
                features = self.writes[stage - 1](features, latents)
            latents = self.latent_stages[stage](self.reads[stage](latents, features))
            if stage >= 2:
                known = [latents.mean(1)] if stage == 2 else self._with_transfer([latents.mean(1)], said, 0)
                said = self.classifiers[stage - 2](torch.cat(known, dim=-1))
                features, latents, said = _kept((yield said), features, latents, said)
            features = convolutions(features)
        features, latents, said = _kept((yield self.classifiers[2](features.mean((2, 3)))), features, latents, said)
        if self.last_write is not None:
            features = self.last_write(features, latents)
        known = self._with_transfer([features.mean((2, 3)), latents.mean(1)], said, 1)
        yield self.classifiers[3](torch.cat(known, dim=-1))

    def _with_transfer(self, known: list[Tensor], said: Tensor, number: int) -> list[Tensor]:
        return [*known, self.transfers[number](said)] if self.config.transfer_knowledge else known


def self_distillation_loss(exits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of all exits, those of the latents with half the weight, and half of what each of the first three
    loses of what the last one says (KL divergence, which does not teach the last one), as in the released recipe.
    """
    truth = [F.cross_entropy(logits, labels) for logits in exits]
    target = exits[-1].detach().log_softmax(-1)
    taught = [F.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True) for logits in exits[:-1]]
    return 0.5 * (truth[0] + truth[1]) + truth[2] + truth[3] + 0.5 * torch.stack(taught).sum()


def _tokens(features: Tensor) -> Tensor:
    """`(B,C,H,W)` → `(B,H·W,C)`."""
    return features.flatten(2).transpose(1, 2)


def _kept(places: Tensor | None, *parts: Tensor) -> tuple[Tensor, ...]:
    """Of a batch the examples at `places`; None: all."""
    return parts if places is None else tuple(part[places] for part in parts)
