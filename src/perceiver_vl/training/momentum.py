"""A copy of a model that follows it slowly, and a queue of what it has made of the latest batches.

Sources: MoCo (He et al. 2020), whose slow encoder keeps the vectors of a queue consistent; ALBEF (Li et al. 2021),
where it also says what is learned.
Shapes: B batch, ΣB that of all processes, Q queued pairs, E retrieval vector.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.training.losses.base import LossOptions, MomentumTargets, PreTrainingBatch, in_pieces
from perceiver_vl.utils.distributed import GlobalBatch
from perceiver_vl.utils.errors import PerceiverVLError

FILE = "momentum.safetensors"
"""The copy and its queue, in a checkpoint."""
_QUEUES = ("vision", "text")


class MomentumModel:
    """The copy, at first the model itself, in evaluation mode; frozen encoders it shares with it.

    `queue`: of `vision` and of `text`, unit vectors `(Q,E)` pair for pair, the newest last and at first none. The same
    in all processes: those of a batch come in the order of the whole batch, whichever process has encoded them.
    """

    def __init__(self, model: PerceiverVLForRetrieval, options: LossOptions) -> None:
        base = model.perceiver_vl
        shared = [one for one in (base.vision_encoder, base.text_encoder) if one is not None and not one.trainable]
        self._shared = {id(weight) for encoder in shared for weight in encoder.parameters()}
        self.model = deepcopy(model, {id(encoder): encoder for encoder in shared}).requires_grad_(False).eval()
        self.options, self.step = options, 0
        size = model.config.projection_dim
        first = next(model.parameters())
        self.queue = {side: torch.zeros(0, size or 0, dtype=first.dtype, device=first.device) for side in _QUEUES}

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """After `step` steps of the model: keep `momentum_decay` of itself, and take the rest from it."""
        pairs = [(mine, its) for mine, its in self._beside(model) if mine is not its]
        average = get_ema_multi_avg_fn(self.options.momentum_decay)
        average([mine for mine, _ in pairs], [its.detach() for _, its in pairs], step)
        self.step = step

    @torch.no_grad()
    def encode(self, batch: PreTrainingBatch, global_batch: GlobalBatch, chunk: int | None = None) -> MomentumTargets:
        """What it makes of the batch of all processes, `chunk` examples at a time, beside its queue."""
        pieces = global_batch.pieces(chunk)
        look = partial(self.model.get_vision_features, modality=batch.modality)
        vision = in_pieces(look, pieces, batch.pixel_values, batch.frame_mask)
        text = in_pieces(self.model.get_text_features, pieces, batch.input_ids, batch.attention_mask)
        warmup = self.options.momentum_warmup
        grown = min(1.0, self.step / warmup) if warmup else 1.0
        return MomentumTargets(
            vision=global_batch.rows(vision),
            text=global_batch.rows(text),
            queued_vision=self.queue["vision"].to(vision),
            queued_text=self.queue["text"].to(text),
            alpha=grown * self.options.momentum_alpha,
        )

    @torch.no_grad()
    def enqueue(self, latest: MomentumTargets) -> None:
        """Add the pairs of a batch, and let go of those that the queue has no room for; what is not finite stays out,
        lest one broken clip spoil all that follow.
        """
        new = {"vision": latest.vision, "text": latest.text}
        finite = torch.stack([vectors.isfinite().all(1) for vectors in new.values()]).all(0)
        for side, queued in self.queue.items():
            whole = torch.cat([queued.to(new[side].device), new[side][finite].to(queued.dtype)])
            self.queue[side] = whole[max(0, len(whole) - self.options.queue_size) :]

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint, its queue too."""
        weights = {f"model.{name}": weight.contiguous() for name, weight in self._own().items()}
        queues = {f"queue.{side}": queued.contiguous() for side, queued in self.queue.items()}
        save_file(weights | queues, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path, model: nn.Module, step: int) -> None:
        """Go on from a checkpoint after `step` steps; from the weights of `model` where the run had no copy so far.

        Raises `PerceiverVLError` for one of another model.
        """
        self.step = step
        if not (folder / FILE).is_file():
            for mine, its in self._beside(model):
                mine.copy_(its)
            return
        found, own = load_file(folder / FILE), self._own()
        shapes = {f"model.{name}": weight.shape for name, weight in own.items()}
        queues = {side: f"queue.{side}" for side in _QUEUES}
        if {name: one.shape for name, one in found.items() if name not in queues.values()} != shapes:
            raise PerceiverVLError(f"{folder / FILE}: the copy of another model, take it away to start a new one")
        for name, weight in own.items():
            weight.copy_(found[f"model.{name}"])
        self.queue = {side: found[name].to(self.queue[side]) for side, name in queues.items()}

    def _beside(self, model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self.model.parameters(), model.parameters(), strict=True))

    def _own(self) -> dict[str, Tensor]:
        """Its weights, less those of the encoders that it shares."""
        return {name: one.detach() for name, one in self.model.named_parameters() if id(one) not in self._shared}
