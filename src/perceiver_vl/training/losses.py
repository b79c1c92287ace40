"""What pre-training and retrieval training ask of a model: (model, batch) → losses.

VTM, does this text belong to this vision (paper 4.1); MLM, which words were masked (paper 4.1); VTC, which of the
batch's texts belongs to which vision, by the multi-stream's dot product (ALBEF, Li et al. 2021: what the paper leaves
out, so that its multi-stream has no objective of its own); TTC, the same between two captions of a clip (the contrast
within a modality of TCL, Yang et al. 2022): words that tell clips apart are told apart before vision knows them. VTM
and VTC are also asked of the mixed stream: does this pair match by its cached encodings, and which of the batch's pairs
match best (the in-batch softmax of Poly-encoders, Humeau et al. 2020).
In several processes the batch is that of all of them: each has its part of every loss, and the mean of the parts is the
loss of the whole batch, with its gradients.
Shapes: B batch, ΣB that of all processes, L text tokens, D width, H heads, E retrieval vector.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import ceil
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl.pretraining import PerceiverVLForPreTraining
from perceiver_vl.utils.distributed import GlobalBatch, global_batches
from perceiver_vl.utils.errors import UsageError

Computed = TypeVar("Computed", Tensor, tuple[Tensor, ...])

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
    `negative_draws (B,)` float32 in [0, 1): which of the others each text takes for its hard negative.
    The order is random: VTM shows every second text the vision of its neighbour.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    frame_mask: Tensor
    masked_input_ids: Tensor
    mlm_labels: Tensor
    other_input_ids: Tensor
    other_attention_mask: Tensor
    negative_draws: Tensor

    @classmethod
    def from_dict(cls, batch: dict[str, Tensor]) -> "PreTrainingBatch":
        """From the collator's dictionary."""
        return cls(**{field.name: batch[field.name] for field in fields(cls)})

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids)


@dataclass(frozen=True)
class ObjectiveOutput:
    """What came of asking: the loss, and the logits that it is made of.

    `kind` of each of the logits: of classes `(…,K)`; of yes or no, each by itself, `(B,)` or `(B,K)`; numbers `(B,1)`.
    `rows`: what a sum over this process's rows is divided by, so that the mean over the processes is that of all rows;
    None: as many as there are.
    """

    loss: Tensor
    logits: tuple[Tensor, ...]
    kind: Literal["classes", "yes_or_no", "numbers"] = "classes"
    rows: float | Tensor | None = None


def pretraining_losses(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    objectives: Objectives,
    budget: ComputeBudget,
    global_batch: GlobalBatch | None = None,
) -> dict[str, Tensor]:
    """Every objective whose weight is not 0, by name, unweighted; each side is encoded once for all that can share it.

    `whole`: the batch of all processes, of which this is a part; None: ask them.
    """
    answered, _ = pretraining_answers(model, batch, objectives, budget, global_batch=global_batch)
    return {name: one.loss for name, one in answered.items()}


def pretraining_answers(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    objectives: Objectives,
    budget: ComputeBudget,
    hard: Tensor | None = None,
    global_batch: GlobalBatch | None = None,
) -> tuple[dict[str, ObjectiveOutput], Tensor | None]:
    """What `pretraining_losses` sums up, and the hard negatives `(B,)` that were drawn for it, where there are some.

    `hard`: those of another budget on the same batch, whose answers are to be compared.
    """
    answered: dict[str, ObjectiveOutput] = {}
    device, chunk = batch.input_ids.device, objectives.chunk
    if global_batch is None:
        [global_batch] = global_batches([len(batch)], device)
    pieces = global_batch.pieces(chunk)
    places = global_batch.places.to(device)
    donors, negatives = places - places % 2, (places - 1) % max(1, global_batch.total)
    contrasts = bool(objectives.vtc or objectives.ttc or objectives.hard_negatives)
    mixes = bool(objectives.mixed_vtm or objectives.mixed_vtc)

    def kept_of(latents: Tensor, pool: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        """What the contrasts `(B,E)` and the mixed stream `(B,D+H)` need of an encoding, as far as they are asked."""
        return (*([pool(latents)] if contrasts else []), *([model.partial_match(latents)] if mixes else []))

    def see(pixel_values: Tensor, frame_mask: Tensor) -> tuple[Tensor, ...]:
        return kept_of(model.encode_vision(pixel_values, frame_mask, budget), model.pool_vision)

    def read(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return kept_of(model.encode_text(input_ids, attention_mask, budget), model.pool_text)

    def pooled(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model.pool_text(model.encode_text(input_ids, attention_mask, budget))

    if contrasts or mixes:
        vision = in_pieces(see, pieces, batch.pixel_values, batch.frame_mask)
        text = in_pieces(read, pieces, batch.input_ids, batch.attention_mask)
        if objectives.vtc:
            answered["vtc"] = _contrast(vision[0], text[0], model.logit_scale, global_batch)
        if objectives.ttc:
            others = in_pieces(pooled, pieces, batch.other_input_ids, batch.other_attention_mask)
            answered["ttc"] = _contrast(others, text[0], model.logit_scale, global_batch)
        if objectives.hard_negatives:
            if hard is None:
                similarities = model.logit_scale * text[0].detach() @ global_batch.rows(vision[0].detach()).T
                hard = draw_hard_negatives(similarities, places, batch.negative_draws)
            negatives = hard
            donors = torch.where(donors == places, donors, hard)
        if mixes:
            clips = global_batch.rows(vision[-1])
        if objectives.mixed_vtm:
            answered["mixed_vtm"] = _mixed_matching(model, clips, text[-1], negatives, global_batch, chunk)
        if objectives.mixed_vtc:
            answered["mixed_vtc"] = _mixed_contrast(model, clips, text[-1], global_batch, chunk)

    shown = shown_jointly(global_batch.total, objectives.joint_share)
    rows, joint = shown[global_batch.own].nonzero().squeeze(1).to(device), global_batch.marked(shown)
    if objectives.vtm:
        answered["vtm"] = _single_matching(model, batch, rows, donors, budget, global_batch, joint, chunk)
    if objectives.mlm:
        answered["mlm"] = _joint_masked_words(model, batch, rows, budget, joint, chunk)
    return answered, hard


def in_pieces(compute: Callable[..., Computed], pieces: int, *tensors: Tensor) -> Computed:
    """`compute(*tensors)` over the examples (dimension 0), in so many pieces.

    Pieces keep their inputs and outputs alone, and are computed again, one after the other, in the backward pass.
    """
    if pieces == 1:
        return compute(*tensors)
    parts = zip(*(tensor.tensor_split(pieces) for tensor in tensors), strict=True)
    found: list[Any] = [checkpoint(compute, *part, use_reentrant=False) for part in parts]
    if isinstance(found[0], tuple):
        return tuple(torch.cat(outputs) for outputs in zip(*found, strict=True))  # type: ignore[return-value]
    return torch.cat(found)  # type: ignore[return-value]


def contrastive_loss(
    features: Tensor, text_features: Tensor, logit_scale: Tensor, global_batch: GlobalBatch | None = None
) -> Tensor:
    """VTC, TTC: symmetric cross-entropy over the similarities of unit vectors `(B,E)`, `(B,E)` of all processes."""
    if global_batch is None:
        [global_batch] = global_batches([len(features)], features.device)
    return _contrast(features, text_features, logit_scale, global_batch).loss


def _contrast(
    features: Tensor, text_features: Tensor, logit_scale: Tensor, global_batch: GlobalBatch
) -> ObjectiveOutput:
    return _in_batch(logit_scale * text_features @ global_batch.rows(features).T, global_batch)


def _in_batch(logits: Tensor, global_batch: GlobalBatch) -> ObjectiveOutput:
    """Symmetric cross-entropy: each text belongs to the vision at its own place, among all, and the reverse.

    `logits (B,ΣB)`: of this process's texts with the vision of all processes. No logit is computed twice: what the
    other texts say of a vision is in the log-sum-exp that each process has of its texts.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = global_batch.places.to(logits.device)
    right = logits.gather(1, own[:, None]).squeeze(1)
    of_vision = global_batch.one_each.rows(logits.logsumexp(0)[None]).logsumexp(0)[own]
    rows = global_batch.mean_of(global_batch.total)
    return ObjectiveOutput(((logits.logsumexp(1) + of_vision) / 2 - right).sum() / rows, (logits,), "classes", rows)


@torch.no_grad()
def draw_hard_negatives(similarities: Tensor, own: Tensor, draws: Tensor) -> Tensor:
    """For each text another vision, drawn by the softmax of the similarities `(B,ΣB)` (ALBEF) → its place `(B,)`.

    `own (B,)`: the place of each text's own vision; `draws (B,)` uniform in [0, 1), one each. The only vision that
    there is stays its own negative.
    """
    if similarities.shape[1] < 2:
        return own
    others = similarities.scatter(1, own[:, None], -torch.inf)  # before, lest a sure pair leave nothing
    until = others.to(torch.promote_types(others.dtype, torch.float32)).softmax(1).cumsum(1)
    drawn = torch.searchsorted(until, draws[:, None].to(until) * until[:, -1:], right=True).squeeze(1)
    return torch.where(drawn < until.shape[1], drawn, others.argmax(1))  # rounded up to 1


def mixed_matching_loss(
    model: PerceiverVLForPreTraining, clips: Tensor, texts: Tensor, donors: Tensor, global_batch: GlobalBatch
) -> Tensor:
    """VTM in the mixed stream: every text once with its own vision, once with that at the place `donors (B,)`.

    `clips (ΣB,D+H)` of all processes and `texts (B,D+H)` as `partial_match` has them.
    """
    return _mixed_matching(model, clips, texts, donors, global_batch, None).loss


def _mixed_matching(
    model: PerceiverVLForPreTraining,
    clips: Tensor,
    texts: Tensor,
    donors: Tensor,
    global_batch: GlobalBatch,
    chunk: int | None,
) -> ObjectiveOutput:
    own = global_batch.places.to(donors.device)
    pairs, pieces = clips[torch.cat([own, donors])], global_batch.pieces(None if chunk is None else ceil(chunk / 2))
    logits = in_pieces(model.merge_matches, pieces, pairs, torch.cat([texts, texts]))
    return _matching(
        logits, torch.cat([torch.ones_like(own, dtype=torch.bool), donors == own]), 2 * global_batch.total, global_batch
    )


def _matching(logits: Tensor, matches: Tensor, count: int, global_batch: GlobalBatch) -> ObjectiveOutput:
    """Binary cross-entropy of logits `(R,)`, `count` of them in all processes."""
    rows = global_batch.mean_of(count)
    surprise = F.binary_cross_entropy_with_logits(logits, matches.to(logits.dtype), reduction="sum")
    return ObjectiveOutput(surprise / rows, (logits,), "yes_or_no", rows)


def _mixed_contrast(
    model: PerceiverVLForPreTraining, clips: Tensor, texts: Tensor, global_batch: GlobalBatch, chunk: int | None
) -> ObjectiveOutput:
    """VTC in the mixed stream, by the matching logits of all pairs; arguments as of `mixed_matching_loss`."""
    matched = in_pieces(lambda some: model.merge_matches(clips, some[:, None]), global_batch.pieces(chunk), texts)
    return _in_batch(matched, global_batch)


def shown_jointly(examples: int, share: float) -> Tensor:
    """Which of a batch's examples the joint objectives see, bool `(ΣB,)`: pairs of neighbours, at equal distances.

    So that as many of them match as do not, and that all processes have about as many of them.
    """
    pairs = (examples + 1) // 2
    shown = max(1, round(share * pairs))
    return torch.isin(torch.arange(examples) // 2, torch.arange(shown) * pairs // shown)


def _single_matching(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    rows: Tensor,
    donors: Tensor,
    budget: ComputeBudget,
    global_batch: GlobalBatch,
    joint: GlobalBatch,
    chunk: int | None,
) -> ObjectiveOutput:
    """VTM as published: the text at `rows (R,)`, unmasked, each with the vision at its place of `donors (B,)`.

    `joint`: such rows in all processes.
    """
    places, donors = global_batch.places.to(donors.device)[rows], donors[rows]
    pixel_values, where = global_batch.fetched(batch.pixel_values, donors)
    frame_mask, _ = global_batch.fetched(batch.frame_mask, donors)

    def match(rows: Tensor, where: Tensor) -> Tensor:
        vision = pixel_values[where], frame_mask[where]
        return model.match_jointly(batch.input_ids[rows], batch.attention_mask[rows], *vision, budget)

    return _matching(in_pieces(match, joint.pieces(chunk), rows, where), donors == places, joint.total, global_batch)


def _joint_masked_words(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    rows: Tensor,
    budget: ComputeBudget,
    joint: GlobalBatch,
    chunk: int | None,
) -> ObjectiveOutput:
    """MLM on the pairs at `rows (R,)`, all matched, vision intact: the mean over the masked words, 0 if there is none.

    The vocabulary is scored where words are missing only.
    """
    labels = batch.mlm_labels[rows]
    is_masked = labels != -100

    def answer(rows: Tensor, is_masked: Tensor) -> Tensor:
        vision = batch.pixel_values[rows], batch.frame_mask[rows]
        encoded = model.perceiver_vl(batch.masked_input_ids[rows], batch.attention_mask[rows], *vision, budget)
        return model.decode_masked_words(encoded.last_hidden_state, is_masked)

    logits = model.mlm_head(in_pieces(answer, joint.pieces(chunk), rows, is_masked)[is_masked])
    count = joint.summed(is_masked.sum()).clamp(min=1)
    words = joint.mean_of(count.to(torch.promote_types(logits.dtype, torch.float32)))
    return ObjectiveOutput(
        F.cross_entropy(logits, labels[is_masked], reduction="sum") / words, (logits,), "classes", words
    )
