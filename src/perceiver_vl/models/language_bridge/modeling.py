"""A bridge from a Perceiver-VL to a frozen language model: its latents, through one linear layer, are soft tokens
before the words, or what some layers of the language model find in the place of such tokens.

Source: eP-ALM (Shukor et al. 2023): one linear projection, vectors at late layers, a trainable soft token, all else
frozen; soft tokens before the words: Frozen (Tsimpoukelis et al. 2021). Shapes: B texts, V clips (B/V texts about each,
next to each other), T frames, N latents, D width, K blocks that are shown, n soft tokens a block, S soft tokens before
the words, L text tokens, W width of the language model, Y its words.
"""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from perceiver_vl.layers.causal import Inputs
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.language_bridge.language_model import LanguageModel
from perceiver_vl.models.perceiver_ar.inputs import padding_first
from perceiver_vl.models.perceiver_vl.captioning import (
    NOTHING_TO_SEE,
    CaptioningModel,
    PerceiverVLForCaptioningOutput,
    caption_loss,
    check_room,
    texts_of_each,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.modeling import PerceiverVLModel
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.errors import UsageError


class LanguageBridgeForConditionalGeneration(CaptioningModel):
    """A `CaptioningModel` whose words are those of a causal language model of transformers (`language_config`).

    The language model is frozen, and stays as it is used, without dropout; so does the Perceiver-VL where none of its
    weights learns (`model.perceiver_vl.requires_grad_(False)`). What is left to learn is `bridge`, and with
    `bridge_layers` the `soft_tokens`.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"^(decoder|vtm_|mlm_|answer_|contrastive|base_matching|base_answers|caption_)",
        r"^perceiver_vl\.(embeddings\.text|text_encoder|base|vision_encoder\.projection)\.",
    ]

    def __init__(self, config: PerceiverVLConfig) -> None:
        if config.language_config is None:
            raise UsageError("language_config=None: a bridge leads to a language model, give its configuration")
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        self.language_model = LanguageModel(config.language_config)
        of_words, of_layers = self.language_model.words.embedding_dim, config.language_config.hidden_size
        self.bridge = nn.Linear(config.hidden_size, of_layers if config.bridge_layers else of_words)
        self.soft_tokens = nn.Parameter(torch.zeros(config.soft_tokens, of_words)) if config.bridge_layers else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As of every model; soft tokens: N(0, initializer_range)."""
        super()._init_weights(module)
        if module is self and self.soft_tokens is not None:
            init.normal_(self.soft_tokens, std=self.config.initializer_range)

    def train(self, mode: bool = True) -> "LanguageBridgeForConditionalGeneration":
        """As of `nn.Module`, but a Perceiver-VL that is frozen stays as it is used: nothing is dropped."""
        super().train(mode)
        learns = any(weight.requires_grad for weight in self.perceiver_vl.parameters())
        self.perceiver_vl.train(mode and learns)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The word table of the language model."""
        return self.language_model.words

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Raises `UsageError`: the words are those of the language model."""
        raise UsageError("resize_token_embeddings: the words are the language model's, resize it before it is bridged")

    def encode_prefix(
        self,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
    ) -> Inputs:
        """As of `CaptioningModel`: `embeddings (V,K·n,W)`, the vectors of one block after the other. Raises
        `UsageError` for a budget without one of these blocks, too.
        """
        budget, config = budget or FULL_BUDGET, self.config
        if pixel_values is None and vision_cache is None:
            raise UsageError(NOTHING_TO_SEE)
        array = self.perceiver_vl.embed_inputs(None, None, pixel_values, frame_mask, budget, vision_cache)
        states = list(self.perceiver_vl.encode_in_turn(array, budget))
        for block in config.bridge_blocks:
            if not -len(states) <= block < len(states):
                raise UsageError(f"budget blocks={len(states)}: the language model is shown bridge_blocks={block}, too")
        vectors = torch.cat([_averaged(states[block], config.bridge_tokens) for block in config.bridge_blocks], 1)
        found = self.bridge(vectors).to(self.language_model.words.weight.dtype)
        mask = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        return Inputs(found, mask, torch.zeros_like(mask, dtype=torch.long))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        prefix: Inputs | None = None,
        **_: Any,
    ) -> PerceiverVLForCaptioningOutput:
        """Texts `input_ids (B,L)` and clips `pixel_values (V,T,3,H,W)` → `logits (B,L,Y)` of the word after each, on
        whichever side `attention_mask (B,L)` has padding.

        `labels (B,L)`, `vision_cache`, `prefix` and what is raised as of `PerceiverVLForCaptioning.forward`.
        """
        length, most = input_ids.shape[1], self.config.max_text_length
        if length > most:
            raise UsageError(f"text of {length} tokens: longer than max_text_length={most}, truncate it")
        prefix = prefix or self.encode_prefix(pixel_values, frame_mask, budget, vision_cache)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        order = padding_first(1 - mask)  # behind the words, where no word sees it, whatever the language model
        soft, vectors = self._shown(prefix, len(input_ids))
        embeddings = torch.cat([soft, self.language_model.words(input_ids.gather(1, order))], 1)
        mask = F.pad(mask.gather(1, order), (soft.shape[1], 0), value=1)
        with self.language_model.injecting(vectors, self.config.bridge_layers, mask):
            logits = self.language_model.logits(embeddings, mask, length)
        loss = None
        if labels is not None:
            labels = labels.gather(1, order)
            said = logits[:, :-1][labels[:, 1:] != -100]
            loss = caption_loss(said, labels)
            if self.training:
                return PerceiverVLForCaptioningOutput(loss=loss, logits=said)
        logits = logits.gather(1, order.argsort(1)[..., None].expand_as(logits))
        return PerceiverVLForCaptioningOutput(loss=loss, logits=logits)

    def _continue(self, input_ids: Tensor, attention_mask: Tensor, prefix: Inputs, **how: Any) -> Any:
        """By the `generate` of the language model, with its own cache."""
        most, length = self.config.max_text_length, input_ids.shape[1]
        if "max_length" in how:
            how["max_new_tokens"] = how.pop("max_length") - length
        if (settings := how.get("generation_config")) is not None and "max_new_tokens" not in how:
            longest = settings.max_new_tokens
            if longest is None and settings.max_length is not None:
                longest = settings.max_length - length
            how["max_new_tokens"] = most - length if longest is None else longest
        check_room(how.get("max_new_tokens", 1), length, most)
        if settings is None:
            settings = deepcopy(self.generation_config)
            how = {"generation_config": settings, **settings.update(**how)}
        soft, vectors = self._shown(prefix, len(input_ids))
        embeddings = torch.cat([soft, self.language_model.words(input_ids)], 1)
        mask = F.pad(attention_mask.long(), (soft.shape[1], 0), value=1)
        order = padding_first(mask)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        mask = mask.gather(1, order)
        with self.language_model.injecting(vectors, self.config.bridge_layers, mask):
            found = self.language_model.model.generate(inputs_embeds=embeddings, attention_mask=mask, **how)
        new_words = found if isinstance(found, Tensor) else found.sequences
        words = torch.cat([input_ids.repeat_interleave(len(new_words) // len(input_ids), 0), new_words], 1)
        if isinstance(found, Tensor):
            return words
        found.sequences = words
        return found

    def _shown(self, prefix: Inputs, texts: int) -> tuple[Tensor, Tensor | None]:
        """What of a prefix B texts begin with, `(B,S,W)`, and the vectors for the layers, `(B,K,n,W)`, if any."""
        times = texts_of_each(texts, len(prefix.mask))
        vectors = prefix.embeddings.repeat_interleave(times, 0)
        if self.soft_tokens is None:
            return vectors, None
        vectors = vectors.unflatten(1, (len(self.config.bridge_layers), -1))
        return self.soft_tokens[: vectors.shape[2]].expand(texts, -1, -1).to(vectors), vectors


def _averaged(latents: Tensor, number: int | None) -> Tensor:
    """`(V,N,D)` → means of `number` groups of neighbours `(V,n,D)`; None: as they are."""
    return latents if number is None else F.adaptive_avg_pool1d(latents.transpose(1, 2), number).transpose(1, 2)
