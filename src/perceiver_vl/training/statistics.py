"""How a training run is doing, in figures: norms by part of the model, what latents and cross-attentions do, speed,
memory.

Which of them call for a look, `diagnose` says.
Shapes: B batch, C choices or pictures, T frames, L text tokens, M inputs, N latents, D width, H heads.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.language_bridge.flops import bridge_flops
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import PerceiverVLEncoder
from perceiver_vl.models.perceiver_vl.flops import (
    block_flops,
    caption_flops,
    encoder_flops,
    matching_flops,
    merge_flops,
)
from perceiver_vl.training.losses.base import BatchFlops
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.training.stages import part_of

FEW = 4
"""Examples of a batch that are looked into."""
_EVERY = 100
"""Steps between two looks into the model, each of which takes a forward pass of `FEW` examples."""


def is_statistics_step(step: int, logging_steps: int) -> bool:
    """Whether the model is looked into when `step` is logged: at the first log, and about every hundredth step."""
    return step == logging_steps or step // _EVERY > (step - logging_steps) // _EVERY


def norms_by_part(tensors: Iterable[tuple[str, Tensor | None]]) -> dict[str, float]:
    """The norm of all tensors of each part of a model (`recipe.PARTS`), by the names of its parameters."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        if tensor is not None:
            parts.setdefault(part_of(name), []).append(tensor.detach())
    norms = [nn.utils.get_total_norm(part) for part in parts.values()]
    if not norms:
        return {}
    found = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    return dict(zip(parts, found.tolist(), strict=True))


def gradient_norms(model: nn.Module, total: float) -> dict[str, float]:
    """Of each part, as it was before the gradient of norm `total` was clipped; nothing where that is not finite."""
    clipped = norms_by_part((name, parameter.grad) for name, parameter in model.named_parameters())
    now = math.hypot(*clipped.values())
    if not (math.isfinite(total) and math.isfinite(now)):
        return {}
    return {part: norm * total / now if now else 0.0 for part, norm in clipped.items()}


@torch.no_grad()
def encoder_statistics(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """What the encoder does while `run` runs `model` on a few examples, in evaluation, at all cross-attentions:

    `latent_similarity`: cosine between two latents of an example, mean over pairs and examples (1: collapsed).
    `example_similarity`: cosine between the same latent of two examples (1: the model does not tell them apart).
    `cross_attention_2_entropy`: of the attention of the second block's read, as a share of that of uniform attention.
    `cross_attention_2_update`: the norm of what that cross-attention finds, relative to that of the latents it is added
    to. Nothing random is drawn and nothing of the model changed.
    """
    found: dict[str, list[Tensor]] = {}
    handles = []
    for encoder in (module for module in model.modules() if isinstance(module, PerceiverVLEncoder)):
        handles.append(encoder.register_forward_hook(partial(_note_latents, found)))
        for number, block in enumerate(encoder.blocks):
            turn, modality = divmod(number, len(encoder.modalities))
            label = f"cross_attention_{turn + 1}"
            if encoder.modalities != ("joint",):
                label += f"_{encoder.modalities[modality]}"
            hook = partial(_note_cross_attention, found, label)
            handles.append(block.get_submodule("cross_attention").register_forward_pre_hook(hook, with_kwargs=True))
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # what is compiled does not see the hooks
            run()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: torch.stack(values).mean().item() for name, values in found.items()}


def mean_cosine_similarity(vectors: Tensor) -> Tensor:
    """`(…,n,D)` → `(…)`: the mean cosine between two of the n vectors, n at least 2."""
    count = vectors.shape[-2]
    together = F.normalize(vectors.float(), dim=-1).sum(-2).square().sum(-1)  # n + the cosines of all ordered pairs
    return (together - count) / (count * (count - 1))


def _note_latents(found: dict[str, list[Tensor]], encoder: nn.Module, args: object, latents: Tensor) -> None:
    """`latents (B,N,D)`."""
    if latents.shape[1] > 1:
        found.setdefault("latent_similarity", []).append(mean_cosine_similarity(latents).mean())
    if latents.shape[0] > 1:
        found.setdefault("example_similarity", []).append(mean_cosine_similarity(latents.transpose(0, 1)).mean())


def _note_cross_attention(
    found: dict[str, list[Tensor]], label: str, block: AttentionBlock, args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Before a read of `latents (B,N,D)`, `inputs (B,M,D)`, `input_mask (B,M)`; `named`: its `boundary`, too."""
    latents, inputs, mask = (*args, None)[:3]
    normed, inputs, boundary = block.norm1(latents), block.input_norm(inputs), named.get("boundary")
    weights = block.attention.weights(normed, inputs, mask, boundary=boundary).float()  # (B,H,N,M)
    real = weights.new_tensor(inputs.shape[1]) if mask is None else mask.sum(1)[:, None, None]
    entropy = torch.special.entr(weights).sum(-1) / real.clamp(min=2).log()  # (B,H,N)
    attended = block.attention(normed, inputs, mask, boundary=boundary)
    kept = latents if block.residual == "queries" else normed
    found.setdefault(f"{label}_entropy", []).append(entropy.mean())
    found.setdefault(f"{label}_update", []).append(attended.float().norm() / kept.float().norm().clamp(min=1e-12))


def encoding_flops(
    config: PerceiverVLConfig,
    frames: int = 0,
    words: int = 0,
    budget: ComputeBudget = FULL_BUDGET,
    modality: str | None = None,
) -> float:
    """Operations of encoding one example in training: `flops.encoder_flops`, less what LayerDrop takes of it."""
    everything = encoder_flops(config, frames, words, budget, modality)
    first = encoder_flops(config, frames, words, replace(budget, cross_attentions=1), modality)
    return first + (1 - config.layer_drop) * (everything - first)


def pretraining_flops(
    config: PerceiverVLConfig, batch: Mapping[str, Any], objectives: Objectives, budget: ComputeBudget = FULL_BUDGET
) -> float:
    """Operations of the losses of a batch, forward and backward: its encodings and the matching of pairs, three times
    (what is computed again in the backward pass is not counted again). The heads are left out.
    """
    pixels, words = batch["pixel_values"], batch["input_ids"].shape[1]
    examples, frames = len(pixels), batch["frame_mask"].shape[-1]
    segments = batch["edges"].shape[1] - 1 if "edges" in batch else 1
    modality = batch.get("modality")
    latents = (budget.latents or config.num_latents) + (budget.text_latents or config.num_text_latents or 0)
    of_batch = BatchFlops(
        examples=examples,
        joint_examples=round(objectives.joint_share * examples),
        vision=segments * encoding_flops(config, frames, 0, budget, modality),
        text=encoding_flops(config, 0, words, budget),
        joint=encoding_flops(config, frames, words, budget, modality),
        match=matching_flops(config, latents),
        match_end=merge_flops(config),
        segments=segments,
        masked_joint=_masked_flops(config, frames, words, objectives, budget) if objectives.weights["mpm"] else 0.0,
    )
    shared = examples * (of_batch.vision + of_batch.text) if objectives.encodings else 0.0
    return 3 * (shared + sum(objective.flops(of_batch) for objective in objectives.asked.values()))


def _masked_flops(
    config: PerceiverVLConfig, frames: int, words: int, objectives: Objectives, budget: ComputeBudget
) -> float:
    """Operations of a joint encoding of the patches that are not masked, and of the decoder for those asked for."""
    budget, patches = replace(budget, frames=None), config.grid**2
    masked = frames * (patches - max(1, round((1 - objectives.mpm_ratio) * patches)))
    tokens = frames * config.tokens_per_frame + (words if config.modality_aggregation == "joint" else 0)
    latents = config.latents_of(budget)[1]
    spared = block_flops(config, latents, tokens) - block_flops(config, latents, tokens - masked)
    reads = 1 + (1 - config.layer_drop) * (config.cross_attentions_of(budget) - 1)
    asked = max(frames, round(objectives.mpm_targets * masked))
    return encoding_flops(config, frames, words, budget) - reads * spared + block_flops(config, asked, latents)


def task_flops(config: PerceiverVLConfig, batch: Mapping[str, Tensor], budget: ComputeBudget = FULL_BUDGET) -> float:
    """Operations of a task's loss, forward and backward, as `pretraining_flops`: each choice with its clip, or each
    picture with its words, is an encoding.
    """
    pixels, words = batch["pixel_values"], batch.get("input_ids")
    pictures = pixels.shape[1] if pixels.dim() == 6 else 1
    choices = words.shape[1] if words is not None and words.dim() == 3 else 1
    one = encoding_flops(config, pixels.shape[-4], 0 if words is None else words.shape[-1], budget)
    return 3 * len(pixels) * pictures * choices * one


def captioning_flops(
    config: PerceiverVLConfig, batch: Mapping[str, Tensor], budget: ComputeBudget = FULL_BUDGET
) -> float:
    """Operations of the loss of captions, forward and backward, as `task_flops`; of a language model, whose weights
    have no gradient, twice.
    """
    frames, words = batch["pixel_values"].shape[1], batch["input_ids"].shape[1]
    if config.language_config is not None:
        seeing, language = bridge_flops(config, frames, words, budget)
        return len(batch["input_ids"]) * (3 * seeing + 2 * language)
    said = (batch["labels"] != -100).float().sum(1).mean().item()
    one = caption_flops(config, frames, words, budget, said)
    if config.caption_prefix == "latents":
        one += encoding_flops(config, frames, 0, budget) - encoder_flops(config, frames, 0, budget)
    return 3 * len(batch["input_ids"]) * one


def memory(device: torch.device) -> dict[str, float]:
    """The most that this process has held so far, MiB: `memory_mib`, and `gpu_memory_mib` where there is one."""
    found = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        found["memory_mib"] = round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
    if device.type == "cuda":
        found["gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found
