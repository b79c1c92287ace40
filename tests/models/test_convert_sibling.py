"""Checkpoints of siblings, told by their weights' names: of any size, whole or in parts, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import PARITY_DIR, each_of
from safetensors.torch import load_file
from transformers import AutoModel

from perceiver_vl.models.convert_sibling import convert_sibling, sibling_of
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from sibling_checkpoints import dynamic_perceiver_state, monoxiver_state, s2t_perceiver_state

MADE: dict[str, Any] = {
    "monoxiver": monoxiver_state,
    "s2t_perceiver": s2t_perceiver_state,
    "dynamic_perceiver": dynamic_perceiver_state,
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "monoxiver": {"num_self_attentions": 0, "num_class_layers": 2, "share_decoder_mlp": False},
    "s2t_perceiver": {"kernel_sizes": [], "num_hidden_layers": 1},
    "dynamic_perceiver": {
        "depthwise_convolutions": False,
        "write_features": False,
        "last_write": False,
        "transfer_knowledge": False,
        "se_ratio": 0.5,
    },
}
UNTOLD = ("num_attention_heads", "share_decoder_mlp", "se_ratio")
BEFORE = {"monoxiver": "roi_head.", "s2t_perceiver": "encoder.", "dynamic_perceiver": ""}
NEEDED = {
    "monoxiver": "img_embed.0.weight",
    "s2t_perceiver": "init_latent",
    "dynamic_perceiver": "cnn_body.block2.block2-0.f.b.0.weight",
}
WEIGHTS = [
    path
    for name in ("perceiver", "perceiver_io", "perceiver_ar", "perceiver_tf", "uni_perceiver", "gcog_model")
    for path in sorted(PARITY_DIR.glob(f"{name}/weights*.safetensors"))
]
HEADS: dict[str, dict[str, Any]] = {
    "perceiver_ar": {"num_attention_heads": 2, "num_latents": 4, "max_position_embeddings": 64},
    "uni_perceiver": {"num_attention_heads": 2},
    "perceiver_tf": {"num_attention_heads": 2, "num_cross_attention_heads": 2},
    "perceiver": {"num_attention_heads": 2, "num_cross_attention_heads": 1},
}
OPTIONAL = re.compile(r"pos_embedding|logits/b$|output_adapter\.bias|^logit_scale_|(linear2|dense)\.gate\.")
"""Without which a checkpoint is one of a smaller model, or whose like is there twice."""
every_sibling = pytest.mark.parametrize("sibling", MADE)


@every_sibling
@pytest.mark.parametrize("otherwise", [False, True])
def test_a_checkpoint_of_any_size_converts_to_the_model_it_is_of(sibling: str, otherwise: bool, tmp_path: Path) -> None:
    model, state = MADE[sibling](**(OTHERWISE[sibling] if otherwise else {}))
    state = {f"{BEFORE[sibling]}{name}": weight for name, weight in state.items()}
    if BEFORE[sibling]:
        state["something.else"] = torch.zeros(3)  # a detector, a decoder
    given = {name: value for name in UNTOLD if (value := getattr(model.config, name, None)) is not None}
    assert sibling_of(state) == sibling
    made = convert_sibling("theirs", tmp_path / "out", state, {}, **given)
    assert made.parameters == model.num_parameters()
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@every_sibling
def test_what_is_missing_or_not_known_is_named(sibling: str, tmp_path: Path) -> None:
    model, state = MADE[sibling]()
    heads = {"num_attention_heads": model.config.num_attention_heads}
    with pytest.raises(UsageError, match="num_attention_heads: no shape of these weights tells it"):
        convert_sibling("theirs", tmp_path / "out", state, {})
    with pytest.raises(UsageError, match=f"weight {NEEDED[sibling]}: missing"):
        convert_sibling(
            "theirs", tmp_path / "out", {n: w for n, w in state.items() if n != NEEDED[sibling]}, {}, **heads
        )
    with pytest.raises(UsageError, match="weight more: not known here"):
        convert_sibling("theirs", tmp_path / "out", state | {"more": torch.zeros(1)}, {}, **heads)
    with pytest.raises(UsageError, match=r"weights of no Perceiver IO, Perceiver, .* or .* that is known here"):
        convert_sibling("theirs", tmp_path / "out", {"more": torch.zeros(1)}, {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", each_of(WEIGHTS, PARITY_DIR))
def test_a_checkpoint_that_lacks_anything_is_refused_in_a_line(path: Path, tmp_path: Path) -> None:
    state = load_file(path)
    config = json.loads((path.parent / "manifest.json").read_text())["weights"][path.name]["config"]
    theirs = config.get("config", {}) if path.parent.name == "perceiver_io" else {}
    said, accepted = [], []
    for number, dropped in enumerate(sorted(state)):
        rest = {name: weight for name, weight in state.items() if name != dropped}
        if sibling_of(rest) is None:
            continue
        try:
            convert_sibling("theirs", tmp_path / str(number), rest, theirs, **HEADS.get(path.parent.name, {}))
        except PerceiverVLError as error:
            said.append(str(error))
        else:
            accepted.append(dropped)
    assert all(OPTIONAL.search(name) for name in accepted), accepted
    assert said
    assert not any("\n" in one for one in said)
    with pytest.raises(PerceiverVLError, match=r"^theirs: [^\n]+$"):  # the first weight of each kind alone
        convert_sibling("theirs", tmp_path / "out", dict(list(state.items())[:3]), theirs)
