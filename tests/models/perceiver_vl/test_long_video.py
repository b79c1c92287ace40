"""A clip that comes in chunks is the clip, whatever the chunks."""

import itertools
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLError,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.data.synthetic.tasks import LongWorld
from perceiver_vl.models.perceiver_vl.long_video import temporal_table
from tiny import AGGREGATIONS, assert_same, differs, tiny_inputs, tiny_model

RELEASED = {
    "cross_attention_residual": "normed_queries",
    "latent_position": "none",
    "modality_embedding": False,
    "zero_frames_are_padding": True,
}
chunkings = st.lists(st.integers(1, 3), min_size=1, max_size=4)


def cut(inputs: dict[str, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Pixels and masks of so many frames at a time."""
    edges = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return [(inputs["pixel_values"][:, a:b], inputs["frame_mask"][:, a:b]) for a, b in edges]


def texts(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("quirks", [{}, RELEASED])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(
    sizes=chunkings,
    masking=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    blank=st.integers(0, 12),
    reads=st.integers(1, 3),
    way=st.sampled_from(["list", "function", "spill"]),
)
def test_any_chunks_give_the_latents_of_the_whole(
    aggregation: str, quirks: dict[str, Any], sizes: list[int], masking: float, blank: int, reads: int, way: str
) -> None:
    frames = sum(sizes)
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, max_frames=12, **quirks)
    inputs, budget = tiny_inputs(3, frames=frames, seed=blank), ComputeBudget(latents=5, cross_attentions=reads)
    inputs["frame_mask"] = (torch.rand(3, frames, generator=torch.Generator().manual_seed(blank)) >= masking).long()
    inputs["frame_mask"][2] = 1
    inputs["pixel_values"][:, :blank] = 0.0  # padding, to the released code: perhaps all but one, perhaps all
    chunks = cut(inputs, sizes)
    opened: Any = {"list": chunks, "function": lambda: iter(chunks), "spill": iter(chunks)}[way]
    found = model.encode_long(
        opened, **texts(inputs), budget=budget, spill=tempfile.gettempdir() if way == "spill" else None
    )
    assert_same(found, model(**inputs, budget=budget).last_hidden_state)


def test_a_stream_of_one_frame_is_an_image_and_of_two_a_clip() -> None:
    model = tiny_model(PerceiverVLModel)
    for frames in (1, 2):
        inputs = tiny_inputs(frames=frames)
        chunks = list(inputs["pixel_values"].split(1, dim=1))
        assert_same(model.encode_long(chunks), model(pixel_values=inputs["pixel_values"]).last_hidden_state)


def test_many_questions_about_a_stream_that_came_once(tmp_path: Path) -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs(1, frames=4)
    questions = tiny_inputs(6)
    with model.long_vision(iter(cut(inputs, [3, 1])), spill=tmp_path) as clip, torch.no_grad():
        for rows in (slice(0, 1), slice(1, 6)):
            asked = questions["input_ids"][rows]
            pixels = inputs["pixel_values"].expand(len(asked), -1, -1, -1, -1)
            assert_same(model.match_jointly(asked, vision_cache=clip), model.match_jointly(asked, pixel_values=pixels))
        assert_same(model.perceiver_vl(vision_cache=clip).last_hidden_state, model.encode_vision(pixels[:1]))
    with pytest.raises(UsageError, match=r"^vision_cache: its spill is closed[^\n]+$"):
        model.match_jointly(questions["input_ids"], vision_cache=clip)
    assert not list(tmp_path.iterdir())


def test_accuracy_on_the_long_clips_of_the_world_does_not_depend_on_the_chunks() -> None:
    world = LongWorld("test", clips=24, num_frames=40, size=16, seconds=40)
    answers = sorted({world.record(index).answers[0] for index in range(len(world))})
    labels = torch.tensor([answers.index(world.record(index).answers[0]) for index in range(len(world))])
    model = tiny_model(PerceiverVLForQuestionAnswering, max_frames=40, num_labels=len(answers))
    words = tiny_inputs(len(world))["input_ids"]
    frames = torch.stack([torch.from_numpy(world.frames(index, 40)) for index in range(len(world))])
    pixels = frames.permute(0, 1, 4, 2, 3).double() / 127.5 - 1

    with torch.no_grad():
        whole = model(words, pixel_values=pixels).logits
        for size in (1, 7, 16, 40):
            for row, number in enumerate(words):
                chunks = list(pixels[row : row + 1].split(size, dim=1))
                with model.long_vision(chunks) as clip:
                    assert_same(model(number[None], vision_cache=clip).logits, whole[row : row + 1])
    accuracy = (whole.argmax(1) == labels).double().mean()
    assert 0 < accuracy < 1  # so that one answer that is another would show


def test_no_more_than_two_chunks_are_alive_at_once() -> None:
    model, alive, most = tiny_model(PerceiverVLModel, max_frames=20), weakref.WeakSet[Any](), []

    def decoded() -> Iterator[Tensor]:
        for _ in range(10):
            chunk = torch.randn(1, 2, 3, 16, 16, dtype=torch.float64)
            alive.add(chunk)
            most.append(len(alive))
            yield chunk
            del chunk

    model.encode_long(decoded)
    assert len(most) == 30  # three cross-attentions
    assert max(most) == 2  # the one that was read, until the next is there


# --- Beyond the temporal table --------------------------------------------------------------------------------------


def test_longer_clips_interpolate_the_temporal_table() -> None:
    inputs = tiny_inputs(frames=9)
    model, longer = tiny_model(PerceiverVLModel, max_frames=5), tiny_model(PerceiverVLModel, max_frames=9)
    weights = model.state_dict()
    name = "embeddings.vision.temporal_embeddings"
    table = weights[name]
    between = [(table[i] + table[i + 1]) / 2 for i in range(4)]  # nine rows over five: every second one is between two
    weights[name] = torch.stack([row for pair in zip(table, between, strict=False) for row in pair] + [table[4]])
    longer.load_state_dict(weights)
    found = model.encode_long(cut(inputs, [4, 5]), **texts(inputs), num_frames=9)
    assert_same(found, longer(**inputs).last_hidden_state)


def test_a_clip_within_the_table_is_not_stretched() -> None:
    table = torch.randn(5, 4)
    for frames in (None, 1, 3, 5):
        assert torch.equal(temporal_table(table, frames), table)
    assert temporal_table(table, 6).shape == (6, 4)
    assert_same(temporal_table(table, 6)[[0, -1]], table[[0, -1]], 1e-6)


# --- Refusals -------------------------------------------------------------------------------------------------------


def refused(pattern: str, chunks: Any, error: type[PerceiverVLError] = UsageError, **options: Any) -> None:
    with pytest.raises(error, match=pattern) as caught:
        tiny_model(PerceiverVLModel).encode_long(chunks, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_as_a_stream_is_refused(tmp_path: Path) -> None:
    frames = tiny_inputs(frames=6)["pixel_values"]
    refused("^clip of 6 frames or more, num_frames=None, max_frames=5: say how many", [frames])
    refused("^clip of 6 frames or more, num_frames=4, ", [frames], num_frames=4)
    refused("^chunks of 3 frames in all: need 4 ", [frames[:, :3]], num_frames=4)
    refused("^chunks of 0 frames in all: need at least one", [])
    refused(r"^chunks: can be read once, but are read 3 times; give a function", iter([frames]))
    refused(r"^budget frames=2: every frame of a stream is read", [frames], budget=ComputeBudget(frames=2))
    refused(r"^chunk of shape \(6, 3, 16, 16\): need \(B,T,3,H,W\)$", [frames[0]])
    refused(r"^chunk of shape \(2, 2, 3, 8, 16\) after ", [frames[:, :2], frames[:, :2, :, :8]])
    refused(r"^chunk of shape \(1, 2, 3, 16, 16\) after ", [frames[:, :2], frames[:1, :2]])
    refused("spill_bytes=1000; allow more", iter([frames[:, :3]]), PerceiverVLError, spill=tmp_path, spill_bytes=1000)
    refused("^spill='.*/none': cannot be written", iter([frames]), spill=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_stream_that_fails_says_so_itself() -> None:
    def broken() -> Iterator[Tensor]:
        yield tiny_inputs(frames=2)["pixel_values"]
        raise PerceiverVLError("clip.mp4: ends in the middle")

    refused("^clip.mp4: ends in the middle$", broken, PerceiverVLError)


def test_words_that_are_read_first_ask_a_stream_anew(tmp_path: Path) -> None:
    model, inputs = tiny_model(PerceiverVLModel, modality_aggregation="text_first"), tiny_inputs(frames=4)
    budget = ComputeBudget(cross_attentions=1)
    chunks = cut(inputs, [3, 1])
    once = (
        r"^chunks: can be read once, but are read anew for each text; give a function [^\n]+, a folder to spill into$"
    )
    with pytest.raises(UsageError, match=once), model.long_vision(iter(chunks), budget=budget):
        pass
    wanted = model(**inputs, budget=budget).last_hidden_state
    for again, spill in ((lambda: iter(chunks), None), (iter(chunks), tmp_path)):
        with torch.no_grad(), model.long_vision(again, budget=budget, spill=spill) as cache:
            for _ in range(2):
                found = model(inputs["input_ids"], inputs["attention_mask"], vision_cache=cache).last_hidden_state
                assert_same(found, wanted)


def test_one_cross_attention_needs_the_stream_once_and_no_spill() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs(frames=4)
    budget = ComputeBudget(cross_attentions=1)
    found = model.encode_long(iter(cut(inputs, [1, 3])), **texts(inputs), budget=budget)
    assert_same(found, model(**inputs, budget=budget).last_hidden_state)
    assert differs(found, model(**inputs).last_hidden_state)
