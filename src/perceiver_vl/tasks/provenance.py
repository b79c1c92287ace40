"""The circumstances of a figure: what must be the same for it to come out again."""

import hashlib
import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from perceiver_vl._version import __version__
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.data.transcode.prepared import describe_prepared
from perceiver_vl.media.decode import decoder_version
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor


@dataclass(frozen=True)
class EvaluationRecord:
    """Saved with every metric. `split_hash`: SHA-256 over the records evaluated, in order.

    `prepared`: how the media were prepared, and the hash of what that gave; None for raw media.
    """

    command: str
    model: str
    model_hash: str
    data: str
    prepared: str | None
    split: str | None
    split_hash: str
    frames: int
    sampling: str
    resize: str
    decoder: str
    budget: str
    dtype: str
    versions: dict[str, str]
    machine: str


def evaluation_record(
    model_folder: Path,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    *,
    data: str,
    split: str | None,
    num_frames: int,
    budget: ComputeBudget,
    dtype: str | None = None,
) -> EvaluationRecord:
    """The record of an evaluation of `model_folder` on `source` with uniformly sampled frames; `dtype` None: that of
    its weights.
    """
    digest = hashlib.sha256()
    for index in range(len(source)):
        words = asdict(source.record(index))
        del words["path"], words["second_path"]  # which differ from machine to machine
        digest.update(f"{json.dumps(words, ensure_ascii=False)}\n".encode())
    size = processor.image_processor.size
    return EvaluationRecord(
        command=command_line(),
        model=str(model_folder),
        model_hash=model_fingerprint(model_folder),
        data=data,
        prepared=describe_prepared(data),
        split=split,
        split_hash=digest.hexdigest(),
        frames=num_frames,
        sampling="uniform",
        resize=f"{size['height']}x{size['width']}, antialiased, no crop",
        decoder=decoder_version(),
        budget=str(budget),
        dtype=dtype or "as saved",
        versions=versions(),
        machine=machine(),
    )


def command_line() -> str:
    """The command as typed, without the folder that the program lies in."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Of what computes the figures."""
    return {
        "perceiver-vl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def machine() -> str:
    """Processor with its vector instructions, threads and accelerator."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    parts: list[Any] = [processor, f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What it takes to get a bench's figures again: the report of each is one of these."""

    command: str = field(default_factory=command_line)
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
