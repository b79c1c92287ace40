"""A Trainer of Hugging Face for each thing that can be learned: retrieval with its objectives, and the tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.tasks.retrieval_result import RECALLS, RetrievalResult
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.training.callbacks import AtSteps
from perceiver_vl.training.distillation import DistillationModule
from perceiver_vl.training.elastic import ElasticTaskModule
from perceiver_vl.training.losses.base import PreTrainingBatch
from perceiver_vl.training.momentum import MomentumModel
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.recipe_trainer import RecipeTrainer
from perceiver_vl.training.statistics import FEW, captioning_flops, encoding_flops, pretraining_flops, task_flops
from perceiver_vl.training.student_score import MEASURED, Texts, score_student, texts_of
from perceiver_vl.utils.distributed import GlobalBatch


class RetrievalTrainer(RecipeTrainer[RetrievalResult]):
    """Our objectives as the loss, and retrieval on the validation clips as the evaluation."""

    momentum: MomentumModel | None = None

    def module(self) -> nn.Module:
        """The model with the recipe's objectives."""
        elastic = self.recipe.elastic
        module = PreTrainingModule(self.model, self.recipe.objectives, elastic.distill if elastic else 0.0)
        if (momentum := module.momentum) is not None:
            self.momentum = momentum
            self.add_callback(AtSteps(lambda step: momentum.follow(self.model, step)))
        return module

    def restore(self, checkpoint: Path | None) -> None:
        """And the momentum model with its queue."""
        super().restore(checkpoint)
        if self.momentum is not None and checkpoint is not None:
            self.momentum.load(checkpoint, self.model, self.state.global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into a checkpoint the momentum model with its queue, too, which all processes have alike."""
        super().save_model(output_dir, _internal_call)
        if self.momentum is not None and _internal_call and self.args.should_save:
            self.momentum.save(Path(output_dir or self.args.output_dir))

    def objectives(self) -> Objectives:
        """Those of this step."""
        return self.recipe.objectives.of_step(self.state.global_step, self.args.seed)

    def loss_of(self, module: nn.Module, inputs: dict[str, Any], global_batch: GlobalBatch) -> Tensor:
        """The weighted sum of the step's objectives."""
        own = global_batch.sizes[global_batch.rank]  # 0 where what there is only stands in
        parts = {name: value[:own] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        batch = PreTrainingBatch.from_dict(parts)
        return self.loss_of_parts(module, batch, self.budgets(), global_batch, self.objectives())

    def score(self, validation: VideoDataset) -> RetrievalResult:
        """As the recipe's `evaluation` says."""
        how = self.recipe.evaluation
        return evaluate_retrieval(
            self._whole_model(),
            self.processing_class,
            validation,
            streams=how.streams,
            captions_per_clip=how.captions_per_clip,
            shortlist=how.shortlist,
            **_reading(self.recipe),
        )

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Of the step's objectives."""
        objectives, config = self.objectives(), self._config()
        return sum(pretraining_flops(config, batch, objectives, budget) for budget in self.budgets())

    def run_encoder(self, few: dict[str, Tensor]) -> object:
        """Clips with their words, as those with a joint encoding see them; where there are none, the clips alone. Of
        stretches some segments.
        """
        if "edges" in few:
            few = {name: few[name].flatten(0, 1)[:FEW] for name in ("pixel_values", "frame_mask")}
        names = ["pixel_values", "frame_mask", *(["modality"] if "modality" in few else [])]
        if not all(objective.encodings for objective in self.recipe.objectives.asked.values()):
            names += ["input_ids", "attention_mask"]
        return self.encode(**{name: few[name] for name in names})

    def figures(self, result: RetrievalResult) -> dict[str, float]:
        """The recalls of every stream."""
        return result.figures()


class DistillationTrainer(RecipeTrainer[TaskResult]):
    """The distance from a teacher's vectors as the loss, and how near the student's come as the evaluation.

    targets: the teacher's vectors of the validation clips `(C,E)`.
    """

    def __init__(self, *args: Any, targets: Tensor | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.targets = targets
        self._texts: Texts | None = None

    def module(self) -> nn.Module:
        """The student with its loss."""
        return DistillationModule(self.model)

    def loss_of(self, module: nn.Module, inputs: dict[str, Any], global_batch: GlobalBatch) -> Tensor:
        """`distillation_loss`."""
        own = global_batch.sizes[global_batch.rank]  # 0 where what there is only stands in
        tensors = {name: value[:own] for name, value in inputs.items() if isinstance(value, Tensor)}
        return self.loss_of_parts(module, tensors, global_batch)

    def score(self, validation: VideoDataset) -> TaskResult:
        """As `score_student` says."""
        assert self.targets is not None
        model = self._whole_model()
        if self._texts is None:
            self._texts = texts_of(model, self.processing_class, validation)
        return score_student(
            model,
            self.processing_class,
            validation,
            self.targets,
            self._texts,
            **_reading(self.recipe),
        )

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Of the student's clips, forward and backward."""
        clips, frames = batch["pixel_values"].shape[:2]
        return 3 * clips * encoding_flops(self._config(), frames)

    def run_encoder(self, few: dict[str, Tensor]) -> object:
        """The clips alone."""
        return self.encode(pixel_values=few["pixel_values"], frame_mask=few["frame_mask"])

    def figures(self, result: TaskResult) -> dict[str, float]:
        """The metrics; raises `UsageError` where the one that the best model goes by is not among them."""
        best = self.args.metric_for_best_model
        if best is not None:
            result.metric(best.removeprefix("eval_"))
        return result.metrics


class TaskTrainer(RecipeTrainer[TaskResult]):
    """The loss of a task's model, and the task's official metric on the validation clips as the evaluation."""

    def module(self) -> nn.Module:
        """The model, which is itself one of its loss, if that is not asked at several budgets."""
        elastic = self.recipe.elastic
        return self.model if elastic is None else ElasticTaskModule(self.model, elastic.distill)

    def loss_of(self, module: nn.Module, inputs: dict[str, Any], global_batch: GlobalBatch) -> Tensor:
        """The model computes its own from `labels`, a mean over the examples."""
        if self.recipe.elastic is None:
            loss = module(**inputs).loss
        else:
            loss = self.loss_of_parts(module, inputs, self.budgets())
        return loss * global_batch.sizes[global_batch.rank] / global_batch.mean_of(global_batch.total)

    def score(self, validation: VideoDataset) -> TaskResult:
        """As `evaluate --task` does."""
        assert self.recipe.task is not None
        return example_task_of(self.recipe.task).evaluate(
            self._whole_model(),
            self.processing_class,
            validation,
            **_reading(self.recipe),
        )

    def flops(self, batch: Mapping[str, Tensor]) -> float:
        """Of the task's own loss."""
        count = captioning_flops if self.recipe.task == "captioning" else task_flops
        return sum(count(self._config(), batch, budget) for budget in self.budgets())

    def run_encoder(self, few: dict[str, Tensor]) -> object:
        """As the loss does."""
        if self.recipe.elastic is None:
            return self.model_wrapped(**few).logits
        return self.encode(**few)

    def figures(self, result: TaskResult) -> dict[str, float]:
        """The metrics; raises `UsageError` where the one that the best model goes by is not among them."""
        best = self.args.metric_for_best_model
        if best is not None:
            result.metric(best.removeprefix("eval_"))
        return result.metrics


def measured_by(recipe: Recipe) -> list[str]:
    """The names of the figures that the evaluation of a recipe can log."""
    if recipe.teacher is not None:
        return list(MEASURED)
    if recipe.task is not None:
        return list(example_task_of(recipe.task).metrics)
    streams = recipe.evaluation.streams
    return [f"{one.replace('-', '_')}_{way}{k}" for one in streams for way in ("", "v2t_") for k in RECALLS]


def _reading(recipe: Recipe) -> dict[str, Any]:
    """How every evaluation of a run reads its clips, by all processes together."""
    data = recipe.data
    return {
        "num_frames": data.validation_frames,
        "batch_size": recipe.evaluation.batch_size,
        "strict": data.strict,
        "max_failed_fraction": data.max_failed_fraction,
        "shared": True,
    }
