"""Training in stages: which parts of the model learn at which step, and how fast.

The reads cannot be taken over from another model as the self-attentions can, so the paper first trains the reads alone,
all else frozen, and then everything (paper 4.2).
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from perceiver_vl.training.recipe import ENCODERS, Stage
from perceiver_vl.utils.errors import Setting, UsageError

_PLACES = {
    "vision_encoder": r"perceiver_vl\.vision_encoder\.",
    "text_encoder": r"perceiver_vl\.text_encoder\.",
    "language_model": r"language_model\.",
    "bridge": r"(bridge\.|soft_tokens$)",
    "cross_attentions": r"perceiver_vl\.encoder\.blocks\.\d+\.cross_attention\.",
    "latents": r"perceiver_vl\.encoder\.latent",
    "self_attentions": r"perceiver_vl\.encoder\.(blocks\.\d+\.self_attentions|norm)\.",
    "embeddings": r"perceiver_vl\.embeddings\.",
    "base_answers": r"base_answers\.",
    "decoder": r"(decoder|caption_decoder|vtm_query|mlm_queries|mpm_queries|answer_query|answer_queries)\.",
}


def part_of(name: str) -> str:
    """Which of `recipe.PARTS` a parameter of a model belongs to; what is nowhere else is a head.

    A tied word table goes by its first name: it belongs to the embeddings.
    """
    return next((part for part, place in _PLACES.items() if re.match(place, name)), "heads")


def stage_at(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """The number of the stage in which update `step` falls, and of the update in that stage, all counted from 0.

    What comes after the end belongs to the last stage.
    """
    ends = list(accumulate(stage.steps for stage in stages))
    number = min(bisect_right(ends, step), len(stages) - 1)
    return number, step - ends[number] + stages[number].steps


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """Let these parts of the model learn, and nothing else; of pretrained encoders never more than `tune` has said."""
    for name, parameter in model.named_parameters():
        part = part_of(name)
        may_learn = part not in ENCODERS or getattr(parameter, "is_tuned", False)
        parameter.requires_grad_(may_learn and ("all" in parts or part in parts))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"stages: train={list(parts)}: nothing of that learns in this model; of pretrained ones, say how many "
            "blocks with encoders.vision_blocks, encoders.text_blocks or encoders.language_blocks, or adapters with "
            "encoders.vision_lora, encoders.text_lora or encoders.language_lora"
        )


def check_pretrained_parts(model: nn.Module, stages: Sequence[Stage]) -> None:
    """Raise `UsageError` where what is to learn of a pretrained part (`tune`) is in no stage, and where a stage names a
    part of which nothing learns, or that is not there.
    """
    named = {part for stage in stages for part in stage.train}
    of_parts: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        of_parts[part] = of_parts.get(part, False) or getattr(parameter, "is_tuned", False)
    if "bridge" in named - of_parts.keys():
        model_folder = Setting("initialise.language_model", "FOLDER")
        raise UsageError("stages: train=['bridge']: this model has none, name the language model with ", model_folder)
    for part in ENCODERS:
        side = part.split("_")[0]
        if of_parts.get(part) and named and not named & {"all", part}:
            raise UsageError(
                f"encoders: {side}_blocks or {side}_lora lets the {side} part learn, but no stage trains it; add "
                f"{part} to stages.0.train"
            )
        if part in named and not of_parts.get(part):
            raise UsageError(
                f"stages: train={part}: nothing of it learns, say what with encoders.{side}_blocks or "
                f"encoders.{side}_lora, or leave it out"
            )


class StageSwitch(TrainerCallback):
    """Freezes what the stage of the global step does not train, at its first step and after a resume.

    Only here, when the Trainer has made its optimizer and its data-parallel wrapper: both leave out for good what is
    frozen when they are made. What is frozen later stays with both and gets no gradient. So the optimizer passes it
    over, weight decay and momentum included; clipping does not see it; the backward pass is spared; and DDP, which
    looks for unused parameters in every forward pass, takes it for one of those.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.current: int | None = None

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        number, _ = stage_at(self.stages, state.global_step)
        if number != self.current:
            freeze_all_but(kwargs["model"], self.stages[number].train)
            self.current = number


def stage_schedule(stages: Sequence[Stage], arguments: TrainingArguments) -> Callable[[int], float]:
    """Update step → learning rate, as a multiple of `arguments.learning_rate`.

    Each stage runs through `arguments.lr_scheduler_type` from its warm-up to its end. Raises `UsageError` for a
    scheduler that is no function of the step, or that does not fit a stage.
    """
    schedules = [_schedule_of(stage, arguments) for stage in stages]

    def multiple(step: int) -> float:  # a plain function: LambdaLR would save the state of anything else
        number, step_in_stage = stage_at(stages, step)
        return schedules[number](step_in_stage)

    return multiple


def _schedule_of(stage: Stage, arguments: TrainingArguments) -> Callable[[int], float]:
    base, kind = arguments.learning_rate, arguments.lr_scheduler_type.value
    peak = base if stage.learning_rate is None else stage.learning_rate
    warmup = arguments.get_warmup_steps(stage.steps) if stage.warmup_steps is None else stage.warmup_steps
    if warmup > stage.steps:
        raise UsageError(
            f"training.warmup_steps={warmup}: longer than a stage of {stage.steps} steps, give it its own warmup_steps"
        )
    if stage.warmup_steps and kind == "constant":
        raise UsageError(
            f"stages: warmup_steps={warmup}: a constant learning rate has no warm-up, set ",
            Setting("training.lr_scheduler_type", "constant_with_warmup"),
        )
    if peak and not base:
        raise UsageError(
            f"stages: learning_rate={peak}: is set as a multiple of training.learning_rate, which must not be {base}"
        )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)  # some schedules ask it for its learning rate
    try:
        scheduler = get_scheduler(kind, optimizer, warmup, stage.steps, arguments.lr_scheduler_kwargs)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"training.lr_scheduler_type={kind}: {' '.join(str(error).split())}") from error
    if not isinstance(scheduler, LambdaLR):
        raise UsageError(
            f"training.lr_scheduler_type={kind}: not a function of the step, stages need one (linear, cosine, …)"
        )
    curve = scheduler.lr_lambdas[0]
    scale = 1.0 if peak == base else peak / base
    return lambda step: scale * curve(step)
