"""A model folder → graphs that run without this package: ONNX, or torch's own exported programs.

Batch, frames and text length stay free; the number of latents and of cross-attentions is the budget's, and part of the
graph.
"""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceiver_vl._version import __version__
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.folder import check_model_folder, model_fingerprint
from perceiver_vl.models.loading import load_folder
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.files import write_json
from perceiver_vl.utils.onnx import import_onnxruntime, quiet_exporter

Format = Literal["onnx", "torch"]
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_FREE = {
    "pixel_values": ("batch", "frames"),
    "frame_mask": ("batch", "frames"),
    "input_ids": ("batch", "length"),
    "attention_mask": ("batch", "length"),
    "vision_latents": ("batch",),
    "text_latents": ("batch",),
}
_VISION, _TEXT = ("pixel_values", "frame_mask"), ("input_ids", "attention_mask")


@dataclass(frozen=True)
class ExportedPart:
    """One graph: its file, the names of what goes in and comes out, and how far it was from the model on other sizes
    than it was traced with.
    """

    name: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_difference: float


@dataclass(frozen=True)
class Exported:
    """What was written to `folder`."""

    folder: Path
    format: Format
    budget: str
    parts: tuple[ExportedPart, ...]


class _Vision(nn.Module):
    """`pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → latents `(B,N,D)`, unit vectors `(B,E)`."""

    inputs, outputs = _VISION, ("vision_latents", "vision_features")

    def __init__(self, model: PerceiverVLForRetrieval, budget: ComputeBudget) -> None:
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, pixel_values: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_and_pool_vision(pixel_values, frame_mask, self.budget)


class _Text(nn.Module):
    """`input_ids (B,L)`, `attention_mask (B,L)` → latents `(B,N,D)`, unit vectors `(B,E)`."""

    inputs, outputs = _TEXT, ("text_latents", "text_features")

    def __init__(self, model: PerceiverVLForRetrieval, budget: ComputeBudget) -> None:
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_and_pool_text(input_ids, attention_mask, self.budget)


class _Matcher(nn.Module):
    """Latents `(B,N_V,D)` and `(B,N_T,D)` of both sides → matching logits `(B,)`."""

    inputs, outputs = ("vision_latents", "text_latents"), ("match_logits",)

    def __init__(self, model: PerceiverVLForRetrieval, budget: ComputeBudget) -> None:
        super().__init__()
        self.model = model

    def forward(self, vision_latents: Tensor, text_latents: Tensor) -> Tensor:
        return self.model.match(vision_latents, text_latents)


class _Answers(nn.Module):
    """A clip and a question → logits `(B,labels)`."""

    inputs, outputs = _VISION + _TEXT, ("logits",)

    def __init__(self, model: PerceiverVLForQuestionAnswering, budget: ComputeBudget) -> None:
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, pixel_values: Tensor, frame_mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, pixel_values, frame_mask, budget=self.budget).logits


class _Classes(nn.Module):
    """A clip → logits `(B,labels)`."""

    inputs, outputs = _VISION, ("logits",)

    def __init__(self, model: PerceiverVLForImageClassification, budget: ComputeBudget) -> None:
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, pixel_values: Tensor, frame_mask: Tensor) -> Tensor:
        return self.model(pixel_values, frame_mask, budget=self.budget).logits


_RETRIEVAL: dict[str, type[Any]] = {"vision": _Vision, "text": _Text, "matcher": _Matcher}
_PARTS: dict[str, tuple[type[Any], str, dict[str, type[Any]]]] = {
    "PerceiverVLForPreTraining": (PerceiverVLForRetrieval, "retrieval", _RETRIEVAL),
    "PerceiverVLForRetrieval": (PerceiverVLForRetrieval, "retrieval", _RETRIEVAL),
    "PerceiverVLForQuestionAnswering": (PerceiverVLForQuestionAnswering, "question answering", {"answers": _Answers}),
    "PerceiverVLForImageClassification": (PerceiverVLForImageClassification, "classification", {"classes": _Classes}),
}


@torch.inference_mode()
def export(
    model_folder: str | Path,
    folder: str | Path,
    *,
    format: Format = "onnx",
    budget: ComputeBudget = FULL_BUDGET,
    progress: bool = False,
) -> Exported:
    """Write the graphs of a model, float32, with its processor and tokenizer and `export.json`, into a new `folder`.

    A retrieval model becomes three: `vision`, `text` and `matcher` (the mixed stream); one of question answering
    `answers`; one of classification `classes`. They take what the processor gives: float32 pixels, int64 for all else.
    `budget`: latents, text latents and cross-attentions; frames are the caller's to choose.
    Raises `UsageError` for a model without exportable parts, a budget that it does not have, or a folder in use.
    """
    source, folder = check_model_folder(model_folder), Path(folder)
    if format not in _SUFFIXES:
        raise UsageError(f"format={format}: choose from {', '.join(_SUFFIXES)}")
    if budget.frames is not None:
        raise UsageError(f"budget frames={budget.frames}: a graph takes any number of frames, leave it out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty, name a new folder")
    architecture = (PerceiverVLConfig.from_pretrained(source).architectures or ["PerceiverVLModel"])[0]
    if architecture not in _PARTS:
        raise UsageError(f"{source}: a {architecture} cannot be exported, choose from {', '.join(_PARTS)}")
    kind, purpose, parts = _PARTS[architecture]
    model, processor = load_folder(kind, purpose, source, "cpu")
    model.config.check_budget(budget)
    if "onnx" in getattr(model.config.vision_config, "model_type", ""):
        raise UsageError(f"{source}: its vision encoder is an ONNX file, which cannot be traced; name another model")
    if model.config.tubelet_size > 1:
        raise UsageError(
            f"{source}: tubelet_size={model.config.tubelet_size}, a clip of one tubelet is traced apart from one of "
            "several, and a graph takes any number of frames; name another model"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ProgressBars(progress) as bar:
            advance = bar.stage("exporting", len(parts))
            written = []
            for name, part in parts.items():
                written.append(_export_part(name, part(model.float(), budget).eval(), model.config, beside, format))
                advance(note=name)
        processor.save_pretrained(beside)
        result = Exported(folder, format, str(budget), tuple(written))
        about = {
            "format": format,
            "budget": str(budget),
            "model_hash": model_fingerprint(source),
            "max_frames": model.config.max_frames,
            "max_text_length": model.config.max_text_length,
            "id2label": model.config.id2label if "logits" in written[0].outputs else None,
            "parts": [asdict(part) for part in written],
            "versions": {"perceiver-vl": __version__, "torch": torch.__version__},
        }
        write_json(beside / "export.json", about)
        beside.chmod(0o755)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return result


def _export_part(name: str, part: Any, config: PerceiverVLConfig, folder: Path, format: Format) -> ExportedPart:
    """Trace, write and run one graph on other sizes than those it was traced with."""
    path = folder / f"{name}{_SUFFIXES[format]}"
    example = _example(part.inputs, config, batch=2, frames=min(3, config.max_frames), length=5)
    free = tuple(dict.fromkeys(range(len(_FREE[given])), torch.export.Dim.DYNAMIC) for given in part.inputs)
    with quiet_exporter():
        # strict: the length of a tensor stays a symbol, where Python's len() would make a number of it
        program = torch.export.export(part, tuple(example.values()), dynamic_shapes=free, strict=True)
        if format == "torch":
            torch.export.save(program, path)
        else:
            graph = torch.onnx.export(
                program, input_names=list(part.inputs), output_names=list(part.outputs), verbose=False
            )
            assert graph is not None
            graph.save(str(path))
    other = _example(part.inputs, config, batch=3, frames=min(2, config.max_frames), length=4)
    wanted = part(*other.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = run_onnx(path, other) if format == "onnx" else _run_program(path, other)
    difference = max((left - right).abs().max().item() for left, right in zip(wanted, found, strict=True))
    return ExportedPart(name, path.name, part.inputs, part.outputs, difference)


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the graph of a file gives for named tensors, by onnxruntime on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


def _run_program(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = torch.export.load(path).module()(*inputs.values())
    return list(found) if isinstance(found, tuple) else [found]


def _example(
    names: tuple[str, ...], config: PerceiverVLConfig, *, batch: int, frames: int, length: int
) -> dict[str, Tensor]:
    """Random inputs with something padded in them."""
    draw = torch.Generator().manual_seed(0)
    size, width, length = config.image_size, config.hidden_size, min(length, config.max_text_length)
    frame_mask = torch.ones(batch, frames, dtype=torch.long)
    attention_mask = torch.ones(batch, length, dtype=torch.long)
    frame_mask[0, 1:], attention_mask[0, 2:] = 0, 0
    made = {
        "pixel_values": torch.randn(batch, frames, config.num_channels, size, size, generator=draw),
        "frame_mask": frame_mask,
        "input_ids": torch.randint(config.vocab_size, (batch, length), generator=draw),
        "attention_mask": attention_mask,
        "vision_latents": torch.randn(batch, config.num_latents, width, generator=draw),
        "text_latents": torch.randn(batch, config.num_text_latents or config.num_latents, width, generator=draw),
    }
    return {name: made[name] for name in names}
