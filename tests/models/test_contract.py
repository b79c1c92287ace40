"""What every public model class owes its users as a Hugging Face model, in the spirit of transformers' common tests:
one set of tests over all of them, on the smallest configuration that has every part.
"""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLForCaptioning,
    PerceiverVLForImageClassification,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
)
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from tiny import (
    AGGREGATIONS,
    Kind,
    assert_same,
    checkpoint,
    gradients,
    inputs_of,
    outputs_of,
    public_models,
    squares,
    tiny_model,
)

KINDS = public_models()
every_kind = pytest.mark.parametrize("kind", KINDS)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def base_of(model: PerceiverVLPreTrainedModel) -> PerceiverVLModel:
    """The input array and the encoder of any of the models."""
    base = model.base_model
    assert isinstance(base, PerceiverVLModel)
    return base


def without_gradient(kind: Kind, aggregation: str) -> dict[str, str]:
    """Which parameters the loss of `forward` does not train, as patterns of their names, and why."""
    if kind in (PerceiverVLForRetrieval, PerceiverVLForPreTraining):
        return {r"^contrastive\.": "VTC trains it, a loss of two streams that are encoded apart"}
    if kind not in (PerceiverVLForImageClassification, PerceiverVLForCaptioning):
        return {}
    reasons = {}
    if kind is PerceiverVLForImageClassification:
        reasons[r"^perceiver_vl\.embeddings\.text\."] = "no text comes in, only what is to be classified"
    if aggregation != "joint":
        of_text = "024" if aggregation == "text_first" else "135"
        reasons[rf"^perceiver_vl\.encoder\.blocks\.[{of_text}]\.cross_attention\."] = (
            "they attend to text, of which there is none"
        )
    return reasons


def labels_of(kind: Kind, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels for a batch of two; none where there is no loss."""
    right = torch.tensor([0, 1])
    if kind is PerceiverVLModel:
        return {}
    if kind is PerceiverVLForCaptioning:
        return {"labels": inputs["input_ids"]}
    if kind is PerceiverVLForPreTraining:
        masked = torch.arange(inputs["input_ids"].shape[1]) < 2
        return {"mlm_labels": torch.where(masked, inputs["input_ids"], -100), "vtm_labels": right}
    return {"vtm_labels" if kind is PerceiverVLForRetrieval else "labels": right}


def assert_all_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    assert len(found) == len(wanted) > 0
    for left, right in zip(found, wanted, strict=True):
        assert_same(left, right, tolerance)


# --- Saving, batching, padding --------------------------------------------------------------------------------------


@every_kind
@every_aggregation
def test_what_is_saved_is_loaded(kind: Kind, aggregation: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(kind, modality_aggregation=aggregation), inputs_of(kind, padded=True)
    model.save_pretrained(tmp_path)
    again, report = kind.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    differing = {key for key, value in again.config.to_dict().items() if value != model.config.to_dict()[key]}
    assert differing <= {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert_all_same(outputs_of(again, inputs), outputs_of(model, inputs))


@every_kind
@every_aggregation
def test_an_example_is_the_same_alone_and_among_others(kind: Kind, aggregation: str) -> None:
    model, inputs = tiny_model(kind, modality_aggregation=aggregation), inputs_of(kind, padded=True, batch=3)
    together = outputs_of(model, inputs)
    for row in range(3):
        alone = outputs_of(model, {name: value[row : row + 1] for name, value in inputs.items()})
        assert_all_same(alone, tuple(output[row : row + 1] for output in together))


def more_padding(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with two more words and two more frames, which are noise that the masks say is none."""
    draw = torch.Generator().manual_seed(9)
    padded = dict(inputs)
    if "input_ids" in inputs:
        words = torch.randint(5, 40, (*inputs["input_ids"].shape[:-1], 2), generator=draw)
        padded["input_ids"] = torch.cat([inputs["input_ids"], words], -1)
        padded["attention_mask"] = torch.cat([inputs["attention_mask"], torch.zeros_like(words)], -1)
    pixels, mask = inputs["pixel_values"], inputs["frame_mask"]
    noise = torch.randn(*pixels.shape[:-4], 2, *pixels.shape[-3:], generator=draw, dtype=pixels.dtype)
    padded["pixel_values"] = torch.cat([pixels, noise], -4)
    padded["frame_mask"] = torch.cat([mask, torch.zeros(*mask.shape[:-1], 2, dtype=mask.dtype)], -1)
    return padded


@every_kind
@every_aggregation
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("frames", [1, 3])
def test_padding_changes_nothing(kind: Kind, aggregation: str, implementation: str, frames: int) -> None:
    model = tiny_model(kind, modality_aggregation=aggregation, attn_implementation=implementation)
    inputs = inputs_of(kind, frames=frames)
    wanted, found = outputs_of(model, inputs), outputs_of(model, more_padding(inputs))
    real = tuple(one[:, : other.shape[1]] if one.ndim == 3 else one for one, other in zip(found, wanted, strict=True))
    assert_all_same(real, wanted)
    masks = ("attention_mask", "frame_mask")  # left out: all is real
    assert_all_same(outputs_of(model, {name: one for name, one in inputs.items() if name not in masks}), wanted)


# --- Attention and gradients ----------------------------------------------------------------------------------------


@every_kind
@every_aggregation
def test_eager_and_sdpa_agree_in_value_and_gradient(kind: Kind, aggregation: str) -> None:
    inputs, found = inputs_of(kind, padded=True), []
    for name in ("eager", "sdpa"):
        model = tiny_model(kind, modality_aggregation=aggregation, attn_implementation=name)
        assert model.config._attn_implementation == name
        found.append((outputs_of(model, inputs), gradients(model, inputs)))
    (eager, eager_gradients), (sdpa, sdpa_gradients) = found
    assert_all_same(eager, sdpa)
    assert eager_gradients.keys() == sdpa_gradients.keys()
    assert_all_same(tuple(eager_gradients.values()), tuple(sdpa_gradients.values()))


@every_kind
@every_aggregation
@pytest.mark.parametrize("answers", ["query", "mean_latents"])
def test_every_parameter_is_trained_or_there_is_a_reason(kind: Kind, aggregation: str, answers: str) -> None:
    model = tiny_model(kind, modality_aggregation=aggregation, answers_from=answers, layer_drop=0.0).train()
    inputs = inputs_of(kind, padded=True)
    output = model(**inputs, **labels_of(kind, inputs))
    (output.last_hidden_state.square().mean() if kind is PerceiverVLModel else output.loss).backward()
    untrained = {name for name, value in model.named_parameters() if value.grad is None}
    reasons = without_gradient(kind, aggregation)
    assert not {name for name in untrained if not any(re.search(pattern, name) for pattern in reasons)}
    trained = {name for name, _ in model.named_parameters()} - untrained
    assert not {name for name in trained if any(re.search(pattern, name) for pattern in reasons)}
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


@every_kind
@every_aggregation
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_values_nor_gradients(kind: Kind, aggregation: str, reentrant: bool) -> None:
    model = tiny_model(kind, modality_aggregation=aggregation, layer_drop=0.5).train()
    model.seed_layer_drop(3)
    inputs, found = inputs_of(kind, padded=True), []
    for enable in (False, True):
        checkpoint(model, enable, use_reentrant=reentrant)
        found.append((outputs_of(model, inputs), gradients(model, inputs)))
    (plain, plain_gradients), (again, again_gradients) = found
    assert_all_same(again, plain)
    assert again_gradients.keys() == plain_gradients.keys()
    assert_all_same(tuple(again_gradients.values()), tuple(plain_gradients.values()))


# --- Words ----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("words", [47, 33])
def test_the_vocabulary_can_be_resized(kind: Kind, tied: bool, words: int, tmp_path: Path) -> None:
    model, inputs = tiny_model(kind, tie_word_embeddings=tied), inputs_of(kind)
    if "input_ids" in inputs:
        inputs["input_ids"] = inputs["input_ids"].clamp(max=words - 8)
    kept = min(words, 40)
    with torch.no_grad():  # a graph that is still held would remember the shapes of before
        before, table = outputs_of(model, inputs), model.get_input_embeddings().weight[:kept].clone()
    resized = model.resize_token_embeddings(words, mean_resizing=False)
    assert resized is model.get_input_embeddings()
    assert resized.weight.shape[0] == resized.num_embeddings == model.config.vocab_size == words
    assert base_of(model).config.vocab_size == words
    assert torch.equal(resized.weight[:kept], table)
    after = outputs_of(model, inputs)
    if isinstance(model, PerceiverVLForCaptioning):
        assert len(model.caption_words.bias) == after[0].shape[-1] == words
        before, after = (before[0][..., :kept],), (after[0][..., :kept],)
    if isinstance(model, PerceiverVLForPreTraining):
        head = model.get_output_embeddings()
        assert head.weight.shape[0] == head.out_features == len(model.mlm_head.bias) == words
        assert (head.weight is resized.weight) == tied
        assert after[-1].shape[-1] == words
        before, after = (*before[:-1], before[-1][..., :kept]), (*after[:-1], after[-1][..., :kept])
    assert_all_same(after, before)
    gradients(model, inputs)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, dtype=torch.float64)
    assert_all_same(outputs_of(again, inputs), outputs_of(model, inputs))


@every_kind
def test_tables_of_words_can_be_replaced(kind: Kind) -> None:
    model, inputs = tiny_model(kind), inputs_of(kind)
    table = nn.Embedding(40, 16).double()
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is base_of(model).get_input_embeddings() is table
    head = nn.Linear(16, 40, bias=False).double()
    if kind is PerceiverVLForPreTraining:
        model.set_output_embeddings(head)
        assert model.get_output_embeddings() is head
    else:
        assert model.get_output_embeddings() is None
    trained = gradients(model, inputs)
    assert (table.weight.grad is not None) == ("input_ids" in inputs)
    assert (head.weight.grad is not None) == (kind is PerceiverVLForPreTraining)
    assert trained


# --- What a forward gives -------------------------------------------------------------------------------------------


@every_kind
def test_the_main_input_comes_first(kind: Kind) -> None:
    assert list(inspect.signature(kind.forward).parameters)[1] == kind.main_input_name


@every_kind
def test_a_tuple_on_request(kind: Kind) -> None:
    model, inputs = tiny_model(kind), inputs_of(kind)
    inputs |= labels_of(kind, inputs)
    for asked in ({}, {"output_hidden_states": True, "output_attentions": True}):
        output = model(**inputs, **asked)
        found = model(**inputs, **asked, return_dict=False)
        assert type(found) is tuple
        wanted = tuple(value for value in output.values() if value is not None)
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            same = (left,) if isinstance(left, Tensor) else left, (right,) if isinstance(right, Tensor) else right
            assert all(torch.equal(*pair) for pair in zip(*same, strict=True))


@every_kind
def test_a_tuple_where_the_configuration_asks_for_it(kind: Kind) -> None:
    model, inputs = tiny_model(kind), inputs_of(kind)
    wanted = outputs_of(model, inputs)
    model.config.return_dict = False
    found = model(**inputs)
    assert type(found) is tuple
    assert_all_same(found, wanted)
    assert_all_same(outputs_of(model, inputs | {"return_dict": True}), wanted)


def test_the_streams_of_retrieval_do_not_mind_what_the_configuration_asks_for() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), inputs_of(PerceiverVLForRetrieval)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    vision = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    found = []
    for return_dict in (True, False):
        model.config.return_dict = return_dict
        latents = model.encode_vision(**vision), model.encode_text(**text)
        features = model.get_vision_features(**vision), model.get_text_features(**text)
        found.append((*latents, *features, model.match(*latents), model.match_jointly(**inputs)))
    assert_all_same(*found)


def encoded_inputs(model: PerceiverVLPreTrainedModel, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
    """How many sets of latents the model makes of a batch, and the M of its vision and of its words."""
    *batch, frames, _, _, _ = inputs["pixel_values"].shape
    *texts, words = inputs["input_ids"].shape if "input_ids" in inputs else (0,)
    if isinstance(model, PerceiverVLForCaptioning):  # whose words attend to the latents
        words = 0
    return max(math.prod(batch), math.prod(texts)), frames * model.config.tokens_per_frame, words


@every_kind
@every_aggregation
def test_hidden_states(kind: Kind, aggregation: str) -> None:
    """The latents `(B,N,D)` before the first block and after each, the last of them normed: `last_hidden_state`."""
    model, inputs = tiny_model(kind, modality_aggregation=aggregation), inputs_of(kind, padded=True)
    output = model(**inputs, output_hidden_states=True)
    rows, _, _ = encoded_inputs(model, inputs)
    encoder = base_of(model).encoder
    assert len(output.hidden_states) == 1 + len(encoder.blocks)
    assert {tuple(latents.shape) for latents in output.hidden_states} == {(rows, 6, 16)}
    assert_same(output.hidden_states[0], encoder.first_latents(6).expand(rows, -1, -1))
    normed, seen = output.hidden_states[-1], []
    hook = encoder.norm.register_forward_hook(lambda _, __, latents: seen.append(latents))
    asked = model(**inputs)
    hook.remove()
    assert torch.equal(seen[-1], normed)
    if kind is PerceiverVLModel:
        assert torch.equal(output.last_hidden_state, normed)
    assert output.attentions is output.cross_attentions is asked.hidden_states is None
    assert_all_same(asked.to_tuple(), output.to_tuple()[: len(asked.to_tuple())])


@every_kind
@every_aggregation
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions(kind: Kind, aggregation: str, implementation: str) -> None:
    """`cross_attentions` `(B,H,N,M)` of those that ran, `attentions` `(B,H,N,N)`, in the order they run."""
    model = tiny_model(kind, modality_aggregation=aggregation, attn_implementation=implementation)
    inputs = inputs_of(kind, padded=True)
    output = model(**inputs, output_attentions=True)
    rows, vision, words = encoded_inputs(model, inputs)
    each = [vision + words] if aggregation == "joint" else [vision, words] if words else [vision]
    each = each[::-1] if aggregation == "text_first" else each
    assert [tuple(one.shape) for one in output.cross_attentions] == [(rows, 4, 6, length) for length in each * 3]
    assert [tuple(one.shape) for one in output.attentions] == [(rows, 4, 6, 6)] * 6
    for weights in (*output.cross_attentions, *output.attentions):
        assert weights.min() >= 0
        assert_same(weights.sum(-1), torch.ones(rows, 4, 6).double())
    if kind is PerceiverVLModel:
        first, last = output.cross_attentions[0], output.cross_attentions[-1]
        to_vision, to_text = (last, first) if aggregation == "text_first" else (first, last)
        assert not to_text[0, :, :, -2:].any()  # the last two words of the first text
        assert not to_vision[1, :, :, vision - model.config.tokens_per_frame : vision].any()
    assert output.hidden_states is None
    plain = model(**inputs)
    assert plain.attentions is plain.cross_attentions is None
    assert_all_same(plain.to_tuple(), output.to_tuple()[: len(plain.to_tuple())])


@every_kind
def test_only_attentions_that_run_are_given(kind: Kind) -> None:
    model, inputs = tiny_model(kind), inputs_of(kind)
    output = model(**inputs, output_attentions=True, budget=ComputeBudget(latents=3, cross_attentions=1))
    assert len(output.cross_attentions) == 1
    assert [one.shape[-2:] for one in output.attentions] == [(3, 3)] * 6
    model.train().seed_layer_drop(0)
    attending = base_of(model).encoder.attending_blocks()
    assert len(model(**inputs, output_attentions=True).cross_attentions) == sum(attending)


@every_kind
def test_the_configuration_can_ask(kind: Kind) -> None:
    model, inputs = tiny_model(kind, attn_implementation="eager"), inputs_of(kind)
    model.config.output_hidden_states = True
    model.config.output_attentions = True
    output = model(**inputs)
    assert len(output.hidden_states) == 4
    assert len(output.attentions) == 6
    refused = model(**inputs, output_hidden_states=False, output_attentions=False)
    assert refused.hidden_states is refused.attentions is refused.cross_attentions is None


@every_kind
@pytest.mark.parametrize("enable", [False, True])
def test_asking_while_checkpointing(kind: Kind, enable: bool) -> None:
    model, inputs = tiny_model(kind, layer_drop=0.0).train(), inputs_of(kind)
    checkpoint(model, enable)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert (len(output.hidden_states), len(output.cross_attentions), len(output.attentions)) == (4, 3, 6)
    result = (output.last_hidden_state,) if kind is PerceiverVLModel else outputs_of(model, inputs)
    squares(result).backward()


def assert_gradients_reach(kind: Kind, *names: str) -> None:
    model, inputs = tiny_model(kind, attn_implementation="eager"), inputs_of(kind)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    given = [one for name in names for one in output[name]]
    for one in given:
        one.retain_grad()
    result = output.last_hidden_state if kind is PerceiverVLModel else output.to_tuple()[0]
    result.square().sum().backward()
    assert [one.grad is not None for one in given] == [True] * len(given)


@every_kind
def test_gradients_reach_the_hidden_states(kind: Kind) -> None:
    assert_gradients_reach(kind, "hidden_states")


@every_kind
def test_gradients_reach_the_attentions(kind: Kind) -> None:
    """So that attribution methods work, which weigh each attention with its gradient."""
    assert_gradients_reach(kind, "cross_attentions", "attentions")
