"""Weights of the reference's Perceiver-like model (IBM/gcog) → ours."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from perceiver_vl.models.gcog.configuration import GCOGConfig
from perceiver_vl.models.gcog.modeling import GCOGForClassification
from perceiver_vl.models.renaming import load, renamed, split_projections

_RULES = [
    (r"(rule|stim)_transformer\.w_embed\.(.*)", r"gcog.model.<\1>.embedding.\2"),
    (r"(rule|stim)_transformer\.pe\.pe", r"gcog.model.<\1>.positions"),
    (r"(rule|stim)_transformer\.selfattention\.(.*)", r"gcog.model.<\1>.attention.\2"),
    (r"(rule|stim)_transformer\.layernorm0\.(.*)", r"gcog.model.<\1>.norm1.\2"),
    (r"(rule|stim)_transformer\.layernorm1\.(.*)", r"gcog.model.<\1>.norm2.\2"),
    (r"(rule|stim)_transformer\.(mlp\..*)", r"gcog.model.<\1>.\2"),
    (r"(rule|stim)_crossattention\.(.*)", r"gcog.model.read_<\1>.attention.\2"),
    (r"layernorm_(rule|stim)crossattn\.(.*)", r"gcog.model.read_<\1>.norm.\2"),
    (r"(rule|stim)_ffn\.(.*)", r"gcog.model.read_<\1>.mlp.\2"),
    (r"latent_selfattention\.(.*)", r"gcog.model.attention.\1"),
    (r"layernorm_latent\.(.*)", r"gcog.model.norm.\1"),
    (r"latent_ffn\.(.*)", r"gcog.model.mlp.\1"),
    (r"w_out\.0\.(.*)", r"classifier.\1"),
]
_SIDES = {"<rule>": "instruction", "<stim>": "stimulus"}


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of the Perceiver-like model."""
    return {"latent_ffn.0.weight", "rule_transformer.pe.pe", "stim_transformer.pe.pe"} <= set(names)


def converted(state: Mapping[str, Tensor], **fields: Any) -> GCOGForClassification:
    """The model of `state`. `fields` of the configuration: `num_attention_heads`, `num_latents`, which no shape tells,
    are the reference's where they are not given.

    Raises `UsageError` for a weight that does not fit.
    """
    told = {
        "instruction_size": state["rule_transformer.w_embed.weight"].shape[1],
        "stimulus_size": state["stim_transformer.w_embed.weight"].shape[1],
        "max_instruction_length": state["rule_transformer.pe.pe"].shape[1],
        "stimulus_length": state["stim_transformer.pe.pe"].shape[1],
        "hidden_size": len(state["latent_ffn.0.weight"]),
        "num_labels": len(state["w_out.0.weight"]),
    }
    config = GCOGConfig(**{"architecture": "perceiver", **told, **fields})
    flat = {name: value[0] if name.endswith(".pe") else value for name, value in state.items()}
    ours = {}
    for name, value in split_projections(renamed(flat, _RULES)).items():
        for side, word in _SIDES.items():
            name = name.replace(side, word)
        ours[name] = value
    return load(GCOGForClassification(config), ours)
