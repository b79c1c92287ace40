"""Words and pixels → the input array."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLModel, UsageError
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings
from tiny import assert_same, differs, tiny_inputs, tiny_model


def tiny_embeddings(seed: int = 0, **changes: object) -> InputEmbeddings:
    return tiny_model(PerceiverVLModel, seed, **changes).embeddings


def test_patches_are_projected_as_by_a_convolution() -> None:
    vision = tiny_embeddings().vision
    frames = torch.randn(3, 3, 16, 24).double()
    convolved = vision.patch_projection(frames).flatten(2).transpose(1, 2)  # raster order
    assert_same(vision.project_patches(frames), convolved)


@pytest.mark.parametrize("class_token", [True, False])
def test_every_frame_gives_its_patches_in_time_order(class_token: bool) -> None:
    embeddings = tiny_embeddings(frame_class_token=class_token)
    pixels = tiny_inputs(batch=1, frames=3)["pixel_values"]
    per_frame = 4 + class_token
    tokens, mask = embeddings.embed_vision(pixels, torch.tensor([[1, 1, 0]]))
    assert tokens.shape == (1, 3 * per_frame, 16)
    assert mask.tolist() == [[True] * 2 * per_frame + [False] * per_frame]
    pixels[:, 1, :, 8:, :8] += 1.0  # the third patch of the second frame
    changed, _ = embeddings.embed_vision(pixels, torch.tensor([[1, 1, 0]]))
    moved = (changed - tokens).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [per_frame + class_token + 2]


def test_words_are_told_apart_by_what_they_are_and_where_they_stand() -> None:
    embeddings = tiny_embeddings()
    tokens, mask = embeddings.embed_text(torch.tensor([[7, 9, 7]]))
    assert mask.all()
    assert differs(tokens[0, 0], tokens[0, 1])
    assert differs(tokens[0, 0], tokens[0, 2])


def test_the_modality_is_part_of_every_token() -> None:
    embeddings = tiny_embeddings()
    inputs = tiny_inputs()
    vision, _ = embeddings.embed_vision(inputs["pixel_values"])
    text, _ = embeddings.embed_text(inputs["input_ids"])
    with torch.no_grad():
        embeddings.modality_embeddings.weight[0] += torch.randn(16).double()
    moved_vision, _ = embeddings.embed_vision(inputs["pixel_values"])
    same_text, _ = embeddings.embed_text(inputs["input_ids"])
    assert (moved_vision - vision).abs().amax(-1).min() > 1e-3
    assert torch.equal(same_text, text)


@pytest.mark.parametrize("grid", [2, 4])
def test_frames_of_the_trained_size_get_the_position_table_itself(grid: int) -> None:
    vision = tiny_embeddings(image_size=8 * grid).vision
    assert torch.equal(vision.patch_positions(grid, grid), vision.position_embeddings)


@given(rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_other_sizes_keep_constant_tables_constant_and_ramps_straight(rows: int, columns: int) -> None:
    vision = tiny_embeddings(image_size=32).vision  # 4x4 patches
    with torch.no_grad():
        vision.position_embeddings.fill_(0.75)
        assert_same(vision.patch_positions(rows, columns), torch.full((rows * columns, 16), 0.75).double())
        down, right = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        vision.position_embeddings.copy_((3 * down + 5 * right).flatten()[:, None].expand(16, 16))
        found = vision.patch_positions(rows, columns).reshape(rows, columns, 16)
    down, right = torch.linspace(0, 3, rows).double()[:, None], torch.linspace(0, 3, columns).double()
    assert_same(found, (3 * down + 5 * right)[..., None].expand(-1, -1, 16), tolerance=1e-5)


def test_frames_need_not_be_square() -> None:
    embeddings = tiny_embeddings()
    tokens, _ = embeddings.embed_vision(torch.randn(1, 2, 3, 8, 24))
    assert tokens.shape == (1, 2 * (3 + 1), 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 6, 3, 16, 16), "clip of 6 frames: more than max_frames=5, [^\n]+"),
        ((1, 1, 3, 16, 20), "frames of 16x20 pixels: need multiples of patch_size=8"),
        ((1, 3, 16, 16), r"pixel_values of shape \(1, 3, 16, 16\): need [^\n]+"),
    ],
)
def test_frames_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^{message}$"):
        tiny_embeddings().embed_vision(torch.zeros(shape))


def test_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^text of 9 tokens: longer than max_text_length=8, [^\n]+$"):
        tiny_embeddings().embed_text(torch.ones(1, 9, dtype=torch.long))
