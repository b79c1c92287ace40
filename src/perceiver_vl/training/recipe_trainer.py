"""The Trainer of a recipe, whatever it learns.

Batches in the order of the recipe's sampler, the count of files that cannot be read, the schedule of stages, and a
validation that all processes share.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler

from perceiver_vl.data.batching import SharedBatches
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import ReadTracker, check_failures, write_skipped
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.retrieval_result import RetrievalResult
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.training.elastic import budgets_of_step
from perceiver_vl.training.monitored_trainer import MonitoredTrainer
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.resume import Batch
from perceiver_vl.training.sharding import UNITS, as_saved, whole_model
from perceiver_vl.training.signals import Stop, outlive_a_signal
from perceiver_vl.training.stages import stage_schedule
from perceiver_vl.utils.distributed import GlobalBatch, global_batches
from perceiver_vl.utils.errors import PerceiverVLError

SKIPPED = "skipped.jsonl"
Result = TypeVar("Result", RetrievalResult, TaskResult)


class RecipeTrainer(MonitoredTrainer, Generic[Result]):
    """The Trainer of a recipe. known: what could not be read or used before it began."""

    def __init__(
        self,
        recipe: Recipe,
        stop: Stop,
        validation: VideoDataset | None,
        sampler: Sampler[int],
        batch: Batch,
        known: set[SkippedSample],
        **kwargs: Any,
    ) -> None:
        super().__init__(recipe, stop, **kwargs)
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = UNITS
        self.validation, self.sampler, self.batch, self.known = validation, sampler, batch, known
        self.reads = ReadTracker(len(self.train_dataset))
        self._shared_problems: set[SkippedSample] = set()  # that all processes know of each other
        self.loss_is_scaled_for_ga = False  # ours is the mean of each batch
        self._fetches, self._waited, self._evaluated, self._since = 0, 0.0, 0.0, time.perf_counter()

    def module(self) -> nn.Module:
        """What a step is one forward pass of: the model, or a module that holds it."""
        return self.model

    @abstractmethod
    def loss_of(self, module: nn.Module, inputs: dict[str, Any], global_batch: GlobalBatch) -> Tensor:
        """The loss of this process's part of the whole batch; its mean over the processes is that of the whole.

        module: what `module` has made, in the wrapper of what trains in parallel.
        """

    @abstractmethod
    def score(self, validation: VideoDataset) -> Result:
        """The model on the validation clips."""

    @abstractmethod
    def figures(self, result: Result) -> dict[str, float]:
        """What the log says of it, by name."""

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """The batches that all processes share; the Trainer would fill up the last one of an epoch with others."""
        from accelerate.data_loader import prepare_data_loader

        how = self.args
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=SharedBatches(
                self.sampler, self.batch.examples, how.process_index, how.world_size, how.dataloader_drop_last
            ),
            collate_fn=self.data_collator,
            num_workers=how.dataloader_num_workers,
            worker_init_fn=outlive_a_signal,
            pin_memory=how.dataloader_pin_memory,
            persistent_workers=how.dataloader_persistent_workers,
            prefetch_factor=how.dataloader_prefetch_factor,
            multiprocessing_context=how.dataloader_multiprocessing_context,
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        """As the Trainer does it, but a module that holds the model is wrapped (DDP, FSDP) in its place. `self.model`
        stays the model: it is what is saved, loaded, averaged and frozen.
        """
        module = self.module()
        if module is self.model:
            prepared: tuple[nn.Module, DataLoader[Any]] = super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
            return prepared
        optimizer = self.create_optimizer()
        self.model_wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        register_fsdp_forward_method(module, "encode")
        self.create_scheduler(max_steps)
        if resume_from_checkpoint is not None:
            if self.is_fsdp_enabled:
                self._load_from_checkpoint(resume_from_checkpoint, self.model)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader
        return self.model_wrapped, train_dataloader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last step, the Trainer would take another
            self.control.should_training_stop = True
        if self.control.should_training_stop:
            return
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of a step; notes how long they took, and what could not be read."""
        start = time.perf_counter()
        if not self._fetches:
            self._since = start
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.perf_counter() - start
        files: list[str] = []
        for batch in batches:
            if "error" in batch:
                raise batch["error"]
            read = [place for place in batch["tried"] if place not in set(batch["failed"])]
            files += [self.train_dataset.source.record(place).file_name for place in read]
            self.reads.add(batch)
        self._share(batches)
        self.note_batches(batches, files)
        self._fetches += 1
        if self._fetches.bit_count() == 1 or self._fetches % 100 == 0:  # early, then rarely: all processes take part
            self._check_failures()
        return batches, items

    def _share(self, batches: list[dict[str, Any]]) -> None:
        """Say in each batch of a step whose it is, and what it weighs in the mean of them, by its examples."""
        global_batches_of_step = global_batches([batch.pop("examples") for batch in batches], self.args.device)
        examples = sum(global_batch.total for global_batch in global_batches_of_step)
        for batch, global_batch in zip(batches, global_batches_of_step, strict=True):
            batch |= {
                "global_batch": global_batch,
                "weight": len(global_batches_of_step) * global_batch.total / examples,
            }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What `loss_of` says, by the weight of the batch among those that are accumulated."""
        global_batch, weight = inputs.pop("global_batch"), inputs.pop("weight")
        return self.loss_of(model, inputs, global_batch) * weight

    def _sums(self) -> dict[str, Any]:
        return super()._sums() | self.batch.to_dict()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Where the run had no such process before, dropout is drawn from the step and the process."""
        rank = self.args.process_index
        name = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if checkpoint is None or Path(checkpoint, name).is_file():
            super()._load_rng_state(checkpoint)
        else:
            torch.manual_seed((self.args.seed * 1_000_003 + self.state.global_step) * 1009 + rank)

    def _check_failures(self) -> None:
        first = next(iter(self.reads.problems), None)
        found = self._of_all((*self.reads.counts(), first))
        broken, tried = (sum(one[place] for one in found) for place in (0, 1))
        first = next((one[2] for one in found if one[2]), None)
        try:
            check_failures(broken, tried, len(self.train_dataset), self.recipe.data.max_failed_fraction, first)
        except PerceiverVLError:
            self.write_skipped()
            raise

    def write_skipped(self) -> tuple[list[SkippedSample], list[str]]:
        """Write what all processes could not read, → it, and the files that lacked frames; by name."""
        found = self._of_all((self.reads.problems, self.reads.damaged))
        problems = self.known.union(*(problems for problems, _ in found))
        skipped = sorted(problems, key=lambda problem: (problem.file_name, problem.reason))
        if self.args.process_index == 0:
            write_skipped(self.recipe.output / SKIPPED, skipped)
        return skipped, sorted(set().union(*(damaged for _, damaged in found)))

    def _count_skipped(self) -> int:
        """How many files all processes could not read so far; each problem is passed on once."""
        for new in self._of_all(self.reads.problems - self._shared_problems):
            self._shared_problems |= new
        return len(self.known | self._shared_problems)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """That of the recipe's stages, where it has some; else the Trainer's own."""
        if not self.recipe.stages:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, stage_schedule(self.recipe.stages, self.args))
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each objective's own mean since the last log, the share of that time spent waiting for data, and how the
        run is doing.
        """
        if "loss" in logs:
            logs |= {f"loss_{name}": mean for name, mean in self._recent_means().items()}
            self.recent.clear()
            now = time.perf_counter()
            seconds = max(now - self._since - self._evaluated, self._waited, 1e-9)
            logs["data_wait"] = round(self._waited / seconds, 4)
            logs |= self.health(seconds)
            logs["skipped_files"] = self._count_skipped()
            self._waited, self._evaluated, self._since = 0.0, 0.0, now
        if "train_runtime" in logs:
            logs |= self.run_totals()
        super().log(logs, start_time)

    def _recent_means(self) -> dict[str, float]:
        """Of each objective, over the processes, as far as they have it."""
        found = self._of_all({name: torch.stack(values).mean().item() for name, values in self.recent.items()})
        names = dict.fromkeys(name for one in found for name in one)
        values = {name: [one[name] for one in found if name in one] for name in names}
        return {name: sum(of_one) / len(of_one) for name, of_one in values.items()}

    def loss_of_parts(self, module: nn.Module, *inputs: Any) -> Tensor:
        """The loss that a module gives with its parts, which are logged."""
        with self.accelerator.autocast():  # where weights are sharded accelerate leaves it out
            loss, parts = module(*inputs)
        for name, part in parts.items():
            self.recent.setdefault(name, []).append(part.detach().float())
        return loss  # type: ignore[no-any-return]

    def encode(self, **inputs: Tensor) -> Tensor:
        """`TrainingModule.encode`, which leaves sharded weights as it found them."""
        module = self.accelerator.unwrap_model(self.model_wrapped)
        found: Tensor = module.encode(**inputs)
        if isinstance(module, FSDPModule):
            module.reshard()
        return found

    def budgets(self) -> list[ComputeBudget]:
        """Those at which the losses of this step are computed."""
        elastic, frames, step = self.recipe.elastic, self.recipe.data.num_frames, self.state.global_step
        if elastic is None:
            return [FULL_BUDGET]
        found: list[ComputeBudget] = budgets_of_step(elastic, self._config(), frames, self.args.seed, step)
        return found

    def _config(self) -> PerceiverVLConfig:
        config: PerceiverVLConfig = self.accelerator.unwrap_model(self.model).config
        return config

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None and self.is_fsdp_enabled:
            state_dict = as_saved(self.accelerator.unwrap_model(self.model), state_dict)
        super()._save(output_dir, state_dict)

    def _whole_model(self) -> Any:
        return whole_model(self.accelerator.unwrap_model(self.model))

    def validate(self) -> Result:
        """The score on the validation clips, of which each process takes its share."""
        assert self.validation is not None
        start = time.perf_counter()
        with self.averaged():
            found: list[Any] = [self.score(self.validation)]
        if self.args.world_size > 1:
            dist.broadcast_object_list(found, src=0)  # they decide by it, and shall decide alike
        result: Result = found[0]
        self.known.update(result.skipped)
        self._evaluated += time.perf_counter() - start
        return result

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """The figures of the validation, as `eval_NAME`."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.figures(self.validate()).items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics
