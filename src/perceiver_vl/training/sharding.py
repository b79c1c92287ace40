"""Models whose weights are cut up over the processes (FSDP2), as torch's `fully_shard` and the Trainer do it."""

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.utils.errors import UsageError

UNITS = ["LatentBlock"]
"""What is gathered at a time. All else is used outside of a forward pass of its own, and belongs to the whole model."""


def sharding_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Take `fsdp` and `fsdp_config` out of what a recipe gives the Trainer → what the Trainer is told instead.

    Raises `UsageError` for what it would not do, or quietly do otherwise.
    """
    asked, config = given.pop("fsdp", None), given.pop("fsdp_config", None) or {}
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if not (asked or by_launcher):
        return {}
    what = f"training.fsdp={asked}" if asked else "ACCELERATE_USE_FSDP"
    if asked not in (None, True, "full_shard", "full_shard auto_wrap"):
        raise UsageError(f"{what}: need true; more is said in training.fsdp_config, of FSDP version 2")
    if given.get("use_cpu") or not torch.accelerator.is_available():
        raise UsageError(f"{what}: needs GPUs, on processors the weights are not sharded; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError(f"{what}: needs several processes, start them with torchrun or accelerate launch")
    if not isinstance(config, dict):
        raise UsageError(f"training.fsdp_config={config!r}: need a mapping")
    if config.get("version", 2) != 2:
        raise UsageError(f"training.fsdp_config.version={config['version']}: only version 2, leave it out")
    for name in ("auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params"):
        if name in config:
            raise UsageError(
                f"training.fsdp_config.{name}={config[name]}: what is cut up is the model's own, leave it out"
            )
    return {"fsdp": True, "fsdp_config": {**config, "transformer_layer_cls_to_wrap": UNITS}} if asked else {}


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether the Trainer will cut the weights up, by the recipe or by `accelerate launch`."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


def make_shardable(model: nn.Module) -> None:
    """A number cannot be cut up: parameters without a dimension become vectors of one, which compute the same."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach()[None], requires_grad=parameter.requires_grad))


def as_saved(model: PerceiverVLPreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model that `make_shardable` has changed, in the shapes that others know."""
    with torch.device("meta"):
        numbers = [name for name, value in type(model)(model.config).named_parameters() if value.ndim == 0]
    return {name: value.reshape(()) if name in numbers else value for name, value in state.items()}


def whole_model(model: PerceiverVLPreTrainedModel) -> PerceiverVLPreTrainedModel:
    """The model itself, or of one that is sharded a copy in one piece, in every process; all of them must call this."""
    if not any(isinstance(module, FSDPModule) for module in model.modules()):  # of them, the `UNITS` always are
        return model
    state = cast(dict[str, Tensor], get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    parameter = next(iter(state.values()))
    with torch.device(parameter.device):
        whole = type(model)(model.config).to(parameter.dtype)
    whole.load_state_dict(as_saved(model, state))
    return whole.eval()
