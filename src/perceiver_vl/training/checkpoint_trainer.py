"""The Trainer of Hugging Face with checkpoints that are whole or not there, and that know the sums of the log."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from perceiver_vl.training.checkpoints import (
    PART,
    cannot_write,
    could_not_write,
    damage,
    first_for_all,
    keep_last,
    put_in_place,
)
from perceiver_vl.utils.errors import PerceiverVLError, Setting
from perceiver_vl.utils.files import write_json

SUMS = "sums.json"
"""In a checkpoint: what the log adds up between two lines, so that a line across a resume is that of a run left alone.
"""


class CheckpointTrainer(Trainer):
    """Saves as the Trainer does, but beside the place, sealed and renamed. recent: the losses of each objective since
    the last line of the log.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output = Path(self.args.output_dir).parent
        self.recent: dict[str, list[Tensor]] = {}
        self._written_in: Path | None = None  # where a checkpoint is being written
        self._began, self._earlier = time.perf_counter(), 0.0

    def restore(self, checkpoint: Path | None) -> None:
        """Take up the sums of the log, the time and the best model where a checkpoint left them."""
        self._began = time.perf_counter()
        if checkpoint is None:
            return
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        mine: list[dict[str, Any]] = sums["processes"]
        if len(mine) == self.args.world_size:
            mine = [mine[self.args.process_index]]
        self._tr_loss += sum(one["loss"] for one in mine) / len(mine)
        names = dict.fromkeys(name for one in mine for name in one["parts"])
        parts = {name: [value for one in mine for value in one["parts"].get(name, [])] for name in names}
        self.recent = {name: [torch.tensor(value) for value in values] for name, values in parts.items()}
        self._total_loss_scalar, self._globalstep_last_logged = sums["logged_loss"], sums["logged_step"]
        self._earlier = sums["seconds"]
        self._find_best()

    def _sums(self) -> dict[str, Any]:
        """What each process added up since the last line of the log, and what that line ended."""
        parts = {name: [value.item() for value in values] for name, values in self.recent.items()}
        return {
            "processes": self._of_all({"loss": self._tr_loss.item(), "parts": parts}),
            "logged_loss": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
            "seconds": self._seconds(),
        }

    def _seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._began

    def run_totals(self) -> dict[str, float]:
        """Time, speed and loss of all starts; the Trainer counts this one alone, by a clock that may be set."""
        steps, seconds = max(self.state.global_step, 1), self._seconds()
        examples = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {
            "train_runtime": round(seconds, 4),
            "train_steps_per_second": round(steps / seconds, 3),
            "train_samples_per_second": round(steps * examples / seconds, 3),
            "train_loss": self._total_loss_scalar / steps,
        }

    def _of_all(self, mine: Any) -> list[Any]:
        """What each process has."""
        found = [mine] * self.args.world_size
        if self.args.world_size > 1:
            dist.all_gather_object(found, mine)
        return found

    def _find_best(self) -> None:
        """Where the best model is: here, whatever a checkpoint that was moved, or is a stranger's, says."""
        name = Path(self.state.best_model_checkpoint or "none").name
        places = self._place_of(self.state.best_global_step), self._place_of(0).with_name(name)
        self.state.best_model_checkpoint = next((str(place) for place in places if place.is_dir()), None)

    def _place_of(self, step: int | None) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{step}"

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._written_in) if self._written_in else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle, and recipe.yaml says the same
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer does it, but beside its place: sealed and renamed, and only then are older ones removed."""
        place = self._place_of(self.state.global_step)
        self._written_in = place.parent / PART
        try:
            sums = self._sums()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(place)
            error = self._put_in_place(place, sums) if self.args.should_save else None
        except (OSError, RuntimeError, SafetensorError) as failed:
            if not could_not_write(failed, self.output):
                raise
            shutil.rmtree(place.parent / PART, ignore_errors=True)
            raise self._no_room(failed) from failed
        finally:
            self._written_in = None
        for refused in self._of_all(error):
            if refused is not None:
                raise refused

    def _put_in_place(self, place: Path, sums: dict[str, Any]) -> PerceiverVLError | None:
        """What comes after all processes have written; why it could not be done, for all of them."""
        part = place.parent / PART / place.name
        try:
            write_json(part / SUMS, sums)
            self.state.save_to_json(str(part / TRAINER_STATE_NAME))  # again, with where the best model is
            put_in_place(part, place)
        except OSError as failed:
            shutil.rmtree(part, ignore_errors=True)
            return self._no_room(failed)
        keep_last(place.parent, self.args.save_total_limit, self.state.best_model_checkpoint)
        return None

    def _no_room(self, error: Exception) -> PerceiverVLError:
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return cannot_write(self.output, error, 3 * weights)  # with the two moments of Adam

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        reason = first_for_all(lambda: damage(best))
        if reason is not None:
            raise PerceiverVLError(
                f"{best}: the best model is damaged ({reason}); to end with the last one: ",
                Setting("resume", True),
                " ",
                Setting("training.load_best_model_at_end", False),
            )
        super()._load_best_model()
