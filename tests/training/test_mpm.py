"""Masked patches: which are seen and asked for, what is learned of them, and that nothing is there unless asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, PerceiverVLForPreTraining, PerceiverVLForRetrieval, UsageError
from perceiver_vl.layers.token_selection import kept_tokens, seen_and_asked
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.setup import prepare_start
from perceiver_vl.training.statistics import pretraining_flops
from small_runs import recipe_of, run, training_log_of
from tiny import assert_same, differs, lose_the_end, tiny_batch, tiny_config, tiny_encoders, tiny_inputs, tiny_model

FULL = ComputeBudget()
ALONE = Objectives({"vtm": 0, "mlm": 0, "mpm": 1}, mpm_ratio=0.6, mpm_targets=0.7)
FINE = {"image_size": 24, "patch_size": 8, "masked_patches": True}
"""Nine patches a frame."""


def some_batch(pairs: int = 5) -> PreTrainingBatch:
    """Frames of 24 pixels; a picture, and a clip that is shorter than the others."""
    batch, draw = tiny_batch(pairs), torch.Generator().manual_seed(5)
    batch = replace(batch, pixel_values=torch.randn(pairs, 3, 3, 24, 24, generator=draw, dtype=torch.float64))
    batch.frame_mask[1, 2:] = 0
    batch.attention_mask[2, 4:] = 0
    return batch


def loss_of(model: PerceiverVLForPreTraining, batch: PreTrainingBatch, how: Objectives = ALONE) -> Tensor:
    loss: Tensor = PreTrainingModule(model, how)(batch, [FULL])[0]
    return loss


def by_definition(model: PerceiverVLForPreTraining, batch: PreTrainingBatch, how: Objectives = ALONE) -> Tensor:
    """Clip for clip and patch for patch; padded frames and words left away instead of masked."""
    config, class_token = model.config, model.config.frame_class_token
    grid = config.grid
    a_frame = grid**2 + class_token
    errors = []
    assert batch.patch_draws is not None
    for row in range(len(batch)):
        frames, words = int(batch.frame_mask[row].sum()), int(batch.attention_mask[row].sum())
        clip, ids = batch.pixel_values[row : row + 1, :frames], batch.input_ids[row : row + 1, :words]
        most = batch.frame_mask.shape[1]
        seen, asked = seen_and_asked(
            most, a_frame, 1 - how.mpm_ratio, how.mpm_targets, int(batch.patch_draws[row]), class_token
        )
        array = model.perceiver_vl.embed_inputs(ids, None, clip)
        assert array.vision is not None
        array.vision = array.vision[:, [place for place in seen.tolist() if place < frames * a_frame]]
        array.vision_mask = torch.ones(array.vision.shape[:2], dtype=torch.bool)
        latents = model.perceiver_vl.encode(array)
        encoded = model.perceiver_vl.encode_frames(clip)
        assert model.mpm_queries is not None
        assert model.mpm_head is not None
        for place in (place for place in asked.tolist() if place < frames * a_frame):
            frame, patch = place // a_frame, place % a_frame - class_token
            across, down = patch % grid * 8, patch // grid * 8
            shown = clip[0, frame, :, down : down + 8, across : across + 8].flatten()
            if config.vision_config is not None:
                shown = encoded[0, frame, 1 + class_token + patch]
            wanted = (shown - shown.mean()) / (shown.var(unbiased=False) + 1e-6).sqrt() if how.mpm_normed else shown
            query = (
                model.mpm_queries.position_embeddings.weight[patch]
                + model.mpm_queries.temporal_embeddings.weight[frame]
            )
            errors.append((model.mpm_head(model.decode(query[None, None], latents))[0, 0] - wanted).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize(
    "changes",
    [
        FINE,
        FINE | {"frame_class_token": False, "modality_aggregation": "separate"},
        tiny_encoders() | {"masked_patches": True},
    ],
    ids=["pixels", "without class tokens", "tokens of an encoder"],
)
def test_the_loss_is_what_its_definition_says(changes: dict[str, Any]) -> None:
    model: PerceiverVLForPreTraining = tiny_model(**changes)
    for encoder in (model.perceiver_vl.vision_encoder, model.perceiver_vl.text_encoder):
        if encoder is not None:
            encoder.requires_grad_(False)
    batch = some_batch() if changes["patch_size"] == 8 else tiny_batch(5)
    as_large = replace(ALONE, mpm_normed=False)
    assert_same(loss_of(model, batch, as_large), by_definition(model, batch, as_large))
    found, wanted = loss_of(model, batch), by_definition(model, batch)
    assert_same(found, wanted)
    assert model.mpm_head is not None
    some = [
        model.mpm_head.projection.weight,
        model.perceiver_vl.encoder.latents,
        model.decoder.block.attention.k_proj.weight,
    ]
    for one, by_hand in zip(*(torch.autograd.grad(loss, some) for loss in (found, wanted)), strict=True):
        assert by_hand.abs().max() > 1e-9
        assert_same(one, by_hand)


def test_what_is_masked_is_not_known() -> None:
    """Nothing but the patches that are seen, the words and the targets has a part in it."""
    model: PerceiverVLForPreTraining = tiny_model(**FINE)
    batch = some_batch()
    assert batch.patch_draws is not None
    _, asked = seen_and_asked(3, 10, 0.4, 0.7, int(batch.patch_draws[4]), class_token=True)
    seen, _ = seen_and_asked(3, 10, 0.4, 0.7, int(batch.patch_draws[4]), class_token=True)
    left_out = next(place for place in range(30) if place not in [*seen.tolist(), *asked.tolist()])
    for place, matters in ((left_out, False), (int(seen[1]), True), (int(asked[0]), True)):
        frame, patch = place // 10, place % 10 - 1
        changed = batch.pixel_values.clone()
        changed[4, frame, 1, patch // 3 * 8, patch % 3 * 8] += 1.0
        assert differs(loss_of(model, batch), loss_of(model, replace(batch, pixel_values=changed))) == matters


@pytest.mark.parametrize("class_token", [False, True])
def test_what_is_seen_and_what_is_asked_for_have_nothing_in_common(class_token: bool) -> None:
    for seed in range(5):
        seen, asked = seen_and_asked(3, 7 + class_token, 0.3, 0.5, seed, class_token)
        assert torch.equal(seen, kept_tokens(3, 7 + class_token, 0.3, seed, class_token))
        assert not set(seen.tolist()) & set(asked.tolist())
        a_frame = 7 + class_token
        assert torch.equal((asked // a_frame).bincount(), torch.tensor([2, 2, 2]))  # half of five
        assert not class_token or (asked % a_frame > 0).all()
        more, others = seen_and_asked(5, 7 + class_token, 0.3, 0.5, seed, class_token)
        assert torch.equal(more[: len(seen)], seen)  # whatever follows
        assert torch.equal(others[: len(asked)], asked)
    assert len({tuple(seen_and_asked(3, 9, 0.3, 1.0, seed, class_token)[0].tolist()) for seed in range(9)}) == 9


def test_gradients_reach_its_parameters_and_chunks_and_budgets_change_nothing_else() -> None:
    found = []
    for chunk in (None, 2):
        model: PerceiverVLForPreTraining = tiny_model(**FINE, layer_drop=0.5).train()
        model.seed_layer_drop(1)
        loss = loss_of(model, some_batch(), replace(ALONE, chunk=chunk))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (one, gradients), (other, chunked) = found
    assert_same(one, other)
    own = {name for name in gradients if name.startswith("mpm_")}
    assert own == {
        "mpm_queries.position_embeddings.weight",
        "mpm_queries.temporal_embeddings.weight",
        "mpm_head.norm.weight",
        "mpm_head.norm.bias",
        "mpm_head.projection.weight",
        "mpm_head.projection.bias",
    }
    for name, gradient in gradients.items():
        assert_same(chunked[name], gradient)
    assert all(gradients[name].abs().max() > 1e-9 for name in own)
    module = PreTrainingModule(tiny_model(**FINE), ALONE, 0.5)
    smaller = [TrainingBudget(frames=2, latents=3, seed=4, token_share=0.5), ComputeBudget(frames=1)]
    loss, parts = module(some_batch(), [FULL, *smaller])  # which frames and patches is its own matter
    loss.backward()
    assert parts["distill"] > 0


def test_unless_it_is_asked_for_there_is_nothing_of_it(tmp_path: Path) -> None:
    plain = PerceiverVLForPreTraining(tiny_config())
    asked = PerceiverVLForPreTraining(tiny_config(masked_patches=True))
    more = asked.state_dict().keys() - plain.state_dict().keys()
    assert more
    assert all(name.startswith("mpm_") for name in more)
    assert plain.state_dict().keys() <= asked.state_dict().keys()
    asked.save_pretrained(tmp_path)
    loaded = PerceiverVLForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in asked.state_dict().items())
    _, loading = PerceiverVLForRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["unexpected_keys"]
    with pytest.raises(UsageError, match=r"^masked_patches=False: this model has no queries for patches[^\n]+$"):
        loss_of(tiny_model(), tiny_batch())


def test_operations_are_those_that_are_counted() -> None:
    config = tiny_config(**FINE, hidden_size=64, vocab_size=40, layer_drop=0.0)
    model = PerceiverVLForPreTraining(config).train().requires_grad_(False)
    given = tiny_inputs(batch=4, size=24)
    batch = given | {"pixel_values": given["pixel_values"].float(), "patch_draws": torch.arange(4)}
    for ratio in (0.3, 0.8):
        objectives = replace(ALONE, mpm_ratio=ratio)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            PreTrainingModule(model, objectives)(PreTrainingBatch.from_dict(batch), [FULL])
        assert pretraining_flops(config, batch, objectives) / 3 == pytest.approx(counter.get_total_flops(), rel=0.12)


# --- In a run -------------------------------------------------------------------------------------------------------


def test_a_recipe_that_asks_for_it_makes_the_model_for_it(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "objectives": {"vtm": 0, "mlm": 1, "mpm": 0.5, "mpm_ratio": 0.5},
        "training": {"max_steps": 3, "save_steps": 1, "learning_rate": 0.01},
    }
    run(tmp_path / "run", **how)
    lines = training_log_of(tmp_path / "run")
    assert all(line["loss_mpm"] > 0 for line in lines)
    assert all(line["grad_norm_heads"] > 0 for line in lines)
    lose_the_end(tmp_path / "run", "checkpoint-3")
    run(tmp_path / "run", resume=True, **how)
    assert [line["loss_mpm"] for line in training_log_of(tmp_path / "run")] == [line["loss_mpm"] for line in lines]
    saved = PerceiverVLForPreTraining.from_pretrained(tmp_path / "run")
    assert saved.config.masked_patches
    start = recipe_of(
        tmp_path / "on", {"initialise": {"model": str(tmp_path / "run")}}, objectives={"vtm": 0, "mlm": 0, "vtc": 1}
    )
    assert prepare_start(start, None, 4, 1).fresh == []


def test_what_cannot_be_masked_is_refused(tmp_path: Path) -> None:
    for objectives, model, named in (
        ({"mpm_ratio": 0.1}, {}, r"objectives.mpm_ratio=0.1: masks none of 4 patches a frame"),
        ({}, {"patch_size": 16}, r"objectives.mpm_ratio=0.75: masks none of 1 patches a frame"),
        ({}, {"masked_patches": False}, r"model.masked_patches=false: objectives.mpm=1 asks for masked patches"),
        ({}, {"temporal_kernel": 3}, r"masked_patches=True: [^\n]+a temporal_kernel"),
        ({}, {"patch_stem": "convolutional"}, r"masked_patches=True: with patch_stem='convolutional'"),
    ):
        recipe = recipe_of(tmp_path / "run", objectives={"mpm": 1, **objectives}, model=model)
        with pytest.raises(UsageError, match=rf"^{named}[^\n]+$"):
            prepare_start(recipe, None, 4, 1)
    learns: PerceiverVLForPreTraining = tiny_model(**tiny_encoders(), masked_patches=True).requires_grad_()
    with pytest.raises(UsageError, match=r"^objectives.mpm=1: asks for the tokens of a frozen encoder[^\n]+$"):
        ALONE.check_model(learns)
