"""What pre-training and retrieval training ask of a model: (model, batch) → losses.

VTM, does this text belong to this vision (paper 4.1); MLM, which words were masked (paper 4.1); VTC, which of the
batch's texts belongs to which vision, by the multi-stream's dot product (ALBEF, Li et al. 2021: what the paper leaves
out, so that its multi-stream has no objective of its own); TTC, the same between two captions of a clip (the contrast
within a modality of TCL, Yang et al. 2022): words that tell clips apart are told apart before vision knows them. VTM
and VTC are also asked of the mixed stream: does this pair match by its cached encodings, and which of the batch's pairs
match best (the in-batch softmax of Poly-encoders, Humeau et al. 2020).
Shapes: B batch, L text tokens, N latents, D width, E retrieval vector.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint

from perceiver_vl.budget import ComputeBudget
from perceiver_vl.errors import UsageError
from perceiver_vl.model.perceiver_vl import PerceiverVLForPreTraining, masked_word_loss, matching_loss

WEIGHTS = ("vtm", "mlm", "vtc", "ttc", "mixed_vtm", "mixed_vtc")
"""The objectives that can be weighted, by name."""


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives, 0 leaves one out; the default is the paper's own pair, VTM + MLM.

    `hard_negatives`: VTM's negatives are drawn by contrastive similarity, likely ones first, instead of at random.
    `joint_share`: share of each batch that the objectives with a joint encoding (vtm, mlm) see; they cost most.
    `chunk`: encode and match so many examples at a time, and again in the backward pass (GradCache, Gao et al. 2021):
    the loss and gradients of the whole batch in the memory of a chunk, at a third more work.
    """

    vtm: float = 1.0
    mlm: float = 1.0
    vtc: float = 0.0
    ttc: float = 0.0
    mixed_vtm: float = 0.0
    mixed_vtc: float = 0.0
    hard_negatives: bool = False
    mlm_probability: float = 0.15
    joint_share: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in WEIGHTS}
        for name, weight in weights.items():
            if weight < 0:
                raise UsageError(f"objectives.{name}={weight}: a weight cannot be negative, 0 leaves the objective out")
        if not any(weights.values()):
            raise UsageError(f"objectives: every weight is 0, give at least one of {', '.join(weights)}")
        for name in ("mlm_probability", "joint_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"objectives.{name}={getattr(self, name)}: a share, above 0 and at most 1")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"objectives.chunk={self.chunk}: need at least one example at a time")


@dataclass
class PreTrainingBatch:
    """One batch of matched pairs, with the draws that the objectives need (made by the collator, from the seed).

    `input_ids (B,L)`, `attention_mask (B,L)`, `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)`;
    `masked_input_ids (B,L)` and `mlm_labels (B,L)` (-100 where nothing is predicted);
    `other_input_ids (B,L)` and `other_attention_mask (B,L)`: another caption of each clip (the same if it has one);
    `vtm_donors (B,)`: whose vision each pair is shown (its own: a positive), exactly half others'.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    frame_mask: Tensor
    masked_input_ids: Tensor
    mlm_labels: Tensor
    other_input_ids: Tensor
    other_attention_mask: Tensor
    vtm_donors: Tensor

    @classmethod
    def from_dict(cls, batch: dict[str, Tensor]) -> "PreTrainingBatch":
        """From the collator's dictionary."""
        return cls(**{field.name: batch[field.name] for field in fields(cls)})


def pretraining_losses(
    model: PerceiverVLForPreTraining, batch: PreTrainingBatch, objectives: Objectives, budget: ComputeBudget
) -> dict[str, Tensor]:
    """Every objective whose weight is not 0, by name, unweighted; vision is encoded once for all that can share it."""
    losses: dict[str, Tensor] = {}
    donors, chunk = batch.vtm_donors, objectives.chunk

    def encode_vision(pixel_values: Tensor, frame_mask: Tensor) -> Tensor:
        return model.encode_vision(pixel_values, frame_mask, budget)

    def encode_text(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model.encode_text(input_ids, attention_mask, budget)

    if any((objectives.vtc, objectives.ttc, objectives.mixed_vtm, objectives.mixed_vtc, objectives.hard_negatives)):
        vision_latents = in_chunks(encode_vision, chunk, batch.pixel_values, batch.frame_mask)
        text_latents = in_chunks(encode_text, chunk, batch.input_ids, batch.attention_mask)
        vision_features, text_features = model.pool_vision(vision_latents), model.pool_text(text_latents)
        if objectives.vtc:
            losses["vtc"] = contrastive_loss(vision_features, text_features, model.logit_scale)
        if objectives.ttc:
            others = in_chunks(encode_text, chunk, batch.other_input_ids, batch.other_attention_mask)
            losses["ttc"] = contrastive_loss(model.pool_text(others), text_features, model.logit_scale)
        if objectives.hard_negatives:
            similarities = model.logit_scale * text_features @ vision_features.T
            hard = draw_hard_negatives(similarities)
            donors = torch.where(donors == torch.arange(len(donors), device=donors.device), donors, hard)
        else:
            hard = torch.arange(len(donors), device=donors.device).roll(1)
        if objectives.mixed_vtm:
            losses["mixed_vtm"] = mixed_matching_loss(model, vision_latents, text_latents, hard, chunk)
        if objectives.mixed_vtc:
            losses["mixed_vtc"] = mixed_contrastive_loss(model, vision_latents, text_latents, chunk)

    shown = max(2, round(objectives.joint_share * len(donors)))
    if objectives.vtm:
        losses["vtm"] = single_matching_loss(model, batch, donors, shown, budget, chunk)
    if objectives.mlm:
        losses["mlm"] = joint_masked_word_loss(model, batch, shown, budget, chunk)
    return losses


def in_chunks(compute: Callable[..., Tensor], chunk: int | None, *tensors: Tensor) -> Tensor:
    """`compute(*tensors)` over the examples (dimension 0), `chunk` at a time; None: all at once.

    Chunks keep their inputs and outputs alone, and are computed again, one after the other, in the backward pass.
    """
    if chunk is None or chunk >= len(tensors[0]):
        return compute(*tensors)
    parts = zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(compute, *part, use_reentrant=False) for part in parts])


def contrastive_loss(features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """VTC, TTC: symmetric cross-entropy over the batch's similarities, gathered across processes. `(B,E)`, `(B,E)`."""
    own = own_places(features)
    to_text = logit_scale * features @ gathered(text_features).T
    from_text = logit_scale * text_features @ gathered(features).T
    return (F.cross_entropy(to_text, own) + F.cross_entropy(from_text, own)) / 2


def gathered(mine: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to each. Alone: what was given."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its successor is private still
            return torch.cat(all_gather(mine))
    return mine


def own_places(mine: Tensor) -> Tensor:
    """Where this process's rows stand among the gathered ones."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(len(mine), device=mine.device) + rank * len(mine)


@torch.no_grad()
def draw_hard_negatives(similarities: Tensor) -> Tensor:
    """For each text another vision of the batch, drawn by the softmax of the similarities `(B,B)` (ALBEF) → `(B,)`."""
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    weights = similarities.masked_fill(own, -torch.inf).softmax(dim=1)  # before, lest a sure pair leave nothing
    return torch.multinomial(weights, num_samples=1).squeeze(1)


def mixed_matching_loss(
    model: PerceiverVLForPreTraining,
    vision_latents: Tensor,
    text_latents: Tensor,
    donors: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """VTM in the mixed stream: every pair once as it is, once with its donor's vision; the encodings are shared."""
    vision = torch.cat([vision_latents, vision_latents[donors]])
    logits = in_chunks(model.match, chunk, vision, torch.cat([text_latents, text_latents]))
    labels = torch.cat([torch.ones(len(donors)), torch.zeros(len(donors))]).to(logits.device)
    return matching_loss(logits, labels)


def mixed_contrastive_loss(
    model: PerceiverVLForPreTraining, vision_latents: Tensor, text_latents: Tensor, chunk: int | None = None
) -> Tensor:
    """VTC in the mixed stream: symmetric cross-entropy over the matching logits of this process's batch."""
    logits = in_chunks(lambda text: model.match_all(vision_latents, text), chunk, text_latents)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def single_matching_loss(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    donors: Tensor,
    shown: int,
    budget: ComputeBudget,
    chunk: int | None = None,
) -> Tensor:
    """VTM as published: the text of the first `shown` pairs, unmasked, each with its donor's vision."""
    donors = donors[:shown]

    def match(input_ids: Tensor, attention_mask: Tensor, donors: Tensor) -> Tensor:
        return model.match_jointly(
            input_ids, attention_mask, batch.pixel_values[donors], batch.frame_mask[donors], budget
        )

    logits = in_chunks(match, chunk, batch.input_ids[:shown], batch.attention_mask[:shown], donors)
    return matching_loss(logits, donors == torch.arange(shown, device=donors.device))


def joint_masked_word_loss(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    shown: int,
    budget: ComputeBudget,
    chunk: int | None = None,
) -> Tensor:
    """MLM on the first `shown` pairs, all matched, vision intact; the vocabulary is scored where words are missing
    only.
    """
    labels = batch.mlm_labels[:shown]
    is_masked = labels != -100

    def answer(ids: Tensor, mask: Tensor, pixel_values: Tensor, frame_mask: Tensor, is_masked: Tensor) -> Tensor:
        encoded = model.perceiver_vl(ids, mask, pixel_values, frame_mask, budget)
        return model.decode_masked_words(encoded.last_hidden_state, is_masked)

    vision = batch.pixel_values[:shown], batch.frame_mask[:shown]
    answers = in_chunks(answer, chunk, batch.masked_input_ids[:shown], batch.attention_mask[:shown], *vision, is_masked)
    return masked_word_loss(model.mlm_head(answers[is_masked]), labels[is_masked])
