"""An objective of pre-training and retrieval, and what the objectives share.

In several processes the batch is that of all of them: each has its part of every loss, and the mean of the parts is the
loss of the whole batch, with its gradients.
Shapes: B batch, ΣB that of all processes, R rows of it that are encoded jointly, L text tokens, D width, H heads,
E retrieval vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining
from perceiver_vl.utils.distributed import GlobalBatch

Encoding = Literal["features", "partial_match"]
Direction = Literal["both", "alternate", "text_to_vision", "vision_to_text"]
Computed = TypeVar("Computed", Tensor, tuple[Tensor, ...])


@dataclass
class PreTrainingBatch:
    """One batch of matched pairs, with what some objectives need beside them (made by the collators, from the seed).

    `input_ids (B,L)`, `attention_mask (B,L)`, `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)`;
    `masked_input_ids (B,L)` and `mlm_labels (B,L)` (-100 where nothing is predicted);
    `other_input_ids (B,L)` and `other_attention_mask (B,L)`: another caption of each clip (the same if it has one);
    `negative_draws (B,)` of `DRAW_BITS`: which of the others each text takes for its hard negative; `patch_draws (B,)`
    of as many: which patches of each clip are masked. Whole numbers, as mixed precision may round others (FSDP).
    Of stretches of S segments: `pixel_values (B,S,T,3,H,W)`, `frame_mask (B,S,T)`; `edges (B,S+1)` of the segments, in
    seconds, those that only fill up lasting none; `moments (B,M,2)`: when what is said is shown, start and end.
    `modality`: what `pixel_values` are instead of pixels, as of `PerceiverVLModel.embed_inputs`.
    The order is random: VTM shows every second text the vision of its neighbour.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    frame_mask: Tensor
    masked_input_ids: Tensor | None = None
    mlm_labels: Tensor | None = None
    other_input_ids: Tensor | None = None
    other_attention_mask: Tensor | None = None
    negative_draws: Tensor | None = None
    patch_draws: Tensor | None = None
    edges: Tensor | None = None
    moments: Tensor | None = None
    modality: str | None = None

    @classmethod
    def from_dict(cls, batch: dict[str, Any]) -> "PreTrainingBatch":
        """From the collator's dictionary."""
        return cls(**{field.name: batch[field.name] for field in fields(cls) if field.name in batch})

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Of one objective alone, and off unless said otherwise.

    Of `vtc`: `focal_gamma`: its questions count by (1 - p) to this power, p the probability of the right answer: those
    that are answered already, less. `mixed_negatives`: so many negatives of each of its questions are made by mixing
    the hardest. `vtc_directions`: both, one of them alone, or one a step in turn; of one alone, the side that is
    searched is held still, as where frozen encoders are aligned one way at a time (Cheng et al. 2025, M3-JEPA).
    Of `momentum`: `queue_size`: pairs of earlier batches that are negatives, too. `momentum_decay`: how much of itself
    the momentum model keeps in a step. `momentum_alpha`: the share of what it says in what is learned, the rest being
    the pairs themselves; it grows from 0 in `momentum_warmup` steps.
    Of `mpm`: `mpm_ratio`: the share of each frame's patches that is masked; `mpm_targets`: the share of these that is
    asked for; `mpm_normed`: each patch is brought to mean 0 and variance 1 first. Of `moments`: `moment_alignment`: the
    weight of what segments inside a moment have beside those outside. Of `structure`: `structure_levels`: how many
    steps far the neighbourhoods reach that are kept.
    """

    focal_gamma: float = 0.0
    mixed_negatives: int = 0
    vtc_directions: Direction = "both"
    queue_size: int = 0
    momentum_decay: float = 0.995
    momentum_alpha: float = 0.4
    momentum_warmup: int = 0
    mpm_ratio: float = 0.75
    mpm_targets: float = 1.0
    mpm_normed: bool = True
    moment_alignment: float = 0.0
    structure_levels: int = 1


@dataclass(frozen=True)
class MomentumTargets:
    """What a momentum model makes of the batch of all processes, unit vectors `vision (ΣB,E)` and `text (ΣB,E)`, and
    has made of earlier ones, `queued_vision (Q,E)` and `queued_text (Q,E)`, pair for pair. `alpha`: the share of what
    it says in what is learned.
    """

    vision: Tensor
    text: Tensor
    queued_vision: Tensor
    queued_text: Tensor
    alpha: float


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of matched pairs with all that several objectives need of it, computed once.

    `vision`, `text`: of each side encoded alone what the objectives' `encodings` ask for, `features (B,E)`, unit
    vectors of the multi-stream, and `partial_match (B,D+H)`, all that the mixed stream needs of it. Of stretches the
    vision is that of their segments, B·S rows.
    `negatives (B,)`: of each text the place, among the vision of all processes, of one that is not its own.
    `joint_rows (R,)`: those of its pairs that are encoded jointly, in all processes `joint_batch`, and `donors (B,)`
    the places of the vision that texts are shown there: of every second one its own, else a negative.
    `chunk`: how many examples to compute at a time, as `objectives.chunk`. `options`: those of the objectives.
    `momentum`: where one of them needs it.
    """

    model: PerceiverVLForPreTraining
    inputs: PreTrainingBatch
    budget: ComputeBudget
    global_batch: GlobalBatch
    chunk: int | None
    vision: dict[Encoding, Tensor]
    text: dict[Encoding, Tensor]
    negatives: Tensor
    joint_rows: Tensor
    joint_batch: GlobalBatch
    donors: Tensor
    options: LossOptions = LossOptions()
    momentum: MomentumTargets | None = None

    @cached_property
    def all_vision_matches(self) -> Tensor:
        """`vision["partial_match"]` of all processes `(ΣB,D+H)`."""
        return self.global_batch.rows(self.vision["partial_match"])


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss, and the logits that it is made of.

    `kind` of each of the logits: of classes `(…,K)`; of yes or no, each by itself, `(B,)` or `(B,K)`; numbers `(B,1)`.
    `rows`: what a sum over this process's rows is divided by, so that the mean over the processes is that of all rows;
    None: as many as there are.
    """

    loss: Tensor
    logits: tuple[Tensor, ...]
    kind: Literal["classes", "yes_or_no", "numbers"] = "classes"
    rows: float | Tensor | None = None


@dataclass(frozen=True)
class BatchFlops:
    """Operations of a forward pass, for one example: its encodings, and the match of one pair in the mixed stream, of
    which `match_end` is what follows its attention.

    `examples`: B; `joint_examples`: how many of them are encoded jointly; `segments`: of each stretch, 1 of clips.
    `masked_joint`: a joint encoding of the patches that `mpm` shows, and the decoding of those that it asks for.
    """

    examples: int
    joint_examples: int
    vision: float
    text: float
    joint: float
    match: float
    match_end: float = 0.0
    segments: int = 1
    masked_joint: float = 0.0


class Objective(ABC):
    """A loss of pre-training: one class, which says what it needs, and has a line in `losses.OBJECTIVES`.

    `encodings`: what it needs of vision and text, each encoded alone (see `EncodedBatch`); `features` are those of the
    multi-stream, which an objective that needs them trains.
    `needs_masked_words`, `needs_other_captions`, `needs_patch_draws`: what the collator is to add to the batch (see
    `PreTrainingBatch`). `needs_negatives`: asks of a text and a vision that are no pair (`EncodedBatch.negatives`).
    `needs_momentum`: asks a momentum model. `needs_decoder`: the decoder answers, and is trained.
    `needs_frozen_encoders`: it asks pretrained encoders, both of them, that do not change. `compares_pairs`: a pair
    alone teaches it nothing. `needs_stretches`: it learns from segments of videos (`data.stretches`), and so is alone.
    """

    encodings: ClassVar[tuple[Encoding, ...]] = ()
    needs_masked_words: ClassVar[bool] = False
    needs_other_captions: ClassVar[bool] = False
    needs_patch_draws: ClassVar[bool] = False
    needs_negatives: ClassVar[bool] = False
    needs_momentum: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = False
    needs_frozen_encoders: ClassVar[bool] = False
    compares_pairs: ClassVar[bool] = True
    needs_stretches: ClassVar[bool] = False

    @abstractmethod
    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """The loss of this process's part of the batch."""

    @abstractmethod
    def flops(self, batch: BatchFlops) -> float:
        """Operations of `forward`, without the encodings that `encodings` asks for and without the heads."""


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


def contrast(
    logits: Tensor,
    global_batch: GlobalBatch,
    mixed: tuple[Tensor, Tensor] | None = None,
    focal_gamma: float = 0.0,
    directions: Direction = "both",
) -> ObjectiveOutput:
    """Symmetric cross-entropy: each text belongs to the vision at its own place, among all, and the reverse.

    `logits (B,ΣB)`: of this process's texts with the vision of all processes. No logit is computed twice: what the
    other texts say of a vision is in the log-sum-exp that each process has of its texts. `mixed`, twice `(B,K)`: logits
    of its texts, and of its vision, with negatives beside those of the batch. `focal_gamma`: a question whose right
    answer has the probability p counts (1 - p) to this power (Lin et al. 2017), a weight that has no gradient, as
    KaLM-Embedding-V2 weighs (Zhao et al. 2025); 0: all alike. `directions`: of one alone, the questions of that side.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = global_batch.places.to(logits.device)
    right = logits.gather(1, own[:, None]).squeeze(1)
    of_text = logits.logsumexp(1)
    of_vision = global_batch.one_each.rows(logits.logsumexp(0)[None]).logsumexp(0)[own]
    if mixed is not None:
        more_of_text, more_of_vision = (more.to(logits.dtype).logsumexp(1) for more in mixed)
        of_text, of_vision = torch.logaddexp(of_text, more_of_text), torch.logaddexp(of_vision, more_of_vision)
    rows = global_batch.mean_of(global_batch.total)
    asked = {"text_to_vision": [of_text], "vision_to_text": [of_vision]}.get(directions, [of_text, of_vision])
    surprise = torch.stack(asked) - right
    weights = (-torch.expm1(-surprise.detach())).clamp(min=0) ** focal_gamma  # which is 1 for a power of 0
    return ObjectiveOutput((weights * surprise).mean(0).sum() / rows, (logits,), "classes", rows)


def matching(logits: Tensor, matches: Tensor, count: int, global_batch: GlobalBatch) -> ObjectiveOutput:
    """Binary cross-entropy of logits `(R,)`, `count` of them in all processes; `matches (R,)` bool."""
    rows = global_batch.mean_of(count)
    surprise = F.binary_cross_entropy_with_logits(logits, matches.to(logits.dtype), reduction="sum")
    return ObjectiveOutput(surprise / rows, (logits,), "yes_or_no", rows)
