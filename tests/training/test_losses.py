"""What the objectives ask, against what their definitions say."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl import ComputeBudget, PerceiverVLForPreTraining, UsageError
from perceiver_vl.data.batching import DRAW_BITS
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.losses.base import PreTrainingBatch, contrast
from perceiver_vl.training.losses.structure import TEMPERATURE, structure_divergence
from perceiver_vl.training.losses.vtc import mixed_negatives
from perceiver_vl.training.objectives import Objectives, PreTrainingModule, draw_hard_negatives
from perceiver_vl.utils.distributed import GlobalBatch
from tiny import assert_same, differs, tiny_batch, tiny_encoders, tiny_model, tiny_stretches

EVERYTHING = Objectives({"vtm": 1, "mlm": 1, "vtc": 1, "ttc": 1, "mixed_vtm": 1, "mixed_vtc": 1}, hard_negatives=True)
WITHOUT_WORDS = replace(EVERYTHING, weights=EVERYTHING.weights | {"mlm": 0})
FULL = ComputeBudget()


def ask(
    batch: PreTrainingBatch, objectives: Objectives, budget: ComputeBudget = FULL, **config: Any
) -> dict[str, Tensor]:
    return losses_of(tiny_model(**config), batch, objectives, budget)


def losses_of(
    model: PerceiverVLForPreTraining, batch: PreTrainingBatch, objectives: Objectives, budget: ComputeBudget = FULL
) -> dict[str, Tensor]:
    _, losses = PreTrainingModule(model, objectives)(batch, [budget])
    return losses


def bce(logits: Tensor, labels: list[int]) -> Tensor:
    """Binary cross-entropy by its definition, averaged."""
    signs = torch.tensor(labels).double() * 2 - 1
    return -(signs * logits).sigmoid().log().mean()


# --- Matching -------------------------------------------------------------------------------------------------------


def test_matching_shows_each_text_its_donors_vision() -> None:
    model, batch = tiny_model(), tiny_batch()
    donors = [0, 0, 2, 2]
    logits = model.match_jointly(
        batch.input_ids, batch.attention_mask, batch.pixel_values[donors], batch.frame_mask[donors]
    )
    found = ask(batch, Objectives({"vtm": 1, "mlm": 0}))
    assert found.keys() == {"vtm"}
    assert_same(found["vtm"], bce(logits, [1, 0, 1, 0]))


def test_matching_in_the_mixed_stream_has_every_pair_once_right_and_once_wrong() -> None:
    model, batch = tiny_model(), tiny_batch(3)
    vision = model.encode_vision(batch.pixel_values, batch.frame_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    logits = torch.cat([model.match(vision, text), model.match(vision[[2, 0, 1]], text)])
    found = ask(batch, Objectives({"vtm": 0, "mlm": 0, "mixed_vtm": 1}))
    assert found.keys() == {"mixed_vtm"}
    assert_same(found["mixed_vtm"], bce(logits, [1, 1, 1, 0, 0, 0]))


def test_hard_negatives_take_the_place_of_the_negatives_only() -> None:
    model, batch = tiny_model(), tiny_batch(6)
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    hard = draw_hard_negatives(
        model.logit_scale * text @ vision.T, torch.arange(6), batch.negative_draws / 2**DRAW_BITS
    )
    donors = torch.tensor([0, hard[1], 2, hard[3], 4, hard[5]])
    logits = model.match_jointly(
        batch.input_ids, batch.attention_mask, batch.pixel_values[donors], batch.frame_mask[donors]
    )
    found = losses_of(model, batch, WITHOUT_WORDS)
    assert_same(found["vtm"], bce(logits, [1, 0, 1, 0, 1, 0]))
    vision = model.encode_vision(batch.pixel_values, batch.frame_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    logits = torch.cat([model.match(vision, text), model.match(vision[hard], text)])
    assert_same(found["mixed_vtm"], bce(logits, 6 * [1] + 6 * [0]))


def test_hard_negatives_are_others_and_mostly_similar_ones() -> None:
    torch.manual_seed(0)
    own = torch.arange(8)
    similarities = torch.eye(8) * 20 + torch.rand(8, 8)
    near = (own + 3) % 8
    similarities[own, near] = 5.0  # e^5 against seven of about e^0.5
    draws = torch.stack([draw_hard_negatives(similarities, own, torch.rand(8)) for _ in range(300)])
    assert (draws != own).all()
    share = (draws == near).double().mean().item()
    expected = (similarities.fill_diagonal_(-torch.inf).softmax(1))[own, near].mean().item()
    assert abs(share - expected) < 0.03
    assert len(draws.unique()) == 8


@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 1.0, 1000.0]),
    draw=st.sampled_from([0.0, 0.5, 1.0 - 2**-24, 1.0]),
    pairs=st.integers(2, 9),
)
def test_hard_negatives_are_never_the_own_pair_or_beyond_the_batch(
    seed: int, spread: float, draw: float, pairs: int
) -> None:
    similarities = torch.randn(pairs, pairs, generator=torch.Generator().manual_seed(seed)) * spread
    own = torch.arange(pairs)
    draws = draw_hard_negatives(similarities, own, torch.full((pairs,), draw))
    assert ((draws != own) & (draws >= 0) & (draws < pairs)).all()


def test_hard_negatives_can_be_drawn_when_all_but_the_own_pair_are_hopeless() -> None:
    draws = draw_hard_negatives(torch.eye(4) * 1000.0, torch.arange(4), torch.rand(4))
    assert (draws != torch.arange(4)).all()


def test_a_pair_alone_has_nothing_to_be_told_from() -> None:
    losses = ask(tiny_batch(1), WITHOUT_WORDS)
    model, batch = tiny_model(), tiny_batch(1)
    logits = model.match_jointly(batch.input_ids, batch.attention_mask, batch.pixel_values, batch.frame_mask)
    assert_same(losses["vtm"], bce(logits, [1]))
    for name in ("vtc", "ttc", "mixed_vtc"):
        assert_same(losses[name], torch.zeros(()).double())


# --- Masked words ---------------------------------------------------------------------------------------------------


def test_masked_words_are_those_of_the_model_given_matched_vision() -> None:
    model, batch = tiny_model(), tiny_batch()
    wanted = model(
        batch.masked_input_ids, batch.attention_mask, batch.pixel_values, batch.frame_mask, mlm_labels=batch.mlm_labels
    )
    found = ask(batch, Objectives({"vtm": 0, "mlm": 1}))
    assert found.keys() == {"mlm"}
    assert_same(found["mlm"], wanted.loss)


def test_a_batch_without_masked_words_has_no_word_loss() -> None:
    batch = replace(tiny_batch(), mlm_labels=torch.full((4, 6), -100))
    assert ask(batch, Objectives({"vtm": 0, "mlm": 1}))["mlm"] == 0.0


@pytest.mark.parametrize(
    ("share", "shown"), [(0.5, [0, 1, 4, 5]), (0.25, [0, 1]), (0.01, [0, 1]), (1.0, list(range(8)))]
)
def test_the_joint_share_is_what_the_joint_objectives_see(share: float, shown: list[int]) -> None:
    """Pairs of neighbours, of which one text is shown the other's vision, at equal distances."""
    batch = tiny_batch(8)
    part = PreTrainingBatch(**{name: value[shown] for name, value in vars(batch).items() if value is not None})
    objectives = Objectives({"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtm": 1, "mixed_vtc": 1})
    found, wanted = ask(batch, replace(objectives, joint_share=share)), ask(part, objectives)
    for name in ("vtm", "mlm"):
        assert_same(found[name], wanted[name])
    global_batch = ask(batch, objectives)
    for name in ("vtc", "mixed_vtm", "mixed_vtc"):
        assert_same(found[name], global_batch[name])


# --- Contrast -------------------------------------------------------------------------------------------------------


def contrast_by_definition(vision: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    total = torch.zeros(()).double()
    for i in range(len(vision)):
        of_text = torch.stack([(scale * vision[i] @ text[j]).exp() for j in range(len(text))])
        of_vision = torch.stack([(scale * text[i] @ vision[j]).exp() for j in range(len(vision))])
        total = total - (of_text[i] / of_text.sum()).log() - (of_vision[i] / of_vision.sum()).log()
    return total / (2 * len(vision))


def test_contrast_is_what_its_definition_says() -> None:
    torch.manual_seed(0)
    vision, text = (torch.nn.functional.normalize(torch.randn(5, 7).double(), dim=1) for _ in range(2))
    scale = torch.tensor(6.0).double()
    found = contrast(scale * text @ vision.T, GlobalBatch((5,)))
    assert_same(found.loss, contrast_by_definition(vision, text, scale))


def test_contrast_is_of_the_multi_streams_vectors() -> None:
    model, batch = tiny_model(), tiny_batch()
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    found = ask(batch, Objectives({"vtm": 0, "mlm": 0, "vtc": 1}))
    assert found.keys() == {"vtc"}
    assert_same(found["vtc"], contrast_by_definition(vision, text, model.logit_scale))


def test_contrast_of_the_mixed_stream_is_over_the_matching_logits_of_all_pairs() -> None:
    model, batch = tiny_model(), tiny_batch(3)
    vision = model.encode_vision(batch.pixel_values, batch.frame_mask)
    text = model.encode_text(batch.input_ids, batch.attention_mask)
    logits = torch.stack([torch.stack([model.match(vision[[c]], text[[q]])[0] for c in range(3)]) for q in range(3)])
    of_texts = -logits.log_softmax(1).diagonal().mean()
    of_clips = -logits.log_softmax(0).diagonal().mean()
    found = ask(batch, Objectives({"vtm": 0, "mlm": 0, "mixed_vtc": 1}))
    assert found.keys() == {"mixed_vtc"}
    assert_same(found["mixed_vtc"], (of_texts + of_clips) / 2)


# --- Contrast, weighed and mixed -------------------------------------------------------------------------------------


def unit_vectors(pairs: int, width: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(
        torch.nn.functional.normalize(torch.randn(pairs, width, generator=draw, dtype=torch.float64), dim=1)
        for _ in range(2)
    )  # type: ignore[return-value]


def mixed_contrast_by_definition(vision: Tensor, text: Tensor, scale: Tensor, gamma: float, mixed: int) -> Tensor:
    """One question at a time: the other side's hardest, in order, and halfway between neighbours."""
    total = torch.zeros(()).double()
    for queries, candidates in ((text, vision), (vision, text)):
        for i, query in enumerate(queries):
            others = sorted(
                (j for j in range(len(candidates)) if j != i), key=lambda j: -(query @ candidates[j]).item()
            )
            made = [candidates[a] + candidates[b] for a, b in pairwise(others)][:mixed]
            negatives = [candidates[j] for j in others] + [one / one.norm() for one in made]
            right = (scale * query @ candidates[i]).exp()
            p = right / (right + sum((scale * query @ one).exp() for one in negatives))
            total = total - (1 - p.detach()) ** gamma * p.log()
    return total / (2 * len(vision))


@pytest.mark.parametrize(("gamma", "mixed"), [(0.5, 0), (2.0, 0), (0.0, 1), (0.0, 3), (1.0, 9)])
def test_contrast_weighs_and_mixes_as_its_definition_says(gamma: float, mixed: int) -> None:
    model, batch = tiny_model(), tiny_batch(6)
    found = losses_of(
        model, batch, Objectives({"vtm": 0, "mlm": 0, "vtc": 1}, focal_gamma=gamma, mixed_negatives=mixed)
    )
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    wanted = mixed_contrast_by_definition(vision, text, model.logit_scale, gamma, mixed)
    assert_same(found["vtc"], wanted)
    assert_same(
        *(torch.autograd.grad(loss, model.contrastive.vision_projection.weight)[0] for loss in (found["vtc"], wanted))
    )


def test_a_question_that_is_answered_counts_for_nothing_and_has_a_gradient_all_the_same() -> None:
    logits = (torch.eye(4).double() * 1000).requires_grad_()
    found = contrast(logits, GlobalBatch((4,)), focal_gamma=0.5)
    found.loss.backward()
    assert found.loss == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_mixed_negatives_are_units_between_neighbours_and_never_the_own_pair() -> None:
    text, vision = unit_vectors(8)
    vision.requires_grad_()
    own = torch.arange(8)
    found = mixed_negatives(text, vision, own, 3)
    assert_same(found.norm(dim=2), torch.ones(8, 3).double())
    order = (text @ vision.T).scatter(1, own[:, None], -torch.inf).argsort(1, descending=True)
    assert_same(found[:, 2], torch.nn.functional.normalize(vision[order[:, 2]] + vision[order[:, 3]], dim=1))
    for row in range(8):
        (gradient,) = torch.autograd.grad(found[row].sum(), vision, retain_graph=True)
        assert set(gradient.abs().sum(1).nonzero().squeeze(1).tolist()) == set(order[row, :4].tolist())


def test_mixed_negatives_make_every_question_harder() -> None:
    batch, vtc = tiny_batch(6), Objectives({"vtm": 0, "mlm": 0, "vtc": 1})
    losses = [ask(batch, replace(vtc, mixed_negatives=count))["vtc"].item() for count in (0, 1, 2, 4)]
    assert losses == sorted(set(losses))


def test_two_pairs_have_nothing_to_mix() -> None:
    batch, vtc = tiny_batch(2), Objectives({"vtm": 0, "mlm": 0, "vtc": 1})
    assert_same(ask(batch, replace(vtc, mixed_negatives=5))["vtc"], ask(batch, vtc)["vtc"])


# --- Structure -------------------------------------------------------------------------------------------------------


def structure_by_definition(frozen: Tensor, trained: Tensor, levels: int) -> Tensor:
    def neighbourhoods(vectors: Tensor) -> Tensor:
        units = torch.stack([vector / vector.norm() for vector in vectors])
        centred = units - units.sum(0) / len(units)
        similarities = (centred @ centred.T / TEMPERATURE).exp()
        return similarities / similarities.sum(1, keepdim=True)

    total = torch.zeros(()).double()
    for level in range(1, levels + 1):
        p, q = (torch.linalg.matrix_power(neighbourhoods(vectors), level) for vectors in (frozen, trained))
        m = (p + q) / 2
        divergence = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / (2 * len(p))
        total = total + divergence / level
    return total / levels


@pytest.mark.parametrize("levels", [1, 3])
def test_structure_is_what_its_definition_says_of_both_sides(levels: int) -> None:
    model, batch = tiny_model(**tiny_encoders()), tiny_batch(6)
    base = model.perceiver_vl
    vectors = torch.nn.functional.normalize(base.encode_frames(batch.pixel_values)[:, :, 0], dim=-1)
    frozen = torch.stack(
        [clip[: int(mask.sum())].mean(0) for clip, mask in zip(vectors, batch.frame_mask, strict=True)]
    )
    sides = (
        (frozen, model.get_vision_features(batch.pixel_values, batch.frame_mask)),
        (
            base.text_encoder(batch.input_ids, batch.attention_mask)[1],
            model.get_text_features(batch.input_ids, batch.attention_mask),
        ),
    )
    found = losses_of(model, batch, Objectives({"vtm": 0, "mlm": 0, "structure": 1}, structure_levels=levels))
    assert found.keys() == {"structure"}
    wanted = torch.stack([structure_by_definition(*side, levels) for side in sides]).mean()
    assert_same(found["structure"], wanted)
    weights = [model.contrastive.vision_projection.weight, model.contrastive.text_projection.weight]
    gradients, by_hand = (torch.autograd.grad(loss, weights) for loss in (found["structure"], wanted))
    for gradient, wanted_gradient in zip(gradients, by_hand, strict=True):
        assert wanted_gradient.abs().max() > 1e-6
        assert_same(gradient, wanted_gradient)


@pytest.mark.parametrize("levels", [1, 4])
def test_structure_asks_nothing_where_neighbourhoods_are_kept(levels: int) -> None:
    frozen, other = unit_vectors(9)
    turned = frozen @ torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)).double())[0]
    kept, _ = structure_divergence(frozen, 3 * turned, GlobalBatch((9,)), levels)
    lost, _ = structure_divergence(frozen, other, GlobalBatch((9,)), levels)
    assert_same(kept, torch.zeros(9).double())
    assert lost.mean() > 1e-3
    assert ((lost > 0) & (lost < math.log(2))).all()


def test_structure_has_gradients_where_a_neighbourhood_is_one_point() -> None:
    frozen = torch.eye(3).repeat(3, 1)  # of single precision
    trained = (100 * torch.eye(9)).requires_grad_()
    structure_divergence(frozen, trained, GlobalBatch((9,)), 2)[0].sum().backward()
    assert trained.grad is not None
    assert trained.grad.isfinite().all()


def test_structure_in_chunks_is_that_of_the_whole() -> None:
    batch, found = tiny_batch(5), []
    for chunk in (None, 2):
        model = tiny_model(**tiny_encoders())
        objectives = Objectives({"vtm": 0, "mlm": 0, "vtc": 1, "structure": 1}, chunk=chunk, structure_levels=2)
        PreTrainingModule(model, replace(objectives, mixed_negatives=2, focal_gamma=1.0))(batch, [FULL])[0].backward()
        found.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_same(found[1][name], gradient)


# --- All together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"modality_aggregation": "separate_plus"}, {"latent_position": "fourier"}])
def test_every_parameter_is_trained_by_the_objectives_together(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLForPreTraining, layer_drop=0.0, **changes).train()
    PreTrainingModule(model, EVERYTHING)(tiny_batch(), [FULL])[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("k_proj.bias"):  # adds the same to all logits of a query, which the softmax takes out again
            assert parameter.grad.abs().max() < 1e-9, name
        else:
            assert parameter.grad.abs().max() > 1e-9, name


def test_the_contrast_of_captions_is_that_of_two_texts() -> None:
    model, batch = tiny_model(), tiny_batch()
    first = model.get_text_features(batch.input_ids, batch.attention_mask)
    second = model.get_text_features(batch.other_input_ids, batch.other_attention_mask)
    logits, own = model.logit_scale * first @ second.T, torch.arange(4)
    by_hand = -(logits.log_softmax(1)[own, own].mean() + logits.log_softmax(0)[own, own].mean()) / 2
    assert_same(ask(batch, Objectives({"vtm": 0, "mlm": 0, "ttc": 1}))["ttc"], by_hand)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_budget_reaches_every_objective(name: str) -> None:
    batch = tiny_stretches() if OBJECTIVES[name].needs_stretches else tiny_batch()
    objectives = Objectives({"vtm": 0.0, "mlm": 0.0, name: 1.0})
    changes = tiny_encoders() if OBJECTIVES[name].needs_frozen_encoders else {"masked_patches": name == "mpm"}
    found = ask(batch, objectives, ComputeBudget(cross_attentions=1), **changes)
    assert differs(found[name], ask(batch, objectives, **changes)[name])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Objectives({"vtm": -1.0}), "objectives.vtm=-1.0"),
        (lambda: Objectives({"vtm": 0, "mlm": 0}), "every weight is 0"),
        (lambda: Objectives({"vtx": 1}), "objectives.vtx=1: unknown, choose from vtm, mlm, vtc"),
        (lambda: Objectives(joint_share=0.0), "objectives.joint_share=0.0"),
        (lambda: Objectives(joint_share=1.1), "objectives.joint_share=1.1"),
        (lambda: Objectives(mlm_probability=0.0), "objectives.mlm_probability=0.0"),
        (lambda: Objectives({"vtc": 1}, focal_gamma=-0.5), "objectives.focal_gamma=-0.5: need 0 or more"),
        (lambda: Objectives({"vtc": 1}, focal_gamma=float("nan")), "objectives.focal_gamma=nan: need 0 or more"),
        (lambda: Objectives({"vtc": 1}, mixed_negatives=-1), "objectives.mixed_negatives=-1: need 0 or more"),
        (lambda: Objectives({"structure": 1}, structure_levels=0), "objectives.structure_levels=0: need 1 or more"),
        (
            lambda: Objectives({"moments": 1}),
            "objectives.moments=1: learns from stretches of video, the others from clip",
        ),
        (
            lambda: Objectives({"vtm": 0, "mlm": 0, "moments": 1}, hard_negatives=True),
            "objectives.hard_negatives=true: is of clips, objectives.moments has its own",
        ),
        (lambda: Objectives({"momentum": 1}, momentum_alpha=1.5), "objectives.momentum_alpha=1.5: need 0 to 1"),
        (lambda: Objectives({"momentum": 1}, queue_size=-1), "objectives.queue_size=-1: need 0 or more"),
        (lambda: Objectives({"mpm": 1}, mpm_ratio=1.0), "objectives.mpm_ratio=1.0: a share, above 0 and below 1"),
        (lambda: Objectives({"mpm": 1}, mpm_targets=0.0), "objectives.mpm_targets=0.0"),
        (lambda: Objectives({"vtc": 1}, vtc_directions="down"), "objectives.vtc_directions=down: unknown, choose"),  # type: ignore[arg-type]
        (lambda: Objectives({"mlm": 0}, alternate=True), "objectives.alternate=true: vtm alone has every turn"),
        (lambda: Objectives(queue_size=8), "objectives.queue_size=8: is of momentum, which has no weight"),
        (lambda: Objectives(mpm_ratio=0.5), "objectives.mpm_ratio=0.5: is of mpm, which has no weight"),
        (lambda: Objectives(vtc_directions="alternate"), "objectives.vtc_directions=alternate: is of vtc"),
        (lambda: Objectives(moment_alignment=1), "objectives.moment_alignment=1: is of moments, which has no weight"),
        (lambda: Objectives(focal_gamma=0.5), "objectives.focal_gamma=0.5: is of vtc, which has no weight"),
        (lambda: Objectives(mixed_negatives=2), "objectives.mixed_negatives=2: is of vtc, which has no weight"),
        (lambda: Objectives(structure_levels=2), "objectives.structure_levels=2: is of structure, which has no"),
    ],
)
def test_weights_and_shares_that_cannot_work_are_refused(make: Callable[[], Objectives], named: str) -> None:
    with pytest.raises(UsageError, match=r"^objectives[^\n]+$") as refused:
        make()
    assert named in str(refused.value)


# --- Chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_a_batch_in_chunks_has_the_losses_and_gradients_of_the_whole(chunk: int) -> None:
    batch = tiny_batch(5)
    found = []
    for objectives in (EVERYTHING, replace(EVERYTHING, chunk=chunk)):
        model = tiny_model(layer_drop=0.5).train()
        model.seed_layer_drop(3)  # as in training: one draw for all forwards of a step
        loss, losses = PreTrainingModule(model, objectives)(batch, [FULL])
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append((losses, gradients))
    for global_batch, chunked in zip(*found, strict=True):
        assert global_batch.keys() == chunked.keys()
        for name in global_batch:
            assert_same(chunked[name], global_batch[name])


def test_a_chunk_bounds_what_the_backward_pass_keeps() -> None:
    kept = {}
    for chunk in (None, 2):
        model, batch = tiny_model(), tiny_batch(16)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss, _ = PreTrainingModule(model, replace(EVERYTHING, chunk=chunk))(batch, [FULL])
        kept[chunk] = sum(sizes)
        loss.backward()
    assert kept[2] < kept[None] / 3
