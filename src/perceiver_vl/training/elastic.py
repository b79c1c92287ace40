"""Training that makes every setting of the dials good: each step trains the whole model, the smallest and one between.

The dials of `ComputeBudget` are drawn from the step, so all processes agree and a resume draws the same. What the whole
model says of the batch is what the smaller ones are taught beside the truth. Sources: the sandwich of budgets, Yu and
Huang 2019 ("Universally Slimmable Networks"); random latents, Tsiamas et al. 2023 (Dynamic Latent Access); token
dropping, Akbari et al. 2021 (VATT's DropToken); exits taught by the last one, Han et al. 2023 (Dynamic Perceiver).
Shapes: B batch, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.fewer_keys import refuse_dropping
from perceiver_vl.training.losses.base import ObjectiveOutput
from perceiver_vl.training.module import TrainingModule
from perceiver_vl.utils.errors import UsageError

_ELASTIC_DRAWS = 5  # data has 0 to 4, by example
_COUNTS = ("frames", "latents", "text_latents", "cross_attentions", "exits")


@dataclass(frozen=True)
class Elastic:
    """How far each dial is turned down in training; None leaves it alone.

    `frames`, `latents`, `text_latents`, `cross_attentions`, `exits` (the budget's `blocks`): the fewest that a step
    draws; which latents, and by `tokens` (the least share of each frame's patches that is kept), is drawn too.
    `distill`: how much of a smaller budget's loss is what the whole model says, the rest being the truth.
    `smallest`: train the smallest budget too at each step, beside the whole and the drawn one.
    Raises `UsageError` for values out of range, and if no dial is turned.
    """

    frames: int | None = None
    latents: int | None = None
    text_latents: int | None = None
    cross_attentions: int | None = None
    exits: int | None = None
    tokens: float | None = None
    distill: float = 0.5
    smallest: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"elastic.{name}={value}: need at least 1")
        if self.tokens is not None and not 0 < self.tokens < 1:
            raise UsageError(f"elastic.tokens={self.tokens}: the least share that is kept, above 0 and below 1")
        if not 0 <= self.distill <= 1:
            raise UsageError(f"elastic.distill={self.distill}: a share, 0 to 1")
        if all(getattr(self, name) is None for name in (*_COUNTS, "tokens")):
            raise UsageError(f"elastic: turns no dial, name at least one of {', '.join((*_COUNTS, 'tokens'))}")

    def check(self, config: PerceiverVLConfig, num_frames: int) -> None:
        """Raise `UsageError` for a dial that a model of this configuration, trained on `num_frames`, cannot turn."""
        for name, (most, what) in _most(config, num_frames).items():
            value = getattr(self, name)
            if value is not None and config.caption_prefix == "frames" and name != "frames":
                raise UsageError(
                    f"elastic.{name}={value}: the words attend to the frames themselves (model.caption_prefix=frames), "
                    "leave it out"
                )
            if value is not None and value >= most:
                raise UsageError(f"elastic.{name}={value}: need fewer than the {most} there are ({what}), or none")
        if self.tokens is not None and config.image_size == config.patch_size:
            raise UsageError(f"elastic.tokens={self.tokens}: a frame of one patch has none to drop, leave it out")
        if self.tokens is not None:
            refuse_dropping(config)


def budgets_of_step(
    elastic: Elastic, config: PerceiverVLConfig, num_frames: int, seed: int, step: int
) -> list[ComputeBudget]:
    """The budgets that a step trains: the full one; the smallest, if it is to be; one drawn for (seed, step)."""
    rng = np.random.default_rng([seed, step, _ELASTIC_DRAWS])
    most = {name: count for name, (count, _) in _most(config, num_frames).items()}
    share = 1.0 if elastic.tokens is None else float(rng.uniform(elastic.tokens, 1.0))
    draws = int(rng.integers(2**62))

    def drawn(name: str, most: int) -> int | None:
        least = getattr(elastic, name)
        return None if least is None else int(rng.integers(min(least, most), most + 1))

    blocks = drawn("exits", most["exits"])
    between = TrainingBudget(
        frames=drawn("frames", most["frames"]),
        latents=drawn("latents", most["latents"]),
        text_latents=drawn("text_latents", most["text_latents"]),
        cross_attentions=drawn("cross_attentions", blocks or most["cross_attentions"]),
        blocks=blocks,
        seed=draws,
        token_share=share,
    )
    if not elastic.smallest:
        return [FULL_BUDGET, between]
    reads = elastic.cross_attentions
    smallest = TrainingBudget(
        frames=elastic.frames,
        latents=elastic.latents,
        text_latents=elastic.text_latents,
        cross_attentions=None if reads is None else min(reads, elastic.exits or reads),
        blocks=elastic.exits,
        seed=draws,
        token_share=1.0 if elastic.tokens is None else elastic.tokens,
    )
    return [FULL_BUDGET, smallest, between]


def _most(config: PerceiverVLConfig, num_frames: int) -> dict[str, tuple[int, str]]:
    """Where each dial stands when nothing is turned, and what says so."""
    assert config.num_text_latents is not None
    return {
        "frames": (num_frames, "data.num_frames"),
        "latents": (config.num_latents, "model.num_latents"),
        "text_latents": (config.num_text_latents, "model.num_text_latents"),
        "cross_attentions": (config.num_blocks, "model.num_blocks"),
        "exits": (config.num_blocks, "model.num_blocks"),
    }


def elastic_loss(
    ask: Callable[[ComputeBudget], Mapping[str, ObjectiveOutput]],
    budgets: list[ComputeBudget],
    weights: Mapping[str, float],
    distill: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step over `budgets`, the full one first: half its own, half the mean of the others'; and its parts.

    `ask`: the answers at a budget; `weights`: of each of them. Parts: the full budget's by name, and of the smaller
    ones `smaller` (what they miss of the truth) and `distill` (of what the full one says), weighted sums.
    """
    full = ask(budgets[0])
    own, taught = [], []
    for budget in budgets[1:]:
        answers = ask(budget)
        own.append(torch.stack([weights[name] * one.loss for name, one in answers.items()]).sum())
        losses = [weights[name] * distillation_loss(one, full[name]) for name, one in answers.items()]
        taught.append(torch.stack(losses).sum())
    at_full = torch.stack([weights[name] * one.loss for name, one in full.items()]).sum()
    smaller, learned = torch.stack(own), torch.stack(taught)
    total = (at_full + ((1 - distill) * smaller + distill * learned).mean()) / 2
    parts = {name: one.loss for name, one in full.items()}
    return total, parts | {"smaller": smaller.mean(), "distill": learned.mean()}


def distillation_loss(learner: ObjectiveOutput, teacher: ObjectiveOutput) -> Tensor:
    """What the learner's answers miss of the teacher's, which are taken as given: 0 where they are the same.

    Classes: the Kullback-Leibler divergence, averaged over the rows. Yes or no: the same of each question, averaged
    over the batch and, as their own loss is, summed over the answers. Numbers: the mean squared difference.
    """
    pairs = zip(learner.logits, teacher.logits, strict=True)
    found = [_divergence(mine, theirs.detach(), learner.kind, learner.rows) for mine, theirs in pairs]
    return torch.stack(found).mean()


def _divergence(mine: Tensor, theirs: Tensor, kind: str, rows: float | Tensor | None) -> Tensor:
    if kind == "numbers":
        return F.mse_loss(mine, theirs) if rows is None else F.mse_loss(mine, theirs, reduction="sum") / rows
    rows = max(1, len(mine)) if rows is None else rows
    if kind == "yes_or_no":
        right = theirs.sigmoid()
        surprise = F.binary_cross_entropy_with_logits(mine, right, reduction="sum")
        return (surprise - F.binary_cross_entropy_with_logits(theirs, right, reduction="sum")) / rows
    least = torch.finfo(mine.dtype).min / 2  # minus infinity, of a choice that is not there, has no difference
    mine, theirs = mine.clamp(min=least).log_softmax(-1), theirs.clamp(min=least).log_softmax(-1)
    return F.kl_div(mine, theirs, reduction="sum", log_target=True) / rows


class ElasticTaskModule(TrainingModule):
    """A task's model, whose own loss is computed at several budgets in a step."""

    def __init__(self, model: PerceiverVLPreTrainedModel, distill: float) -> None:
        super().__init__(model)
        self.distill = distill

    def forward(  # type: ignore[override]
        self, inputs: Mapping[str, Any], budgets: list[ComputeBudget]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`elastic_loss` of the model, which computes its own from the `labels` among `inputs`."""
        kind: Any = "yes_or_no" if inputs["labels"].is_floating_point() else "classes"
        if self.model.config.problem_type == "regression":
            kind = "numbers"

        def ask(budget: ComputeBudget) -> dict[str, ObjectiveOutput]:
            output = self.model(**inputs, budget=budget)
            logits = output.logits
            if logits.ndim == 3:  # captions, not in training: of the words that are to be said
                logits = logits[:, :-1][inputs["labels"][:, 1:] != -100]
            return {"task": ObjectiveOutput(output.loss, (logits,), kind)}

        return elastic_loss(ask, budgets, {"task": 1.0}, self.distill)

    def encode(self, **inputs: Tensor) -> Tensor:
        """What the model says of `inputs`, its logits."""
        logits: Tensor = self.model(**inputs).logits
        return logits
