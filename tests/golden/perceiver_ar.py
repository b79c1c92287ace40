"""The public implementations' values beside ours: `python tests/golden/perceiver_ar.py` prints the largest differences.

The values lie in `$PARITY_DIR/perceiver_ar`, by default beside the project; the README there gives their meaning. All
sizes are those of its files.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from parity import DTYPES, PARITY_DIR
from safetensors.torch import load_file
from torch import Tensor, nn

from perceiver_vl.models.perceiver_ar import PerceiverARForCausalLM
from perceiver_vl.models.perceiver_ar.convert import convert_weights, renamed

FOLDER = PARITY_DIR / "perceiver_ar"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text()) if FOLDER.is_dir() else {"cases": {}, "weights": {}}


def config_of(case: str) -> dict[str, Any]:
    """The manifest's configuration of the case's weights."""
    config: dict[str, Any] = MANIFEST["weights"][MANIFEST["cases"][case]["weights"]]["config"]
    return config


def our_config(theirs: dict[str, Any]) -> dict[str, Any]:
    """What shapes cannot tell, by our names."""
    if theirs["variant"] == "krasserm":
        return {
            "num_attention_heads": theirs["num_heads"],
            "rotary_layers": theirs["num_self_attention_rotary_layers"],
            "max_position_embeddings": theirs["max_seq_len"],
            "num_latents": theirs["max_latents"],
            "prefix_dropout": theirs["cross_attention_dropout"],
        }
    if theirs["variant"] == "lucidrains":
        most = theirs["max_seq_len"]
        latents = most - theirs["cross_attn_seq_len"]
        return {"num_attention_heads": theirs["heads"], "max_position_embeddings": most, "num_latents": latents}
    later = theirs.get("additional_cross_attend_after_layers", [])
    config = {
        "num_attention_heads": theirs["num_transformer_heads"],
        "num_cross_attention_heads": theirs["num_cross_attend_heads"],
        "max_position_embeddings": theirs["max_context_length"],
        "num_latents": theirs["z_index_dim"],
        "cross_attention_layers": [0, *(layer + 1 for layer in later)],
    }
    if theirs["position_encoding_type"] == "rotary":
        config |= {"rotary_share": theirs["fraction_to_rotate"], "rotary_base": float(theirs["max_wavelength"])}
    return config


def model_of(case: str, dtype: torch.dtype) -> PerceiverARForCausalLM:
    """Our model with the weights of a case."""
    weights = load_file(FOLDER / MANIFEST["cases"][case]["weights"])
    return convert_weights(weights, **our_config(config_of(case))).to(dtype)


def given(case: str) -> dict[str, Tensor]:
    """All tensors of a case."""
    return load_file(FOLDER / MANIFEST["cases"][case]["file"])


def differences(case: str, precision: str) -> dict[str, float]:
    """The largest absolute difference of every value of a case in one precision, gradients (`grad.…`) included."""
    golden, model, variant = given(case), model_of(case, DTYPES[precision]), config_of(case)["variant"]
    if "out.f64.steps" in golden:
        found, wanted = step_by_step(model, golden, precision)
        return {name: (found[name] - value).abs().max().item() for name, value in wanted.items()}
    run = {"krasserm": run_krasserm, "lucidrains": run_lucidrains, "authors": run_authors}[variant]
    ours = run(model, golden, config_of(case))
    names = [name for name in golden if name.startswith((f"out.{precision}.", f"mid.{precision}."))]
    result = {}
    for name in names:
        short = name.replace(f".{precision}.", ".")
        if short in ours:
            result[short] = (ours[short] - golden[name]).masked_fill(~ours.get("rows", torch.tensor(True)), 0)
    result = {name: value.abs().max().item() for name, value in result.items()}
    gradients = {name.removeprefix("grad.f64."): value for name, value in golden.items() if name.startswith("grad.")}
    if gradients and precision == "f64":
        ours["out.loss"].backward()
        parameters = dict(model.named_parameters())
        for name, value in renamed(variant, gradients).items():
            result[f"grad.{name}"] = (parameters[name].grad - value).abs().max().item()
    return result


def run_krasserm(model: PerceiverARForCausalLM, golden: dict[str, Tensor], _: dict[str, Any]) -> dict[str, Tensor]:
    """Masks as they are there: where nothing is visible all is, and latents see padding."""
    tokens, prefix, padded = golden["in.tokens"], int(golden["in.prefix_len"]), golden.get("in.pad_mask")
    padded = torch.zeros_like(tokens, dtype=torch.bool) if padded is None else padded
    scores = golden.get("in.rand")
    model.train(scores is not None)
    core = model.model.latents
    with recorded(model) as seen, krasserms_masks(padded[:, prefix:-1]):
        logits = model(tokens[:, :-1], (~padded[:, :-1]).long(), prefix_length=prefix, prefix_scores=scores).logits
    targets = tokens.masked_fill(padded, -100)[:, prefix + 1 :]
    values = {"out.logits": logits, "out.loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
    values["mid.input_adapter.txt_embedding"] = seen[model.model.word_embeddings][1]
    values["mid.out_norm"] = seen[core.norm][1]
    block = core.cross_attentions[0]
    values |= {"mid.cross_attention.0": seen[block.norm2][0][0], "mid.cross_attention": seen[block][1]}
    values |= {f"mid.self_attention.{number}": seen[layer][1] for number, layer in enumerate(core.layers)}
    return values


def run_lucidrains(
    model: PerceiverARForCausalLM, golden: dict[str, Tensor], config: dict[str, Any]
) -> dict[str, Tensor]:
    """Label 0 is ignored; positions are counted from the left, whatever is masked."""
    tokens, prefix = golden["in.tokens"], config["cross_attn_seq_len"]
    mask = torch.ones_like(tokens[:, :-1])
    if "in.prefix_mask" in golden:
        mask[:, :prefix] = golden["in.prefix_mask"]
    places = torch.arange(mask.shape[1])[None]
    core = model.model.latents
    with recorded(model) as seen:
        logits = model(tokens[:, :-1], mask, position_ids=places, prefix_length=prefix).logits
    targets = tokens[:, prefix + 1 :]
    values = {"out.logits": logits}
    values["out.loss"] = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)
    values["mid.token_emb"] = seen[model.model.word_embeddings][1]
    for name, blocks in (("perceive_layers", core.cross_attentions), ("layers", core.layers)):
        for number, block in enumerate(blocks):
            values[f"mid.{name}.{number}.0"] = seen[block.attention.out_proj][1]
            values[f"mid.{name}.{number}.1"] = seen[block.mlp][1]
    return values


def run_authors(model: PerceiverARForCausalLM, golden: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Padding is token 0, to the right; what latents that do not exist hold there is compared with nothing."""
    tokens = golden["in.tokens"].long()
    places = golden["in.positions"].long() if config.get("use_positions_from_data") else None
    output = model(tokens, (tokens != 0).long(), position_ids=places, labels=tokens)
    exists = golden["out.f64.latent_last_steps"] >= 0
    return {"out.logits": output.logits, "out.loss": output.loss, "rows": exists[..., None]}


def step_by_step(
    model: PerceiverARForCausalLM, golden: dict[str, Tensor], precision: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours and theirs: logits of the newest token after every step, with nothing kept, and with a cache as long as the
    reference's holds what a forward pass does: while its latents only grow.

    Theirs slides a window once the table is full; we take that window of the sequence.
    """
    tokens, most = golden["in.tokens"], model.config.max_position_embeddings
    padded = golden.get("in.pad_mask", torch.zeros_like(tokens, dtype=torch.bool))
    steps = golden[f"out.{precision}.steps"].tolist()
    plain, cached, cache, held = [], [], None, 0
    with torch.no_grad():
        for so_far, prefix, *_ in steps:
            first = max(0, so_far - most)
            real = (~padded[:, first:so_far]).long()
            window = tokens[:, first:so_far]
            plain.append(model(window, real, prefix_length=prefix, use_cache=False).logits[:, -1])
            if prefix == int(golden["in.prefix_len"]):
                output = model(
                    tokens[:, held:so_far], real, prefix_length=prefix, past_key_values=cache, use_cache=True
                )
                cache, held = output.past_key_values, so_far
                cached.append(output.logits[:, -1])
    found = {"uncached_last_logits": torch.stack(plain, 1), "cached_last_logits": torch.stack(cached, 1)}
    wanted = {name: golden[f"out.{precision}.{name}"][:, : value.shape[1]] for name, value in found.items()}
    return found, wanted


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Any, Tensor]]]:
    """What every module receives and returns while this is open."""
    seen: dict[nn.Module, tuple[Any, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda module, received, returned: seen.update({module: (received, returned)}))
        for module in model.modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def krasserms_masks(padded: Tensor) -> Iterator[None]:
    """In the place of ours, with padding `(B,N)` of the latents: hidden scores are the lowest number, a row of nothing
    but these is uniform, and self-attentions know no padding.
    """
    calls = []

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
        number = q.shape[-2]
        causal = torch.ones(number, number, dtype=torch.bool).tril()
        if calls:
            mask = causal
        else:
            own = attn_mask[..., -number:] & causal & ~padded[:, None, None]
            mask = torch.cat([attn_mask[..., :-number], own], -1)
        calls.append(number)
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, torch.finfo(q.dtype).min)
        return scores.softmax(-1) @ v

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def main() -> None:
    """Print case × precision × largest difference of intermediate values, outputs and gradients."""
    print(f"{'case':20}{'':6}{'values':>8}{'intermediate':>14}{'outputs':>10}{'gradients':>11}")
    for case in MANIFEST["cases"]:
        for precision in DTYPES:
            found = differences(case, precision)
            kinds = {"mid.": [], "grad.": [], "": []}
            for name, value in found.items():
                next(values for kind, values in kinds.items() if name.startswith(kind)).append(value)
            shown = [f"{max(kinds[kind]):.1e}" if kinds[kind] else "-" for kind in ("mid.", "", "grad.")]
            print(f"{case:20}{precision:6}{len(found):8}{shown[0]:>14}{shown[1]:>10}{shown[2]:>11}")


if __name__ == "__main__":
    main()
