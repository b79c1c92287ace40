"""Training over pretrained encoders: what of them learns, clips that a frozen one sees once, and the base's own fit.

Shapes: C clips, Q captions, T frames, P tokens a frame, W width of an encoder, E retrieval vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.sources import CachedDataset, EncodedDataset, EncodedFrames, VideoDataset
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import evaluating, vision_batch_of
from perceiver_vl.training.recipe import EncoderTuning, Recipe
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import UsageError

PENALTIES = tuple(10.0**power for power in range(-1, 6))
"""Strengths of the ridge that are tried; each by the squared length of a mean clip's vector."""


def tune_encoders(model: PerceiverVLPreTrainedModel, tuning: EncoderTuning) -> None:
    """Let the last blocks of the pretrained encoders learn, as the recipe says; all else of them stays as it is.

    Raises `UsageError` for an encoder that is not there, that cannot learn, or has fewer blocks.
    """
    base = model.base_model
    if base.text_encoder is not None:
        base.text_encoder.remembered = {}
    for side, count in (("vision", tuning.vision_blocks), ("text", tuning.text_blocks)):
        encoder = getattr(base, f"{side}_encoder")
        if not count:
            continue
        blocks = [] if encoder is None else encoder.blocks()
        if count > len(blocks):
            what = f"has {len(blocks)} blocks that can learn" if encoder is not None else "is not there"
            raise UsageError(f"encoders.{side}_blocks={count}: the {side} encoder {what}, set at most that")
        for weight in (weight for block in blocks[-count:] for weight in block.parameters()):
            weight.requires_grad_(True)
            weight.is_tuned = True  # type: ignore[attr-defined]


def sees_each_clip_once(recipe: Recipe, model: PerceiverVLPreTrainedModel) -> bool:
    """Whether the vision encoder would see the same frames in every epoch, and they are to be kept in memory."""
    encoder, data = model.base_model.vision_encoder, recipe.data
    same = data.cache and data.sampling == "uniform" and data.augmentation == Augmentation()
    return encoder is not None and not encoder.trainable and same


def frame_encoder(
    model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor
) -> Callable[[Frames], EncodedFrames]:
    """What the vision encoder of `model` makes of frames `(T,H,W,3)`: `(T,1+P,W)` float16."""

    @torch.inference_mode()
    def encode(frames: Frames) -> EncodedFrames:
        pixels = processor(videos=[frames], num_frames=len(frames))["pixel_values"].to(model.device)
        encoded: EncodedFrames = model.base_model.encode_frames(pixels)[0].cpu().to(torch.float16).numpy()
        return encoded

    return encode


def encoded(source: VideoDataset, encode: Callable[[Frames], EncodedFrames]) -> VideoDataset:
    """A source as the encoder sees it; frames need not be kept then."""
    return EncodedDataset(source.source if isinstance(source, CachedDataset) else source, encode)


@dataclass(frozen=True)
class BaseFit:
    """How the base was fitted: the ridge's `penalty`, and R@1 of `captions` on the clips it was chosen on."""

    penalty: float
    r1: float
    clips: int
    captions: int
    chosen_on: str

    def __str__(self) -> str:
        return (
            f"base: ridge of {self.captions} captions of {self.clips} clips, penalty {self.penalty:g}; "
            f"R@1 {self.r1:.1f} on {self.chosen_on}"
        )


def fit_base(
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    validation: VideoDataset | None,
    recipe: Recipe,
) -> BaseFit:
    """Fit the linear base of two encoders that never met, in closed form: vectors of clips → mean vectors of captions.

    The strength of the ridge is chosen by recall on the validation clips, or without them on every fifth training
    clip. Writes the maps into the model, the text's being the identity.
    Raises `PerceiverVLError` where too many clips cannot be read.
    """
    clips, captions, owner = _vectors(model, processor, source, recipe)
    held = validation is not None
    if validation is not None:
        test = _vectors(model, processor, validation, recipe)
        train = clips, captions, owner
    else:
        is_test = torch.arange(len(clips)) % 5 == 0
        train, test = (_only(clips, captions, owner, keep) for keep in (~is_test, is_test))
    maps = {penalty: _ridge(*train, penalty) for penalty in PENALTIES}
    scores = {penalty: _recall(_mapped(test[0], *one), test[1], test[2]) for penalty, one in maps.items()}
    best = max(scores, key=lambda penalty: scores[penalty])
    weight, bias = maps[best] if held else _ridge(clips, captions, owner, best)
    linears = model.base_model.base.maps
    with torch.no_grad():
        linears["vision"].weight.copy_(weight)
        linears["vision"].bias.copy_(bias)
        linears["text"].weight.copy_(torch.eye(*linears["text"].weight.shape))
        linears["text"].bias.copy_(-_mean_of_clips(captions, owner, len(clips)))
    model.config.knows_search = True
    return BaseFit(best, scores[best], len(clips), len(captions), "validation" if held else "every fifth clip")


def _vectors(
    model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, source: VideoDataset, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the encoders alone: vectors of the clips that can be read `(C,W)`, of their captions `(Q,W)`, whose they are
    `(Q,)`.
    """
    base, data, batch_size = model.base_model, recipe.data, recipe.evaluation.batch_size
    reader = ClipReader(
        source, data.num_frames, batch_size, data.strict, data.max_failed_fraction, ProcessGroup(shared=False)
    )
    seen: list[tuple[Tensor, Tensor]] = []

    def see(batch: ReadBatch) -> None:
        clips = vision_batch_of(batch, processor, data.num_frames, model.device)
        vectors = base.encode_frames(clips.pixel_values)[:, :, 0, : base.base.size]
        real = clips.frame_mask[..., None].to(vectors.dtype)
        mean = (vectors * real).sum(1) / real.sum(1)
        seen.append((torch.tensor(batch.indices), mean[clips.rows].cpu()))

    with evaluating(model), torch.inference_mode():
        reader.read(see)
        places, clips = (torch.cat(parts) for parts in zip(*seen, strict=True))
        clips = clips[places.argsort()]
        texts = [source.record(index).texts for index in reader.indices]
        owner = torch.tensor([clip for clip, some in enumerate(texts) for _ in some])
        words = processor(text=[text for some in texts for text in some]).to(model.device)
        pairs = zip(words["input_ids"].split(256), words["attention_mask"].split(256), strict=True)
        captions = torch.cat([base.text_encoder(ids, mask)[1].cpu() for ids, mask in pairs])
    return clips.double(), F.normalize(captions.double(), dim=-1), owner


def _only(clips: Tensor, captions: Tensor, owner: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    place = keep.cumsum(0) - 1
    mine = keep[owner]
    return clips[keep], captions[mine], place[owner[mine]]


def _mean_of_clips(captions: Tensor, owner: Tensor, clips: int) -> Tensor:
    """The mean of the clips' mean captions `(W,)`."""
    return _means(captions, owner, clips).mean(0)


def _means(captions: Tensor, owner: Tensor, clips: int) -> Tensor:
    """The mean of each clip's captions `(C,W)`."""
    total = torch.zeros(clips, captions.shape[1], dtype=captions.dtype).index_add_(0, owner, captions)
    return total / owner.bincount(minlength=clips).clamp(min=1)[:, None]


def _ridge(clips: Tensor, captions: Tensor, owner: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight `(E,W)` and bias `(E,)` from the vectors of clips to the means of their captions, less the mean of all."""
    goal = _means(captions, owner, len(clips))
    mean, goal = clips.mean(0), goal - goal.mean(0)
    centred = clips - mean
    scale = penalty * centred.square().sum(1).mean() / centred.shape[1]
    square = centred.T @ centred + scale * torch.eye(centred.shape[1], dtype=centred.dtype)
    weight = torch.linalg.solve(square, centred.T @ goal).T
    return weight, -weight @ mean


def _mapped(clips: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.normalize(clips @ weight.T + bias, dim=-1)


def _recall(clips: Tensor, captions: Tensor, owner: Tensor) -> float:
    """R@1 of captions among clips, in per cent."""
    captions = captions - _mean_of_clips(captions, owner, len(clips))
    scores = captions @ clips.T
    own = scores.gather(1, owner[:, None])
    return 100 * ((scores >= own).sum(1) == 1).double().mean().item()
