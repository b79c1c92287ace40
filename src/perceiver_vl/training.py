"""Recipe → Trainer → checkpoints → a `from_pretrained` folder."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from perceiver_vl.budget import FULL_BUDGET
from perceiver_vl.console import Stages, quiet
from perceiver_vl.data.batching import EpochSampler, PreTrainingCollator, TrainingExamples
from perceiver_vl.data.clips import ClipSource
from perceiver_vl.data.records import Problem
from perceiver_vl.errors import UsageError
from perceiver_vl.files import write_json, write_text
from perceiver_vl.model import PerceiverVLForPreTraining
from perceiver_vl.model_card import write_model_card
from perceiver_vl.objectives import PreTrainingBatch, pretraining_losses
from perceiver_vl.recipe import Evaluation, Recipe
from perceiver_vl.stages import StageSwitch, stage_schedule
from perceiver_vl.start import open_split, processor_and_config, starting_model
from perceiver_vl.tasks.retrieval import RetrievalResult, evaluate_retrieval

_TRAINING_DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "report_to": ["tensorboard"],
    "logging_steps": 10,
    "save_total_limit": 2,
    "dataloader_drop_last": True,
    "ddp_find_unused_parameters": True,  # dropped reads, heads not asked, frozen parts; recomputing activations or not
    "dataloader_pin_memory": torch.cuda.is_available(),  # torch warns where there is nothing to pin for
}
_COMPILING = "torch_compile", "torch_compile_backend", "torch_compile_mode"
_RECALLS = ("r1", "r5", "r10")


@dataclasses.dataclass
class TrainingResult:
    """Where the model went, its last validation, and what could not be read on the way."""

    output: Path
    steps: int
    seconds: float
    retrieval: RetrievalResult | None
    skipped: list[Problem]


def train(recipe: Recipe, *, resume: bool = False, progress: bool = True) -> TrainingResult:
    """Run a recipe; `resume` goes on from the last checkpoint of `recipe.output` and gives what one run would have.

    Writes to `recipe.output`: the model, processor and tokenizer (best by `metric_for_best_model` if the recipe asks
    for `load_best_model_at_end`), `README.md` (the model card), `recipe.yaml`, `log.csv`,
    `metrics.json`, and `checkpoints/`.
    Raises `UsageError` for a recipe that cannot work, before anything is written.
    """
    output = recipe.output
    checkpoint = _last_checkpoint(output)
    if (checkpoint or (output / "metrics.json").is_file()) and not resume:
        raise UsageError(f"output={output}: holds a run already, add --resume to go on with it or name another output")
    arguments = training_arguments(recipe)
    asked = {name for name, weight in asdict(recipe.objectives).items() if weight}
    if arguments.per_device_train_batch_size < 2 and asked & {
        "vtm",
        "vtc",
        "ttc",
        "mixed_vtm",
        "mixed_vtc",
        "hard_negatives",
    }:
        raise UsageError(
            f"training.per_device_train_batch_size={arguments.per_device_train_batch_size}: "
            "the objectives compare pairs, need at least 2"
        )
    _check_evaluation(recipe, arguments)
    stage_schedule(recipe.stages, arguments)  # refuses, before anything is written, what the Trainer would stumble over
    data = recipe.data
    processor, config = processor_and_config(recipe, checkpoint)
    size = processor.image_processor.size
    source, problems = open_split(data.train, (size["height"], size["width"]), data)
    validation = None
    if data.validation is not None:
        validation, more = open_split(data.validation, (size["height"], size["width"]), data)
        problems += more
    if arguments.dataloader_drop_last and len(source) < (batch := arguments.train_batch_size * arguments.world_size):
        raise UsageError(
            f"training: a batch of {batch} clips, but there are {len(source)} to train on; make it smaller"
        )
    model = starting_model(recipe, config, arguments.seed, resumed=checkpoint is not None)
    _compile(model, recipe.training)

    first = arguments.process_index == 0
    if first:
        write_text(output / "recipe.yaml", yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False))
    data_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    examples = TrainingExamples(source, data.num_frames, data.sampling, data_seed, data.strict)
    trainer = RetrievalTrainer(
        recipe,
        validation,
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=validation,
        data_collator=PreTrainingCollator(processor, recipe.objectives.mlm_probability),
        processing_class=processor,
        callbacks=[_StepSeed(), _LogFile(output / "log.csv")],
        optimizer_cls_and_kwargs=_optimizer(recipe, arguments),
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if recipe.stages:
        trainer.add_callback(StageSwitch(recipe.stages))
    with ExitStack() as bars, quiet():
        if progress and first:
            trainer.add_callback(_Bar(bars))
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(output))
        if first:
            (output / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says the same
        retrieval = trainer.validate() if validation is not None else None
        skipped = problems + trainer.all_problems()
    metrics = {"steps": outcome.global_step, "seconds": outcome.metrics["train_runtime"]}
    result = TrainingResult(output, outcome.global_step, metrics["seconds"], retrieval, skipped)
    report = {**metrics, "retrieval": retrieval and retrieval.to_dict(), "skipped": [asdict(p) for p in skipped]}
    if first:
        write_model_card(output, recipe=recipe, steps=outcome.global_step, retrieval=retrieval)
        write_json(output / "metrics.json", report)
    return result


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's arguments of a recipe; an unknown name or a value of the wrong type is a `UsageError`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainingArguments, as_positional=False)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name, value in recipe.training.items():
        if name not in known or name == "output_dir":
            raise UsageError(
                f"training.{name}={value!r}: not an argument of transformers.TrainingArguments to set here"
            )
    try:
        # `eval_strategy: no` is a false in YAML
        given = {k: "no" if v is False and k.endswith("_strategy") else v for k, v in recipe.training.items()}
        typed = parser.parse_object(given)
        given = {name: typed[name] for name in recipe.training if name not in _COMPILING}
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            given["use_cpu"] = True  # otherwise accelerate starts the processes but never joins their gradients
        if recipe.stages:
            given["max_steps"] = sum(stage.steps for stage in recipe.stages)
        return TrainingArguments(output_dir=str(recipe.output / "checkpoints"), **(_TRAINING_DEFAULTS | given))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse and transformers raise many kinds for what somebody typed
        raise UsageError(f"training: {' '.join(str(error).split())}") from error


def _compile(model: PerceiverVLForPreTraining, asked: dict[str, Any]) -> None:
    """Compile the encoder, where nearly all the work is, if the recipe says so.

    The Trainer would compile the model's forward, which the objectives go around.
    """
    compiling, backend, mode = (asked.get(name) for name in _COMPILING)
    if compiling or backend or mode:
        torch._dynamo.config.recompile_limit = 64  # one graph for each pattern of dropped reads in each stream
        model.perceiver_vl.encoder.compile(backend=backend or "inductor", mode=mode)


def _check_evaluation(recipe: Recipe, arguments: TrainingArguments) -> None:
    """Refuse before training what the first evaluation would stumble over."""
    streams, metric = recipe.evaluation.streams, arguments.metric_for_best_model
    if arguments.eval_strategy == "no":
        return
    if recipe.data.validation is None:
        raise UsageError(f"training.eval_strategy={arguments.eval_strategy.value}: needs clips in data.validation")
    measured = [f"{one.replace('-', '_')}_{way}{k}" for one in streams for way in ("", "v2t_") for k in _RECALLS]
    if metric is not None and metric.removeprefix("eval_") not in measured:
        raise UsageError(f"training.metric_for_best_model={metric}: not measured, choose from {', '.join(measured)}")


class RetrievalTrainer(Trainer):
    """The Trainer with our objectives as its loss and retrieval on the validation clips as its evaluation."""

    def __init__(self, recipe: Recipe, validation: ClipSource | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipe, self.validation = recipe, validation
        self.problems: set[Problem] = set()
        self.loss_is_scaled_for_ga = False  # ours is the mean of each batch
        self._recent: dict[str, list[Tensor]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(len(self.train_dataset), self.train_dataset.seed)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """That of the recipe's stages, where it has some; else the Trainer's own."""
        if not self.recipe.stages:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, stage_schedule(self.recipe.stages, self.args))
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the recipe's objectives."""
        self.problems.update(inputs.pop("problems"))
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each objective's own mean since the last log."""
        if "loss" in logs:
            logs |= {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._recent.items()}
            self._recent.clear()
        super().log(logs, start_time)

    def all_problems(self) -> list[Problem]:
        """What could not be read, by this process and the others, by name."""
        found = [self.problems]
        if self.args.world_size > 1:
            found = [set() for _ in range(self.args.world_size)]
            dist.all_gather_object(found, self.problems)
        return sorted(set().union(*found), key=lambda problem: problem.file_name)

    def validate(self) -> RetrievalResult:
        """Retrieval on the validation clips, as the recipe's `evaluation` says; the first process does it for all."""
        result = [self._retrieve() if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            dist.broadcast_object_list(result, src=0)
        assert result[0] is not None
        return result[0]

    def _retrieve(self) -> RetrievalResult:
        assert self.validation is not None
        how: Evaluation = self.recipe.evaluation
        return evaluate_retrieval(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.validation,
            streams=how.streams,
            num_frames=self.recipe.data.num_frames,
            captions_per_clip=how.captions_per_clip,
            shortlist=how.shortlist,
            batch_size=how.batch_size,
            strict=self.recipe.data.strict,
        )

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """R@1, R@5 and R@10 of every stream, as `eval_multi_r1` (text to video) and `eval_multi_v2t_r1`."""
        result = self.validate()
        self.problems.update(result.skipped)
        metrics = {}
        for stream in result.streams:
            name = f"{metric_key_prefix}_{stream.stream.replace('-', '_')}"
            for k in _RECALLS:
                metrics[f"{name}_{k}"] = getattr(stream.text_to_video, k)
                metrics[f"{name}_v2t_{k}"] = getattr(stream.video_to_text, k)
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics


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


class _StepSeed(TrainerCallback):
    """LayerDrop is drawn from the step: the same on all processes, for all forwards of a step, and after a resume."""

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["model"].seed_layer_drop(args.seed * 1_000_003 + state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["model"].seed_layer_drop(None)


class _LogFile(TrainerCallback):
    """The whole log as CSV, written anew at each evaluation, save and at the end (a resume brings the old lines
    along).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        columns = list(dict.fromkeys(key for line in state.log_history for key in line))
        columns.sort(key=lambda key: (key not in ("step", "epoch"), key.startswith("eval_")))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.log_history)
        write_text(self.path, text.getvalue())

    on_save = on_evaluate = on_train_end = _write


class _Bar(TrainerCallback):
    """A progress bar with the last losses and the last validation; `bars` closes it, whatever ends the training."""

    def __init__(self, bars: ExitStack) -> None:
        self.bars = bars

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stages = self.bars.enter_context(Stages(state.is_world_process_zero))
        self.advance = stages.stage("Training", state.max_steps, done=state.global_step)
        self.losses = self.recalls = ""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.losses = " ".join(f"{name.removeprefix('loss_')} {logs[name]:.2f}" for name in logs if "loss" in name)
        recalls = [f"{name[5:-3]} {logs[name]:.0f}" for name in logs if name.endswith("_r1") and "v2t" not in name]
        if recalls:
            self.recalls = f", R@1 {' '.join(recalls)}"
        self.advance(0, self.losses + self.recalls)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bars.close()


def _optimizer(
    recipe: Recipe, arguments: TrainingArguments
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """None for the Trainer's own AdamW; plain Adam as in the paper, whose weight decay is L2."""
    if recipe.optimizer == "adamw":
        return None
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.Adam, {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon}


def _last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint: the Trainer writes `trainer_state.json` last."""
    complete = [path.parent for path in output.glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def _plain(value: Any) -> Any:
    """Dataclass values as YAML knows them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
