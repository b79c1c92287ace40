"""A causal language model of transformers as part of a model: frozen, shown vectors in the place of words.

Shapes: B batch, S soft tokens, L tokens in all, K layers, W width of the language model.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from perceiver_vl.models.hub import hub_hint, hub_options
from perceiver_vl.models.perceiver_vl.encoders import PretrainedPart
from perceiver_vl.models.perceiver_vl.tokenizer import read_tokenizer
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import UsageError, first_line

_CANNOT = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class LanguageModel(PretrainedPart):
    """Says which word comes next; the attribute `model` is that of transformers, of any kind."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.model: Any = AutoModelForCausalLM.from_config(config)
        self.requires_grad_(False)

    @property
    def words(self) -> nn.Embedding:
        """The table that words come in by."""
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Which of its weights are others of it, as transformers asks the children of a model when it loads one."""
        return {f"model.{one}": f"model.{other}" for one, other in self.model.all_tied_weights_keys.items()}

    def blocks(self) -> list[nn.Module]:
        """Its layers, the first first: the list of modules that is as long as its configuration says."""
        number = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return list(next((one for one in lists if len(one) == number), []))

    def logits(self, embeddings: Tensor, mask: Tensor | None, last: int) -> Tensor:
        """`embeddings (B,L,W)`, `mask (B,L)` → logits of the word after each of the `last` ones `(B,last,·)`."""
        few = {"logits_to_keep": last} if "logits_to_keep" in signature(self.model.forward).parameters else {}
        output = self.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, **few)
        found: Tensor = output.logits[:, -last:]
        return found

    @contextmanager
    def injecting(self, vectors: Tensor | None, layers: Sequence[int], mask: Tensor) -> Iterator[None]:
        """While this lasts the layers `layers` (K of them) find `vectors (B,K,S,W)` at the first S real places of their
        inputs (eP-ALM, Shukor et al. 2023); `mask (B,L)` tells which are real. None: nothing is done.

        What is behind these places, as with the cache of a longer text, stays as it is; of more rows than B each B-th
        part is of the next row, as `generate` has them for beams.
        """
        with ExitStack() as hooks:
            if vectors is not None:
                blocks, first = self.blocks(), mask.long().argmax(1)
                columns = first[:, None] + torch.arange(vectors.shape[2], device=first.device)
                for own, layer in zip(vectors.unbind(1), layers, strict=True):
                    hook = _Injection(own, columns, mask.shape[1])
                    hooks.callback(blocks[layer].register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield


class _Injection:
    """Puts `vectors (B,S,W)` at `columns (B,S)` of what a layer is given, where that is the whole of L tokens."""

    def __init__(self, vectors: Tensor, columns: Tensor, length: int) -> None:
        self.vectors, self.columns, self.length = vectors, columns, length

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = args[0] if args else named["hidden_states"]
        if hidden.shape[1] < self.length:  # of later words, the others are in the cache
            return None
        times = len(hidden) // len(self.vectors)
        where = self.columns.repeat_interleave(times, 0)[..., None].expand(-1, -1, hidden.shape[2])
        hidden = hidden.scatter(1, where, self.vectors.repeat_interleave(times, 0).to(hidden))
        return ((hidden, *args[1:]), named) if args else (args, named | {"hidden_states": hidden})


def language_fields(source: str, longest: int) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a language model, a folder or hub name, cut to texts of `longest` tokens, and the fields of the
    configuration of a Perceiver-VL that it is to say the words of.

    Raises `UsageError` for what cannot be loaded, or does not fit.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_options(source))
    except _CANNOT as error:
        raise UsageError(
            f"language model {source}: cannot be loaded ({first_line(error)}), {hub_hint(source)}"
        ) from error
    words = getattr(config, "vocab_size", None)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not isinstance(words, int):
        raise UsageError(f"language model {source}: model_type={config.model_type!r} says no words, name a causal one")
    tokenizer = read_tokenizer(source)
    if len(tokenizer) > words:
        raise UsageError(
            f"language model {source}: its tokenizer has {len(tokenizer)} words, the model {words}; save the tokenizer "
            "that it was trained with"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    tokenizer.model_max_length = longest
    return tokenizer, {
        "language_config": config,
        "vocab_size": words,
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": 0,  # nothing is masked
        "text_config": None,
        "base": "none",
        "base_of_vision": True,
        "base_anchors": 0,
        "base_queries": 0,
        "encoder_projections": False,
        "tie_word_embeddings": False,
        "answers_as_text": False,
        "label_token_ids": [],
        "knows_search": False,
    }


def load_language_model(source: str) -> PreTrainedModel:
    """A causal language model, a folder or hub name, in evaluation mode, float32, frozen.

    Raises `UsageError` where it cannot be loaded, has not all its weights, or is none: a word knows those after it.
    """
    try:
        with quiet():
            model, loading = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **hub_options(source),
            )
    except _CANNOT as error:
        raise UsageError(
            f"language model {source}: cannot be loaded ({first_line(error)}), {hub_hint(source)}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"language model {source}: without {len(missing)} of its weights ({missing[0]}, …), save all of them"
        )
    model.eval().requires_grad_(False)
    try:
        is_causal = _is_causal(model)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"language model {source}: takes no vectors for words ({first_line(error)}), name another"
        ) from error
    if not is_causal:
        raise UsageError(
            f"language model {source}: model_type={model.config.model_type!r}, what it says of a word depends on those "
            "after it; name a causal one, such as GPT-2"
        )
    found: PreTrainedModel = model
    return found


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Whether another last word leaves what is said of those before it."""
    words = torch.arange(4)[None] % model.config.vocab_size
    other = words.clone()
    other[:, -1] += 1
    one, two = (model(inputs_embeds=model.get_input_embeddings()(ids)).logits[:, :-1] for ids in (words, other))
    return torch.allclose(one, two, atol=1e-4 * float(one.abs().max()))
