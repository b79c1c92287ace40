"""Runs the commands as a person would: in a process of their own, or in this one where only the answer matters."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from perceiver_vl import cli

PROGRAM = Path(sys.executable).with_name("perceiver-vl")
SHARED = (Path(__file__).resolve().parents[2] / ".." / "shared").resolve()
SHARED_DATA = SHARED / "data"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}

needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder shared/ beside the repository")


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as JSON, of which it must hold nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def error(self, code: int) -> str:
        """The one line on standard error with which a command that failed with `code` must end."""
        assert self.code == code, f"exit code {self.code}: {self.err}"
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


def run_program(*words: object) -> Answer:
    """Run `perceiver-vl WORDS…` in a process of its own."""
    done = subprocess.run(
        [PROGRAM, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def run_cli(*words: object) -> Answer:
    """Run `perceiver-vl WORDS…` in this process, which has the heavy imports behind it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: Any = 0
    with (
        patch.object(sys, "argv", ["perceiver-vl", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Answer(code or 0, said, told)


def tiny_recipe(output: Path, train: dict[str, Any], validation: dict[str, Any] | None) -> dict[str, Any]:
    """A recipe that trains for four steps and writes a checkpoint after each second one."""
    data: dict[str, Any] = {"train": train, "num_frames": 4}
    if validation is not None:
        data["validation"] = validation
    return {
        "output": str(output),
        "data": data,
        "model": {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_blocks": 2,
            "self_attentions_per_block": 1,
            "num_latents": 6,
            "num_text_latents": 3,
            "image_size": 32,
            "patch_size": 16,
            "max_frames": 8,
            "initializer_range": 0.1,
            "latent_initializer_range": 0.1,
        },
        "objectives": {"vtc": 1, "mixed_vtm": 1, "vtm": 1, "mlm": 1},
        "tokenizer": {"vocab_size": 200},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "seed": 0},
    }


def world_recipe(output: Path, world: Path) -> dict[str, Any]:
    """The tiny recipe on a generated world on disk."""
    folder = str(world)
    return tiny_recipe(output, {"folder": folder, "split": "train"}, {"folder": folder, "split": "validation"})


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
