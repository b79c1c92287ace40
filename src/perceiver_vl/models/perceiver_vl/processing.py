"""Files, frames and strings → the tensors that the model takes: `PerceiverVLProcessor`.

One image processor serves images and clips: an image is a clip with one frame.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature, BertTokenizer, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from perceiver_vl.media.decode import load_frames
from perceiver_vl.media.pictures import to_rgb
from perceiver_vl.media.resizing import Frames, resize_frame
from perceiver_vl.media.sampling import sample_indices
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.errors import UsageError, first_line

Path = str | os.PathLike[str]
ImageLike = Path | Image.Image | np.ndarray | torch.Tensor
ClipLike = Path | Sequence[ImageLike] | np.ndarray | torch.Tensor

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000  # characters that a trained vocabulary knows; words with others become [UNK]
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": PILImageResampling.BICUBIC}


class PerceiverVLImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What the image processor can be made with, beside the usual."""

    num_frames: int | None


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
    do_resize = True
    do_rescale = True
    do_normalize = True
    resample = PILImageResampling.BICUBIC
    num_frames = 8

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise UsageError(f"{name}={getattr(self, name)}: this image processor only knows {value!r}")
        if min(self._frame_size()) < 1:
            raise UsageError(
                f"size={dict(self.size)}: need a height and a width, as in {{'height': 384, 'width': 384}}"
            )

    def __call__(self, images: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """The same as `preprocess`."""
        return self.preprocess(images, videos, **kwargs)

    def preprocess(  # type: ignore[override]
        self,
        images: Any = None,
        videos: Any = None,
        *,
        num_frames: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Turn images or videos (one or several; see `PerceiverVLProcessor`) into the model's input.

        Returns `pixel_values` (B, T, 3, H, W) float32, where frames that only pad a shorter clip are zeros, and
        `frame_mask` (B, T) int64, 1 for real frames and 0 for padding; torch tensors, or numpy arrays with
        `return_tensors="np"`. Raises UsageError for values of a wrong type or shape, MediaError for bad files.
        """
        num_frames = self.num_frames if num_frames is None else num_frames
        _check(return_tensors in ("pt", "np"), f"return_tensors={return_tensors!r}: choose 'pt' or 'np'")
        _check(num_frames >= 1, f"num_frames={num_frames}: need at least one frame")
        _check(images is None or videos is None, "images and videos together: give one of them, or call once for each")
        _check(images is not None or videos is not None, "nothing to process: give images or videos")
        size = self._frame_size()
        if images is not None:
            clips = [_image(image, size, name)[None] for name, image in _several(images, "images", image_ndim=3)]
        else:
            several = _several(videos, "videos", image_ndim=4)
            clips = [_clip(video, num_frames, size, name) for name, video in several]
        inputs = self._batch(clips)
        return BatchFeature(inputs if return_tensors == "pt" else {name: x.numpy() for name, x in inputs.items()})

    def _frame_size(self) -> tuple[int, int]:
        size: Any = self.size  # a SizeDict once made
        return size.height or 0, size.width or 0

    def _batch(self, clips: list[Frames]) -> dict[str, torch.Tensor]:
        """[(T_i, H, W, 3) uint8] → padded, scaled and normalised tensors; every step is in place."""
        longest = max(len(clip) for clip in clips)
        pixels = torch.empty(len(clips), longest, 3, *self._frame_size())
        mask = torch.zeros(len(clips), longest, dtype=torch.int64)
        mean, std = (torch.tensor(value, dtype=torch.float32).expand(3) for value in (self.image_mean, self.image_std))
        scale, shift = (self.rescale_factor / std).view(3, 1, 1), (mean / std).view(3, 1, 1)
        for row, row_mask, clip in zip(pixels, mask, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(np.require(clip, requirements="W")).permute(0, 3, 1, 2)
            row[: len(clip)].mul_(scale).sub_(shift)
            row[len(clip) :] = 0
            row_mask[: len(clip)] = 1
        return {"pixel_values": pixels, "frame_mask": mask}


class PerceiverVLProcessor(ProcessorMixin):
    """Words through the tokenizer, images and clips through the image processor."""

    def __init__(self, image_processor: PerceiverVLImageProcessor, tokenizer: Any):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; code that a folder brings along is not run, nor is anybody asked to (`SECURITY.md`)."""
        return super().from_pretrained(*args, **{"trust_remote_code": False, **kwargs})

    def __call__(  # type: ignore[override]
        self,
        text: str | list[str] | None = None,
        images: ImageLike | Sequence[ImageLike] | None = None,
        videos: ClipLike | Sequence[ClipLike] | None = None,
        *,
        num_frames: int | None = None,
        max_length: int | None = None,
        padding: str | bool = "longest",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Turn what is given into the model's input, and only that.

        text: a string or a list of them → `input_ids`, `attention_mask` (B, L) int64, cut to `max_length` tokens
        (default: the tokenizer's `model_max_length`) and padded to the "longest" or to "max_length".
        images: one or several, each a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W) or (H, W, 3).
        videos: one or several, each a path, a list of images, an array (T, H, W, 3) or a tensor (T, 3, H, W) or
        (T, H, W, 3). Arrays and tensors hold uint8 in 0..255 or floats in 0..1.
        Images and videos → `pixel_values` (B, T, 3, H, W) float32, `frame_mask` (B, T) int64; an image has T = 1, a
        video at most `num_frames` (default: the image processor's).

        Raises UsageError for values of a wrong type or shape, MediaError for files that cannot be read.
        """
        _check(
            text is not None or images is not None or videos is not None, "nothing given: need text, images or videos"
        )
        _check(return_tensors in ("pt", "np"), f"return_tensors={return_tensors!r}: choose 'pt' or 'np'")
        inputs: dict[str, Any] = {}
        if text is not None:
            inputs |= self._tokenize(text, max_length, padding, return_tensors)
        if images is not None or videos is not None:
            inputs |= self.image_processor(images, videos, num_frames=num_frames, return_tensors=return_tensors)
        return BatchFeature(inputs)

    def _tokenize(
        self, text: str | list[str], max_length: int | None, padding: str | bool, return_tensors: str
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple):
            raise UsageError(f"text of type {type(text).__name__}: need a string or a list of strings")
        _check(len(texts) > 0, "text=[]: need at least one string")
        for place, item in enumerate(texts):
            _check(isinstance(item, str), f"text[{place}] of type {type(item).__name__}: need a string")
        limit = max_length or self.tokenizer.model_max_length
        unlimited = limit > 1_000_000  # transformers' way of saying that a tokenizer has no limit
        _check(not (unlimited and padding == "max_length"), "padding='max_length': needs max_length for this tokenizer")
        return dict(
            self.tokenizer(
                list(texts),
                padding=padding,
                truncation=not unlimited,
                max_length=None if unlimited else limit,
                return_attention_mask=True,
                return_token_type_ids=False,
                return_tensors=return_tensors,
            )
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


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


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3)


def _clip(value: Any, num_frames: int, size: tuple[int, int], name: str) -> Frames:
    """A clip in any accepted form → (T, *size, 3) uint8 with T <= num_frames."""
    if isinstance(value, str | os.PathLike):
        return load_frames(value, num_frames, size=size)
    if isinstance(value, np.ndarray | torch.Tensor):
        _check(value.ndim == 4, f"{name} of shape {tuple(value.shape)}: need (T, H, W, 3)")
    elif not isinstance(value, list | tuple):
        raise UsageError(f"{name} of type {type(value).__name__}: need a path, a list of images, an array or a tensor")
    _check(len(value) > 0, f"{name}: no frames in it; need at least one")
    places = sample_indices(len(value), num_frames)
    if isinstance(value, np.ndarray | torch.Tensor):
        frames = _bytes(value[places], name)
        return frames if frames.shape[1:3] == size else np.stack([resize_frame(frame, size) for frame in frames])
    return np.stack([_image(value[place], size, f"{name}[{place}]") for place in places])


def _image(value: Any, size: tuple[int, int], name: str) -> Frames:
    """An image in any accepted form → (*size, 3) uint8."""
    if isinstance(value, str | os.PathLike):
        frame: Frames = load_frames(value, 1, size=size)[0]
        return frame
    if isinstance(value, Image.Image):
        return resize_frame(to_rgb(value), size)
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise UsageError(f"{name} of type {type(value).__name__}: need a path, a PIL image, an array or a tensor")
    _check(value.ndim == 3, f"{name} of shape {tuple(value.shape)}: need (H, W, 3)")
    return resize_frame(_bytes(value, name), size)


def _bytes(value: np.ndarray | torch.Tensor, name: str) -> Frames:
    """(…, H, W, 3), or (…, 3, H, W), of uint8 or of floats in 0..1 → (…, H, W, 3) uint8."""
    shape = tuple(value.shape)
    if isinstance(value, torch.Tensor):
        array = (
            (value.detach().float() if value.is_floating_point() else value).cpu().numpy()
        )  # numpy knows no bfloat16
    else:
        array = value
    first_is_colour = shape[-3] == 3 and (shape[-1] != 3 or isinstance(value, torch.Tensor))
    _check(first_is_colour or shape[-1] == 3, f"{name} of shape {shape}: need 3 colours, as (…, H, W, 3)")
    _check(0 not in shape, f"{name} of shape {shape}: holds no pixels")
    if first_is_colour:
        array = np.moveaxis(array, -3, -1)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    _check(array.dtype.kind == "f", f"{name} of dtype {array.dtype}: need uint8, or floats in 0..1")
    low, high = float(array.min()), float(array.max())
    _check(low >= -1e-3 and high <= 1 + 1e-3, f"{name} with values from {low:g} to {high:g}: floats must lie in 0..1")
    return np.ascontiguousarray((array.clip(0, 1) * 255).round().astype(np.uint8))


def train_tokenizer(captions: Iterable[str], vocab_size: int = 8000, max_length: int = 40) -> BertTokenizer:
    """Train a lower-casing WordPiece tokenizer on captions, with the special tokens and the form of BERT's.

    vocab_size: at most so many entries; fewer if the captions do not hold more. max_length: tokens a text is cut to.
    The same captions give the same vocabulary. Raises UsageError if there are no words or the vocabulary is too small.
    """
    captions = list(captions)
    template = BertTokenizer()
    normalizer, pre_tokenizer = template._tokenizer.normalizer, template._tokenizer.pre_tokenizer
    counts = Counter("".join(normalizer.normalize_str(caption) for caption in captions).replace(" ", ""))
    _check(bool(counts), "captions: no words in them to train a tokenizer on")
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:MAX_ALPHABET])
    # With all characters given, in order, the trainer has no choice left that depends on its hash tables
    given = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)]
    _check(vocab_size >= len(given), f"vocab_size={vocab_size}: these captions need at least {len(given)}")
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=given, limit_alphabet=MAX_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    return BertTokenizer(
        vocab=vocabulary, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"]
    )


def load_tokenizer(name: Path) -> Any:
    """A tokenizer from a folder or the hub; one without a mask token, as CLIP's, is given one behind all others.

    Raises `UsageError` if it cannot be loaded, or has no pad token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"tokenizer {name}: cannot be loaded ({first_line(error)}), name a folder or a hub model"
        ) from error
    if tokenizer.pad_token_id is None:
        raise UsageError(f"tokenizer {name}: has no pad token, name one in the manner of BERT's or CLIP's")
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


def register(config_class: type) -> None:
    """Make AutoImageProcessor and AutoProcessor know the classes of this module for models with this configuration."""
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": PerceiverVLImageProcessor}, exist_ok=True)
    AutoProcessor.register(config_class, PerceiverVLProcessor, exist_ok=True)


register(PerceiverVLConfig)
