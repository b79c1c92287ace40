"""torch.compile takes the encoder and the model whole: no graph breaks, the same numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_vl import PerceiverVLForRetrieval, PerceiverVLModel
from tiny import assert_same, tiny_inputs, tiny_model


class Graphs:
    """A backend that runs the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def padded_inputs() -> dict[str, Tensor]:
    inputs = tiny_inputs()
    inputs["attention_mask"][0, -2:] = 0
    inputs["frame_mask"][1, -1:] = 0
    return inputs


def latents_and_gradients(model: PerceiverVLModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    latents = model(**inputs).last_hidden_state
    latents.square().mean().backward()
    return [latents.detach(), *(value.grad for value in model.parameters() if value.grad is not None)]


@pytest.mark.parametrize("aggregation", ["joint", "separate_plus"])
def test_the_whole_model_is_one_graph(aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, num_blocks=2)
    inputs, graphs = padded_inputs(), Graphs()
    wanted = model(**inputs).last_hidden_state
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    with torch.inference_mode():
        for _ in range(2):
            assert_same(compiled(**inputs).last_hidden_state, wanted, 1e-12)
    assert graphs.count == 1


def test_matching_is_one_graph_though_its_query_meets_the_latents_in_their_own_space() -> None:
    model, graphs = tiny_model(PerceiverVLForRetrieval, num_blocks=1), Graphs()
    vision, text = torch.randn(3, 6, 16).double(), torch.randn(3, 4, 16).double()
    compiled = torch.compile(model.match, fullgraph=True, backend=graphs)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            assert_same(compiled(vision, text), model.match(vision, text), 1e-12)
    assert graphs.count == 2  # with a gradient and without


def test_the_encoder_in_training_is_one_graph_a_pattern_of_layer_drop() -> None:
    small = {"num_blocks": 2, "self_attentions_per_block": 1, "modality_aggregation": "separate", "layer_drop": 0.5}
    plain, compiled = (tiny_model(PerceiverVLModel, **small).train() for _ in range(2))
    inputs, graphs = padded_inputs(), Graphs()
    compiled.encoder.compile(fullgraph=True, backend=graphs)
    patterns = set()
    for _ in range(2):  # the second time nothing is new
        for seed in range(8):
            for model in (plain, compiled):
                model.seed_layer_drop(seed)
            patterns.add(str(plain.encoder.attending_blocks()))
            wanted, found = (latents_and_gradients(model, inputs) for model in (plain, compiled))
            assert len(found) == len(wanted)
            for left, right in zip(found, wanted, strict=True):
                assert_same(left, right, 1e-12)
        assert graphs.count == len(patterns)
    assert len(patterns) == 4  # the two cross-attentions of block 1 may be dropped


def test_the_encoder_and_its_gradient_are_compiled_in_evaluation_mode() -> None:
    small = {"num_blocks": 2, "self_attentions_per_block": 1}
    plain, compiled = (tiny_model(PerceiverVLModel, **small) for _ in range(2))
    compiled.encoder.compile(fullgraph=True, backend="aot_eager")
    inputs = padded_inputs()
    for left, right in zip(latents_and_gradients(compiled, inputs), latents_and_gradients(plain, inputs), strict=True):
        assert_same(left, right, 1e-12)
