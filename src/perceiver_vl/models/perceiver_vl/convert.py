"""The authors' Lightning checkpoint → a folder that `from_pretrained` loads, with processor and tokenizer."""

import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from perceiver_vl.models.hub import hub_options
from perceiver_vl.models.perceiver_vl.original_checkpoint import (
    LATENTS,
    MODELS,
    WORDS,
    Conversion,
    load_released,
    released_config,
    released_task,
)
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.tokenizer import load_tokenizer
from perceiver_vl.utils.console import ProgressBars, quiet
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

TOKENIZER = "google-bert/bert-base-uncased"
"""The released checkpoint's tokenizer."""
NUM_FRAMES = 8
"""Frames of a clip in pre-training (paper 4.1)."""
# Lightning stores which of its classes made a checkpoint. The names are read as empty stand-ins: nothing of them runs.
_LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.progress.ProgressBar",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
)


@dataclass(frozen=True)
class Converted:
    """The model that was written to `folder`, and what became of every tensor."""

    folder: Path
    task: str
    parameters: int
    conversion: Conversion


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    task: str | None = None,
    tokenizer: str = TOKENIZER,
    num_frames: int | None = None,
    progress: bool = False,
    write_card: Callable[[Path], object] | None = None,
    **config: Any,
) -> Converted:
    """Convert `source`, a `.ckpt` (or `.safetensors` of the same names), here or at `hf://owner/name/file`.

    `task`: a key of `MODELS`, by default what the checkpoint's heads are for. `tokenizer`: a folder or a hub name.
    `num_frames`: what the processor samples of a clip, by default 8 or all that the checkpoint has positions for.
    `write_card`: writes the model card (`README.md`) of the finished folder; None: it has none.
    `config`: fields of `PerceiverVLConfig` that shapes cannot tell, such as `num_attention_heads`.
    Raises `UsageError` or `PerceiverVLError`; `folder` is written whole or not at all.
    """
    folder = Path(folder)
    if task is not None and task not in MODELS:
        raise UsageError(f"task={task}: unknown, choose from {', '.join(MODELS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty, name a new folder")
    with quiet(), ProgressBars(progress) as bar:
        advance = bar.stage("reading", total=4)
        state = read_checkpoint(fetch(str(source)))
        advance()
        try:
            if LATENTS not in state:
                raise UsageError(f"no tensor {LATENTS}: of neither Perceiver-VL nor a sibling that is known here")
            task = task or released_task(state)
            words = _checked_tokenizer(tokenizer, state)
            special = {"mask_token_id": words.mask_token_id, "pad_token_id": words.pad_token_id}
            model_config = released_config(state, task, **(special | config))
            words.model_max_length = model_config.max_text_length
            most = model_config.max_frames
            num_frames = min(NUM_FRAMES, most) if num_frames is None else num_frames
            if not 1 <= num_frames <= most:
                raise UsageError(f"num_frames={num_frames}: need 1 to {most}, the rows of its temporal table")
            advance(note="converting")
            torch.manual_seed(0)  # of what starts fresh
            model = MODELS[task](model_config)
            conversion = load_released(model, state)
        except PerceiverVLError as error:
            error.args = (f"{source}: ", *error.args)
            raise
        advance(note="writing")
        size = {"height": model_config.image_size, "width": model_config.image_size}
        processor = PerceiverVLProcessor(PerceiverVLImageProcessor(size=size, num_frames=num_frames), words)
        save_whole(model, processor, folder, write_card)
        advance()
    return Converted(folder, task, model.num_parameters(), conversion)


def _checked_tokenizer(name: str, state: dict[str, Tensor]) -> Any:
    """The tokenizer, if it is the one of the checkpoint's word table."""
    tokenizer, table = load_tokenizer(name), state.get(WORDS)
    if table is not None and len(tokenizer) != len(table):
        raise UsageError(
            f"tokenizer {name}: {len(tokenizer)} tokens, but the word table has {len(table)} rows, "
            "name the checkpoint's own"
        )
    return tokenizer


def fetch(source: str) -> Path:
    """The file itself, or the local copy of `hf://owner/name/file`."""
    if not source.startswith("hf://"):
        if not Path(source).is_file():
            raise UsageError(f"{source}: no such file, give a checkpoint or hf://owner/name/file")
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT

    parts = source.removeprefix("hf://").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise UsageError(f"{source}: need hf://owner/name/file")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], **hub_options(source)))
    except Exception as error:  # the hub's own errors, and those of whatever carries them
        raise PerceiverVLError(
            f"{source}: cannot be downloaded ({type(error).__name__}), download it elsewhere and give the file; "
            f"HF_ENDPOINT says which hub is asked, now {ENDPOINT}"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.ckpt` that holds nothing but tensors and plain values."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise PerceiverVLError(f"{path}: damaged or cut short ({error}), get it again") from error
    with path.open("rb") as file:
        beginning = file.read(2)
    if beginning and beginning != b"PK" and not beginning.startswith(b"\x80"):  # a zip archive, or a bare pickle
        raise UsageError(f"{path}: not a checkpoint, give a .ckpt or .safetensors of the authors' code")
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (), {}), name) for name in _LIGHTNING]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that it may not know
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it needs {found[1]}" if found else "it is not a plain pickle of tensors"
        raise PerceiverVLError(
            f"{path}: holds more than tensors ({what}), which is never run; save its state_dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise PerceiverVLError(f"{path}: damaged or cut short, or not a checkpoint; get it again") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise PerceiverVLError(f"{path}: no state_dict of tensors in it, give a checkpoint of the authors' code")
    return state


def save_whole(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase | None,
    folder: Path,
    write_card: Callable[[Path], object] | None = None,
) -> None:
    """Write a model folder, with the card that `write_card` writes into it, whole or not at all."""
    with new_folder(folder) as beside:
        model.save_pretrained(beside)
        if processor is not None:
            processor.save_pretrained(beside)
        if write_card is not None:
            write_card(beside)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place beside `folder` to write what it is to hold; it is there at the end, whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    beside = holder / folder.resolve().name  # a model card takes the folder's name for the model's
    try:
        beside.mkdir()
        yield beside
        beside.chmod(0o755)
        beside.replace(folder)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
