"""Training runs of a tiny model on a tiny world."""

import json
from pathlib import Path
from typing import Any

import yaml

from perceiver_vl.training import TrainingResult, train
from perceiver_vl.training.recipe import Recipe, read_recipe
from tiny import tiny_recipe


def recipe_of(output: Path, top: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """The tiny recipe as its file beside `output` is read; `top`: keys in the place of its own."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_recipe(output, **changes) | (top or {})))
    return read_recipe(file)


def run(output: Path, resume: bool = False, **changes: Any) -> TrainingResult:
    """Train by it."""
    return train(recipe_of(output, **changes), resume=resume, progress=False)


def log_of(output: Path) -> list[dict[str, Any]]:
    """All that a run has logged, in its order."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def training_log_of(output: Path) -> list[dict[str, Any]]:
    """Of that the lines of training."""
    return [line for line in log_of(output) if "loss" in line]
