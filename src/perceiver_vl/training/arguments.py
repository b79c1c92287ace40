"""Which of the Trainer's many arguments mean nothing here, and which of their values it would stumble over later."""

import dataclasses
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from perceiver_vl.utils.errors import Setting, UsageError, first_line

_OWN_LOSS = "the losses are those of the objectives or of the task"
_OWN_BATCHES = "batches are made by this package"
_OWN_VALIDATION = "validation is that of evaluate; set evaluation.batch_size for its batches"
_NOT_OURS = "no model here has what it changes"
_BY_COMMAND = "say it on the command line"
_UPLOAD = "upload the folder once it is written, with push_to_hub of the model"
IDLE = {
    "label_smoothing_factor": _OWN_LOSS,
    "label_names": _OWN_LOSS,
    "average_tokens_across_devices": _OWN_LOSS,
    "include_num_input_tokens_seen": _OWN_BATCHES,
    "remove_unused_columns": _OWN_BATCHES,
    "train_sampling_strategy": "set data.bucket: examples of one length come together",
    "length_column_name": "set data.bucket: examples of one length come together",
    "ignore_data_skip": "a run that goes on does so with the very next example",
    "per_device_eval_batch_size": _OWN_VALIDATION,
    "prediction_loss_only": _OWN_VALIDATION,
    "eval_do_concat_batches": _OWN_VALIDATION,
    "eval_use_gather_object": _OWN_VALIDATION,
    "eval_accumulation_steps": _OWN_VALIDATION,
    "include_for_metrics": _OWN_VALIDATION,
    "batch_eval_metrics": _OWN_VALIDATION,
    "bf16_full_eval": _OWN_VALIDATION,
    "fp16_full_eval": _OWN_VALIDATION,
    "use_cache": _NOT_OURS,
    "use_liger_kernel": _NOT_OURS,
    "liger_kernel_config": _NOT_OURS,
    "neftune_noise_alpha": _NOT_OURS,
    "optim_target_modules": _NOT_OURS,
    "do_train": _BY_COMMAND,
    "do_eval": _BY_COMMAND,
    "do_predict": _BY_COMMAND,
    "resume_from_checkpoint": "to go on is asked for beside the recipe, as --resume",
    "local_rank": "torchrun says it",
    "deepspeed": "set training.fsdp, which shards the same things",
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_private_repo": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "hub_always_push": _UPLOAD,
    "hub_revision": _UPLOAD,
}
"""Arguments that would change nothing, with what to do instead."""


def refuse_idle(given: dict[str, Any]) -> None:
    """Raise `UsageError` for an argument that would change nothing here, unless it has its default value."""
    defaults = {one.name: one.default for one in dataclasses.fields(TrainingArguments)}
    for name, value in given.items():
        if name in IDLE and value != defaults[name]:
            raise UsageError(f"training.{name}={value}: has no effect here, leave it out ({IDLE[name]})")


def check_values(arguments: TrainingArguments) -> None:
    """Raise `UsageError` for an optimizer, a schedule or a precision that cannot be had here."""
    if arguments.fp16 and arguments.device.type == "cpu":
        instead = Setting("training.fp16", False), " ", Setting("training.bf16", True)
        raise UsageError("training.fp16=true: float16 needs a GPU, leave it out or set ", *instead)
    optimizer = arguments.optim.value if hasattr(arguments.optim, "value") else arguments.optim
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
    except Exception as error:  # it imports what other packages have
        raise UsageError(f"training.optim={optimizer}: {first_line(error)}") from error
    kind = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    try:
        steps = max(arguments.max_steps, 2)
        dummy = torch.optim.SGD([torch.zeros(1)], lr=max(arguments.learning_rate, 1e-12))
        get_scheduler(kind, dummy, min(arguments.get_warmup_steps(steps), steps), steps, arguments.lr_scheduler_kwargs)
    except Exception as error:  # each schedule raises for its own arguments
        raise UsageError(
            f"training.lr_scheduler_type={kind}: {first_line(error)}; see training.lr_scheduler_kwargs"
        ) from error
