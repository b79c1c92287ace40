"""Loading a model folder, quietly."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

from perceiver_vl.models.folder import check_model_folder
from perceiver_vl.models.language_bridge import LanguageBridgeForConditionalGeneration, class_for
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval, PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.quantization import check_dtype, compile_encoder, set_dtype
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError, first_line


class OtherKindError(UsageError):
    """A model that was trained for something else. config: its own."""

    def __init__(self, config: PerceiverVLConfig, *parts: str | Setting) -> None:
        super().__init__(*parts)
        self.config = config


_Model = TypeVar("_Model", bound=PerceiverVLPreTrainedModel)


def load_retriever(
    model_folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
) -> tuple[PerceiverVLForRetrieval, PerceiverVLProcessor]:
    """The retrieval model of a folder, and its processor; see `load_folder`."""
    return load_folder(PerceiverVLForRetrieval, "retrieval", model_folder, device, dtype, compiled)


def load_folder(
    kind: type[_Model],
    purpose: str,
    model_folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
) -> tuple[_Model, PerceiverVLProcessor]:
    """The model of a folder, in evaluation mode on `device` (None: a GPU if there is one), and its processor.

    `dtype`: float32, bfloat16 or int8 (`quantization.set_dtype`); None: as it was saved. `compiled`: its encoder is
    (`quantization.compile_encoder`).
    Raises `UsageError` naming what the folder lacks (weights that a model trained for `purpose` would have: this is
    an `OtherKindError`), another dtype or a device that is not here, `PerceiverVLError` if its files are damaged.
    """
    check_dtype(dtype)
    folder = check_model_folder(model_folder)
    place = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        with quiet():
            processor = PerceiverVLProcessor.from_pretrained(folder)
            own = PerceiverVLConfig.from_pretrained(folder)
            kind = class_for(kind, own)
            if own.language_config is not None and kind is not LanguageBridgeForConditionalGeneration:
                raise OtherKindError(
                    own, f"{folder}: says captions by a language model, give a model trained for {purpose}"
                )
            model, loading = kind.from_pretrained(folder, output_loading_info=True)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if "ignore_mismatched_sizes" in str(error):  # what transformers says of weights of other shapes
            raise UsageError(f"{folder}: weights of other shapes, give a model trained for {purpose}") from error
        raise PerceiverVLError(f"{folder}: cannot be loaded ({first_line(error)}), save the model again") from error
    if missing := sorted(loading["missing_keys"]):
        saved = next(iter(own.architectures or ()), "")
        lacking = f"{missing[0]} and {len(missing) - 1} more"
        raise OtherKindError(
            own,
            f"{folder}: {f'a {saved}, ' if saved else ''}without weights for {purpose} ({lacking}), give "
            f"a model trained for {purpose}",
        )
    if len(processor.tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"{folder}: its tokenizer has {len(processor.tokenizer)} words, its model {model.config.vocab_size}; "
            "save the tokenizer that the model was trained with"
        )
    set_dtype(model, dtype)
    model.eval().to(place)
    if compiled:
        compile_encoder(model)
    return model, processor


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise UsageError(f"device={device}: cannot be used here ({first_line(error)}), cpu always can") from error
