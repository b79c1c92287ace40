"""What pre-training and retrieval training ask of a model: the weights of the objectives, and their loss.

Shapes: B batch, ΣB that of all processes, D width, H heads, E retrieval vector.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from math import inf, sqrt
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.data.batching import DRAW_BITS
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining, PerceiverVLPreTrainedModel
from perceiver_vl.training.elastic import elastic_loss
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.losses.base import (
    Direction,
    EncodedBatch,
    Encoding,
    LossOptions,
    MomentumTargets,
    Objective,
    ObjectiveOutput,
    PreTrainingBatch,
    in_pieces,
)
from perceiver_vl.training.module import TrainingModule
from perceiver_vl.training.momentum import MomentumModel
from perceiver_vl.utils.distributed import GlobalBatch, global_batches
from perceiver_vl.utils.errors import UsageError

_DEFAULT_WEIGHTS = {"vtm": 1.0, "mlm": 1.0}
_OPTIONS: dict[str, tuple[str, float, float]] = {
    "focal_gamma": ("vtc", 0, inf),
    "mixed_negatives": ("vtc", 0, inf),
    "queue_size": ("momentum", 0, inf),
    "momentum_decay": ("momentum", 0, 1),
    "momentum_alpha": ("momentum", 0, 1),
    "momentum_warmup": ("momentum", 0, inf),
    "moment_alignment": ("moments", 0, inf),
    "structure_levels": ("structure", 1, inf),
}
"""Numbers that are options of one objective alone: whose, from, to."""
_OWNERS = {name: owner for name, (owner, _, _) in _OPTIONS.items()} | {
    "vtc_directions": "vtc",
    "mpm_ratio": "mpm",
    "mpm_targets": "mpm",
    "mpm_normed": "mpm",
}
_TURN_DRAWS = 8  # beside those of data, tasks and elastic
_GOLDEN_RATIO = (sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Objectives(LossOptions):
    """Weights of the objectives by name, 0 leaves one out; where none is given it is the paper's own: VTM and MLM have
    1, all others 0. Options of one objective alone: `LossOptions`.

    `hard_negatives`: VTM's negatives are drawn by contrastive similarity, likely ones first, instead of at random.
    `joint_share`: share of each batch that the objectives with a joint encoding (vtm, mlm) see; they cost most.
    `chunk`: encode and match so many examples at a time, and again in the backward pass (GradCache, Gao et al. 2021):
    the loss and gradients of the whole batch in the memory of a chunk, at a third more work.
    `alternate`: a step asks one objective alone, each as often as its weight says (IMP, Akbari et al. 2023).
    Raises `UsageError` for an unknown name, values out of range, if every weight is 0, and for an option of an
    objective that is not asked.
    """

    weights: dict[str, float] = field(default_factory=dict)
    hard_negatives: bool = False
    mlm_probability: float = 0.15
    joint_share: float = 1.0
    chunk: int | None = None
    alternate: bool = False

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
        for name in ("mlm_probability", "joint_share", "mpm_targets"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"objectives.{name}={getattr(self, name)}: a share, above 0 and at most 1")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"objectives.chunk={self.chunk}: need at least one example at a time")
        if not 0 < self.mpm_ratio < 1:
            raise UsageError(f"objectives.mpm_ratio={self.mpm_ratio}: a share, above 0 and below 1")
        if self.alternate and len(self.asked) < 2:
            raise UsageError(f"objectives.alternate=true: {', '.join(self.asked)} alone has every turn; leave it out")
        self._check_options()

    def _check_options(self) -> None:
        """Refuse options out of range, and of an objective that is not asked."""
        for name, (_, least, most) in _OPTIONS.items():
            value = getattr(self, name)
            if not least <= value <= most or value == inf:
                raise UsageError(
                    f"objectives.{name}={value}: need {least} {'or more' if most == inf else f'to {most}'}"
                )
        known = get_args(Direction)
        if self.vtc_directions not in known:
            raise UsageError(
                f"objectives.vtc_directions={self.vtc_directions}: unknown, choose from {', '.join(known)}"
            )
        for name, owner in _OWNERS.items():
            if getattr(self, name) != _default_of(name) and not self.weights[owner]:
                raise UsageError(
                    f"objectives.{name}={getattr(self, name)}: is of {owner}, which has no weight; give it one, or "
                    "leave it out"
                )

    def of_step(self, step: int, seed: int) -> "Objectives":
        """What update `step`, counted from 0, asks: all, or one of them in its turn; of a contrast both ways, or one.

        Drawn from the seed and the step, so that all processes agree and a resume goes on as the run would have. The
        multiples of the golden ratio fall evenly everywhere: of any number of steps in a row each has its share.
        """
        turns = self.turns()
        ends = list(accumulate(share for _, share in turns))
        place = (np.random.default_rng([seed, _TURN_DRAWS]).random() + step * _GOLDEN_RATIO) % 1.0
        found, _ = turns[min(bisect_right(ends, place), len(turns) - 1)]
        if found.vtc_directions == "alternate":
            ways: tuple[Direction, Direction] = ("text_to_vision", "vision_to_text")
            found = replace(found, vtc_directions=ways[(step + seed) % 2])
        return found

    def turns(self) -> list[tuple["Objectives", float]]:
        """What steps ask, and the share of the steps: all of all of them, or one after the other."""
        if not self.alternate:
            return [(self, 1.0)]
        total = sum(self.weights.values())
        return [(self.alone(name), self.weights[name] / total) for name in self.asked]

    def alone(self, name: str) -> "Objectives":
        """One of those that are asked, with weight 1 and the options that are its own."""
        of_others: dict[str, Any] = {one: _default_of(one) for one, owner in _OWNERS.items() if owner != name}
        return replace(
            self,
            weights=dict.fromkeys(OBJECTIVES, 0.0) | {name: 1.0},
            alternate=False,
            hard_negatives=self.hard_negatives and OBJECTIVES[name].needs_negatives,
            **of_others,
        )

    def check_model(self, model: PerceiverVLPreTrainedModel) -> None:
        """Raise `UsageError` for an objective that the model cannot be asked: of frozen encoders, where its own learn
        or are not there; of patches, where none would be masked.
        """
        if self.weights["mpm"]:
            self._check_patches(model)
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

    def _check_patches(self, model: PerceiverVLPreTrainedModel) -> None:
        patches, encoder = model.config.grid**2, model.base_model.vision_encoder
        if round((1 - self.mpm_ratio) * patches) >= patches or patches < 2:
            raise UsageError(
                f"objectives.mpm_ratio={self.mpm_ratio}: masks none of {patches} patches a frame, set a larger one, or "
                "smaller patches (model.patch_size)"
            )
        if encoder is not None and encoder.trainable:
            raise UsageError(
                f"objectives.mpm={self.weights['mpm']:g}: asks for the tokens of a frozen encoder, and the vision "
                "encoder learns; leave one of them out"
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
    def needs_patch_draws(self) -> bool:
        """Whether one of them does."""
        return any(objective.needs_patch_draws for objective in self.asked.values())

    @property
    def needs_momentum(self) -> bool:
        """Whether one of them does."""
        return any(objective.needs_momentum for objective in self.asked.values())

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


def _default_of(name: str) -> Any:
    return next(one.default for one in fields(LossOptions) if one.name == name)


class PreTrainingModule(TrainingModule):
    """A model with the objectives that it is trained for; `distill`: as of `elastic_loss`.

    `momentum`: the copy that follows the model, where an objective asks it; it is for the caller to say when
    (`MomentumModel.follow`). No module of this one: nothing of it learns, is wrapped or is saved with the model.
    """

    model: PerceiverVLForPreTraining

    def __init__(self, model: PerceiverVLForPreTraining, objectives: Objectives, distill: float = 0.0) -> None:
        super().__init__(model)
        self.objectives, self.distill = objectives, distill
        self.momentum = MomentumModel(model, objectives) if objectives.needs_momentum else None

    def forward(  # type: ignore[override]
        self,
        batch: PreTrainingBatch,
        budgets: list[ComputeBudget],
        global_batch: GlobalBatch | None = None,
        objectives: Objectives | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the objectives; its parts are those, unweighted. With several `budgets`, the full one
        first, it is that of `elastic_loss`, with its parts, and all budgets judge the same pairs.

        `global_batch`: the batch of all processes, of which `batch` is this one's part; None: ask them. `objectives`:
        those of this step (`Objectives.of_step`); None: all.
        """
        objectives = objectives or self.objectives
        if global_batch is None:
            [global_batch] = global_batches([len(batch)], batch.input_ids.device)
        weights, negatives, as_given = objectives.weights, None, batch
        if batch.edges is not None:  # each segment by itself
            segments = batch.pixel_values.flatten(0, 1), batch.frame_mask.flatten(0, 1)
            batch = replace(batch, pixel_values=segments[0], frame_mask=segments[1])
        if batch.modality is None:
            batch = replace(batch, pixel_values=self.model.perceiver_vl.encode_frames(batch.pixel_values))
        momentum = None
        if objectives.needs_momentum:
            assert self.momentum is not None
            frozen = not batch.pixel_values.requires_grad  # an encoder that learns the copy has of its own
            momentum = self.momentum.encode(batch if frozen else as_given, global_batch, objectives.chunk)

        def outputs(budget: ComputeBudget) -> dict[str, ObjectiveOutput]:
            nonlocal negatives
            encoded = encode_batch(self.model, batch, objectives, budget, global_batch, negatives, momentum)
            negatives = encoded.negatives
            # Those with encodings first, as others have none of them to share
            asked = sorted(objectives.asked.items(), key=lambda item: not item[1].encodings)
            return {name: objective.forward(encoded) for name, objective in asked}

        if len(budgets) > 1:
            total, losses = elastic_loss(outputs, budgets, weights, self.distill)
        else:
            losses = {name: output.loss for name, output in outputs(budgets[0]).items()}
            total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        if momentum is not None:
            cast(MomentumModel, self.momentum).enqueue(momentum)
        return total, losses

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
    momentum: MomentumTargets | None = None,
) -> EncodedBatch:
    """All that the objectives share. `negatives`: those of another budget on the same batch; None: draw them.
    `momentum`: where one of them needs it.
    """
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
        options=objectives,
        momentum=momentum,
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
        return kept_of(*model.encode_and_pool_vision(pixel_values, frame_mask, budget, batch.modality))

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
