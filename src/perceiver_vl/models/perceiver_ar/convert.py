"""Weights of the three public implementations of Perceiver AR → ours, by the names of their tensors.

krasserm: `CausalSequenceModel` of krasserm/perceiver-io; lucidrains: `PerceiverAR` of lucidrains/perceiver-ar-pytorch;
authors: google-research/perceiver-ar, whose names are Haiku's, `module/parameter`.
"""

import re
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig
from perceiver_vl.models.perceiver_ar.modeling import PerceiverARForCausalLM
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

_PYTORCH: dict[str, Any] = {
    "hidden_act": "gelu",
    "use_bias": False,
    "query_projection": False,
    "own_norm": "queries",
    "rotary_inclusive": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "authors": {"positions_from_end": True},
    "krasserm": {**_PYTORCH, "tie_word_embeddings": True, "rotary_layers": 1},
    "lucidrains": {**_PYTORCH, "final_norm": False, "output_bias": False, "rotary_interleaved": False},
}
"""What the three compute that the defaults of `PerceiverARConfig` do not say."""

_WORDS = {
    "authors": "perceiver_ar/~/embed/embeddings",
    "krasserm": "input_adapter.txt_embedding.weight",
    "lucidrains": "token_emb.weight",
}
# Names of theirs (a pattern, and what it becomes), in the order of the modules
_NAMES: dict[str, list[tuple[str, str]]] = {
    "krasserm": [
        (r"input_adapter\.txt_embedding", "model.word_embeddings"),
        (r"input_adapter\.pos_embedding", "model.position_embeddings.0"),
        (r"cross_attention\.0\.module\.q_norm", "model.latents.cross_attentions.0.norm1"),
        (r"cross_attention\.0\.module\.kv_norm", "model.latents.cross_attentions.0.input_norm"),
        (r"cross_attention\.0\.module\.attention\.", "model.latents.cross_attentions.0.attention."),
        (r"cross_attention\.1\.module\.", "model.latents.cross_attentions.0.mlp."),
        (r"self_attention\.(\d+)\.0\.module\.norm", r"model.latents.layers.\1.norm1"),
        (r"self_attention\.(\d+)\.0\.module\.attention\.", r"model.latents.layers.\1.attention."),
        (r"self_attention\.(\d+)\.1\.module\.", r"model.latents.layers.\1.mlp."),
        (r"out_norm", "model.latents.norm"),
        (r"output_adapter", "lm_head"),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.0\.", ".norm2."),
        (r"\.mlp\.1\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ],
    "lucidrains": [
        (r"^token_emb", "model.word_embeddings"),
        (r"^pos_emb", "model.position_embeddings.0"),
        (r"^to_logits", "lm_head"),
        (r"^perceive_layers\.(\d+)\.0\.to_out", r"model.latents.cross_attentions.\1.attention.out_proj"),
        (r"^perceive_layers\.(\d+)\.0\.to_", r"model.latents.cross_attentions.\1.attention."),
        (r"^perceive_layers\.(\d+)\.0\.norm", r"model.latents.cross_attentions.\1.norm1"),
        (r"^perceive_layers\.(\d+)\.0\.context_norm", r"model.latents.cross_attentions.\1.input_norm"),
        (r"^perceive_layers\.(\d+)\.1\.", r"model.latents.cross_attentions.\1.mlp."),
        (r"^layers\.(\d+)\.0\.to_out", r"model.latents.layers.\1.attention.out_proj"),
        (r"^layers\.(\d+)\.0\.to_", r"model.latents.layers.\1.attention."),
        (r"^layers\.(\d+)\.0\.norm", r"model.latents.layers.\1.norm1"),
        (r"^layers\.(\d+)\.1\.", r"model.latents.layers.\1.mlp."),
        (r"\.mlp\.0\.", ".norm2."),
        (r"\.mlp\.1\.", ".mlp.fc1."),
        (r"\.mlp\.4\.", ".mlp.fc2."),
        (r"attention\.q\.", "attention.q_proj."),
    ],
    "authors": [
        (r"^perceiver_ar/layer_norm/", "model.latents.norm/"),
        (r"^perceiver_ar/~/embed/embeddings", "model.word_embeddings.weight"),
        (r"^perceiver_ar/~/embed_(\d+)/embeddings", r"model.position_embeddings.<\1>.weight"),
        (r"^perceiver_ar/~/linear/", "model.latents.query_projection/"),
        (r"^perceiver_ar/~/logits/", "lm_head/"),
        (r"^perceiver_ar/~/cross_attention/", "model.latents.cross_attentions.0."),
        (r"^perceiver_ar/~/cross_attention_(\d+)/", r"model.latents.cross_attentions.\1."),
        (r"^perceiver_ar/~/self_attention/", "model.latents.layers.0."),
        (r"^perceiver_ar/~/self_attention_(\d+)/", r"model.latents.layers.\1."),
        (r"attention/linear/", "attention.q_proj/"),
        (r"attention/linear_1/", "attention.k_proj/"),
        (r"attention/linear_2/", "attention.v_proj/"),
        (r"attention/linear_3/", "attention.out_proj/"),
        (r"dense/linear/", "mlp.fc1/"),
        (r"dense/linear_1/", "mlp.fc2/"),
        (r"(cross_attentions\.\d+\.)layer_norm/", r"\1norm1/"),
        (r"(cross_attentions\.\d+\.)layer_norm_1/", r"\1input_norm/"),
        (r"(cross_attentions\.\d+\.)layer_norm_2/", r"\1norm2/"),
        (r"(layers\.\d+\.)layer_norm/", r"\1norm1/"),
        (r"(layers\.\d+\.)layer_norm_1/", r"\1norm2/"),
        (r"/(w|scale)$", ".weight"),
        (r"/(b|offset)$", ".bias"),
    ],
}


def variant_of(state: dict[str, Tensor]) -> str | None:
    """Which of `VARIANTS` a checkpoint is of; None: of none."""
    has_reads = any("perceive_layers." in name for name in state)  # token_emb is in other models of lucidrains', too
    for variant, words in _WORDS.items():
        if any(name.endswith(words) for name in state) and (variant != "lucidrains" or has_reads):
            return variant
    return None


def convert_weights(state: dict[str, Tensor], **config: Any) -> PerceiverARForCausalLM:
    """A model of the tensors of a public implementation. `config`: fields of `PerceiverARConfig` that shapes cannot
    tell, such as `num_attention_heads` of the authors' (16 by default), `num_latents`, `rotary_layers` of krasserm's.

    Raises `UsageError` for values that do not fit, `PerceiverVLError` for a checkpoint of no known implementation, or
    with tensors that have no place.
    """
    variant = variant_of(state)
    if variant is None:
        raise PerceiverVLError("no Perceiver AR: need a checkpoint of the authors, of krasserm's or lucidrains' code")
    words = _WORDS[variant]
    before = next(name for name in state if name.endswith(words)).removesuffix(words)  # of a wrapper, such as "model."
    state = {name.removeprefix(before): value for name, value in state.items() if name.startswith(before)}
    model = PerceiverARForCausalLM(
        PerceiverARConfig(**{**VARIANTS[variant], **_shapes(variant, state, config), **config})
    )
    converted = renamed(variant, state)
    wanted = model.state_dict()
    if model.config.tie_word_embeddings:
        converted["lm_head.weight"] = converted["model.word_embeddings.weight"]
    wrong = [name for name in wanted if name not in converted or converted[name].shape != wanted[name].shape]
    wrong += [name for name in converted if name not in wanted]
    if wrong:
        raise PerceiverVLError(f"{wrong[0]}: not as a Perceiver AR of {variant} has it, give what shapes cannot tell")
    model.load_state_dict(converted)
    return model.eval()


def renamed(variant: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names and in our shapes: weights, or gradients of weights."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = name
        for pattern, replacement in _NAMES[variant]:
            ours = re.sub(pattern, replacement, ours)
        ours = re.sub(r"<(\d+)>", lambda found: str(int(found[1]) - 1), ours)  # Haiku counts the word table, too
        if (
            variant == "authors"
            and value.ndim == 2
            and not ours.endswith("embeddings.weight")
            and "position" not in ours
        ):
            value = value.T  # inputs × outputs
        for fused in ("kv", "qkv"):
            if ours.endswith(f"attention.{fused}.weight"):
                stem = ours.removesuffix(f"{fused}.weight")
                parts = value.chunk(len(fused))
                converted |= {f"{stem}{part}_proj.weight": each for part, each in zip(fused, parts, strict=True)}
                break
        else:
            if not ours.endswith("inv_freq"):
                converted[ours] = value
    return {name: value.contiguous() for name, value in converted.items()}


def _shapes(variant: str, state: dict[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """What the tensors themselves say of the configuration, beside what is `given`."""
    names = renamed(variant, state)
    words, core = names["model.word_embeddings.weight"], "model.latents."

    def rows(name: str) -> int:
        return len(names[core + name])

    def number(kind: str) -> int:
        found = {int(name.removeprefix(core + kind).split(".")[0]) for name in names if name.startswith(core + kind)}
        return len(found)

    tables = [name for name in sorted(names) if name.startswith("model.position_embeddings.")]
    if variant == "lucidrains" and not tables:
        raise UsageError("weight pos_emb.weight: missing, give a whole checkpoint")
    cross_attentions = number("cross_attentions.")
    found: dict[str, Any] = {
        "vocab_size": len(words),
        "embedding_size": words.shape[1],
        "hidden_size": rows("cross_attentions.0.norm1.weight"),
        "num_hidden_layers": number("layers."),
        "position_tables": [len(names[name]) for name in tables],
        "attention_size": rows("layers.0.attention.q_proj.weight"),
        "cross_attention_size": rows("cross_attentions.0.attention.q_proj.weight"),
        "intermediate_size": rows("layers.0.mlp.fc1.weight"),
        "cross_intermediate_size": rows("cross_attentions.0.mlp.fc1.weight"),
        "output_bias": "lm_head.bias" in names,
        "final_norm": core + "norm.weight" in names,
        "cross_attention_layers": [0] * cross_attentions if variant == "lucidrains" else list(range(cross_attentions)),
    }
    if len(tables) == 1:
        most = len(names[tables[0]])
        found |= {"max_position_embeddings": most, "num_latents": min(most, PerceiverARConfig.num_latents)}
    frequencies = next((value for name, value in state.items() if name.endswith("inv_freq")), torch.empty(0))
    rotated, width = 2 * len(frequencies), found["attention_size"]
    if variant == "krasserm":  # of as many channels as a head has, or half as many beside a table, and one if odd
        whole = 2 if tables else 1
        likely = next((n for n in (rotated, rotated - 1) if n > 0 and width % (whole * n) == 0), rotated)
        heads = given.get("num_attention_heads", max(1, width // (whole * likely)))
        channels = width // heads
        found |= {"num_attention_heads": heads, "rotary_share": rotated / channels}
        found |= {"rotary_base": 10_000.0 ** (rotated / (channels // whole))}
    elif variant == "lucidrains":  # half of a head's, and 32 at least; heads are 64 wide where not said otherwise
        heads = given.get("num_attention_heads", max(1, width // (64 if rotated == 32 else 2 * rotated)))
        found |= {"num_attention_heads": heads, "rotary_share": rotated * heads / width}
    else:  # the longest wavelength is that of the context
        found |= {"rotary_base": float(given.get("max_position_embeddings", 8192))}
        found |= {"rotary_share": 0.0} if tables else {}
    return found
