"""The Trainer of Hugging Face with what ours share, and one for each thing that can be learned.

What they share: batches in the order of the recipe's sampler, the count of files that cannot be read, the schedule of
stages, and a validation that the first process does for all.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import Trainer

from perceiver_vl.budget import FULL_BUDGET
from perceiver_vl.data.broken import Tried, check_broken, write_skipped
from perceiver_vl.data.clips import ClipSource
from perceiver_vl.data.records import Problem
from perceiver_vl.errors import PerceiverVLError
from perceiver_vl.model import PerceiverVLForPreTraining
from perceiver_vl.objectives import PreTrainingBatch, pretraining_losses
from perceiver_vl.recipe import Recipe
from perceiver_vl.stages import stage_schedule
from perceiver_vl.tasks import task_of
from perceiver_vl.tasks.evaluation import TaskResult, evaluate_task
from perceiver_vl.tasks.retrieval import RetrievalResult, evaluate_retrieval

RECALLS = ("r1", "r5", "r10")
SKIPPED = "skipped.jsonl"
Result = TypeVar("Result", RetrievalResult, TaskResult)


class RecipeTrainer(Trainer, Generic[Result]):
    """The Trainer of a recipe. known: what could not be read or used before it began."""

    def __init__(
        self,
        recipe: Recipe,
        validation: ClipSource | None,
        sampler: Sampler[int],
        known: set[Problem],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.recipe, self.validation, self.sampler, self.known = recipe, validation, sampler, known
        self.tried = Tried(len(self.train_dataset))
        self.loss_is_scaled_for_ga = False  # ours is the mean of each batch
        self._recent: dict[str, list[Tensor]] = {}
        self._fetches, self._waited, self._evaluated, self._since = 0, 0.0, 0.0, time.perf_counter()

    @abstractmethod
    def score(self, validation: ClipSource) -> Result:
        """The model on the validation clips."""

    @abstractmethod
    def figures(self, result: Result) -> dict[str, float]:
        """What the log says of it, by name."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last step, the Trainer would take another
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of a step; notes how long they took, and what could not be read."""
        start = time.perf_counter()
        if not self._fetches:
            self._since = start
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.perf_counter() - start
        for batch in batches:
            if "error" in batch:
                raise batch["error"]
            self.tried.add(batch)
        self._fetches += 1
        if self._fetches.bit_count() == 1 or self._fetches % 100 == 0:  # early, then rarely: all processes take part
            self._check_broken()
        return batches, items

    def _check_broken(self) -> None:
        first = next(iter(self.tried.problems), None)
        found = self._of_all((*self.tried.counts(), first))
        broken, tried = (sum(one[place] for one in found) for place in (0, 1))
        first = next((one[2] for one in found if one[2]), None)
        try:
            check_broken(broken, tried, len(self.train_dataset), self.recipe.data.max_broken, first)
        except PerceiverVLError:
            self.write_skipped()
            raise

    def _of_all(self, mine: Any) -> list[Any]:
        """What each process has."""
        found = [mine] * self.args.world_size
        if self.args.world_size > 1:
            dist.all_gather_object(found, mine)
        return found

    def write_skipped(self) -> tuple[list[Problem], list[str]]:
        """Write what all processes could not read, → it, and the files that lacked frames; by name."""
        found = self._of_all((self.tried.problems, self.tried.damaged))
        problems = self.known.union(*(problems for problems, _ in found))
        skipped = sorted(problems, key=lambda problem: (problem.file_name, problem.reason))
        if self.args.process_index == 0:
            write_skipped(self.recipe.output / SKIPPED, skipped)
        return skipped, sorted(set().union(*(damaged for _, damaged in found)))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """That of the recipe's stages, where it has some; else the Trainer's own."""
        if not self.recipe.stages:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, stage_schedule(self.recipe.stages, self.args))
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each objective's own mean since the last log, and the share of that time spent waiting for data."""
        if "loss" in logs:
            logs |= {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._recent.items()}
            self._recent.clear()
            now = time.perf_counter()
            logs["data_wait"] = round(self._waited / max(now - self._since - self._evaluated, self._waited, 1e-9), 4)
            self._waited, self._evaluated, self._since = 0.0, 0.0, now
        super().log(logs, start_time)

    def validate(self) -> Result:
        """The score on the validation clips; the first process makes it for all."""
        assert self.validation is not None
        start = time.perf_counter()
        found: list[Any] = [self.score(self.validation) if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            dist.broadcast_object_list(found, src=0)
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


class RetrievalTrainer(RecipeTrainer[RetrievalResult]):
    """Our objectives as the loss, and retrieval on the validation clips as the evaluation."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the recipe's objectives."""
        objectives = self.recipe.objectives
        with self.accelerator.autocast():  # it wraps the model's own forward alone, which the objectives go around
            losses = _through_forward(
                model,
                self.accelerator.unwrap_model(model),
                lambda inner: pretraining_losses(inner, PreTrainingBatch.from_dict(inputs), objectives, FULL_BUDGET),
            )
        for name, loss in losses.items():
            self._recent.setdefault(name, []).append(loss.detach())
        return torch.stack([getattr(objectives, name) * loss for name, loss in losses.items()]).sum()

    def score(self, validation: ClipSource) -> RetrievalResult:
        """As the recipe's `evaluation` says."""
        how, data = self.recipe.evaluation, self.recipe.data
        return evaluate_retrieval(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            validation,
            streams=how.streams,
            num_frames=data.num_frames,
            captions_per_clip=how.captions_per_clip,
            shortlist=how.shortlist,
            batch_size=how.batch_size,
            strict=data.strict,
            max_broken=data.max_broken,
        )

    def figures(self, result: RetrievalResult) -> dict[str, float]:
        """R@1, R@5 and R@10 of every stream, as `multi_r1` (text to video) and `multi_v2t_r1`."""
        metrics = {}
        for stream in result.streams:
            name = stream.stream.replace("-", "_")
            for k in RECALLS:
                metrics[f"{name}_{k}"] = getattr(stream.text_to_video, k)
                metrics[f"{name}_v2t_{k}"] = getattr(stream.video_to_text, k)
        return metrics


class TaskTrainer(RecipeTrainer[TaskResult]):
    """The loss of a task's model, and the task's official metric on the validation clips as the evaluation."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model computes its own from `labels`."""
        return model(**inputs).loss

    def score(self, validation: ClipSource) -> TaskResult:
        """As `evaluate --task` does."""
        assert self.recipe.task is not None
        data = self.recipe.data
        return evaluate_task(
            task_of(self.recipe.task),
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            validation,
            num_frames=data.num_frames,
            batch_size=self.recipe.evaluation.batch_size,
            strict=data.strict,
            max_broken=data.max_broken,
        )

    def figures(self, result: TaskResult) -> dict[str, float]:
        """The metrics; raises `UsageError` where the one that the best model goes by is not among them."""
        best = self.args.metric_for_best_model
        if best is not None:
            result.metric(best.removeprefix("eval_"))
        return result.metrics


def measured_by(recipe: Recipe) -> list[str]:
    """The names of the figures that the evaluation of a recipe can log."""
    if recipe.task is not None:
        return list(task_of(recipe.task).metrics)
    streams = recipe.evaluation.streams
    return [f"{one.replace('-', '_')}_{way}{k}" for one in streams for way in ("", "v2t_") for k in RECALLS]


def _through_forward(
    wrapper: nn.Module, model: PerceiverVLForPreTraining, compute: Callable[[PerceiverVLForPreTraining], Any]
) -> Any:
    """Run `compute(model)` inside the wrapper's forward, so that data-parallel wrappers see one forward pass.

    The objectives call several methods of the model in a step; DDP and FSDP hook `forward` alone. For this one call the
    inner model's forward is the computation itself.
    """
    if wrapper is model:
        return compute(model)
    forward = model.forward

    def redirected() -> Any:
        model.forward = forward  # type: ignore[method-assign]
        return compute(model)

    model.forward = redirected  # type: ignore[method-assign,assignment]
    try:
        return wrapper()
    finally:
        model.forward = forward  # type: ignore[method-assign]
