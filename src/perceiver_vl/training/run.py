"""Recipe → Trainer → checkpoints → a `from_pretrained` folder."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from perceiver_vl.data.batching import DrawnExamples, EpochSampler, PreTrainingCollator, TrainingExamples
from perceiver_vl.data.mixture import MixtureSampler, caption_length, make_sampler, no_words
from perceiver_vl.data.prefetch import other_pictures
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import read_skipped
from perceiver_vl.data.stretches import StretchCollator, StretchExamples
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.dataset import TaskCollator, TaskExamples, letters_of_task
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.tasks.retrieval_result import RetrievalResult
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.training.adapters import merged_adapters
from perceiver_vl.training.arguments import check_values, refuse_idle
from perceiver_vl.training.callbacks import (
    AtBegin,
    AtSaves,
    EarlyStopping,
    EpochOrder,
    LogFile,
    ProgressBar,
    StepSeed,
)
from perceiver_vl.training.checkpoints import (
    PART,
    checkpoint_of,
    first_for_all,
    move_out,
    only_run_in,
    told_in_one_line,
)
from perceiver_vl.training.distillation import DistillationCollator, DistillationExamples
from perceiver_vl.training.encoder_training import Base, fit_base, remember_texts
from perceiver_vl.training.muon import muon_with_adamw
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.recipe_parsing import parser_of
from perceiver_vl.training.recipe_trainer import SKIPPED, RecipeTrainer
from perceiver_vl.training.reporting.model_card import write_model_card
from perceiver_vl.training.resume import batch_of
from perceiver_vl.training.setup import Start, prepare_start, teacher_vectors
from perceiver_vl.training.sharding import is_sharded, make_shardable, sharding_arguments
from perceiver_vl.training.signals import Stop, stop_on_signals
from perceiver_vl.training.stages import StageSwitch, part_of, stage_schedule
from perceiver_vl.training.trainers import DistillationTrainer, RetrievalTrainer, TaskTrainer, measured_by
from perceiver_vl.utils.console import err, quiet
from perceiver_vl.utils.errors import UsageError, within
from perceiver_vl.utils.files import write_json, write_text
from perceiver_vl.utils.text import did_you_mean

_TRAINING_DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "report_to": ["tensorboard"],
    "logging_steps": 10,
    "save_total_limit": 2,
    "dataloader_drop_last": True,
    "ddp_find_unused_parameters": True,  # LayerDrop, heads not asked, frozen parts; recomputing or not
    "dataloader_pin_memory": torch.cuda.is_available(),  # torch warns where there is nothing to pin for
}
_COMPILING = "torch_compile", "torch_compile_backend", "torch_compile_mode"


@dataclasses.dataclass
class TrainingResult:
    """Where the model went, its last validation (of retrieval or of a task), and what could not be read on the way.

    fresh: parts of the model that `initialise.model` did not have. damaged: files that lacked frames and were used all
    the same. base: what pretrained encoders alone reach on the validation clips, as of `RetrievalResult.to_dict`, where
    the model stands on some (and its weights are not sharded); a training that ends below is undone.
    """

    output: Path
    steps: int
    seconds: float
    retrieval: RetrievalResult | None
    skipped: list[SkippedSample]
    damaged: list[str]
    task: TaskResult | None = None
    fresh: list[str] = dataclasses.field(default_factory=list)
    base: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": str(self.output),
            "steps": self.steps,
            "seconds": self.seconds,
            "base": self.base,
            "retrieval": self.retrieval and self.retrieval.to_dict(),
            "task": self.task and self.task.to_dict(),
            "fresh": self.fresh,
            "skipped": [asdict(problem) for problem in self.skipped],
            "damaged": self.damaged,
        }


@within("", "task")
@within("data", "max_failed_fraction")
def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    progress: bool = True,
    change: Callable[[PerceiverVLPreTrainedModel], None] | None = None,
) -> TrainingResult:
    """Run a recipe; `resume` goes on from the last checkpoint of `recipe.output` and gives what one run would have.

    `change` is called with the model before it is trained: for parts that no configuration names.

    Writes to `recipe.output`: the model, processor and tokenizer (best by `metric_for_best_model` if the recipe asks
    for `load_best_model_at_end`), `README.md` (the model card), `recipe.yaml`, `log.jsonl`,
    `metrics.json`, `skipped.jsonl` (what was left out, and why), and `checkpoints/`.
    Raises `UsageError` for a recipe that cannot work, before anything is written; `MediaError` at a broken file with
    `data.strict`, `PerceiverVLError` when there are more than `data.max_failed_fraction`, and for what ends a run from
    outside, with the checkpoint that it can go on from.
    """
    arguments = checked_arguments(recipe)
    with only_run_in(recipe.output), told_in_one_line(recipe.output), stop_on_signals() as stop:
        checkpoint = first_for_all(lambda: checkpoint_of(recipe.output, resume))
        return _train(recipe, arguments, checkpoint, progress, change, stop)


def _train(
    recipe: Recipe,
    arguments: TrainingArguments,
    checkpoint: Path | None,
    progress: bool,
    change: Callable[[PerceiverVLPreTrainedModel], None] | None,
    stop: Stop,
) -> TrainingResult:
    """The run from its beginning, or from a checkpoint."""
    output = recipe.output
    batch, what_changes = batch_of(arguments, checkpoint)
    start = prepare_start(recipe, checkpoint, batch.examples, arguments.seed)
    data_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if change is not None:
        change(start.model)
    first = arguments.process_index == 0
    config = start.model.config
    has_base = config.has_vision_base
    if recipe.teacher is None and recipe.task != "captioning":  # whose words no text encoder reads
        remember_texts(start.model, start.processor, start.texts())
    if checkpoint is None and config.base == "linear" and not config.knows_search and start.task is None:
        fit = fit_base(start.model, start.processor, start.source, start.validation, recipe)
        if progress and first:
            err.print(str(fit))
    vectors = {} if recipe.teacher is None else teacher_vectors(recipe, start, progress and first)
    start.teacher = None  # it has said all that it is asked
    examples, collate = examples_of(recipe, start, data_seed, vectors.get("train"))
    _compile(start.model, recipe.training)
    if is_sharded(arguments):
        make_shardable(start.model)

    if first:
        write_text(output / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        if start.fresh and progress:
            err.print(f"{recipe.initialise.model} has no {', '.join(start.fresh)}: starts fresh")
        asks_base = start.task is not None and recipe.task != "captioning"
        if progress and asks_base and config.base == "linear" and not config.knows_search:
            err.print(
                f"{recipe.initialise.model}: its two encoders have never met, what they say adds nothing to an answer "
                "until it is trained for retrieval (recipes/encoders.yaml)"
            )
        for side, count in start.tuned.items() if progress else ():
            err.print(f"{count:,} weights of the {side} {'model' if side == 'language' else 'encoder'} learn")
        if progress and config.language_config is not None:
            err.print(_share_that_learns(start.model, recipe))
        if what_changes:
            err.print(what_changes)
    before = read_skipped(output / SKIPPED) if checkpoint else []
    sampler = sampler_for(recipe, start, batch.examples, data_seed)
    kind: Callable[..., RecipeTrainer[Any]] = RetrievalTrainer if start.task is None else TaskTrainer
    if recipe.teacher is not None:
        kind = partial(DistillationTrainer, targets=vectors.get("validation"))
    trainer = kind(
        recipe,
        stop,
        start.validation,
        sampler,
        batch,
        {*start.problems, *before},
        model=start.model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=start.validation,
        data_collator=collate,
        processing_class=start.processor,
        callbacks=[StepSeed(), EpochOrder(sampler), LogFile(output / "log.jsonl")],
        optimizer_cls_and_kwargs=_optimizer(recipe, arguments),
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(AtBegin(lambda: trainer.restore(checkpoint)))
    trainer.add_callback(AtSaves(trainer.write_skipped))
    if start.task is None and recipe.teacher is None and recipe.objectives.encodings:
        config.knows_search = True
    if recipe.stages:
        trainer.add_callback(StageSwitch(recipe.stages))
    if recipe.patience is not None:
        trainer.add_callback(EarlyStopping(recipe.patience))
    with ExitStack() as bars, quiet():
        if progress and first:
            trainer.add_callback(ProgressBar(bars))
        trainer.add_callback(stop)
        base = None
        if has_base and start.task is None and start.validation is not None and not is_sharded(arguments):
            base = Base.of(trainer, output) if checkpoint is None else Base.read(output)
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.use_average()
        score = _save_and_validate(trainer, output)
        if base is not None and base.is_better(trainer, score):
            if progress and first:
                err.print("training did not improve on what the encoders alone say: that is kept")
            base.restore(trainer)
            score = _save_and_validate(trainer, output)
        skipped, damaged = trainer.write_skipped()
    result = TrainingResult(
        output,
        outcome.global_step,
        outcome.metrics["train_runtime"],
        score if isinstance(score, RetrievalResult) else None,
        skipped,
        damaged,
        score if isinstance(score, TaskResult) else None,
        start.fresh,
        None if base is None else base.result,
    )
    if first:
        write_model_card(output, recipe=recipe, steps=result.steps, retrieval=result.retrieval, task=result.task)
        write_json(output / "metrics.json", {k: v for k, v in result.to_dict().items() if k != "output"})
    return result


def _share_that_learns(model: PerceiverVLPreTrainedModel, recipe: Recipe) -> str:
    """How little of a model with a language model learns in any of the stages, in words."""
    parts = {part for stage in recipe.stages for part in stage.train} or {"all"}
    some = [(part_of(name), weight) for name, weight in model.named_parameters()]
    learning = sum(w.numel() for part, w in some if w.requires_grad and ("all" in parts or part in parts))
    total = sum(weight.numel() for _, weight in some)
    return f"{learning:,} of {total:,} weights learn ({100 * learning / total:.2f} %), all others are frozen"


def _save_and_validate(trainer: RecipeTrainer[Any], output: Path) -> Any:
    """Save the model, whole or not at all and without adapters → its score, where there are validation clips."""
    trainer.save_model(str(output / PART))
    if trainer.args.process_index == 0:
        move_out(output / PART, output)
    with merged_adapters(trainer.model):
        return trainer.validate() if trainer.validation is not None else None


def examples_of(
    recipe: Recipe, start: Start, seed: int, vectors: Tensor | None = None
) -> tuple[DrawnExamples[Any], Callable[[Any], dict[str, Any]]]:
    """The training examples, and what makes batches of them. vectors: the teacher's, of all clips `(C,E)`."""
    data, size = recipe.data, start.processor.image_processor.size
    decoded = data.augmentation.decoding_size((size["height"], size["width"]))
    how: dict[str, Any] = {
        "pools": [pool.clips for pool in start.pools],
        "augmentation": None if data.augmentation == Augmentation() else data.augmentation,
    }
    drawing = data.num_frames, data.sampling, seed, data.strict
    if vectors is not None:
        students = DistillationExamples(vectors, start.source, *drawing, **how, size=(size["height"], size["width"]))
        return students, DistillationCollator(start.processor)
    if recipe.data.stretch is not None:
        stretches = StretchExamples(
            recipe.data.stretch, start.source, *drawing, **how, size=(size["height"], size["width"])
        )
        return stretches, StretchCollator(start.processor, recipe.data.stretch.segments)
    if start.task is None:
        examples = TrainingExamples(start.source, *drawing, **how, size=(size["height"], size["width"]))
        objectives = recipe.objectives
        return examples, PreTrainingCollator(
            start.processor,
            mlm_probability=objectives.mlm_probability if objectives.needs_masked_words else None,
            other_captions=objectives.needs_other_captions,
            negative_draws=objectives.hard_negatives,
            patch_draws=objectives.needs_patch_draws,
        )
    task, config, processor = start.task, start.model.config, start.processor
    second = other_pictures(start.source, decoded) if task.pictures > 1 else None
    return (
        TaskExamples(task, config, processor, start.source, *drawing, second=second, **how),
        TaskCollator(task, processor, config),
    )


def sampler_for(recipe: Recipe, start: Start, batch: int, seed: int) -> EpochSampler | MixtureSampler:
    """The order of the training examples."""
    letters = caption_length if start.task is None else letters_of_task
    if recipe.teacher is not None:
        letters = no_words
    data = recipe.data
    return make_sampler(start.source, start.pools, batch, seed, data.bucket, data.num_frames, letters)


def checked_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's arguments of a recipe that can be trained, as far as can be told without its data.

    Raises `UsageError` for what the Trainer would stumble over later.
    """
    arguments = training_arguments(recipe)
    examples = arguments.train_batch_size * arguments.world_size
    if recipe.task is None and recipe.teacher is None and examples < 2 and recipe.objectives.compare_pairs:
        raise UsageError(
            f"training.per_device_train_batch_size={arguments.per_device_train_batch_size}: "
            "the objectives compare pairs, need at least 2"
        )
    if arguments.auto_find_batch_size:
        raise UsageError(
            "training.auto_find_batch_size=true: the order of the data and the contrasts hang on the batch, set "
            "objectives.chunk: it computes a large one in the memory of a small one"
        )
    if recipe.task is None and recipe.objectives.needs_momentum and is_sharded(arguments):
        weight = recipe.objectives.weights["momentum"]
        raise UsageError(f"objectives.momentum={weight:g}: its copy is not sharded, leave out training.fsdp")
    for name in ("vision_lora", "text_lora", "language_lora"):
        if (rank := getattr(recipe.encoders, name)) and is_sharded(arguments):
            raise UsageError(f"encoders.{name}={rank}: adapters are not sharded, leave out training.fsdp")
    check_values(arguments)
    _check_evaluation(recipe, arguments)
    _check_trackers(arguments)
    stage_schedule(recipe.stages, arguments)
    return arguments


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's arguments of a recipe; an unknown name or a value of the wrong type is a `UsageError`."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name, value in recipe.training.items():
        if name not in known or name in ("output_dir", "parallelism_config"):  # the latter would name a class to import
            what = "not an argument of transformers.TrainingArguments to set here"
            near = did_you_mean(name, known - {name}, "leave it out")
            raise UsageError(f"training.{name}={value!r}: {what}, {near}")
    refuse_idle(recipe.training)
    try:
        # `eval_strategy: no` is a false in YAML
        given = {k: "no" if v is False and k.endswith("_strategy") else v for k, v in recipe.training.items()}
        shards = sharding_arguments(given)
        typed = parser_of(TrainingArguments).parse_object(given)
        given = {name: typed[name] for name in given if name not in _COMPILING} | shards
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (several or given.get("bf16")) and not torch.accelerator.is_available():
            # otherwise accelerate starts the processes but never joins their gradients, and bfloat16 asks for a GPU
            given["use_cpu"] = True
        if recipe.stages:
            given["max_steps"] = sum(stage.steps for stage in recipe.stages)
        if recipe.task is not None:
            given = _best_of_a_task(example_task_of(recipe.task), given, recipe.patience is not None) | given
        return TrainingArguments(output_dir=str(recipe.output / "checkpoints"), **(_TRAINING_DEFAULTS | given))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse and transformers raise many kinds for what somebody typed
        raise UsageError(f"training: {' '.join(str(error).split())}") from error


def _compile(model: PerceiverVLPreTrainedModel, asked: dict[str, Any]) -> None:
    """Compile the encoder, where nearly all the work is, if the recipe says so.

    The Trainer would compile the model's forward, which the objectives go around.
    """
    compiling, backend, mode = (asked.get(name) for name in _COMPILING)
    if compiling or backend or mode:
        torch._dynamo.config.recompile_limit = 64  # one graph for each pattern of dropped reads in each stream
        model.perceiver_vl.encoder.compile(backend=backend or "inductor", mode=mode)


def _check_evaluation(recipe: Recipe, arguments: TrainingArguments) -> None:
    """Refuse before training what the first evaluation would stumble over."""
    metric, measured = arguments.metric_for_best_model, measured_by(recipe)
    if recipe.patience is not None and (metric is None or arguments.eval_strategy == "no"):
        raise UsageError(
            f"patience={recipe.patience}: needs training.eval_strategy and training.metric_for_best_model "
            f"({', '.join(measured[:3])}, …)"
        )
    if arguments.save_strategy == "best" and (metric is None or arguments.eval_strategy == "no"):
        raise UsageError(
            f"training.save_strategy=best: needs training.eval_strategy and training.metric_for_best_model "
            f"({', '.join(measured[:3])}, …)"
        )
    if arguments.eval_strategy == "no":
        return
    if recipe.data.validation is None:
        raise UsageError(f"training.eval_strategy={arguments.eval_strategy.value}: needs clips in data.validation")
    if metric is not None and metric.removeprefix("eval_") not in measured:
        raise UsageError(f"training.metric_for_best_model={metric}: not measured, choose from {', '.join(measured)}")


def _check_trackers(arguments: TrainingArguments) -> None:
    """Refuse before training what the Trainer does not know or cannot import."""
    installed = get_available_reporting_integrations()
    for name in arguments.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(f"training.report_to={name}: unknown, choose from {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in installed:
            raise UsageError(f"training.report_to={name}: is not installed, install it or leave it out")


def _best_of_a_task(task: ExampleTask, given: dict[str, Any], stops: bool) -> dict[str, Any]:
    """By which metric the best model is chosen (the first, unless the recipe names one), and which way is better."""
    if not (stops or given.get("load_best_model_at_end") or given.get("metric_for_best_model")):
        return {}
    metric = given.get("metric_for_best_model") or task.metrics[0]
    lower = task.lower_is_better and metric.removeprefix("eval_") == task.metrics[0]
    return {"metric_for_best_model": metric, "greater_is_better": not lower}


def _optimizer(recipe: Recipe, arguments: TrainingArguments) -> tuple[Any, dict[str, Any]] | None:
    """None for the Trainer's own AdamW; plain Adam as in the paper, whose weight decay is L2; Muon, as a factory of
    what the Trainer calls with the model.
    """
    if recipe.optimizer == "adamw":
        return None
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    given = {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon}
    if recipe.optimizer == "muon":
        return lambda: muon_with_adamw, {**given, "weight_decay": arguments.weight_decay}
    return torch.optim.Adam, given
