"""Files, frames and strings → the tensors that the model takes: `PerceiverVLProcessor`.

One image processor serves images and clips: an image is a clip with one frame.
"""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from perceiver_vl.media.decode import frame_times, load_frames
from perceiver_vl.media.pictures import to_rgb
from perceiver_vl.media.recording import Recording
from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import sample_indices
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.modalities import MODALITIES, batch_of
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import whole_characters

Path = str | os.PathLike[str]
ImageLike = Path | Image.Image | np.ndarray | torch.Tensor
ClipLike = Path | Sequence[ImageLike] | np.ndarray | torch.Tensor
Pixels = np.ndarray  # uint8; or float32, if they are not to be rescaled


class PerceiverVLImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What images and clips can be processed with, beside what is usual for images."""

    do_sample_frames: bool | None
    num_frames: int | None


class PerceiverVLProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """What a call of the processor takes: a clip takes what an image takes."""

    images_kwargs: PerceiverVLImagesKwargs
    videos_kwargs: PerceiverVLImagesKwargs  # type: ignore[misc]


_WITHOUT_EFFECT = frozenset(  # those of transformers' options that would do nothing here
    {"data_format", "disable_grouping", "image_seq_length", "sanitize_control_tokens", "text_pair_target"}
    | {"text_target", "return_mm_token_type_ids", "return_text_replacement_offsets", "verbose"}
)
_OF_IMAGES = frozenset(PerceiverVLImagesKwargs.__annotations__) - _WITHOUT_EFFECT
_OF_TEXT = frozenset(TextKwargs.__annotations__) - _WITHOUT_EFFECT
_NESTED = {
    "text_kwargs": _OF_TEXT,
    "images_kwargs": _OF_IMAGES,
    "videos_kwargs": _OF_IMAGES,
    "common_kwargs": _OF_TEXT & _OF_IMAGES,
}


class PerceiverVLImageProcessor(PilBackend):
    """Images and clips → `pixel_values` (B, T, 3, H, W) float32 and `frame_mask` (B, T) int64.

    Frames are squashed to `size` (antialiased bicubic, no crop), scaled to 0..1 and normalised with `image_mean` and
    `image_std`; of a clip with more than `num_frames` frames, that many are taken at equal distances.
    """

    valid_kwargs = PerceiverVLImagesKwargs
    model_input_names = ["pixel_values", "frame_mask"]

    size = {"height": 384, "width": 384}
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_sample_frames = True
    resample = PILImageResampling.BICUBIC
    num_frames = 8

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if _decoded_size(self.do_resize, self.size, self.resample) is None:
            raise UsageError(
                f"do_resize={self.do_resize}, size={dict(self.size)}, resample={self.resample}: the package decodes "
                "frames to one height and width, bicubic; what differs is given with a call"
            )

    def __call__(self, images: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """The same as `preprocess`."""
        return self.preprocess(images, videos, **kwargs)

    def preprocess(  # type: ignore[override]
        self, images: Any = None, videos: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Turn images or videos (one or several; see `PerceiverVLProcessor`) into the model's input.

        Returns `pixel_values` (B, T, 3, H, W) float32, where frames that only pad a shorter clip are zeros, and
        `frame_mask` (B, T) int64, 1 for real frames and 0 for padding; torch tensors, or numpy arrays with
        `return_tensors="np"`. Options are those of transformers' image processors, `num_frames` and
        `do_sample_frames`; one that is left out or None is as the processor was made. `do_rescale=False` leaves floats
        as they are given; frames of several sizes, if they are not resized, need `do_center_crop` or `do_pad`.
        Raises UsageError for values of a wrong type or shape, MediaError for bad files.
        """
        _refuse_unknown(kwargs, _OF_IMAGES)
        options = {"return_tensors": "pt"} | {name: value for name, value in kwargs.items() if value is not None}
        _check_return_tensors(options["return_tensors"])
        _check(images is None or videos is None, "images and videos together: give one of them, or call once for each")
        _check(images is not None or videos is not None, "nothing to process: give images or videos")
        if _are_encoded(videos):
            return _batch_of_encoded(videos, options.get("num_frames") or self.num_frames)
        with _in_one_line():
            return super().preprocess(images, videos, **options)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, videos: Any, **options: Any
    ) -> BatchFeature:
        """What `preprocess` does when the options are checked, and all of them there."""
        _check(options["num_frames"] >= 1, f"num_frames={options['num_frames']}: need at least one frame")
        if options["do_center_crop"]:
            _height_and_width(options["crop_size"], "crop_size")
        sizing = options | {"do_rescale": False, "do_normalize": False, "do_pad": False, "return_tensors": None}
        several = _several(images, "images", 3) if videos is None else _several(videos, "videos", 4)
        clips = []
        for name, value in several:
            frames = [_image(value, name, options)] if videos is None else _clip(value, name, options)
            clips.append(self._preprocess(frames, **sizing)["pixel_values"])  # transformers' resizing and cropping
        inputs = _batch(clips, **options)
        is_torch = options["return_tensors"] == "pt"
        return BatchFeature(inputs if is_torch else {name: value.cpu().numpy() for name, value in inputs.items()})

    def resize(  # type: ignore[override]
        self, image: Pixels, size: SizeDict, resample: int | None = None, **kwargs: Any
    ) -> Pixels:
        """(3, H, W) → (3, H, W): to a height and a width as the decoder does, everything else as transformers does."""
        decoded_size = _decoded_size(True, size, resample)
        if decoded_size is None:
            return super().resize(image, size, resample, **kwargs)
        return resize_frame(image.transpose(1, 2, 0), decoded_size).transpose(2, 0, 1)


class PerceiverVLProcessor(ProcessorMixin):
    """Words through the tokenizer, images and clips through the image processor, and what else a model takes by the
    settings that its configuration has of it (`modalities`).
    """

    valid_processor_kwargs = PerceiverVLProcessorKwargs
    text_kwargs = {"padding": "longest", "return_attention_mask": True, "return_token_type_ids": False}

    def __init__(
        self, image_processor: PerceiverVLImageProcessor, tokenizer: Any, modalities: Mapping[str, Any] | None = None
    ):
        super().__init__(image_processor, tokenizer)
        self.modalities = dict(modalities or {})

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; modalities only where there are some."""
        plain: dict[str, Any] = super().to_dict()
        return plain if self.modalities else {name: value for name, value in plain.items() if name != "modalities"}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; code that a folder brings along is not run, nor is anybody asked to (`SECURITY.md`)."""
        return super().from_pretrained(*args, **{"trust_remote_code": False, **kwargs})

    def __call__(  # type: ignore[override]
        self,
        text: str | list[str] | None = None,
        images: ImageLike | Sequence[ImageLike] | None = None,
        videos: ClipLike | Sequence[ClipLike] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn what is given into the model's input, and only that.

        text: a string or a list of them → `input_ids`, `attention_mask` (B, L) int64, cut to `max_length` tokens
        (default: the tokenizer's `model_max_length`) and padded to the "longest" or to "max_length".
        images: one or several, each a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W) or (H, W, 3).
        videos: one or several, each a path, a list of images, an array (T, H, W, 3) or a tensor (T, 3, H, W) or
        (T, H, W, 3). Arrays and tensors hold uint8 in 0..255 or floats in 0..1. Frames that a model's `encode_frames`
        has seen already are given as a list of float16 arrays (T, 1+P, W), and become `pixel_values` (B, T, 1+P, W).
        Images and videos → `pixel_values` (B, T, 3, H, W) float32, `frame_mask` (B, T) int64; an image has T = 1, a
        video at most `num_frames` (default: the image processor's).
        Others by the name of their modality, as `audio=`: one or several, each a path or an array; `sampling_rate`:
        steps a second of arrays, else the model's → `pixel_values` (B, T, …) float32, `frame_mask` (B, T) int64, and
        `modality`, their name, which go where those of clips go.
        kwargs: options of the tokenizer (`max_length`, `padding`, `truncation`, …), of the image processor (see
        `PerceiverVLImageProcessor.preprocess`) and `return_tensors`: "pt" or "np"; each by its name or, for one
        modality, in `text_kwargs`, `images_kwargs` or `videos_kwargs`, or for all of them in `common_kwargs`.

        Raises UsageError for unknown options and values of a wrong type or shape, MediaError for files that cannot be
        read.
        """
        others = {name: kwargs.pop(name) for name in [*kwargs] if name in MODALITIES}
        others = {name: value for name, value in others.items() if value is not None}
        rate = kwargs.pop("sampling_rate", None) if others else None
        if isinstance(videos, list) and any(isinstance(one, Recording) for one in videos):
            name = next(one.modality for one in videos if isinstance(one, Recording))
            others, videos = others | {name: videos}, None  # from a data set, in the place of clips
        kinds = ("images", images), ("videos", videos), *others.items()
        given = [name for name, value in kinds if value is not None]
        _check(text is not None or bool(given), "nothing given: need text, images or videos")
        _check(not others or len(given) == 1, f"{' and '.join(given)} together: call once for each")
        _refuse_unknown(kwargs, _OF_TEXT | _OF_IMAGES | set(_NESTED))
        for name, known in _NESTED.items():
            _refuse_unknown(kwargs.get(name, {}), known, f"{name}: ")
        with _in_one_line():
            options = self._merge_kwargs(**{name: value for name, value in kwargs.items() if value is not None})
        inputs: dict[str, Any] = {}
        if text is not None:
            inputs |= self._tokenize(text, **options["text_kwargs"])
        if images is not None or videos is not None:
            inputs |= self.image_processor(
                images, videos, **options["images_kwargs" if videos is None else "videos_kwargs"]
            )
        for name, value in others.items():
            batch = batch_of(name, value, self.modalities, rate)
            if options["text_kwargs"].get("return_tensors") == "np":
                batch |= {key: batch[key].numpy() for key in ("pixel_values", "frame_mask")}
            inputs |= batch
        return BatchFeature(inputs)

    def _tokenize(
        self, text: str | list[str], max_length: int | None = None, return_tensors: str = "pt", **options: Any
    ) -> dict[str, Any]:
        _check_return_tensors(return_tensors)
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple):
            raise UsageError(f"text of type {type(text).__name__}: need a string or a list of strings")
        _check(len(texts) > 0, "text=[]: need at least one string")
        for place, item in enumerate(texts):
            _check(isinstance(item, str), f"text[{place}] of type {type(item).__name__}: need a string")
        limit = max_length or self.tokenizer.model_max_length
        unlimited = limit > 1_000_000  # transformers' way of saying that a tokenizer has no limit
        _check(
            not (unlimited and options["padding"] == "max_length"),
            "padding='max_length': needs max_length for this tokenizer",
        )
        options = {"truncation": not unlimited, "max_length": None if unlimited else limit} | options
        with _in_one_line():
            return dict(
                self.tokenizer([whole_characters(one) for one in texts], return_tensors=return_tensors, **options)
            )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _check_return_tensors(value: Any) -> None:
    _check(value in ("pt", "np"), f"return_tensors={value!r}: choose 'pt' or 'np'")


def _refuse_unknown(options: Mapping[str, Any], known: Set[str], where: str = "") -> None:
    for name in sorted(options.keys() - known):
        raise UsageError(f"{where}{name}={options[name]!r}: unknown option, choose among {', '.join(sorted(known))}")


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What transformers says of the value of an option, said as every other error is."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, StrictDataclassError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _several(value: Any, name: str, image_ndim: int) -> list[tuple[str, Any]]:
    """One thing or several → [(its name in errors, it)].

    An array of `image_ndim` dimensions is one, with one more dimension several.
    A list of paths, or of lists, is several; a flat list of pictures is several images, but one clip.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        if value.ndim == image_ndim + 1:
            value = list(value)
        else:
            return [(name, value)]
    if not isinstance(value, list | tuple):
        return [(name, value)]
    _check(len(value) > 0, f"{name}=[]: need at least one")
    if image_ndim == 4 and all(_is_picture(item) for item in value):
        return [(name, value)]
    return [(f"{name}[{place}]", item) for place, item in enumerate(value)]


def _are_encoded(videos: Any) -> bool:
    """Whether clips are given as an encoder's tokens: a list of float16 arrays of three dimensions."""
    if not isinstance(videos, list | tuple):
        return False
    return bool(videos) and all(
        isinstance(clip, np.ndarray) and clip.ndim == 3 and clip.dtype == np.float16 and clip.shape[-1] != 3
        for clip in videos
    )


def _batch_of_encoded(clips: Sequence[np.ndarray], num_frames: int) -> BatchFeature:
    """Encoded frames of clips, each (T, 1+P, W) → `pixel_values` (B, T, 1+P, W) float32, `frame_mask` (B, T)."""
    clips = [clip[sample_indices(len(clip), num_frames)] for clip in clips]
    shapes = {clip.shape[1:] for clip in clips}
    _check(len(shapes) == 1, f"encoded frames of shapes {sorted(shapes)}: need those of one encoder and token grid")
    pixels = torch.zeros(len(clips), max(map(len, clips)), *clips[0].shape[1:])
    mask = torch.zeros(pixels.shape[:2], dtype=torch.int64)
    for row, clip in enumerate(clips):
        pixels[row, : len(clip)] = torch.from_numpy(clip)
        mask[row, : len(clip)] = 1
    return BatchFeature({"pixel_values": pixels, "frame_mask": mask})


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3)


def _decoded_size(do_resize: bool, size: Any, resample: int | None) -> tuple[int, int] | None:
    """The size that frames are decoded to; None: the one they are stored in, to be resized after."""
    direct = do_resize and size.height and size.width and resample == PILImageResampling.BICUBIC
    return (size.height, size.width) if direct else None


def _clip(value: Any, name: str, options: dict[str, Any]) -> list[Pixels]:
    """A clip in any accepted form → at most `num_frames` of its frames, each (3, H, W)."""
    is_path = isinstance(value, str | os.PathLike)
    if isinstance(value, np.ndarray | torch.Tensor):
        _check(value.ndim == 4, f"{name} of shape {tuple(value.shape)}: need (T, H, W, 3)")
    elif not isinstance(value, list | tuple) and not is_path:
        raise UsageError(f"{name} of type {type(value).__name__}: need a path, a list of images, an array or a tensor")
    num_frames = options["num_frames"]
    if not options["do_sample_frames"]:
        num_frames = len(frame_times(value)[0] if is_path else value)
    if is_path:
        size = _decoded_size(options["do_resize"], options["size"], options["resample"])
        return list(load_frames(value, num_frames, size=size).transpose(0, 3, 1, 2))
    _check(len(value) > 0, f"{name}: no frames in it; need at least one")
    places = sample_indices(len(value), num_frames)
    if isinstance(value, np.ndarray | torch.Tensor):
        return list(_pixels(value[places], name, options))
    return [_image(value[place], f"{name}[{place}]", options) for place in places]


def _image(value: Any, name: str, options: dict[str, Any]) -> Pixels:
    """An image in any accepted form → (3, H, W)."""
    if isinstance(value, str | os.PathLike):
        return _clip(value, name, options | {"num_frames": 1, "do_sample_frames": True})[0]
    if isinstance(value, Image.Image):
        _check(options["do_convert_rgb"] or value.mode == "RGB", f"{name} of mode {value.mode}: needs do_convert_rgb")
        return to_rgb(value).transpose(2, 0, 1)
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise UsageError(f"{name} of type {type(value).__name__}: need a path, a PIL image, an array or a tensor")
    _check(value.ndim == 3, f"{name} of shape {tuple(value.shape)}: need (H, W, 3)")
    return _pixels(value, name, options)


def _pixels(value: np.ndarray | torch.Tensor, name: str, options: dict[str, Any]) -> Pixels:
    """(…, H, W, 3), or (…, 3, H, W), of uint8 or of floats in 0..1 → (…, 3, H, W) uint8; floats stay what they are
    without `do_rescale`.
    """
    shape = tuple(value.shape)
    if isinstance(value, torch.Tensor):
        array = (
            (value.detach().float() if value.is_floating_point() else value).cpu().numpy()
        )  # numpy knows no bfloat16
    else:
        array = value
    first_is_colour = shape[-3] == 3 and (shape[-1] != 3 or isinstance(value, torch.Tensor))
    if options["input_data_format"] is not None:
        first_is_colour = options["input_data_format"] == ChannelDimension.FIRST
    _check(shape[-3 if first_is_colour else -1] == 3, f"{name} of shape {shape}: need 3 colours, as (…, H, W, 3)")
    _check(0 not in shape, f"{name} of shape {shape}: holds no pixels")
    if array.dtype != np.uint8:
        _check(array.dtype.kind == "f", f"{name} of dtype {array.dtype}: need uint8, or floats in 0..1")
        if options["do_rescale"]:
            low, high = float(array.min()), float(array.max())
            within = low >= -1e-3 and high <= 1 + 1e-3
            _check(within, f"{name} with values from {low:g} to {high:g}: floats must lie in 0..1")
            array = (array.clip(0, 1) * 255).round().astype(np.uint8)
        else:
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    return array if first_is_colour else np.moveaxis(array, -1, -3)


def _height_and_width(size: SizeDict, name: str) -> tuple[int, int]:
    height, width = size.height or 0, size.width or 0
    _check(height > 0 and width > 0, f"{name}={dict(size)}: need a height and a width")
    return height, width


def _of_colours(value: Any, name: str, device: Any) -> torch.Tensor:
    """A number, or one for each of the colours → (3, 1, 1)."""
    _check(np.shape(value) in ((), (1,), (3,)), f"{name}={value}: need one number, or one for each of 3 colours")
    return torch.tensor(value, dtype=torch.float32, device=device).expand(3).view(3, 1, 1)


def _batch(
    clips: list[list[Pixels]],
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: Any,
    image_std: Any,
    do_pad: bool | None,
    pad_size: SizeDict | None,
    device: Any,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """Clips of frames (3, H, W) → scaled, normalised and then padded tensors; every step is in place."""
    sizes = {frame.shape[1:] for clip in clips for frame in clip}
    _check(
        bool(do_pad) or len(sizes) == 1, f"frames of sizes {sorted(sizes)}: need do_resize, do_center_crop or do_pad"
    )
    height, width = largest = tuple(map(max, zip(*sizes, strict=True)))
    if do_pad and pad_size:
        height, width = _height_and_width(pad_size, "pad_size")
    _check(height >= largest[0] and width >= largest[1], f"pad_size={(height, width)}: less than the frames' {largest}")
    mean, std = (image_mean, image_std) if do_normalize else (0.0, 1.0)
    mean, std = _of_colours(mean, "image_mean", device), _of_colours(std, "image_std", device)
    scale, shift = (rescale_factor if do_rescale else 1.0) / std, mean / std
    pixels = torch.zeros(len(clips), max(map(len, clips)), 3, height, width, device=device)
    mask = torch.zeros(pixels.shape[:2], dtype=torch.int64, device=device)
    for row, clip in enumerate(clips):
        mask[row, : len(clip)] = 1
        for place, frame in enumerate(clip):
            part = pixels[row, place, :, : frame.shape[1], : frame.shape[2]]
            part.copy_(torch.from_numpy(np.require(frame, requirements="W"))).mul_(scale).sub_(shift)
    return {"pixel_values": pixels, "frame_mask": mask}


def register(config_class: type) -> None:
    """Make AutoImageProcessor and AutoProcessor know the classes of this module for models with this configuration."""
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": PerceiverVLImageProcessor}, exist_ok=True)
    AutoProcessor.register(config_class, PerceiverVLProcessor, exist_ok=True)


register(PerceiverVLConfig)
