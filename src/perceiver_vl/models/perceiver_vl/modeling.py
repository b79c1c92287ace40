"""The models: input array → latents (`PerceiverVLModel`), matching and retrieval, pre-training.

Shapes: B batch, T frames, L text tokens, N latents, Q queries, D width, E length of a retrieval vector, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from perceiver_vl.layers.attention import Attention, fourier_features
from perceiver_vl.layers.partial_attention import AttentionSummary, merge_summaries, unpack
from perceiver_vl.layers.token_selection import drawn_latents, kept_tokens
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl.clips import ReadsClipsOnce, vision_mark
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, MaskedWordQueries, PerceiverVLDecoder
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings, VisionEmbeddings
from perceiver_vl.models.perceiver_vl.encoder import InputArray, PerceiverVLEncoder
from perceiver_vl.models.perceiver_vl.heads import ContrastiveHead, MaskedWordHead, MatchingHead
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.errors import UsageError


class PerceiverVLPreTrainedModel(ReadsClipsOnce, PreTrainedModel):
    """Initialisation, saving and loading, shared by all models."""

    config_class = PerceiverVLConfig
    base_model_prefix = "perceiver_vl"
    main_input_name = "pixel_values"
    _no_split_modules = ["AttentionBlock"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every initialisation of the package.

        Linear layers, patch projection, tables (word, position, mask, modality), class tokens and queries:
        N(0, initializer_range); biases 0, norms 1 and 0. Latents and their learned positions: N(0,
        latent_initializer_range) between them. Temporal table: 0: a clip starts as a set of images, as released.
        Temperature of VTC: 1/0.07, as CLIP's.
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, PerceiverVLEncoder):
            if self.config.latent_position == "learned":
                init.normal_(module.latents, std=std)
                init.normal_(module.latent_positions, std=self.config.latent_initializer_range)
            else:
                init.normal_(module.latents, std=self.config.latent_initializer_range)
            if self.config.latent_position == "fourier":
                init.copy_(module.latent_positions, fourier_features(*module.latents.shape))
        elif isinstance(module, VisionEmbeddings):
            init.normal_(module.position_embeddings, std=std)
            init.zeros_(module.temporal_embeddings)
            if module.has_class_token:
                init.normal_(module.class_token, std=std)
                init.normal_(module.class_position, std=std)
        elif isinstance(module, ClassQuery):
            init.normal_(module.query, std=std)
        elif isinstance(module, ContrastiveHead):
            init.constant_(module.logit_scale, math.log(1 / 0.07))
        elif isinstance(module, MaskedWordHead):
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

    def resize_latents(self, num_latents: int, how: Literal["fresh", "interpolate"] = "fresh") -> None:
        """Give a trained model another number of latents N: new random ones, or the old ones interpolated along N.

        New latents are about as good after some training (paper 5.2.2). The text stream keeps its own number of them,
        unless it used all, or there are fewer now. Raises `UsageError` for a number below 1.
        """
        numbers = {"num_latents": num_latents, "num_text_latents": self.config.text_latents_of(num_latents)}
        PerceiverVLConfig.from_dict(self.config.to_dict() | numbers)  # which refuses what cannot be
        for encoder in (module for module in self.modules() if isinstance(module, PerceiverVLEncoder)):
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

    _keys_to_ignore_on_load_unexpected = [r"^(decoder|vtm_|contrastive|mlm_|answer_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.embeddings = InputEmbeddings(config)
        self.encoder = PerceiverVLEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table."""
        return self.embeddings.text.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.embeddings.text.word_embeddings = value

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        vision_cache: VisionCache | None = None,
    ) -> InputArray:
        """The input array of what is given, vision and text apart: the part of the work that no latent takes part
        in. `vision_cache` takes the place of `pixel_values`.
        """
        if input_ids is None and pixel_values is None and vision_cache is None:
            raise UsageError("nothing to encode: give input_ids, pixel_values or both")
        if pixel_values is not None and vision_cache is not None:
            raise UsageError("pixel_values and vision_cache: give one, the cache is of a clip already")
        inputs = InputArray(vision_cache=vision_cache)
        if pixel_values is not None:
            if budget.frames is not None:
                pixel_values, frame_mask = sample_frames(pixel_values, frame_mask, budget.frames)
            inputs.vision, inputs.vision_mask = self.embeddings.embed_vision(pixel_values, frame_mask)
            if isinstance(budget, TrainingBudget) and budget.token_share < 1:
                self._drop_tokens(inputs, pixel_values.shape[1], budget)
        if input_ids is not None:
            inputs.text, inputs.text_mask = self.embeddings.embed_text(input_ids, attention_mask)
        return inputs

    def read(self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET) -> Tensor:
        """Input array → latents `(B,N,D)`, at the budget's number of latents and reads (those of the cache, if any)."""
        if inputs.vision_cache is not None:
            texts = None if inputs.text is None else len(inputs.text)
            budget = inputs.vision_cache.budget_for(budget, vision_mark(self), texts)
        self.config.check_budget(budget)
        first, kept = self.config.latents_of(budget, inputs.is_text_only)
        which: int | Tensor = first
        if isinstance(budget, TrainingBudget):
            pool = self.config.latents_of(FULL_BUDGET, inputs.is_text_only)[0]
            which = drawn_latents(max(pool, kept), kept, budget.seed).to(self.device)
        reads = self.encoder.reads_to_run(self.config.reads_of(budget))[: self.config.blocks_of(budget)]
        return self.encoder(inputs, which, reads, kept if kept < first else None)

    def _drop_tokens(self, inputs: InputArray, frames: int, budget: TrainingBudget) -> None:
        """Take the vision tokens out that a step of training does without."""
        assert inputs.vision is not None
        assert inputs.vision_mask is not None
        patches, class_token = inputs.vision.shape[1] // frames, self.config.frame_class_token
        kept = kept_tokens(frames, patches, budget.token_share, budget.seed, class_token).to(inputs.vision.device)
        inputs.vision, inputs.vision_mask = inputs.vision[:, kept], inputs.vision_mask[:, kept]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        return_dict: bool | None = None,
        vision_cache: VisionCache | None = None,
    ) -> BaseModelOutput:
        """`input_ids (B,L)`, `attention_mask (B,L)`, `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → latents
        `(B,N,D)`.

        Masks are 1 where real and 0 where padded; a mask left out means that nothing is padded. Either modality may be
        left out. `vision_cache` (`cache_vision`, `long_vision`) takes the place of `pixel_values`; of B texts, those
        about the same clip are next to each other. Raises `UsageError` for a budget that the model does not have, and
        a cache of other weights or another budget.
        """
        budget = budget or FULL_BUDGET
        inputs = self.embed(input_ids, attention_mask, pixel_values, frame_mask, budget, vision_cache)
        latents = self.read(inputs, budget)
        return BaseModelOutput(last_hidden_state=latents)


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


@dataclass
class PerceiverVLForRetrievalOutput(ModelOutput):
    """`loss ()` when labels are given; `vtm_logits (B,)`: the logit that text and vision belong together."""

    loss: Tensor | None = None
    vtm_logits: Tensor | None = None


class PerceiverVLForRetrieval(PerceiverVLPreTrainedModel):
    """The three streams of retrieval over the same weights (paper 3.5).

    single: text and vision encoded together, then matched (`match_jointly`). multi: encoded apart, one unit vector a
    side (`get_text_features`, `get_vision_features`), a dot product a pair. mixed: encoded apart (`encode_text`,
    `encode_vision`), their latents matched by the decoder (`match`), or each summarised for it once (`match_summary`:
    what an index stores) and the summaries merged (`match_from_summaries`).
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mlm|answer)_"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        self.decoder = PerceiverVLDecoder(config)
        self.vtm_query = ClassQuery(config)
        self.vtm_head = MatchingHead(config)
        self.contrastive = ContrastiveHead(config)
        self.post_init()

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`input_ids (B,L)`, `attention_mask (B,L)` → text latents `(B,N,D)`, N = the text stream's own number."""
        return self.perceiver_vl(input_ids, attention_mask, budget=budget).last_hidden_state

    def encode_vision(
        self, pixel_values: Tensor, frame_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → vision latents `(B,N,D)`."""
        return self.perceiver_vl(pixel_values=pixel_values, frame_mask=frame_mask, budget=budget).last_hidden_state

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`input_ids (B,L)` → unit vectors `(B,E)` of the multi-stream."""
        return self.pool_text(self.encode_text(input_ids, attention_mask, budget))

    def get_vision_features(
        self, pixel_values: Tensor, frame_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`pixel_values (B,T,3,H,W)` → unit vectors `(B,E)` of the multi-stream."""
        return self.pool_vision(self.encode_vision(pixel_values, frame_mask, budget))

    def pool_text(self, text_latents: Tensor) -> Tensor:
        """Text latents `(B,N,D)` → unit vectors `(B,E)`."""
        return F.normalize(self.contrastive.text_projection(text_latents.mean(1)), dim=-1)

    def pool_vision(self, vision_latents: Tensor) -> Tensor:
        """Vision latents `(B,N,D)` → unit vectors `(B,E)`."""
        return F.normalize(self.contrastive.vision_projection(vision_latents.mean(1)), dim=-1)

    @property
    def logit_scale(self) -> Tensor:
        """The learned factor on cosine similarities, at most 100 (as CLIP's)."""
        return self.contrastive.logit_scale.exp().clamp(max=100.0)

    def match(self, vision_latents: Tensor, text_latents: Tensor) -> Tensor:
        """Mixed-stream: `(B,N_V,D)` and `(B,N_T,D)`, encoded apart → matching logits `(B,)`."""
        return self._matching_logits(torch.cat([vision_latents, text_latents], dim=1))

    def match_summary(self, latents: Tensor) -> Tensor:
        """All that latents of either side `(B,N,D)` can contribute to a mixed-stream match → `(B,D+H)`, to be stored.

        The query is the same for every pair, so what it finds on one side does not depend on the other.
        """
        return self.decoder.block.summarise(self.vtm_query(1), latents).pack()[:, 0]

    def match_from_summaries(self, vision: Tensor, text: Tensor) -> Tensor:
        """Mixed-stream from `match_summary` of both sides, `(…,D+H)` → matching logits `(…)`, as of `match`.

        Leading dimensions broadcast: `(B,·)` with `(B,·)` are B pairs, `(C,·)` with `(Q,1,·)` all `(Q,C)`.
        """
        vision_found, text_found = (
            unpack(side[..., None, :], self.config.num_attention_heads) for side in (vision, text)
        )
        return self._merged_logits(self.vtm_query(1), vision_found, text_found)

    def match_all(self, vision_latents: Tensor, text_latents: Tensor) -> Tensor:
        """Mixed-stream scores of all pairs: `(C,N_V,D)`, `(Q,N_T,D)` → matching logits `(Q,C)`, as of `match`."""
        block, query = self.decoder.block, self.vtm_query(1)
        vision, text = block.summarise(query, vision_latents), block.summarise(query, text_latents)
        text = AttentionSummary(text.output[:, None], text.logsumexp[:, None])
        return self._merged_logits(query, vision, text)

    def _merged_logits(self, query: Tensor, vision: AttentionSummary, text: AttentionSummary) -> Tensor:
        return self.vtm_head(self.decoder.finish(query, merge_summaries(vision, text))[..., 0, :])

    def match_jointly(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
    ) -> Tensor:
        """Single-stream: text and vision in one input array → matching logits `(B,)`; `vision_cache` as of
        `PerceiverVLModel.forward`.
        """
        encoded = self.perceiver_vl(
            input_ids, attention_mask, pixel_values, frame_mask, budget, vision_cache=vision_cache
        )
        return self._matching_logits(encoded.last_hidden_state)

    def match_inputs(self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET) -> Tensor:
        """Single-stream from an input array that is embedded already (`PerceiverVLModel.embed`) → `(B,)`."""
        return self._matching_logits(self.perceiver_vl.read(inputs, budget))

    def _matching_logits(self, latents: Tensor) -> Tensor:
        return self.vtm_head(self.decoder(self.vtm_query(len(latents)), latents)[:, 0])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        vtm_labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        return_dict: bool | None = None,
    ) -> PerceiverVLForRetrievalOutput:
        """Single-stream matching; `vtm_labels (B,)` are 1 where the pair belongs together, else 0."""
        logits = self.match_jointly(input_ids, attention_mask, pixel_values, frame_mask, budget)
        loss = None if vtm_labels is None else matching_loss(logits, vtm_labels)
        return PerceiverVLForRetrievalOutput(loss=loss, vtm_logits=logits)


@dataclass
class PerceiverVLForPreTrainingOutput(ModelOutput):
    """`loss ()`: the sum of the losses whose labels are given; `vtm_logits (B,)`; `mlm_logits (B,L,V)`."""

    loss: Tensor | None = None
    vtm_logits: Tensor | None = None
    mlm_logits: Tensor | None = None


class PerceiverVLForPreTraining(PerceiverVLForRetrieval):
    """Retrieval, and masked words: the model that the pre-training objectives train (paper 4.1)."""

    _keys_to_ignore_on_load_unexpected = []

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.mlm_queries = MaskedWordQueries(config)
        self.mlm_head = MaskedWordHead(config)
        # Not of the class: the parent's post_init would tie a head that is not there yet
        self._tied_weights_keys = {"mlm_head.projection.weight": "perceiver_vl.embeddings.text.word_embeddings.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The MLM head's projection to the vocabulary."""
        return self.mlm_head.projection

    def decode_masked_words(self, latents: Tensor, is_masked: Tensor) -> Tensor:
        """`latents (B,N,D)`, `is_masked (B,L)` bool → what the decoder says of every text position `(B,L,D)`."""
        return self.decoder(self.mlm_queries(is_masked), latents)

    def forward(  # type: ignore[override]  # another output, and the labels that go with it
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        vtm_labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        return_dict: bool | None = None,
    ) -> PerceiverVLForPreTrainingOutput:
        """Both questions in one decoder call: `mlm_labels (B,L)` with -100 where nothing is predicted, `vtm_labels
        (B,)`.

        Without `mlm_labels` the masked positions are those that hold the mask token. The two losses are summed with
        weight 1 (paper 4.1). With unmasked text for matching and masked text for words, call twice (as the objectives
        do).
        """
        is_masked = input_ids == self.config.mask_token_id if mlm_labels is None else mlm_labels != -100
        latents = self.perceiver_vl(input_ids, attention_mask, pixel_values, frame_mask, budget).last_hidden_state
        queries = torch.cat([self.vtm_query(len(latents)), self.mlm_queries(is_masked)], dim=1)
        answers = self.decoder(queries, latents)  # (B,1+L,D)
        vtm_logits, mlm_logits = self.vtm_head(answers[:, 0]), self.mlm_head(answers[:, 1:])
        losses = []
        if vtm_labels is not None:
            losses.append(matching_loss(vtm_logits, vtm_labels))
        if mlm_labels is not None:
            losses.append(masked_word_loss(mlm_logits, mlm_labels))
        loss = torch.stack(losses).sum() if losses else None
        return PerceiverVLForPreTrainingOutput(loss=loss, vtm_logits=vtm_logits, mlm_logits=mlm_logits)


def matching_loss(vtm_logits: Tensor, vtm_labels: Tensor) -> Tensor:
    """Binary cross-entropy of matching logits `(B,)` with labels `(B,)` in {0, 1}."""
    return F.binary_cross_entropy_with_logits(vtm_logits, vtm_labels.to(vtm_logits.dtype))


def masked_word_loss(mlm_logits: Tensor, mlm_labels: Tensor) -> Tensor:
    """Mean cross-entropy over the positions whose label is not -100; 0 if there is none. `(…,V)`, `(…)`."""
    total = F.cross_entropy(mlm_logits.flatten(0, -2), mlm_labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (mlm_labels != -100).sum().clamp(min=1)
