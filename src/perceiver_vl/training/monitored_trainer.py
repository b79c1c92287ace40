"""The Trainer with an eye on every step: what is not finite is not learned from, signals are heeded, weights averaged.

All processes decide alike: one small sum over them a step tells whether any has met something that is not finite, or
was asked to stop.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import IntervalStrategy

from perceiver_vl.training.adapters import load_tuned, merged_adapters, save_tuned
from perceiver_vl.training.callbacks import AtSteps
from perceiver_vl.training.checkpoint_trainer import CheckpointTrainer
from perceiver_vl.training.checkpoints import first_for_all
from perceiver_vl.training.ema import WeightAverage
from perceiver_vl.training.nonfinite_steps import NonFiniteSteps
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.signals import Stop
from perceiver_vl.training.statistics import (
    FEW,
    encoder_statistics,
    gradient_norms,
    is_statistics_step,
    memory,
    norms_by_part,
)
from perceiver_vl.utils.timing import peak_gflops


class MonitoredTrainer(CheckpointTrainer):
    """Skips steps that are not finite, averages the weights if the recipe says so, and has the figures of health."""

    def __init__(self, recipe: Recipe, stop: Stop, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipe, self.stop = recipe, stop
        self.nonfinite = NonFiniteSteps(recipe.output, recipe.max_nonfinite)
        self.average: WeightAverage | None = None
        if recipe.ema is not None:
            self.add_callback(AtSteps(self._update_average))
        self._losses: list[Tensor] = []  # of the batches of this step
        self._files: list[str] = []  # and the names in them
        self._few: dict[str, Tensor] = {}  # examples to look into the model with, when this step is logged
        self._gradient_norms: dict[str, float] = {}
        self._clips, self._flops, self._peak = 0, 0.0, 0.0

    @abstractmethod
    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Operations of the loss of a batch, forward and backward."""

    @abstractmethod
    def run_encoder(self, few: dict[str, Tensor]) -> object:
        """Encode a few examples as training does, without a loss."""

    def restore(self, checkpoint: Path | None) -> None:
        """And what of the encoders learns, the average of the weights, and the steps that were skipped."""
        super().restore(checkpoint)
        if checkpoint is not None:
            load_tuned(self.model, checkpoint)
        self.nonfinite.restore(first_for_all(lambda: self.nonfinite.skipped_until(self.state.global_step)))
        if self.recipe.ema is not None:
            self.average = WeightAverage(self.model, self.recipe.ema)
            if checkpoint is not None:
                self.average.load(checkpoint, self.model)

    def note_batches(self, batches: list[dict[str, Any]], files: list[str]) -> None:
        """Take note of the batches of a step, and of the names of the files in them."""
        self._losses, self._files = [], files
        for batch in batches:
            self._clips += len(batch["pixel_values"])
            self._flops += self.flops(batch)
        step = self.state.global_step + 1
        if batches and self._is_logged(step) and is_statistics_step(step, self.state.logging_steps):
            tensors = {name: value for name, value in batches[-1].items() if isinstance(value, Tensor)}
            self._few = {name: value[:FEW].clone() for name, value in tensors.items()}
            self._few |= {name: batches[-1][name] for name in ("modality",) if name in batches[-1]}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient of a step, which is thrown away if it is not to be learned from."""
        norm = super()._get_grad_norm(model, grad_norm)
        total = torch.as_tensor(norm.full_tensor() if isinstance(norm, DTensor) else norm, device=self.args.device)
        finite = torch.stack([*self._losses]).isfinite().all()
        if getattr(self.accelerator, "scaler", None) is None:  # that of float16 skips overflows of its own making
            finite &= total.isfinite()
        flags = torch.stack([~finite, finite.new_tensor(self.stop.asked is not None)]).int()
        if self.args.world_size > 1:
            dist.all_reduce(flags)
        bad, self.stop.agreed = (count > 0 for count in flags.tolist())
        if bad:
            self._skip()
        elif self._is_logged(self.state.global_step + 1):
            self._gradient_norms = gradient_norms(self.model, total.item())
        return norm

    def _skip(self) -> None:
        """Learn nothing from this step: an optimizer passes over parameters without a gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        mine = [name for name, values in self.recent.items() if not all(map(_is_finite, values))]
        if not mine and not all(map(_is_finite, self._losses)):
            mine = ["loss"]
        self.recent = {name: kept for name, values in self.recent.items() if (kept := [*filter(_is_finite, values)])}
        found = self._of_all((mine, self._files))
        what = sorted({name for names, _ in found for name in names}) or ["gradient"]
        files = [name for names, of_one in found if names or what == ["gradient"] for name in of_one]
        rate = self._get_learning_rate()
        self.nonfinite.add(self.state.global_step + 1, what, files, rate, writes=self.args.process_index == 0)
        weights = all(self._of_all(all(map(_is_finite, self.model.parameters()))))
        self.nonfinite.check(what, rate, self._gradient_norms, weights=weights)

    def _is_logged(self, step: int) -> bool:
        if self.args.logging_strategy != IntervalStrategy.STEPS:
            return False
        return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def health(self, seconds: float) -> dict[str, float]:
        """The figures for a line of the log, `seconds` of training after the last one."""
        figures = {f"grad_norm_{part}": norm for part, norm in self._gradient_norms.items()}
        figures |= {f"weight_norm_{p}": norm for p, norm in norms_by_part(self.model.named_parameters()).items()}
        if self._few:
            few, self._few = self._prepare_inputs(self._few), {}
            with self.accelerator.autocast():
                figures |= encoder_statistics(self.accelerator.unwrap_model(self.model), lambda: self.run_encoder(few))
        if not self._peak:
            kind = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
            self._peak = peak_gflops(self.args.device, kind)
        figures["clips_per_second"] = sum(self._of_all(self._clips)) / seconds
        figures["share_of_peak"] = self._flops / 1e9 / seconds / self._peak
        self._clips, self._flops = 0, 0.0
        figures |= memory(self.args.device)
        return {name: _rounded(value) for name, value in figures.items()} | {"nonfinite_steps": self.nonfinite.count}

    def _update_average(self, step: int) -> None:
        assert self.average is not None
        self.average.update(self.model, step)

    def averaged(self) -> AbstractContextManager[None]:
        """While this lasts the model has its averaged weights, if there are some."""
        return nullcontext() if self.average is None else self.average.in_place_of(self.model)

    def use_average(self) -> None:
        """At the end of a run: the averaged weights are the model's, if there are some, and stand for no others."""
        if self.average is not None:
            self.average.copy_to(self.model)
            self.average = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model without adapters; into a checkpoint also what of its encoders learns, as it is, and the average of
        the weights.
        """
        with merged_adapters(self.model):
            super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and self.args.should_save:
            save_tuned(self.model, folder)
        if self.average is not None and _internal_call:
            self.average.save(folder, writes=self.args.should_save)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_tuned(self.model, Path(self.state.best_model_checkpoint or ""))
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint or ""), self.model)


def _is_finite(values: Tensor) -> bool:
    local = values.to_local() if isinstance(values, DTensor) else values
    return bool(local.isfinite().all())


def _rounded(value: float) -> float:
    """To five digits: a log is read."""
    return float(f"{value:.5g}") if math.isfinite(value) else value
