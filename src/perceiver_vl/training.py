"""Recipe → Trainer → checkpoints → a `from_pretrained` folder."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
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
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from perceiver_vl.budget import FULL_BUDGET
from perceiver_vl.callbacks import AtSaves, EpochOrder, LogFile, ProgressBar, StepSeed
from perceiver_vl.console import quiet
from perceiver_vl.data.augment import Augmentation
from perceiver_vl.data.batching import PreTrainingCollator, TrainingExamples
from perceiver_vl.data.broken import Tried, check_broken, read_skipped, write_skipped
from perceiver_vl.data.clips import ClipSource
from perceiver_vl.data.mixture import pools_of, sampler_of
from perceiver_vl.data.records import Problem
from perceiver_vl.errors import PerceiverVLError, UsageError
from perceiver_vl.files import write_json, write_text
from perceiver_vl.model import PerceiverVLForPreTraining
from perceiver_vl.model_card import write_model_card
from perceiver_vl.objectives import PreTrainingBatch, pretraining_losses
from perceiver_vl.recipe import Evaluation, Recipe
from perceiver_vl.stages import StageSwitch, stage_schedule
from perceiver_vl.start import open_split, open_training, processor_and_config, starting_model
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
SKIPPED = "skipped.jsonl"


@dataclasses.dataclass
class TrainingResult:
    """Where the model went, its last validation, and what could not be read on the way.

    damaged: files that lacked frames and were used all the same.
    """

    output: Path
    steps: int
    seconds: float
    retrieval: RetrievalResult | None
    skipped: list[Problem]
    damaged: list[str]


def train(recipe: Recipe, *, resume: bool = False, progress: bool = True) -> TrainingResult:
    """Run a recipe; `resume` goes on from the last checkpoint of `recipe.output` and gives what one run would have.

    Writes to `recipe.output`: the model, processor and tokenizer (best by `metric_for_best_model` if the recipe asks
    for `load_best_model_at_end`), `README.md` (the model card), `recipe.yaml`, `log.csv`,
    `metrics.json`, `skipped.jsonl` (what was left out, and why), and `checkpoints/`.
    Raises `UsageError` for a recipe that cannot work, before anything is written; `MediaError` at a broken file with
    `data.strict`, `PerceiverVLError` when there are more than `data.max_broken`.
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
    size = processor.image_processor.size["height"], processor.image_processor.size["width"]
    source, problems = open_training(data, size)
    validation = None
    if data.validation is not None:
        validation, more = open_split(data.validation, size, data)
        problems += more
    batch = arguments.train_batch_size * arguments.world_size
    pools, few = pools_of(source, [split.weight for split in data.train], batch)
    problems += few
    model = starting_model(recipe, config, arguments.seed, resumed=checkpoint is not None)
    _compile(model, recipe.training)

    first = arguments.process_index == 0
    if first:
        write_text(output / "recipe.yaml", yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False))
    data_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    examples = TrainingExamples(
        source,
        data.num_frames,
        data.sampling,
        data_seed,
        data.strict,
        pools=[pool.clips for pool in pools],
        augmentation=None if data.augmentation == Augmentation() else data.augmentation,
        size=size,
    )
    sampler = sampler_of(source, pools, batch, data_seed, data.bucket, data.num_frames)
    before = read_skipped(output / SKIPPED) if checkpoint else []
    trainer = RetrievalTrainer(
        recipe,
        validation,
        sampler,
        {*problems, *before},
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=validation,
        data_collator=PreTrainingCollator(processor, recipe.objectives.mlm_probability),
        processing_class=processor,
        callbacks=[StepSeed(), EpochOrder(sampler), LogFile(output / "log.csv")],
        optimizer_cls_and_kwargs=_optimizer(recipe, arguments),
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(AtSaves(trainer.write_skipped))
    if recipe.stages:
        trainer.add_callback(StageSwitch(recipe.stages))
    with ExitStack() as bars, quiet():
        if progress and first:
            trainer.add_callback(ProgressBar(bars))
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(output))
        if first:
            (output / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says the same
        retrieval = trainer.validate() if validation is not None else None
        skipped, damaged = trainer.write_skipped()
    metrics = {"steps": outcome.global_step, "seconds": outcome.metrics["train_runtime"]}
    result = TrainingResult(output, outcome.global_step, metrics["seconds"], retrieval, skipped, damaged)
    report = {**metrics, "retrieval": retrieval and retrieval.to_dict()}
    report |= {"skipped": [asdict(problem) for problem in skipped], "damaged": damaged}
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each objective's own mean since the last log, and the share of that time spent waiting for data."""
        if "loss" in logs:
            logs |= {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._recent.items()}
            self._recent.clear()
            now = time.perf_counter()
            logs["data_wait"] = round(self._waited / max(now - self._since - self._evaluated, self._waited, 1e-9), 4)
            self._waited, self._evaluated, self._since = 0.0, 0.0, now
        super().log(logs, start_time)

    def validate(self) -> RetrievalResult:
        """Retrieval on the validation clips, as the recipe's `evaluation` says; the first process does it for all."""
        start = time.perf_counter()
        result = [self._retrieve() if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            dist.broadcast_object_list(result, src=0)
        assert result[0] is not None
        self.known.update(result[0].skipped)
        self._evaluated += time.perf_counter() - start
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
            max_broken=self.recipe.data.max_broken,
        )

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """R@1, R@5 and R@10 of every stream, as `eval_multi_r1` (text to video) and `eval_multi_v2t_r1`."""
        result = self.validate()
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
