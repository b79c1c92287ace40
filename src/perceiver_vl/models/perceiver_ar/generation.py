"""How transformers' `generate` drives a Perceiver AR: greedy, by sampling or by beams, with a cache that is exact."""

from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig
from perceiver_vl.models.perceiver_ar.inputs import PerceiverARCache
from perceiver_vl.utils.errors import UsageError


class PerceiverARGeneration(GenerationMixin):
    """`generate`, whose every step gives what a forward pass over the whole sequence gives. `prefix_length` (of
    `PerceiverARModel.forward`) may be an argument; `position_ids` are those of the sequence that is to be made, too.
    """

    config: PerceiverARConfig

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: PerceiverARCache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prefix_length: int = 0,
        use_cache: bool | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The new tokens alone where there is a cache. Raises `UsageError` for the cache of another sequence."""
        return {
            "input_ids": input_ids if past_key_values is None else past_key_values.new_tokens(input_ids),
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "prefix_length": prefix_length,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        places = model_kwargs.pop("position_ids", None)  # of all tokens to come, too: transformers would add to them
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return updated if places is None else {**updated, "position_ids": places}

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *args: Any) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, *args)
        if generation_config.max_length > (most := self.config.max_position_embeddings):
            room = most - input_ids_length
            remedy = f"set max_new_tokens={room} or fewer" if room > 0 else "give a shorter prompt"
            raise UsageError(
                f"max_length={generation_config.max_length}: this model has {most} positions, of which the prompt "
                f"takes {input_ids_length}; {remedy}"
            )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own
