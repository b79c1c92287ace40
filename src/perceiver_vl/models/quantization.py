"""How the numbers of a model are kept and run: float32, bfloat16, int8; compiled or not.

int8: the encoder's projections and MLPs, where almost all operations are, as products of whole numbers; the rest in
bfloat16. Weights are rounded once, each row to its own scale; what goes in is rounded when it comes, each token to its
own (the LLM.int8 scheme of Dettmers et al. 2022, without its outliers apart). Nothing has to be calibrated.
"""

import os
import shutil
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.experts import ScaledLinear
from perceiver_vl.layers.untied import TwinLinear
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.utils.errors import UsageError

Dtype = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[str, ...] = get_args(Dtype)
_LARGEST = 127
_FEWEST_ROWS = 32  # a GPU's product of whole numbers wants more than 16


class Int8Linear(nn.Module):
    """A linear layer whose product is of whole numbers; sums in int32, results in the type of what came in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale[:, 0], requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(…,D)` → `(…,D')`."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)
        rounded = (rows / scale).round_().to(torch.int8)
        if x.is_cuda and len(rounded) < _FEWEST_ROWS:
            rounded = F.pad(rounded, (0, 0, 0, _FEWEST_ROWS - len(rounded)))
        sums = torch._int_mm(rounded, self.weight.T)[: len(rows)]
        return torch.addcmul(self.bias, sums * scale, self.scale).to(x.dtype).unflatten(0, x.shape[:-1])


def _scale(rows: Tensor) -> Tensor:
    """What each row `(…,D)` is divided by to be whole numbers `(…,1)`, in float32. Not by `aminmax`, which is slow."""
    largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))
    return largest.float().clamp(min=1e-12) / _LARGEST


def set_dtype(model: PerceiverVLPreTrainedModel, dtype: str | None) -> None:
    """Keep the numbers of `model` in `dtype` from now on; None: as they are. For inference: int8 has no gradient.

    Raises `UsageError` for another name.
    """
    check_dtype(dtype)
    if dtype is None:
        return
    if dtype != "int8":
        model.to(getattr(torch, dtype))
        return
    encoder = model.base_model.encoder
    linears = [
        (name, plain) for name, module in encoder.named_modules() if (plain := _plain_linear(module)) is not None
    ]
    # From the weights as they were stored; and before the rest is rounded, that rounds scales too
    rounded = {name: Int8Linear(linear) for name, linear in linears if _suits_a_gpu(linear)}
    model.to(torch.bfloat16)
    for name, linear in rounded.items():
        encoder.set_submodule(name, linear)


def check_dtype(dtype: str | None) -> None:
    """Raise `UsageError` for a name that is not one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype={dtype}: choose from {', '.join(DTYPES)}")


def _plain_linear(module: nn.Module) -> nn.Linear | None:
    """A linear layer as its weights alone, a layer scale within them; None for anything else."""
    if isinstance(module, ScaledLinear):
        return module.plain()
    return module if type(module) in (nn.Linear, TwinLinear) else None  # type: ignore[return-value]


def _suits_a_gpu(linear: nn.Linear) -> bool:
    """Whether its sizes are those that a GPU's product of whole numbers takes; else it stays as it is."""
    return linear.in_features % 8 == 0 and linear.out_features % 8 == 0


def compile_encoder(model: PerceiverVLPreTrainedModel) -> None:
    """Compile the encoder by `torch.compile`; on a GPU with CUDA graphs, which replay a forward as one launch.

    The first forward of each shape takes up to minutes. Raises `UsageError` where there is no compiler.
    """
    on_gpu = model.device.type == "cuda"
    if on_gpu and find_spec("triton") is None:
        raise UsageError("compile: needs triton on a GPU, install it or do not compile")
    if not on_gpu and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise UsageError("compile: needs a C++ compiler, install g++ or clang++, or do not compile")
    encoder = model.base_model.encoder
    compiled = torch.compile(encoder.forward, mode="reduce-overhead" if on_gpu else "default")

    def forward(*arguments: Any, **named: Any) -> Tensor:
        latents: Tensor = compiled(*arguments, **named)
        return latents.clone() if on_gpu else latents  # the next replay writes over what a graph gave

    encoder.forward = forward
