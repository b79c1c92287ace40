"""Training over pretrained encoders: what of them learns, clips that a frozen one sees once, and the base's own fit.

Shapes: C clips, Q captions, T frames, P tokens a frame, W width of an encoder, E retrieval vector.
"""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.sources import CachedDataset, EncodedDataset, EncodedFrames, VideoDataset
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import evaluating, vision_batch_of
from perceiver_vl.tasks.retrieval_result import ranks_of, recall_of
from perceiver_vl.training.adapters import add_adapters
from perceiver_vl.training.recipe import EncoderTuning, Recipe
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.files import write_json, write_with

PENALTIES = tuple((vision, text) for vision in (0.03, 0.1, 0.3, 1.0, 3.0) for text in (0.1, 0.3, 1.0))
"""Strengths of the ridge of either side that are tried: of vision, in hundredths of the variance of its vectors in all;
of text, in means of the variances of its components.
"""
MOST_TEXTS = 50_000
"""Whose tokens are kept in memory: less than a GB of a small encoder's."""
HUBNESS_WEIGHT = 0.4
"""Of `BaseVectors`, chosen once by three-fold cross-validation over training and validation clips, where 0.3 to 0.5
were alike (Flickr8k, R@1 30.9 to 33.0; MSR-VTT 22.2 to 22.9), not for each data set: few validation clips have no hubs.
"""
_TEXTS_AT_ONCE = 256


def tune_encoders(model: PerceiverVLPreTrainedModel, tuning: EncoderTuning) -> dict[str, int]:
    """Let the last blocks of the pretrained encoders learn, or adapters beside their weights, as the recipe says; all
    else of them stays as it is. → How many weights of either side learn, where any do.

    Raises `UsageError` for an encoder that is not there, that cannot learn, or has fewer blocks; without peft, for
    adapters.
    """
    parts, learning = model.pretrained_parts(), {}
    for side in ("vision", "text", "language"):
        encoder, name = parts.get(side), f"{side} {'model' if side == 'language' else 'encoder'}"
        count, rank = getattr(tuning, f"{side}_blocks"), getattr(tuning, f"{side}_lora")
        blocks = [] if encoder is None else encoder.blocks()
        if count > len(blocks):
            what = f"has {len(blocks)} blocks that can learn" if encoder is not None else "is not there"
            raise UsageError(f"encoders.{side}_blocks={count}: the {name} {what}, set at most that")
        if rank and not blocks:
            what = "has no blocks that can learn" if encoder is not None else "is not there"
            raise UsageError(f"encoders.{side}_lora={rank}: the {name} {what}, leave it out")
        weights = [weight for block in blocks[len(blocks) - count :] for weight in block.parameters()]
        if rank:
            weights = add_adapters(encoder, rank, f"encoders.{side}_lora")
        for weight in weights:
            weight.requires_grad_(True)
            weight.is_tuned = True  # type: ignore[attr-defined]
        if weights:
            learning[side] = sum(weight.numel() for weight in weights)
    return learning


@torch.inference_mode()
def remember_texts(model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, texts: Iterable[str]) -> None:
    """Have a frozen text encoder read all texts of a run at its start, if they are not too many to be kept.

    Once and for all, and those of one length together: what comes out depends on what is read beside it by the last
    bit, and a run that goes on must have the same.
    """
    encoder = model.base_model.text_encoder
    if encoder is None or encoder.trainable:
        return
    known = sorted(set(texts))
    if not 0 < len(known) <= MOST_TEXTS:
        return
    encoder.remembered = {} if encoder.remembered is None else encoder.remembered
    words = processor(text=known)
    lengths = words["attention_mask"].sum(1)
    for rows in lengths.argsort(stable=True).split(_TEXTS_AT_ONCE):
        ids, mask = (words[name][rows, : lengths[rows].max()] for name in ("input_ids", "attention_mask"))
        encoder.remember(ids.to(model.device), mask.to(model.device))


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
    """How the base was fitted: the `penalties` of vision and text, and R@1 of captions on the clips chosen on."""

    penalties: tuple[float, float]
    r1: float
    clips: int
    captions: int
    chosen_on: str

    def __str__(self) -> str:
        vision, text = self.penalties
        return (
            f"base: canonical correlations of {self.clips} clips with {self.captions} captions, penalties {vision:g} "
            f"and {text:g}; R@1 {self.r1:.1f} on {self.chosen_on}"
        )


def fit_base(
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    validation: VideoDataset | None,
    recipe: Recipe,
) -> BaseFit:
    """Fit the linear base of two encoders that never met, in closed form: a map a side, by canonical correlations.

    The penalties are chosen by recall (R@1 and R@10) on the validation clips, or without them on every fifth training
    clip. Writes the maps into the model.
    Raises `PerceiverVLError` where too many clips cannot be read.
    """
    clips, captions, owner = _vectors(model, processor, source, recipe)
    base: Any = model.base_model.base
    compared, way = _comparison(base, clips, recipe)
    train = compared(clips), captions, owner
    if validation is not None:
        others, words, whose = _vectors(model, processor, validation, recipe)
        fitted, test, chosen_on = train, (compared(others), words, whose), "validation"
    else:
        is_test = torch.arange(len(clips)) % 5 == 0
        fitted, test, chosen_on = _only(*train, ~is_test), _only(*train, is_test), "every fifth clip"
    moments, size = _Moments.of(fitted[0] @ way.T, *fitted[1:]), model.config.projection_dim - base.corrects
    recalls = {}
    for penalties in PENALTIES:
        vision, text = moments.maps(*penalties, size)
        recalls[penalties] = _recall(_mapped(test[0] @ way.T, vision), _mapped(test[1], text), test[2])
    best = max(recalls, key=lambda penalties: sum(recalls[penalties]))
    _write(base, moments.maps(*best, size), way, fitted[1], recipe)
    exact = deepcopy(base).cpu().double().requires_grad_(False)
    r1, _ = _recall(exact.of_places(test[0]), exact.of_text(test[1]), test[2])
    if validation is None:
        _write(base, _Moments.of(train[0] @ way.T, *train[1:]).maps(*best, size), way, captions, recipe)
    model.config.knows_search = True
    return BaseFit(best, r1, len(train[0]), len(train[1]), chosen_on)


def _write(base: Any, maps: list[tuple[Tensor, Tensor]], way: Tensor, captions: Tensor, recipe: Recipe) -> None:
    """The maps into a base, and which captions tell its hubs."""
    with torch.no_grad():
        for side, (weight, bias) in zip(("vision", "text"), maps, strict=True):
            linear, rows = base.maps[side], slice(len(bias))
            linear.weight.zero_()
            linear.bias.zero_()
            linear.weight[rows] = (weight @ way if side == "vision" else weight).to(linear.weight)
            linear.bias[rows] = bias.to(linear.bias)
        if base.corrects:
            order = np.random.default_rng(recipe.training.get("seed", 42)).permutation(len(captions))
            base.queries.copy_(captions[np.resize(order, len(base.queries))])
            base.hubness_weight.fill_(HUBNESS_WEIGHT)


@dataclass(frozen=True)
class Base:
    """A model before its training: its score on the validation clips, as `result` and as `figures` of the log, and
    where its weights are, those that learn.
    """

    result: dict[str, Any]
    figures: dict[str, float]
    weights: Path

    @classmethod
    def of(cls, trainer: Any, output: Path) -> "Base":
        """Of the trainer's model now, and kept in `output`: a run may go on after it was stopped."""
        score = trainer.validate()
        base = cls(score.to_dict(), trainer.figures(score), output / "checkpoints" / "base.safetensors")
        if trainer.args.process_index == 0:
            base.weights.parent.mkdir(parents=True, exist_ok=True)
            learning = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
            write_with(base.weights, lambda path: save_file({n: w.detach().cpu() for n, w in learning.items()}, path))
            write_json(output / _BASE, {"result": base.result, "figures": base.figures})
        return base

    @classmethod
    def read(cls, output: Path) -> "Base | None":
        """As a run has left it in `output`; None for one that had none."""
        if not (output / _BASE).is_file():
            return None
        try:
            return cls(**json.loads((output / _BASE).read_text()), weights=output / "checkpoints" / "base.safetensors")
        except (ValueError, TypeError) as error:
            raise PerceiverVLError(f"{output / _BASE}: damaged ({first_line(error)}), start the run anew") from error

    def is_better(self, trainer: Any, score: Any) -> bool:
        """Whether training has ended below the base, by the metric that the best model is chosen by, or R@1 of the
        first stream.
        """
        name = (trainer.args.metric_for_best_model or next(iter(self.figures))).removeprefix("eval_")
        return trainer.figures(score)[name] < self.figures[name]

    def restore(self, trainer: Any) -> None:
        """Give the model the weights that it had, which no average stands for."""
        trainer.average = None
        trainer.model.load_state_dict(load_file(self.weights), strict=False)


_BASE = "checkpoints/base.json"


def _comparison(base: Any, clips: Tensor, recipe: Recipe) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """What the map of vision takes of vectors `(C,W)`: those themselves, or with anchors, which are chosen here, the
    similarities to these `(C,A)`; and the way from there to features whose products are the kernel's `(·,A)`.
    """
    if not base.compares:
        return lambda vectors: vectors, torch.eye(clips.shape[1], dtype=clips.dtype)
    count = min(len(clips), len(base.anchors))
    chosen = np.random.default_rng(recipe.training.get("seed", 42)).permutation(len(clips))[:count]
    with torch.no_grad():
        base.centre.copy_(F.normalize(clips, dim=-1).mean(0))
        base.anchors.zero_()
        base.anchors[:count] = base.place(clips[np.sort(chosen)].to(base.anchors))
    exact = deepcopy(base).cpu().double()  # the model's own arithmetic, with more digits
    values, components = torch.linalg.eigh(exact.compared(exact.anchors[:count])[:, :count])
    way = torch.zeros(count, len(base.anchors), dtype=torch.float64)
    way[:, :count] = (components / values.clamp(min=1e-6 * float(values.max())).sqrt()).T
    return lambda vectors: exact.compared(exact.place(vectors)), way


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
        pairs = zip(
            words["input_ids"].split(_TEXTS_AT_ONCE), words["attention_mask"].split(_TEXTS_AT_ONCE), strict=True
        )
        captions = torch.cat([base.text_encoder(ids, mask)[1].float().cpu() for ids, mask in pairs])
    return clips.double(), F.normalize(captions.double(), dim=-1), owner


def _only(clips: Tensor, captions: Tensor, owner: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    place = keep.cumsum(0) - 1
    mine = keep[owner]
    return clips[keep], captions[mine], place[owner[mine]]


@dataclass(frozen=True)
class _Moments:
    """Means and covariances of clips `(C,W)` and of the captions of each, every clip of equal weight, float64."""

    means: tuple[Tensor, Tensor]
    vision: Tensor
    text: Tensor
    cross: Tensor

    @classmethod
    def of(cls, clips: Tensor, captions: Tensor, owner: Tensor) -> "_Moments":
        """Of captions, `owner (Q,)` says whose they are."""
        weights = 1 / (owner.bincount(minlength=len(clips))[owner] * len(clips)).double()
        means = clips.mean(0), weights @ captions
        clips, captions = clips - means[0], captions - means[1]
        weighted = captions * weights[:, None]
        return cls(means, clips.T @ clips / len(clips), captions.T @ weighted, clips[owner].T @ weighted)

    @cached_property
    def _eigen(self) -> list[tuple[Tensor, Tensor]]:
        return [torch.linalg.eigh(one) for one in (self.vision, self.text)]

    @property
    def variances(self) -> list[Tensor]:
        """Of the principal components of either side `(W,)`."""
        return [values.clamp(min=0) for values, _ in self._eigen]

    @property
    def components(self) -> list[Tensor]:
        """The principal components of either side, in columns `(W,W)`."""
        return [vectors for _, vectors in self._eigen]

    def maps(self, vision_penalty: float, text_penalty: float, size: int) -> list[tuple[Tensor, Tensor]]:
        """Weight `(size,W)` and bias `(size,)` of either side: regularised canonical correlation analysis, each
        direction scaled by its correlation (Hardoon et al. 2004; Gong et al. 2014).
        """
        (of_vision, of_text), (vision_values, text_values) = self.components, self.variances
        vision = of_vision / (vision_values + vision_penalty / 100 * vision_values.sum()).sqrt() @ of_vision.T
        text = of_text / (text_values + text_penalty * text_values.mean()).sqrt() @ of_text.T
        left, correlations, right = torch.linalg.svd(vision @ self.cross @ text, full_matrices=False)
        found = []
        for mean, directions, whitening in zip(self.means, (left, right.T), (vision, text), strict=True):
            kept = (directions * correlations)[:, :size].T @ whitening
            weight = torch.zeros(size, kept.shape[1], dtype=kept.dtype)
            weight[: len(kept)] = kept
            found.append((weight, -weight @ mean))
        return found


def _mapped(vectors: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    return F.normalize(vectors @ affine[0].T + affine[1], dim=-1)


def _recall(clips: Tensor, captions: Tensor, owner: Tensor) -> tuple[float, float]:
    """R@1 and R@10 of captions `(Q,E)` among clips `(C,E)`, in per cent."""
    recall = recall_of(ranks_of(captions @ clips.T, owner))
    return recall.r1, recall.r10
