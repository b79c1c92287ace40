"""MPM, masked patch modelling: what do the patches that were masked show? By the joint encoding of the others and the
words.

The vision side of what MLM asks of words (MoCa, Chen et al. 2025), as 4M has it (Mizrahi et al. 2023): a random subset
of the tokens goes in, and queries ask for a random subset of the rest. Masked patches are taken out, not covered (MAE,
He et al. 2022), so that a step costs less the more is masked.
Shapes: R rows that are encoded jointly, T frames, P patches a frame, V values of one, K tokens that are seen, Q patches
that are asked for.
"""

from dataclasses import replace
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.layers.token_selection import seen_and_asked
from perceiver_vl.models.budget import ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining
from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, in_pieces


class MPM(Objective):
    """On matched pairs, words intact: the mean squared error over the values of the patches of real frames that are
    asked for.
    """

    needs_patch_draws = True
    needs_decoder = True
    compares_pairs = False

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Of the pairs that are encoded jointly; numbers `(·,V)` of the patches that are asked for."""
        inputs, rows, joint, model = batch.inputs, batch.joint_rows, batch.joint_batch, batch.model
        assert inputs.patch_draws is not None
        pixel_values, budget = inputs.pixel_values, all_frames(batch.budget)
        frames, targets = pixel_values.shape[1], patch_targets(model, pixel_values[rows], batch.options.mpm_normed)
        patches = targets.shape[1] // frames
        side, class_token = isqrt(patches), model.config.frame_class_token
        drawn = [
            seen_and_asked(
                frames, class_token + patches, 1 - batch.options.mpm_ratio, batch.options.mpm_targets, draw, class_token
            )
            for draw in inputs.patch_draws[rows].tolist() or [0]
        ]
        seen, asked = (torch.stack(places)[: len(rows)].to(rows.device) for places in zip(*drawn, strict=True))

        def predict(rows: Tensor, seen: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
            array = model.perceiver_vl.embed_inputs(
                inputs.input_ids[rows], inputs.attention_mask[rows], pixel_values[rows], inputs.frame_mask[rows], budget
            )
            assert array.vision is not None
            assert array.vision_mask is not None
            is_real = array.vision_mask.gather(1, asked)
            array.vision = array.vision.gather(1, seen[..., None].expand(-1, -1, array.vision.shape[2]))
            array.vision_mask = array.vision_mask.gather(1, seen)
            places = without_class_tokens(asked, patches, class_token)
            return model.decode_masked_patches(model.perceiver_vl.encode(array, budget), places, (side, side)), is_real

        predicted, is_real = in_pieces(predict, joint.pieces(batch.chunk), rows, seen, asked)
        places = without_class_tokens(asked, patches, class_token)
        wanted = targets.gather(1, places[..., None].expand(-1, -1, targets.shape[2]))[is_real]
        logits = predicted[is_real].to(wanted.dtype)
        count = joint.summed(is_real.sum()).clamp(min=1) * targets.shape[2]
        values = joint.mean_of(count.to(wanted.dtype))
        return ObjectiveOutput(F.mse_loss(logits, wanted, reduction="sum") / values, (logits,), "numbers", values)

    def flops(self, batch: BatchFlops) -> float:
        """The joint encodings of what is seen, and the decoding of what is asked for."""
        return batch.joint_examples * batch.masked_joint


def all_frames(budget: ComputeBudget) -> ComputeBudget:
    """A budget without the dials that take patches away, which this objective does itself."""
    if isinstance(budget, TrainingBudget):
        return replace(budget, frames=None, token_share=1.0)
    return replace(budget, frames=None)


@torch.no_grad()
def patch_targets(model: PerceiverVLForPreTraining, pixel_values: Tensor, normed: bool) -> Tensor:
    """What every patch of clips `(R,T,3,H,W)` shows, in raster order `(R,T·P,V)`: its pixels; over a frozen encoder,
    whose frames `(R,T,1+P,W)` come in their place, its tokens. `normed`: each of mean 0 and variance 1, as MAE learns
    most by; else as large as they are, so that what is nearly plain counts little.
    """
    config = model.config
    if config.vision_config is None:
        p = config.patch_size
        cut = pixel_values.unflatten(3, (-1, p)).unflatten(5, (-1, p))  # (R,T,3,rows,p,columns,p)
        values = cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
    else:
        tokens = pixel_values[:, :, 1 + config.frame_class_token :]
        values = tokens[..., : model.perceiver_vl.embeddings.vision.token_projection.width].flatten(1, 2)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return F.layer_norm(values, values.shape[-1:], eps=1e-6) if normed else values


def without_class_tokens(places: Tensor, patches: int, class_token: bool) -> Tensor:
    """Places among all tokens of a clip, none of a class token, as places among its patches alone."""
    first = int(class_token)
    return places - first - first * (places // (patches + first))
