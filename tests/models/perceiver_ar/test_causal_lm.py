"""Perceiver AR: who sees whom, what padding may not do, what it costs, and as a Hugging Face model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_perceiver_ar import KINDS, SMALL, tiny_ar, tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from perceiver_vl import UsageError
from perceiver_vl.layers.causal import CausalCache, Inputs
from perceiver_vl.models.perceiver_ar import PerceiverARConfig, PerceiverARForCausalLM, PerceiverARModel
from perceiver_vl.models.perceiver_ar.flops import forward_flops
from tiny import assert_same, checkpoint, differs

# --- Who sees whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradients", [True, False], ids=["as in training", "in chunks"])
def test_logits_before_a_changed_token_are_equal_bit_by_bit(kind: str, gradients: bool) -> None:
    model, given = tiny_ar(kind), tokens(20)
    with torch.set_grad_enabled(gradients):
        before = model(given).logits
        for place in (15, 17, 19):
            changed = given.clone()
            changed[:, place] = (changed[:, place] + 1) % 11
            after = model(changed).logits
            latent = place - 14  # the first of 6 latents stands at 14
            assert torch.equal(after[:, :latent], before[:, :latent])
            assert differs(after[:, latent], before[:, latent])


@pytest.mark.parametrize("kind", KINDS)
def test_every_latent_sees_the_whole_past(kind: str) -> None:
    model, given = tiny_ar(kind), tokens(20, 1)
    before = model(given).logits[0]
    for place in range(20):
        changed = given.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        first = max(0, place - 14)
        assert all(differs(a, b) for a, b in zip(model(changed).logits[0, first:], before[first:], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [1, 9, 14, 18])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gradients", [True, False], ids=["as in training", "in chunks"])
def test_a_padded_row_is_the_row_alone(kind: str, padding: int, side: str, gradients: bool) -> None:
    """Also where the padding reaches into the latents, and whatever the padding is."""
    model, given = tiny_ar(kind), tokens(20)
    mask = torch.ones_like(given)
    columns = slice(0, padding) if side == "left" else slice(20 - padding, 20)
    mask[0, columns] = 0
    with torch.set_grad_enabled(gradients):
        found = model(given, mask).logits
        for filling in (0, 7):
            given[0, columns] = filling
            assert_same(model(given, mask).logits[0, -min(6, 20 - padding) :], found[0, -min(6, 20 - padding) :])
        alone = model(given[:1, mask[0].bool()]).logits[0]
    assert_same(found[0, -len(alone) :], alone)
    assert_same(found[1], model(given[1:]).logits[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_padded_batch_is_that_of_its_rows(side: str) -> None:
    model, given = tiny_ar(), tokens(9)
    mask = torch.ones_like(given)
    mask[0, slice(0, 5) if side == "left" else slice(4, 9)] = 0
    whole = model(given, mask, labels=given).loss
    rows = [model(row[real.bool()][None], labels=row[real.bool()][None]) for row, real in zip(given, mask, strict=True)]
    counts = [row.logits.shape[1] - 1 for row in rows]
    assert_same(whole, sum(count * row.loss for count, row in zip(counts, rows, strict=True)) / sum(counts))


# --- Long contexts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_in_chunks_is_the_prefix_whole(kind: str) -> None:
    core = tiny_ar(kind).model.latents
    width = core.cross_attentions[0].input_norm.normalized_shape[0]
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) > 0.3
    inputs = Inputs(torch.randn(2, 30, width).double(), mask, torch.arange(30).expand(2, -1))
    for chunk in (1, 7, 100):
        with torch.no_grad():
            assert_same(core.extend(CausalCache(keep_prefix=False), inputs, 23, chunk=chunk), core(inputs, 23))


def test_a_context_of_131072_fits() -> None:
    """The keys of all inputs for all latents at once would be 0.5 GB of scores here; chunks of them are 16 MB."""
    changes = {"max_position_embeddings": 131_072, "num_latents": 256, "num_attention_heads": 4, "hidden_size": 32}
    model = PerceiverARForCausalLM(PerceiverARConfig(**{**SMALL, **changes})).eval()
    given = torch.randint(1, 11, (1, 131_072))
    largest = 0

    class Sizes(TorchDispatchMode):  # of whatever is made on the way
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for each in made if isinstance(made, tuple | list) else [made]:
                if isinstance(each, Tensor) and not each.is_quantized:
                    largest = max(largest, each.numel() * each.element_size())
            return made

    with torch.no_grad(), Sizes():
        logits = model(given, use_cache=False).logits
    assert logits.shape == (1, 256, 11)
    assert largest <= 131_072 * 32 * 4  # the embeddings themselves


# --- Cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "prefix"), [(5, 0), (6, 4), (20, 0), (37, 35)])
def test_a_forward_costs_what_the_formula_says(kind: str, length: int, prefix: int) -> None:
    model = tiny_ar(kind)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens(length, 1), prefix_length=prefix)
    assert counter.get_total_flops() == forward_flops(model.config, length, prefix)


def test_cost_is_linear_in_the_context() -> None:
    config = PerceiverARConfig()
    one, two, four = (forward_flops(config, length) for length in (2048, 4096, 8192))
    assert four - two == 2 * (two - one)


# --- In training ----------------------------------------------------------------------------------------------------


def test_prefix_dropout_takes_the_lowest_scores_of_the_prefix_and_no_latent() -> None:
    model, given = tiny_ar(prefix_dropout=0.5).train(), tokens(20)
    scores = torch.rand(2, 14, generator=torch.Generator().manual_seed(0))
    gone = scores.argsort(1)[:, :7]
    mask = torch.ones_like(given).scatter(1, gone, 0)
    places = torch.arange(20)[None].expand(2, -1)
    found = model(given, prefix_scores=scores, position_ids=places).logits
    wanted = model.eval()(given, mask, position_ids=places).logits
    assert_same(found, wanted)
    torch.manual_seed(0)
    assert differs(model.train()(given).logits, model(given).logits)  # drawn anew


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpoints in (False, True):
        model = tiny_ar("two reads").train()
        if checkpoints:
            checkpoint(model, True)
        model(tokens(20), labels=tokens(20)).loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        assert_same(found[1][name], gradient)


# --- As a Hugging Face model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_auto_classes_load_what_was_saved(kind: str, tmp_path: Path) -> None:
    model, given = tiny_ar(kind), tokens(20)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PerceiverARConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is PerceiverARForCausalLM
    assert torch.equal(again(given).logits, model(given).logits)
    base = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(base) is PerceiverARModel
    assert torch.equal(base(given).last_hidden_state, model.model(given).last_hidden_state)


def test_eager_is_sdpa() -> None:
    model, given = tiny_ar("two reads"), tokens(20)
    wanted = model(given).logits
    model.set_attn_implementation("eager")
    assert_same(model(given).logits, wanted)


def test_half_precision_knows_far_places() -> None:
    model = tiny_ar(max_position_embeddings=5000).float()
    given = tokens(4000, 1)
    with torch.no_grad():
        wanted, found = model(given).logits, model.to(torch.bfloat16)(given).logits
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


# --- What cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_latents": 50}, "num_latents=50: latents are the last of max_position_embeddings=40"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: must divide attention_size=16"),
        ({"cross_attention_layers": [1]}, r"cross_attention_layers=\[1\]"),
        ({"cross_attention_layers": [0, 3]}, r"cross_attention_layers=\[0, 3\]"),
        ({"embedding_size": 8, "query_projection": False}, "embedding_size=8"),
        ({"position_tables": [30]}, "max_position_embeddings=40"),
        ({"prefix_dropout": 1.5}, "prefix_dropout=1.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PerceiverARConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("kind", "how", "says"),
    [
        ("authors", {"length": 41}, "41 tokens: need 1 to 40"),
        ("authors", {"length": 0}, "0 tokens"),
        ("authors", {"prefix_length": 20}, "prefix_length=20: need 0 to 19"),
        ("authors", {"attention_mask": torch.ones(2, 19)}, r"attention_mask of shape \(2, 19\)"),
        ("krasserm", {"position_ids": torch.arange(21, 41)[None] + 5}, "position_ids up to 45 on axis 0"),
        ("krasserm", {"position_ids": torch.arange(19)[None]}, r"position_ids of shape \(1, 19\)"),
        ("grid", {}, "position_ids=None: this model's positions have 2 axes"),
        ("from end", {"use_cache": True}, "use_cache=True"),
    ],
)
def test_inputs_that_cannot_be_are_refused(kind: str, how: dict[str, Any], says: str) -> None:
    tables: dict[str, Any] = {"grid": {"position_tables": [20, 3]}, "from end": {"position_tables": [40]}}
    model = tiny_ar("authors", **tables[kind]) if kind in tables else tiny_ar(kind)
    length = how.pop("length", 20)
    with pytest.raises(UsageError, match=says):
        model(tokens(length), **how)
