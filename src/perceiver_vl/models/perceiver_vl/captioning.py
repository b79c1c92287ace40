"""Captions and free answers: Perceiver AR's causal latents are the words, and a clip is the prefix that they attend to.

Source: Perceiver AR (Hawthorne et al. 2022), 3; the prefix is Perceiver-VL's (paper 3.2) latents of the clip, or the
vision part of its input array. Shapes: B texts, V clips (B/V texts about each, next to each other), T frames, P prefix,
L text tokens, D width, W words.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.causal import CausalLatents, Inputs
from perceiver_vl.layers.perceiver import EncoderRecord
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_ar.inputs import PerceiverARCache, check_cache, check_mask, padding_first
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import block_arguments
from perceiver_vl.models.perceiver_vl.heads import CaptionWords
from perceiver_vl.models.perceiver_vl.modeling import (
    AskedOutputs,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
    states_of,
)
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.errors import UsageError

OF_LATENTS = ("latents", "text_latents", "cross_attentions", "blocks")
"""Dials of a budget that turn what the encoder does."""
NOTHING_TO_SEE = "nothing to see: give pixel_values, a vision_cache or a prefix"


@dataclass
class PerceiverVLForCaptioningOutput(ModelOutput):
    """`loss ()` when labels are given; `logits (B,L,W)` of the word after each; `past_key_values` where a cache is
    kept; the rest, of the encoder, if asked for (`AskedOutputs`).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: PerceiverARCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CaptionCache(PerceiverARCache):
    """Of texts and their clips: keys and values of a clip are there once, however many texts or beams are about it."""

    is_compileable: ClassVar[bool] = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many text tokens it holds."""
        return 0 if self.own is None else len(self.own)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows `beam_idx (B,)` int64; beams stay with their clip."""
        prefix, self.prefix = self.prefix, []
        super().reorder_cache(beam_idx)
        self.prefix = prefix


class CaptioningModel(PerceiverVLPreTrainedModel, GenerationMixin, ABC):
    """What says in words what is in a clip, or answers a question about it: the question is how the text begins.

        model.generate(pixel_values=clip, num_beams=3)

    `generate` is that of transformers (greedy, sampling, beams). A clip is encoded once for all texts about it.
    """

    @abstractmethod
    def encode_prefix(
        self,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
    ) -> Inputs:
        """What texts attend to of V clips `pixel_values (V,T,3,H,W)`, `frame_mask (V,T)`, to be handed to `forward` and
        `generate` as `prefix`.

        Raises `UsageError` where there is nothing to see.
        """

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        prefix: Inputs | None = None,
        **how: Any,
    ) -> Any:
        """Go on with texts `input_ids (B,L)` about clips, None: begin one about each. Arguments as of `forward`, and
        those of transformers' `generate`; without a length, up to `max_text_length`.
        """
        if prefix is None:
            prefix = self.encode_prefix(pixel_values, frame_mask, budget, vision_cache)
        if input_ids is None:
            if self.config.bos_token_id is None:
                raise UsageError("input_ids=None: this model's configuration has no bos_token_id to begin with")
            input_ids = torch.full((len(prefix.mask), 1), self.config.bos_token_id, device=prefix.mask.device)
        if not {"max_new_tokens", "max_length", "generation_config"} & how.keys():
            how["max_new_tokens"] = max(1, self.config.max_text_length - input_ids.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._continue(input_ids, mask, prefix, **how)

    def _continue(self, input_ids: Tensor, attention_mask: Tensor, prefix: Inputs, **how: Any) -> Any:
        return super().generate(input_ids, attention_mask=attention_mask, prefix=prefix, **how)

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *args: Any) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, *args)
        new = generation_config.max_length - input_ids_length
        check_room(new, input_ids_length, self.config.max_text_length)


def check_room(new: int, length: int, most: int) -> None:
    """Raise `UsageError` where `new` tokens do not fit behind `length` ones of `most`."""
    if 1 <= new <= most - length:
        return
    remedy = f"set max_new_tokens={most - length} or fewer" if length < most else "give fewer words to go on from"
    raise UsageError(
        f"max_new_tokens={new}: this model's texts have {most} tokens at most (max_text_length), of which the "
        f"beginning takes {length}; {remedy}"
    )


def check_frames_alone(budget: ComputeBudget) -> None:
    """Raise `UsageError` for a budget of what a model whose words attend to the frames has no use for."""
    for name in OF_LATENTS:
        if (value := getattr(budget, name)) is not None:
            raise UsageError(
                f"budget {name}={value}: the words attend to the frames themselves here (caption_prefix=frames), no "
                "latents are read; leave it out, frames is the dial there is"
            )


class PerceiverVLForCaptioning(CaptioningModel):
    """A `CaptioningModel` whose words are causal latents of its own."""

    _keys_to_ignore_on_load_unexpected = [r"^(decoder|vtm_|mlm_|mpm_|answer_|contrastive|base_matching|base_answers)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        self.caption_words = CaptionWords(config, self._table)
        self.caption_decoder = CausalLatents(
            num_layers=config.caption_layers,
            cross_attentions=range(config.caption_cross_attentions),
            **block_arguments(config),
        )
        self.post_init()

    @property
    def _table(self) -> nn.Embedding:
        return self.perceiver_vl.get_input_embeddings()  # type: ignore[return-value]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the words' bias goes with them, those of new ones are 0."""
        table = super().resize_token_embeddings(*args, **kwargs)
        bias = self.caption_words.bias
        self.caption_words.bias = nn.Parameter(F.pad(bias.detach(), (0, table.num_embeddings - len(bias))))
        return table

    def encode_prefix(
        self,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        record: EncoderRecord | None = None,
    ) -> Inputs:
        """As of `CaptioningModel`. Raises `UsageError` also for a `vision_cache`, and a budget of latents, where the
        prefix is the frames.
        """
        budget = budget or FULL_BUDGET
        if pixel_values is None and vision_cache is None:
            raise UsageError(NOTHING_TO_SEE)
        frames = self.config.caption_prefix == "frames"
        if frames and vision_cache is not None:
            raise UsageError("vision_cache: does not hold the frames that caption_prefix=frames is, give pixel_values")
        if frames:
            check_frames_alone(budget)
        array = self.perceiver_vl.embed_inputs(None, None, pixel_values, frame_mask, budget, vision_cache)
        tokens = array.vision if frames else self.perceiver_vl.encode(array, budget, record)
        assert tokens is not None
        mask = array.vision_mask if frames else None
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        return Inputs(tokens, mask, torch.zeros_like(mask, dtype=torch.long))

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
        past_key_values: CaptionCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLForCaptioningOutput:
        """Texts `input_ids (B,L)` and clips `pixel_values (V,T,3,H,W)` → `logits (B,L,W)` of the word after each.

        `labels (B,L)`: the words themselves, -100 where nothing is to be said; the loss is the mean over the texts, of
        each the mean over its words, so that it does not depend on what else is in the batch; in training, `logits` are
        then `(R,W)`, of the R places alone whose next word is to be said. `vision_cache`, or
        `prefix` of `encode_prefix`: in the place of `pixel_values`. `past_key_values` of an earlier call: `input_ids`
        are the words after those, `attention_mask` is that of all. Raises `UsageError` for a text longer than
        `max_text_length`, and texts that do not divide among the clips.
        """
        check_cache(past_key_values, self.caption_decoder, CaptionCache)
        record = self.record(vision_cache, **asked) if prefix is None and past_key_values is None else None
        cache, new = past_key_values, input_ids.shape[1]
        total = new + (0 if cache is None else cache.get_seq_length())
        if total > (most := self.config.max_text_length):
            raise UsageError(f"text of {total} tokens: longer than max_text_length={most}, truncate it")
        real = torch.ones(len(input_ids), total, dtype=torch.bool, device=input_ids.device)
        real = real if attention_mask is None else attention_mask.bool()
        check_mask(real, (len(input_ids), total), cache)
        places = (real.cumsum(1) - 1).clamp(min=0)[:, -new:]
        words = self.perceiver_vl.embeddings.embed_words(self.caption_words(input_ids, self._table), places)
        text = Inputs(words, real[:, -new:], places)
        if cache is None:
            prefix = prefix or self.encode_prefix(pixel_values, frame_mask, budget, vision_cache, record)
            times = texts_of_each(len(input_ids), len(prefix.mask))
            if use_cache:
                cache = CaptionCache()
                self.caption_decoder.extend(cache, prefix, len(prefix))
                cache.reorder_cache(torch.arange(len(input_ids), device=input_ids.device) // times)
        if cache is None:
            assert prefix is not None
            seen = prefix if times == 1 else prefix.rows(torch.arange(len(input_ids), device=input_ids.device) // times)
            latents = self.caption_decoder(seen.beside(text), len(seen))
        else:
            latents = self.caption_decoder.extend(cache, text, cache.prefix_length)
            cache.input_ids = input_ids if cache.input_ids is None else torch.cat([cache.input_ids, input_ids], 1)
            cache.attention_mask = real
        if labels is not None and self.training:
            # All logits would be nearly all the work with a large vocabulary, and most of them for nothing
            logits = self.caption_words.logits(latents[:, :-1][labels[:, 1:] != -100], self._table)
            loss = caption_loss(logits, labels)
        else:
            logits, loss = self.caption_words.logits(latents[:, -logits_to_keep:], self._table), None
            if labels is not None:
                said = self.caption_words.logits(latents, self._table) if logits_to_keep else logits
                loss = caption_loss(said[:, :-1][labels[:, 1:] != -100], labels)
        return PerceiverVLForCaptioningOutput(loss=loss, logits=logits, past_key_values=cache, **states_of(record))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: CaptionCache | None = None,
        attention_mask: Tensor | None = None,
        prefix: Inputs | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The new words alone where there is a cache; padding first, so that what comes next is behind the last word.
        Raises `UsageError` for the cache of another sequence.
        """
        if attention_mask is not None:
            order = padding_first(attention_mask)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        return {
            "input_ids": input_ids if past_key_values is None else past_key_values.new_tokens(input_ids),
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "prefix": prefix,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own


def caption_loss(said: Tensor, labels: Tensor) -> Tensor:
    """`labels (B,L)`, -100 where nothing is to be said, and logits `said (R,W)` of the R others behind the first place:
    cross-entropy, its mean over the words of each text, and over the texts.
    """
    following = labels[:, 1:]
    real = following != -100
    surprise = F.cross_entropy(said, following[real], reduction="none")
    share = (real / real.sum(1, keepdim=True).clamp(min=1))[real]
    return (surprise * share.to(surprise)).sum() / len(labels)


def texts_of_each(texts: int, clips: int) -> int:
    """How many of the texts are about each clip; raises `UsageError` where they do not divide."""
    if texts < clips or texts % clips:
        raise UsageError(f"{texts} texts about {clips} clips: need as many texts about each clip")
    return texts // clips
