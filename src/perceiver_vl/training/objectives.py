"""What pre-training and retrieval training ask of a model: the weights of the objectives, and their loss.

Shapes: B batch, ΣB that of all processes, D width, H heads, E retrieval vector.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.batching import DRAW_BITS
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining, PerceiverVLPreTrainedModel
from perceiver_vl.training.elastic import elastic_loss
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.losses.base import (
    EncodedBatch,
    Encoding,
    Objective,
    ObjectiveOutput,
    PreTrainingBatch,
    in_pieces,
)
from perceiver_vl.training.module import TrainingModule
from perceiver_vl.utils.distributed import GlobalBatch, global_batches
from perceiver_vl.utils.errors import UsageError

_DEFAULT_WEIGHTS = {"vtm": 1.0, "mlm": 1.0}
_OPTIONS = {"focal_gamma": (0, "vtc"), "mixed_negatives": (0, "vtc"), "structure_levels": (1, "structure")}
"""Of one objective alone: the least, which changes nothing, and whose it is."""


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives by name, 0 leaves one out; where none is given it is the paper's own: VTM and MLM have
    1, all others 0.

    `hard_negatives`: VTM's negatives are drawn by contrastive similarity, likely ones first, instead of at random.
    `joint_share`: share of each batch that the objectives with a joint encoding (vtm, mlm) see; they cost most.
    `chunk`: encode and match so many examples at a time, and again in the backward pass (GradCache, Gao et al. 2021):
    the loss and gradients of the whole batch in the memory of a chunk, at a third more work.
    `focal_gamma`: VTC's questions count by (1 - p) to this power, p the probability of the right answer: those that are
    answered already, less. `mixed_negatives`: so many negatives of each of its questions are made by mixing the hardest
    (see `losses.vtc`). `structure_levels`: how many steps far the neighbourhoods reach that `structure` keeps.
    Raises `UsageError` for an unknown name, values out of range, if every weight is 0, and for an option of an
    objective that is not asked.
    """

    weights: dict[str, float] = field(default_factory=dict)
    hard_negatives: bool = False
    mlm_probability: float = 0.15
    joint_share: float = 1.0
    chunk: int | None = None
    focal_gamma: float = 0.0
    mixed_negatives: int = 0
    structure_levels: int = 1

    def __post_init__(self) -> None:
        known = ", ".join(OBJECTIVES)
        for name, weight in self.weights.items():
            if name not in OBJECTIVES:
                raise UsageError(f"objectives.{name}={weight}: unknown, choose from {known}")
            if weight < 0:
                raise UsageError(f"objectives.{name}={weight}: a weight cannot be negative, 0 leaves the objective out")
        weights = dict.fromkeys(OBJECTIVES, 0.0) | _DEFAULT_WEIGHTS | self.weights
        object.__setattr__(self, "weights", weights)
        if not any(weights.values()):
            raise UsageError(f"objectives: every weight is 0, give at least one of {known}")
        for name in (name for name, objective in self.asked.items() if objective.needs_stretches):
            if others := [other for other in self.asked if other != name]:
                raise UsageError(
                    f"objectives.{name}={weights[name]:g}: learns from stretches of video, the others from clips; "
                    f"leave those out: {', '.join(f'objectives.{other}=0' for other in others)}"
                )
            if self.hard_negatives:
                raise UsageError(
                    f"objectives.hard_negatives=true: is of clips, objectives.{name} has its own; leave it out"
                )
        for name in ("mlm_probability", "joint_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"objectives.{name}={getattr(self, name)}: a share, above 0 and at most 1")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"objectives.chunk={self.chunk}: need at least one example at a time")
        for name, (least, owner) in _OPTIONS.items():
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise UsageError(f"objectives.{name}={value}: need {least} or more")
            if value != least and not weights[owner]:
                raise UsageError(
                    f"objectives.{name}={value}: is of {owner}, which has no weight; give it one, or leave it out"
                )

    def check_encoders(self, model: PerceiverVLPreTrainedModel) -> None:
        """Raise `UsageError` for an objective that asks frozen encoders, where the model's learn or are not there."""
        for name in (name for name, objective in self.asked.items() if objective.needs_frozen_encoders):
            for side in ("vision", "text"):
                encoder = getattr(model.base_model, f"{side}_encoder")
                if encoder is None:
                    raise UsageError(
                        f"objectives.{name}={self.weights[name]:g}: asks pretrained encoders, and this model has no "
                        f"{side} encoder; make one with perceiver-vl init, or leave it out"
                    )
                if encoder.trainable:
                    raise UsageError(
                        f"objectives.{name}={self.weights[name]:g}: keeps what frozen encoders say, and the {side} "
                        f"encoder learns; leave one of them out"
                    )

    @property
    def asked(self) -> dict[str, Objective]:
        """Those whose weight is not 0."""
        return {name: OBJECTIVES[name] for name, weight in self.weights.items() if weight}

    @property
    def encodings(self) -> set[Encoding]:
        """What is needed of vision and text, each encoded alone; nothing if they are not."""
        drawing: tuple[Encoding, ...] = ("features",) if self.hard_negatives else ()
        return {*drawing, *(encoding for objective in self.asked.values() for encoding in objective.encodings)}

    @property
    def needs_masked_words(self) -> bool:
        """Whether one of them does."""
        return any(objective.needs_masked_words for objective in self.asked.values())

    @property
    def needs_other_captions(self) -> bool:
        """Whether one of them does."""
        return any(objective.needs_other_captions for objective in self.asked.values())

    @property
    def needs_stretches(self) -> bool:
        """Whether the one that is asked does."""
        return any(objective.needs_stretches for objective in self.asked.values())

    @property
    def compare_pairs(self) -> bool:
        """Whether a batch of one pair would teach nothing to some."""
        return self.hard_negatives or any(objective.compares_pairs for objective in self.asked.values())

    def to_dict(self) -> dict[str, Any]:
        """As a recipe has them, the weights beside the rest."""
        plain = asdict(self)
        return {**plain.pop("weights"), **plain}


class PreTrainingModule(TrainingModule):
    """A model with the objectives that it is trained for; `distill`: as of `elastic_loss`."""

    model: PerceiverVLForPreTraining

    def __init__(self, model: PerceiverVLForPreTraining, objectives: Objectives, distill: float = 0.0) -> None:
        super().__init__(model)
        self.objectives, self.distill = objectives, distill

    def forward(  # type: ignore[override]
        self, batch: PreTrainingBatch, budgets: list[ComputeBudget], global_batch: GlobalBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the objectives; its parts are those, unweighted. With several `budgets`, the full one
        first, it is that of `elastic_loss`, with its parts, and all budgets judge the same pairs.

        `global_batch`: the batch of all processes, of which `batch` is this one's part; None: ask them.
        """
        if global_batch is None:
            [global_batch] = global_batches([len(batch)], batch.input_ids.device)
        weights, negatives = self.objectives.weights, None
        if batch.edges is not None:  # each segment by itself
            segments = batch.pixel_values.flatten(0, 1), batch.frame_mask.flatten(0, 1)
            batch = replace(batch, pixel_values=segments[0], frame_mask=segments[1])
        batch = replace(batch, pixel_values=self.model.perceiver_vl.encode_frames(batch.pixel_values))

        def outputs(budget: ComputeBudget) -> dict[str, ObjectiveOutput]:
            nonlocal negatives
            encoded = encode_batch(self.model, batch, self.objectives, budget, global_batch, negatives)
            negatives = encoded.negatives
            # Those with encodings first, as others have none of them to share
            asked = sorted(self.objectives.asked.items(), key=lambda item: not item[1].encodings)
            return {name: objective.forward(encoded) for name, objective in asked}

        if len(budgets) > 1:
            return elastic_loss(outputs, budgets, weights, self.distill)
        losses = {name: output.loss for name, output in outputs(budgets[0]).items()}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), losses

    def encode(self, **inputs: Tensor) -> Tensor:
        """Latents `(B,N,D)`."""
        latents: Tensor = self.model.perceiver_vl(**inputs, return_dict=True).last_hidden_state
        return latents


def encode_batch(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    objectives: Objectives,
    budget: ComputeBudget,
    global_batch: GlobalBatch,
    negatives: Tensor | None = None,
) -> EncodedBatch:
    """All that the objectives share. `negatives`: those of another budget on the same batch; None: draw them."""
    places = global_batch.places.to(batch.input_ids.device)
    vision, text = _encoded_alone(model, batch, objectives, budget, global_batch)
    if negatives is None:
        negatives = (places - 1) % max(1, global_batch.total)
        if objectives.hard_negatives:
            assert batch.negative_draws is not None
            features = global_batch.rows(vision["features"].detach())
            similarities = model.logit_scale * text["features"].detach() @ features.T
            negatives = draw_hard_negatives(similarities, places, batch.negative_draws / 2**DRAW_BITS)
    donors = places - places % 2
    if objectives.hard_negatives:
        donors = torch.where(donors == places, donors, negatives)
    shown = shown_jointly(global_batch.total, objectives.joint_share)
    return EncodedBatch(
        model=model,
        inputs=batch,
        budget=budget,
        global_batch=global_batch,
        chunk=objectives.chunk,
        vision=vision,
        text=text,
        negatives=negatives,
        joint_rows=shown[global_batch.own].nonzero().squeeze(1).to(places.device),
        joint_batch=global_batch.marked(shown),
        donors=donors,
        focal_gamma=objectives.focal_gamma,
        mixed_negatives=objectives.mixed_negatives,
        structure_levels=objectives.structure_levels,
    )


def _encoded_alone(
    model: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    objectives: Objectives,
    budget: ComputeBudget,
    global_batch: GlobalBatch,
) -> tuple[dict[Encoding, Tensor], dict[Encoding, Tensor]]:
    """What is asked of vision and of text, each encoded once."""
    wanted = sorted(objectives.encodings)
    if not wanted:
        return {}, {}
    pieces = global_batch.pieces(objectives.chunk)

    def kept_of(latents: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        compute: dict[Encoding, Callable[[], Tensor]] = {
            "features": lambda: features,
            "partial_match": lambda: model.partial_match(latents),
        }
        return tuple(compute[encoding]() for encoding in wanted)

    def encode_vision(pixel_values: Tensor, frame_mask: Tensor) -> tuple[Tensor, ...]:
        return kept_of(*model.encode_and_pool_vision(pixel_values, frame_mask, budget))

    def encode_text(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return kept_of(*model.encode_and_pool_text(input_ids, attention_mask, budget))

    vision = in_pieces(encode_vision, pieces, batch.pixel_values, batch.frame_mask)
    text = in_pieces(encode_text, pieces, batch.input_ids, batch.attention_mask)
    return dict(zip(wanted, vision, strict=True)), dict(zip(wanted, text, strict=True))


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


def shown_jointly(examples: int, share: float) -> Tensor:
    """Which of a batch's examples the joint objectives see, bool `(ΣB,)`: pairs of neighbours, at equal distances.

    So that as many of them match as do not, and that all processes have about as many of them.
    """
    pairs = (examples + 1) // 2
    shown = max(1, round(share * pairs))
    return torch.isin(torch.arange(examples) // 2, torch.arange(shown) * pairs // shown)
