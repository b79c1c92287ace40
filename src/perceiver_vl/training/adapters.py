"""Low-rank adapters (LoRA, Hu et al. 2022) of a pretrained encoder, by peft: they learn, its own weights do not.

While a run lasts the adapters lie beside the weights. What it saves, its checkpoints too, has them merged into the
weights and is a model as any other; a checkpoint has them apart as well, to go on from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.utils.errors import UsageError

FILE = "tuned.safetensors"
"""What of the encoders learns, in a checkpoint."""


def add_adapters(encoder: Any, rank: int, name: str) -> list[nn.Parameter]:
    """Give a `PretrainedPart` adapters of this rank, which add nothing at first → their weights.

    On the projections that peft adapts by default in models of its kind (queries and values of BERT); on all linear
    layers of the blocks where peft knows no default. Their sum is scaled by 2 (alpha is twice the rank).
    Raises `UsageError`, about `name`, without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
    except ImportError as error:
        raise UsageError(f"{name}={rank}: adapters are those of peft: pip install 'perceiver-vl[lora]'") from error
    in_blocks = {id(module) for block in encoder.blocks() for module in block.modules() if type(module) is nn.Linear}
    targets = [place for place, module in encoder.model.named_modules() if id(module) in in_blocks]
    known = encoder.model.config.model_type in DEFAULTS
    transposed = any(isinstance(module, Conv1D) for module in encoder.model.modules())  # GPT-2's linear layers
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=None if known else targets, fan_in_fan_out=transposed
    )
    inject_adapter_in_model(config, encoder.model)
    return [weight for weight in encoder.model.parameters() if weight.requires_grad]


@contextmanager
def merged_adapters(model: PerceiverVLPreTrainedModel) -> Iterator[None]:
    """While this lasts the encoders of a model are plain ones, with what their adapters have learned in their weights;
    then they have their adapters again, bit for bit.
    """
    encoders = [one for one in model.pretrained_parts().values() if has_adapters(one.model)]
    adapted = [encoder.model for encoder in encoders]
    for encoder in encoders:
        encoder.model = _merged(encoder.model)
    try:
        yield
    finally:
        for encoder, own in zip(encoders, adapted, strict=True):
            encoder.model = own


def save_tuned(model: nn.Module, folder: Path) -> None:
    """Write into a checkpoint what of a model's encoders learns, by its own names, with what adapters lie beside;
    nothing where nothing does.

    `save_pretrained` gives weights of encoders the names that older versions of transformers had, which only
    `from_pretrained` takes back, and has no adapters.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters() if _is_tuned(name, weight)}
    if weights and not any(isinstance(weight, DTensor) for weight in weights.values()):
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / FILE)


def load_tuned(model: nn.Module, folder: Path) -> None:
    """Give a model what `save_tuned` has written, if it has."""
    if (folder / FILE).is_file():
        model.load_state_dict(load_file(folder / FILE), strict=False)


def _is_tuned(name: str, weight: Tensor) -> bool:
    return getattr(weight, "is_tuned", False) or ".base_layer." in name


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` has given it some."""
    return hasattr(model, "peft_config")


def _merged(model: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = deepcopy(model)
    for place, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            plain.set_submodule(place, layer.get_base_layer())
    del plain.peft_config
    return plain
