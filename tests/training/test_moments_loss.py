"""The objective of moments, against what its definition says: direct decoding of the latents of every window."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, PerceiverVLForPreTraining
from perceiver_vl.layers.partial_attention import every_window
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.losses.moments import alignment, crowds_of, right_shares
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.statistics import pretraining_flops
from tiny import assert_same, tiny_model, tiny_stretches

MOMENTS = Objectives({"vtm": 0, "mlm": 0, "moments": 1})
FULL = ComputeBudget()


def loss_of(model: PerceiverVLForPreTraining, batch: PreTrainingBatch, objectives: Objectives = MOMENTS) -> Tensor:
    loss: Tensor = PreTrainingModule(model, objectives)(batch, [FULL])[0]
    return loss


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    common = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return common / (first[1] - first[0] + second[1] - second[0] - common)


def by_definition(model: PerceiverVLForPreTraining, batch: PreTrainingBatch) -> Tensor:
    """Window for window, each decoded from the latents of all its segments, those that are alike sharing their part."""
    assert batch.edges is not None
    assert batch.moments is not None
    losses = []
    for text in range(len(batch)):
        scores, overlaps = [], []
        words = model.encode_text(batch.input_ids[text : text + 1], batch.attention_mask[text : text + 1])
        for stretch in range(len(batch)):
            latents = model.encode_vision(batch.pixel_values[stretch], batch.frame_mask[stretch])
            vectors, edges = model.pool_vision(latents), batch.edges[stretch].tolist()
            real = [
                (first, after)
                for first, after in itertools.combinations(range(len(edges)), 2)
                if edges[after] > edges[after - 1]
            ]
            times = {window: (edges[window[0]], edges[window[1]]) for window in real}
            for first, after in real:
                mean = vectors[first:after].mean(0)
                score = model.logit_scale * model.pool_text(words)[0] @ mean / mean.norm()
                score = score + model.match(latents[first:after].flatten(0, 1)[None], words)[0]
                if model.length_weight is not None:
                    score = score + model.length_weight * math.log(edges[after] - edges[first])
                like = sum(max(0.0, 2 * overlap(times[first, after], other) - 1) for other in times.values())
                scores.append(score - math.log(like))
                shown = [
                    (max(start, 0.0), min(end, edges[-1])) for start, end in batch.moments[text].tolist() if end > start
                ]
                own = stretch == text
                overlaps.append(max(overlap(times[first, after], one) for one in shown) if own else 0.0)
        shares = [max(0.0, one - 0.5) for one in overlaps]
        if not any(shares):
            shares = [float(one == max(overlaps)) for one in overlaps]
        losses.append(-(torch.tensor(shares) / sum(shares) * torch.stack(scores).log_softmax(0)).sum())
    return torch.stack(losses).mean()


def alignment_by_definition(model: PerceiverVLForPreTraining, batch: PreTrainingBatch) -> Tensor:
    """Segment for segment of a caption's own stretch, by how much of each some moment of it fills."""
    assert batch.edges is not None
    assert batch.moments is not None
    total = torch.zeros(()).double()
    for row in range(len(batch)):
        words = model.get_text_features(batch.input_ids[row : row + 1], batch.attention_mask[row : row + 1])[0]
        vectors, edges = model.get_vision_features(batch.pixel_values[row], batch.frame_mask[row]), batch.edges[row]
        odds, right = torch.zeros(()).double(), torch.zeros(()).double()
        for vector, begin, end in zip(vectors, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if end > begin:
                filled = sum(
                    max(0.0, min(end, after) - max(begin, start)) for start, after in batch.moments[row].tolist()
                )
                odds = odds + (model.logit_scale * vector @ words).exp()
                right = right + min(1.0, filled / (end - begin)) * (model.logit_scale * vector @ words).exp()
        total = total - (right / odds).log()
    return total / len(batch)


@pytest.mark.parametrize("changes", [{}, {"length_weight": True}])
def test_moments_are_what_their_definition_says(changes: dict[str, Any]) -> None:
    batch, model = tiny_stretches(), tiny_model(PerceiverVLForPreTraining, **changes)
    assert (model.length_weight is not None) == bool(changes)
    assert_same(loss_of(model, batch), by_definition(model, batch), 1e-6)
    aligned = loss_of(model, batch, replace(MOMENTS, moment_alignment=0.3))
    assert_same(aligned, by_definition(model, batch) + 0.3 * alignment_by_definition(model, batch), 1e-6)
    short = replace(batch, moments=batch.moments / 20)  # type: ignore[arg-type, operator]  # shorter than any segment
    assert_same(loss_of(model, short), by_definition(model, short), 1e-6)


def test_what_only_fills_up_changes_nothing() -> None:
    batch, model = tiny_stretches(), tiny_model(PerceiverVLForPreTraining, length_weight=True)
    other = batch.pixel_values.clone()
    other[0, -1] = 3.0
    assert_same(loss_of(model, batch), loss_of(model, replace(batch, pixel_values=other)))
    other[0, 0] = 3.0
    assert loss_of(model, batch) != loss_of(model, replace(batch, pixel_values=other))


@pytest.mark.parametrize("chunk", [1, 3])
def test_moments_in_chunks_have_the_loss_and_gradients_of_the_whole(chunk: int) -> None:
    found = []
    for objectives in (MOMENTS, replace(MOMENTS, chunk=chunk)):
        model = tiny_model(PerceiverVLForPreTraining, length_weight=True).train()
        model.seed_layer_drop(3)  # as in training: one draw for all forwards of a step
        loss = loss_of(model, tiny_stretches(), objectives)
        loss.backward()
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        assert gradients["contrastive.length_weight"].abs() > 0
        found.append({"loss": loss, **gradients})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert_same(found[1][name], value)


def test_who_overlaps_more_than_half_shares_in_being_right() -> None:
    starts, ends = every_window(4)
    edges = torch.tensor([0.0, 2, 4, 6, 8])
    begin, end = edges[starts][None], edges[ends][None]
    names = [(int(first), int(last)) for first, last in zip(begin[0], end[0], strict=True)]

    def shares(*moments: tuple[float, float]) -> dict[tuple[int, int], float]:
        found = right_shares(begin, end, torch.tensor([moments]))[0].tolist()
        assert sum(found) == pytest.approx(1)
        return {name: share for name, share in zip(names, found, strict=True) if share}

    assert shares((2.0, 4.0)) == {(2, 4): 1.0}
    assert shares((2.0, 6.0), (0.0, 0.0)) == pytest.approx({(2, 6): 0.6, (0, 6): 0.2, (2, 8): 0.2})
    assert shares((2.1, 2.3)) == {(2, 4): 1.0}  # shorter than any window
    assert shares((6.0, 99.0)) == {(6, 8): 1.0}  # as far as it is shown
    assert set(shares((0.0, 2.0), (6.0, 8.0))) == {(0, 2), (6, 8)}


def test_windows_that_are_alike_count_as_one() -> None:
    starts, ends = every_window(16)
    edges = torch.cat([torch.arange(16.0), torch.tensor([15.0])])  # the last only fills up
    begin = edges[starts][None]
    end = torch.where(ends == 16, begin, edges[ends][None])
    crowds = crowds_of(begin, end)[0]
    lengths = (end - begin)[0]
    assert (crowds[lengths <= 1] == 1).all()  # no two of one segment overlap
    middle = ((begin + end) / 2)[0] == 7.5
    inside = crowds[middle & (lengths <= 7)]
    assert (inside[1:] > inside[:-1]).all()  # the longer, the more are like it
    times = list(zip(begin[0].tolist(), end[0].tolist(), strict=True))
    wanted = sum(max(0.0, 2 * overlap((5.0, 10.0), other) - 1) for other in times if other[1] > other[0])
    assert crowds[times.index((5.0, 10.0))].item() == pytest.approx(wanted)


def test_operations_are_those_that_are_counted() -> None:
    batch = tiny_stretches()
    model = PerceiverVLForPreTraining(tiny_model(hidden_size=64, layer_drop=0.0, num_text_latents=6).config).train()
    model.requires_grad_(False)
    given = {
        name: value.float() if value.is_floating_point() else value
        for name, value in vars(batch).items()
        if value is not None
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        PreTrainingModule(model, MOMENTS)(PreTrainingBatch.from_dict(given), [FULL])
    assert pretraining_flops(model.config, given, MOMENTS) / 3 == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_segments_that_are_all_inside_or_all_outside_teach_no_alignment() -> None:
    edges = torch.tensor([[0.0, 2.0, 4.0, 4.0]]).expand(4, -1)
    moments = torch.tensor([[[0.0, 9.0]], [[5.0, 6.0]], [[0.0, 2.0]], [[1.0, 2.0]]])
    cosines = torch.tensor([[1.0, 3.0, 50.0]]).repeat(4, 1).requires_grad_()
    found, logits = alignment(cosines, edges, moments)
    shares = torch.tensor([1.0, 3.0]).softmax(0)
    torch.testing.assert_close(
        found, torch.stack([found[0] * 0, found[0] * 0, -shares[0].log(), -(shares[0] / 2).log()])
    )
    found.sum().backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()
    assert (cosines.grad[2] * torch.tensor([-1.0, 1.0, 0.0]) >= 0).all()  # towards the words inside, away outside
    assert cosines.grad[2, 0] < -0.1
    assert logits[0, 2] < -1e3
