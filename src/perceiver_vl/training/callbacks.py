"""What happens beside the steps of a training run: seeds, the log as a file, a progress bar."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.jsonl import append_line, keep_until


class StepSeed(TrainerCallback):
    """LayerDrop is drawn from the step: the same on all processes, for all forwards of a step, and after a resume."""

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["model"].seed_layer_drop(args.seed * 1_000_003 + state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["model"].seed_layer_drop(None)


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch: in several processes the Trainer does not reach it after a resume."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class AtBegin(TrainerCallback):
    """Calls a function, in all processes, before the first step."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.function()


class AtSaves(TrainerCallback):
    """Calls a function, in all processes, whenever a checkpoint is written."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.function()


class AtSteps(TrainerCallback):
    """Calls a function, in all processes, with the number of each step that was taken."""

    def __init__(self, function: Callable[[int], object]) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.function(state.global_step)


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations that were no better than the best before them.

    The log alone says so, which a checkpoint brings along: a run that is resumed stops where it would have stopped.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def _check(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        sign = 1 if args.greater_is_better else -1
        values = [sign * line[metric] for line in state.log_history if metric in line]
        if values and len(values) - 1 - values.index(max(values)) >= self.patience:
            control.should_training_stop = True

    on_train_begin = on_evaluate = _check


class LogFile(TrainerCallback):
    """The log as it comes, a line of JSON for each entry, with the time; what a resume will do again is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero or keep_until(self.path, state.global_step, without="train_runtime"):
            return
        for line in state.log_history:  # which a checkpoint brings along to another folder
            append_line(self.path, line)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            when = {"step": state.global_step, "steps": state.max_steps, "time": round(time.time(), 3)}
            append_line(self.path, when | kwargs["logs"])


class ProgressBar(TrainerCallback):
    """A progress bar with the last losses and the last validation; `bars` closes it, whatever ends the training."""

    def __init__(self, bars: ExitStack) -> None:
        self.bars = bars

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stages = self.bars.enter_context(ProgressBars(state.is_world_process_zero))
        self.advance = stages.stage("Training", state.max_steps, done=state.global_step)
        self.losses = self.figures = ""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.losses = " ".join(f"{name.removeprefix('loss_')} {logs[name]:.2f}" for name in logs if "loss" in name)
        figures = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        recalls = {name[:-3]: figures[name] for name in figures if name.endswith("_r1") and "v2t" not in name}
        if recalls:
            self.figures = f", R@1 {_listed(recalls)}"
        elif figures:
            self.figures = f", {_listed(figures)}"
        self.advance(0, self.losses + self.figures)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bars.close()


def _listed(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.0f}" for name, value in figures.items())
