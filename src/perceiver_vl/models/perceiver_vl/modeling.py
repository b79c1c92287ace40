"""Input array → latents (`PerceiverVLModel`), and what all models share.

Shapes: B batch, T frames, L text tokens, N latents, D width.
"""

import math
import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.attention import Attention, has_plain_projections
from perceiver_vl.layers.experts import ExpertLinear, ScaledLinear
from perceiver_vl.layers.patch_stem import SoftSplit
from perceiver_vl.layers.perceiver import EncoderRecord
from perceiver_vl.layers.positions import sincos_positions_2d, sinusoidal_positions
from perceiver_vl.layers.token_reduction import PointPredictor, even_points
from perceiver_vl.layers.token_selection import drawn_latents, kept_tokens
from perceiver_vl.layers.untied import TwinLinear, TwinNorm
from perceiver_vl.layers.zero_linear import ZeroLinear
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery
from perceiver_vl.models.perceiver_vl.embeddings import CoarsePatches, InputEmbeddings, VisionEmbeddings
from perceiver_vl.models.perceiver_vl.encoder import InputArray, PerceiverVLEncoder, fourier_positions
from perceiver_vl.models.perceiver_vl.encoders import BaseVectors, PretrainedPart, TextEncoder, VisionEncoder
from perceiver_vl.models.perceiver_vl.fewer_keys import (
    FEWER_KEYS,
    later_choice,
    reads_by_latents,
    reads_by_text,
    reduce_by_text,
    reduce_frames,
    refuse_dropping,
    refuse_without_tokens,
)
from perceiver_vl.models.perceiver_vl.heads import (
    BaseMatching,
    CaptionWords,
    ContrastiveHead,
    MaskedWordHead,
)
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache, VisionCacheMixin, weights_fingerprint
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line

_LOADING = threading.RLock()


class AskedOutputs(TypedDict, total=False):
    """What the `forward` of every model can give beside its result, as in transformers; None: as the configuration
    says.

    `output_hidden_states`: the latents `(B,N,D)` before the first block and after each, the last ones normed.
    `output_attentions`: the weights of the cross-attentions that ran, `(B,H,N,M)`, and of the self-attentions,
    `(B,H,N,N)`, in their order.
    """

    output_hidden_states: bool | None
    output_attentions: bool | None


class PerceiverVLPreTrainedModel(VisionCacheMixin, PreTrainedModel):
    """Initialisation, saving and loading, shared by all models."""

    config_class = PerceiverVLConfig
    base_model_prefix = "perceiver_vl"
    main_input_name = "input_ids"
    _no_split_modules = ["AttentionBlock"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; pretrained models that are part of this one are frozen. Threads load one after the other:
        transformers takes some of its own functions away meanwhile (`no_tie_weights`), for good if two overlap.

        Raises `PerceiverVLError` for a damaged file of weights.
        """
        try:
            with _LOADING:
                loaded = super().from_pretrained(*args, **kwargs)  # which makes every weight anew
        except SafetensorError as error:
            folder = args[0] if args else kwargs["pretrained_model_name_or_path"]
            raise PerceiverVLError(f"{folder}: cannot be loaded ({first_line(error)}), save the model again") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for part in model.pretrained_parts().values():
            part.requires_grad_(False)
        return loaded

    def pretrained_parts(self) -> dict[str, PretrainedPart]:
        """The pretrained models that are part of this one: "vision" and "text" encoder, "language" model."""
        base = self.base_model
        parts = {"vision": base.vision_encoder, "text": base.text_encoder}
        parts["language"] = getattr(self, "language_model", None)
        return {side: part for side, part in parts.items() if part is not None}

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, although it is: else transformers passes modules by that have no weights but those of their parts. It
        is right of code that begins no weight anew that was loaded, as all of `transformers.initialization`.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every initialisation of the package.

        Linear layers, convolutions, tables (word, position, mask, modality), class tokens and queries: N(0,
        initializer_range); biases 0, norms 1 and 0. Latents and their learned positions: N(0, latent_initializer_range)
        between them. Temporal table: 0: a clip starts as a set of images, as released. Temperature of VTC: 1/0.07, as
        CLIP's. Where there is a base, what is added to it, and the maps that it is made by: 0. Soft splits: N(0,
        1/fan_in). Points that latents choose: evenly over the frame. With `sincos_positions` the tables of positions
        and times are sines and cosines of that size. What is untied begins as what it was tied to, without a draw.
        Layer scale: `layer_scale`. Experts: as linear layers, each drawn for itself.
        """
        if isinstance(module, TwinLinear | TwinNorm):  # which come after what they are twins of
            for own, theirs in zip(module.parameters(), module.of.parameters(), strict=True):
                init.copy_(own, theirs)
            return
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, PerceiverVLEncoder):
            if self.config.latent_position == "learned":
                init.normal_(module.latents, std=std)
                init.normal_(module.latent_positions, std=self.config.latent_initializer_range)
            else:
                init.normal_(module.latents, std=self.config.latent_initializer_range)
            if self.config.latent_position == "fourier":
                init.copy_(module.latent_positions, fourier_positions(module.latents))
        elif isinstance(module, VisionEmbeddings | CoarsePatches):
            if (scale := self.config.sincos_positions) is None:
                init.normal_(module.position_embeddings, std=std)
            else:
                places = sincos_positions_2d(module.grid, module.grid, module.position_embeddings.shape[1])
                init.copy_(module.position_embeddings, scale * places)
            if isinstance(module, CoarsePatches):
                return
            if scale is None:
                init.zeros_(module.temporal_embeddings)
            else:
                init.copy_(module.temporal_embeddings, scale * sinusoidal_positions(*module.temporal_embeddings.shape))
            if module.has_class_token:
                init.normal_(module.class_position, std=std)
                if hasattr(module, "class_token"):
                    init.normal_(module.class_token, std=std)
        elif isinstance(module, SoftSplit):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, PointPredictor):
            init.zeros_(module.fc2.weight)
            init.copy_(module.fc2.bias, even_points(self.config.sampled_points).logit().flatten())
        elif isinstance(module, ClassQuery):
            init.normal_(module.query, std=std)
        elif isinstance(module, ContrastiveHead):
            init.constant_(module.logit_scale, math.log(1 / 0.07))
            if module.logit_bias is not None:
                init.zeros_(module.logit_bias)
            if module.length_weight is not None:
                init.zeros_(module.length_weight)
        elif isinstance(module, BaseMatching):
            init.constant_(module.scale, 10.0)
            init.constant_(module.threshold, 0.25)  # between the cosines of pairs and of others, in most encoders
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, ScaledLinear):
            init.constant_(module.scale, self.config.layer_scale or 1.0)
        elif isinstance(module, ExpertLinear):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
            if module.scale is not None:
                init.constant_(module.scale, self.config.layer_scale or 1.0)
        elif isinstance(module, MaskedWordHead | CaptionWords):
            init.zeros_(module.bias)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Every name asked for comes through here; of transformers' many, the attention of this model knows two."""
        if attn_implementation not in ("eager", "sdpa", None):
            raise UsageError(
                f"attn_implementation={attn_implementation!r}: choose 'eager' or 'sdpa', "
                "which runs the flash kernels itself where they fit"
            )
        return attn_implementation or "sdpa"

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Change to "eager" or "sdpa" after loading, as in transformers; raises `ValueError` for another."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = self.config._attn_implementation

    def may_absorb(self, part: nn.Module) -> bool:
        """Whether few queries may meet the inputs in their own space in this part of the model (`Attention.forward`):
        in evaluation, as training keeps its arithmetic, and where projections are no more than their weights.
        """
        attentions = (module for module in part.modules() if isinstance(module, Attention))
        with_inputs = (one for one in attentions if not isinstance(one.k_proj, ExpertLinear))
        return not self.training and all(map(has_plain_projections, with_inputs))

    def record(
        self,
        vision_cache: VisionCache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> EncoderRecord | None:
        """Where the encoder is to note what `forward` was asked for (`AskedOutputs`); None: nothing."""
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if attentions and vision_cache is not None:
            raise UsageError(
                "output_attentions=True: a vision_cache does not say how it is attended to, give pixel_values"
            )
        if not (states or attentions):
            return None
        return EncoderRecord([] if states else None, [] if attentions else None, [] if attentions else None)

    def decode(self, queries: Tensor, latents: Tensor) -> Tensor:
        """`queries (B,Q,D)` attend to `latents (B,N,D)` → `(B,Q,D)`, in a model that has a decoder."""
        decoded: Tensor = self.decoder(latents, queries, absorb=self.may_absorb(self.decoder))
        return decoded

    def resize_latents(self, num_latents: int, how: Literal["fresh", "interpolate"] = "fresh") -> None:
        """Give a trained model another number of latents N: new random ones, or the old ones interpolated along N.

        New latents are about as good after some training (paper 5.2.2). The text stream keeps its own number of them,
        unless it used all, or there are fewer now. Raises `UsageError` for a number below 1.
        """
        numbers = {"num_latents": num_latents, "num_text_latents": self.config.text_latents_of(num_latents)}
        PerceiverVLConfig.from_dict(self.config.to_dict() | numbers)  # which refuses what cannot be
        encoder = self.base_model.encoder
        encoder.resize_latents(num_latents)
        if how == "fresh":
            self._init_weights(encoder)
        for name, number in numbers.items():
            setattr(self.config, name, number)

    def seed_layer_drop(self, seed: int | None) -> None:
        """Draw LayerDrop from this seed until the next call (training sets it to the step, so that all processes
        agree).

        None goes back to torch's global generator: a new draw at every forward.
        """
        for module in self.modules():
            if isinstance(module, PerceiverVLEncoder):
                module.layer_drop_seed = seed


class PerceiverVLModel(PerceiverVLPreTrainedModel):
    """Words and pixels → input array → latents (paper 3.1 to 3.3)."""

    _keys_to_ignore_on_load_unexpected = [r"^(decoder|vtm_|contrastive|base_matching|mlm_|mpm_|answer_|caption_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.vision_encoder = None if config.vision_config is None else VisionEncoder(config)
        self.text_encoder = None if config.text_config is None else TextEncoder(config)
        self.base = None if config.base == "none" else BaseVectors(config)
        self.embeddings = InputEmbeddings(config)
        self.encoder = PerceiverVLEncoder(config)
        points = config.sampled_points
        self.point_predictor = PointPredictor(config.hidden_size, points, config.layer_norm_eps) if points else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        if self.text_encoder is not None:
            return self.text_encoder.model.get_input_embeddings()
        return self.embeddings.text.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word table."""
        if self.text_encoder is not None:
            self.text_encoder.model.set_input_embeddings(value)
        else:
            self.embeddings.text.word_embeddings = cast(nn.Embedding, value)

    def encode_frames(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values (B,T,3,H,W)` → what the vision encoder makes of each frame `(B,T,1+P,W)`: its vector, then its
        tokens. Every method takes that in the place of pixels; without a vision encoder they stay what they are.

        Raises `UsageError` for another shape.
        """
        if pixel_values.ndim == 4 and self.vision_encoder is not None:
            wanted = 1 + self.config.tokens_per_frame
            if pixel_values.shape[2] != wanted:
                raise UsageError(
                    f"encoded frames of shape {tuple(pixel_values.shape)}: need (B,T,{wanted},W), of this encoder with "
                    f"token_grid={self.config.token_grid}"
                )
            return pixel_values.to(self.dtype)
        if self.vision_encoder is None:
            return pixel_values
        if pixel_values.ndim != 5:
            raise UsageError(f"pixel_values of shape {tuple(pixel_values.shape)}: need (B,T,3,H,W), an image has T=1")
        encoded: Tensor = self.vision_encoder(pixel_values.flatten(0, 1))
        return encoded.to(self.dtype).unflatten(0, pixel_values.shape[:2])

    def embed_inputs(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        vision_cache: VisionCache | None = None,
        modality: str | None = None,
    ) -> InputArray:
        """The input array of what is given, vision and text apart: the part of the work that no latent takes part
        in. `vision_cache` takes the place of `pixel_values`. `modality`: what `pixel_values` are instead of pixels, one
        of the configuration's `modalities`, `(B,T,…)` with its mask `(B,T)` as `frame_mask`.
        """
        if input_ids is None and pixel_values is None and vision_cache is None:
            raise UsageError("nothing to encode: give input_ids, pixel_values or both")
        if pixel_values is not None and vision_cache is not None:
            raise UsageError("pixel_values and vision_cache: give one, the cache is of a clip already")
        inputs = InputArray(vision_cache=vision_cache)
        if pixel_values is not None and modality is not None:
            if budget.frames is not None:
                raise UsageError(f"budget frames={budget.frames}: of pixels, {modality} has no frames; leave it out")
            inputs.vision, inputs.vision_mask = self.embeddings.embed_modality(modality, pixel_values, frame_mask)
            if isinstance(budget, TrainingBudget) and budget.token_share < 1:
                self._drop_tokens(inputs, 1, budget, class_token=False)
        elif pixel_values is not None:
            if budget.frames is not None:
                pixel_values, frame_mask = sample_frames(pixel_values, frame_mask, budget.frames)
            pixel_values = self.encode_frames(pixel_values)
            if self.vision_encoder is not None:
                vectors, pixel_values = pixel_values[:, :, 0], pixel_values[:, :, 1:]
                if self.base is not None and self.config.base_of_vision:
                    real = torch.ones_like(vectors[..., 0]) if frame_mask is None else frame_mask
                    inputs.vision_base = self.base.of_vision(vectors, real)
            inputs.frames = self.config.groups_of(pixel_values.shape[1])
            tokens = self.embeddings.embed_vision(pixel_values, frame_mask)
            reduced = reduce_frames(self.config, *tokens, inputs.frames)
            inputs.vision, inputs.vision_mask, inputs.vision_places = reduced.tokens, reduced.mask, reduced.places
            if isinstance(budget, TrainingBudget) and budget.token_share < 1:
                refuse_dropping(self.config)
                self._drop_tokens(inputs, inputs.frames, budget, self.config.frame_class_token)
        if input_ids is not None:
            words = input_ids
            if self.text_encoder is not None:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                words, vectors = self.text_encoder(input_ids, mask)
                if self.base is not None:
                    inputs.text_base = self.base.of_text(vectors)
            inputs.text, inputs.text_mask = self.embeddings.embed_text(words, attention_mask)
        if vision_cache is not None:
            inputs.vision_base = vision_cache.base_of(len(inputs))
        return inputs

    def encode(
        self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET, record: EncoderRecord | None = None
    ) -> Tensor:
        """Input array → latents `(B,N,D)`, at the budget's number of latents and cross-attentions (those of the cache,
        if any); `record` as of `LatentEncoder.forward`.
        """
        return self.encoder(**self._encoding(inputs, budget), record=record)

    def encode_in_turn(
        self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET
    ) -> Generator[Tensor, Tensor | None, None]:
        """The latents `(B,N,D)` as `encode` would give them after one block, after two, …; what is sent, as of
        `LatentEncoder.in_turn`.
        """
        return self.encoder.in_turn(**self._encoding(inputs, budget), every=len(self.encoder.modalities))

    def _encoding(self, inputs: InputArray, budget: ComputeBudget) -> dict[str, Any]:
        """The arguments of the encoder."""
        encoder, each = self.encoder, len(self.encoder.modalities)
        if inputs.vision_cache is not None:
            texts = None if inputs.text is None else len(inputs.text)
            budget = inputs.vision_cache.budget_for(budget, self.vision_fingerprint(), texts)
            inputs = self._with_tokens(inputs, budget)
        self.config.check_budget(budget)
        first, kept = self.config.latents_of(budget, inputs.is_text_only)
        which: int | Tensor = first
        if isinstance(budget, TrainingBudget):
            pool = self.config.latents_of(FULL_BUDGET, inputs.is_text_only)[0]
            which = drawn_latents(max(pool, kept), kept, budget.seed).to(self.device)
        if reads_by_text(self.config):
            inputs = reduce_by_text(self.config, encoder.vision_cross_attentions[0], inputs)
        choose = later_choice(self.config, self.point_predictor, inputs)
        latents, cache = encoder.first_latents(which), inputs.vision_cache
        if cache is None or cache.first is None:
            latents = latents.expand(len(inputs), -1, -1)
        attributes = None
        if self.config.num_experts:  # which two are chosen depends on whether there is a clip, and on whether words
            attributes = latents.new_tensor([[not inputs.is_text_only, inputs.text is not None]])
        return {
            "inputs": inputs.by_block(encoder.modalities, len(encoder.blocks), choose),
            "latents": latents,
            "attending": encoder.attending_blocks(each * self.config.cross_attentions_of(budget)),
            "blocks": each * self.config.blocks_of(budget),
            "keep_latents": kept if kept < first else None,
            "absorb": self.may_absorb(encoder),
            "attributes": attributes,
        }

    def _with_tokens(self, inputs: InputArray, budget: ComputeBudget) -> InputArray:
        """The same array, with the tokens of a cache in its place where words or latents choose among them."""
        config, cache = self.config, inputs.vision_cache
        assert cache is not None
        if not (reads_by_text(config) or reads_by_latents(config)):
            return inputs
        if cache.seen is None:
            refuse_without_tokens(config, config.cross_attentions_of(budget), inputs.text is not None)
            return inputs
        times = 1 if inputs.text is None else len(inputs.text) // len(cache)
        tokens, mask = (one.repeat_interleave(times, 0) for one in cache.seen)
        return replace(inputs, vision=tokens, vision_mask=mask, vision_cache=None, frames=cache.frames)

    def vision_fingerprint(self) -> str:
        """A fingerprint of all that a `VisionCache` depends on."""
        config, encoder = self.config, self.encoder
        settings = (
            config.num_attention_heads,
            config.layer_norm_eps,
            config.zero_frames_are_padding,
            config.modality_aggregation,
            *(getattr(config, name) for name in FEWER_KEYS),
        )
        weights: list[Tensor] = [*self.embeddings.parameters(), *encoder.parameters(recurse=False)]
        if self.vision_encoder is not None:
            weights += [*self.vision_encoder.parameters(), *self.vision_encoder.buffers()]  # an ONNX graph is a buffer
        if self.base is not None:
            weights += [*self.base.parameters(), *self.base.buffers()]
        weights += [weight for block in encoder.vision_cross_attentions for weight in block.parameters()]
        return weights_fingerprint(settings, weights)

    def _drop_tokens(self, inputs: InputArray, frames: int, budget: TrainingBudget, class_token: bool) -> None:
        """Take the vision tokens out that a step of training does without."""
        assert inputs.vision is not None
        assert inputs.vision_mask is not None
        patches = inputs.vision.shape[1] // frames
        kept = kept_tokens(frames, patches, budget.token_share, budget.seed, class_token).to(inputs.vision.device)
        inputs.vision, inputs.vision_mask = inputs.vision[:, kept], inputs.vision_mask[:, kept]
        inputs.vision_places = None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        modality: str | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> BaseModelOutputWithCrossAttentions:
        """`input_ids (B,L)`, `attention_mask (B,L)`, `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → latents
        `(B,N,D)`.

        Masks are 1 where real and 0 where padded; a mask left out means that nothing is padded. Either modality may be
        left out. `vision_cache` (`cache_vision`, `long_vision`) takes the place of `pixel_values`; of B texts, those
        about the same clip are next to each other. `modality`: as of `embed_inputs`. Raises `UsageError` for a budget
        that the model does not have, and a cache of other weights or another budget.
        """
        budget = budget or FULL_BUDGET
        record = self.record(vision_cache, **asked)
        inputs = self.embed_inputs(input_ids, attention_mask, pixel_values, frame_mask, budget, vision_cache, modality)
        latents = self.encode(inputs, budget, record)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=latents, **states_of(record))


def states_of(found: EncoderRecord | ModelOutput | None) -> dict[str, tuple[Tensor, ...] | None]:
    """The fields `hidden_states`, `cross_attentions` and `attentions` of an output, from those that were noted."""
    values = {name: getattr(found, name, None) for name in ("hidden_states", "cross_attentions", "attentions")}
    return {name: None if value is None else tuple(value) for name, value in values.items()}


def sample_frames(pixel_values: Tensor, frame_mask: Tensor | None, frames: int) -> tuple[Tensor, Tensor]:
    """Keep `frames` of the real frames of each clip, the middle ones of equal segments; shorter clips keep what they
    have.

    `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → `(B,min(T,frames),3,H,W)`, bool `(B,min(T,frames))`.
    """
    batch, most = pixel_values.shape[:2]
    if frame_mask is None:
        frame_mask = torch.ones(batch, most, dtype=torch.bool, device=pixel_values.device)
    real = frame_mask.sum(1, keepdim=True).long()  # (B,1)
    kept = real.clamp(max=frames)
    slot = torch.arange(min(most, frames), device=pixel_values.device)[None]  # (1,T')
    position = ((2 * slot + 1) * real // (2 * kept).clamp(min=1)).clamp(max=most - 1)
    index = frame_mask.long().argsort(dim=1, descending=True, stable=True).gather(1, position)  # real frames come first
    rows = torch.arange(batch, device=pixel_values.device)[:, None]
    return pixel_values[rows, index], slot < kept
