"""Bytes, pixels, pairs of frames, and video with sound, as the arrays that a Perceiver IO reads (appendices C to H).

Shapes: B batch, L bytes, T frames, H × W pixels, M inputs, C their width, Q queries.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from perceiver_vl.layers.positions import fourier_features_at, grid_positions
from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig
from perceiver_vl.utils.errors import UsageError

MODALITIES = ("audio", "image", "label")
"""In the order in which they are joined."""


def fourier(positions: Tensor, num_bands: int, sizes: Sequence[int], like: Tensor) -> Tensor:
    """`positions (M,A)` as features in the type of `like`, made in single precision as the authors' are."""
    return fourier_features_at(positions.to(like.device), num_bands, max_resolution=sizes, raw=True).to(like.dtype)


def with_positions(tokens: Tensor, shape: Sequence[int], num_bands: int, sizes: Sequence[int]) -> Tensor:
    """`tokens (B,M,C)` of a grid, and the Fourier features of their places beside them."""
    places = fourier(grid_positions(shape), num_bands, sizes, tokens)
    return torch.cat([tokens, places.expand(len(tokens), -1, -1)], dim=-1)


def patches(frames: Tensor, size: int, depth: int = 1) -> Tensor:
    """`frames (B,T,C,H,W)` → `(B,T/depth,H/size,W/size,depth·size²·C)`, channels of a place next to each other."""
    x = frames.unflatten(1, (-1, depth)).unflatten(4, (-1, size)).unflatten(6, (-1, size))  # B,T,t,C,H,h,W,w
    return x.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4)


class ByteEmbeddings(nn.Module):
    """A vector of each byte, and one of its place (appendix C)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`(B,L)` → `(B,L,C)`. Raises `UsageError` for more bytes than there are places."""
        length, most = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > most:
            raise UsageError(f"input_ids: {length} bytes, the positions are of {most}; give at most that many")
        return self.word_embeddings(input_ids) + self.position_embeddings.weight[:length]


class ImageEmbeddings(nn.Module):
    """Pixels and where they are: Fourier features, learned positions, or a convolution in front (appendix D)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.num_channels, config.pixel_channels
        if config.image_positions == "learned":
            self.convolution = nn.Conv2d(channels, width, 1)
            self.position_embeddings = nn.Parameter(torch.randn(prod(config.image_size), width))
            self.position_projection = nn.Linear(width, width)
        elif config.image_positions == "conv":
            self.convolution = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.batch_norm, self.pooling = nn.BatchNorm2d(width), nn.MaxPool2d(3, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B,3,H,W)` → `(B,M,C)`. Raises `UsageError` for a size that learned positions are not of."""
        kind, size = self.config.image_positions, list(pixel_values.shape[-2:])
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise UsageError(
                f"pixel_values {tuple(pixel_values.shape)}: need (batch, {self.config.num_channels}, H, W)"
            )
        if kind == "learned":
            if size != self.config.image_size:
                raise UsageError(
                    f"pixel_values of {size}: learned positions are of {self.config.image_size}, resize them"
                )
            places = self.position_projection(self.position_embeddings).expand(len(pixel_values), -1, -1)
            return torch.cat([self.convolution(pixel_values).flatten(2).mT, places], dim=-1)
        if kind == "conv":
            pixel_values = self.pooling(self.batch_norm(self.convolution(pixel_values)).relu())
        shape, sizes = pixel_values.shape[-2:], self.config.max_resolution or ()
        return with_positions(pixel_values.flatten(2).mT, shape, self.config.num_bands, sizes)


class FlowEmbeddings(nn.Module):
    """Each place of two frames together, and where it is (appendix F)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(2 * config.num_channels, config.pixel_channels)

    def forward(self, frames: Tensor) -> Tensor:
        """`(B,2,c,H,W)`, c the channels of a neighbourhood (`neighbourhoods`) → `(B,M,C)`. Raises `UsageError`."""
        wanted = 2, self.config.num_channels, *self.config.image_size
        if tuple(frames.shape[1:]) != wanted:
            raise UsageError(f"frames {tuple(frames.shape)}: need (batch, {', '.join(map(str, wanted))})")
        tokens = self.projection(patches(frames, 1, depth=2)).flatten(1, 3)
        return with_positions(tokens, self.config.image_size, self.config.num_bands, self.config.max_resolution or ())


def neighbourhoods(frames: Tensor) -> Tensor:
    """Frames `(B,T,3,H,W)` → the 3 × 3 pixels around each, zeros beyond the edge, by row, column and channel
    `(B,T,27,H,W)`: what the published model of flow is given.
    """
    batch, length, channels, height, width = frames.shape
    around = nn.functional.unfold(frames.flatten(0, 1), 3, padding=1).view(batch, length, channels, 9, height, width)
    return around.transpose(2, 3).flatten(2, 3)


class MultimodalEmbeddings(nn.Module):
    """Patches of video and sound, and a label, padded to one width by a learned vector of each (appendix H)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.config, width = config, config.input_size
        sizes = config.modality_sizes
        self.padding = nn.ParameterDict({name: torch.randn(1, width - sizes[name]) for name in MODALITIES})
        self.mask = nn.ParameterDict({name: torch.randn(1, width) for name in MODALITIES})

    def forward(self, image: Tensor, audio: Tensor, label: Tensor) -> Tensor:
        """`image (B,T,3,H,W)`, `audio (B,S,1)`, `label (B,K)` → `(B,M,C)`. Raises `UsageError` for other sizes."""
        config = self.config
        shapes = {
            "image": (config.num_frames, config.num_channels, *config.image_size),
            "audio": (config.audio_samples, 1),
            "label": (config.num_labels,),
        }
        for name, given in (("image", image), ("audio", audio), ("label", label)):
            if tuple(given.shape[1:]) != shapes[name]:
                raise UsageError(f"{name} {tuple(given.shape)}: need (batch, {', '.join(map(str, shapes[name]))})")
        video = patches(image, config.video_patch_size)
        sizes = [config.num_frames, *config.image_size]
        sound = audio.flatten(1).unflatten(1, (-1, config.samples_per_patch))
        tokens = {
            "audio": with_positions(sound, sound.shape[1:2], config.audio_bands, [config.audio_samples]),
            "image": with_positions(video.flatten(1, 3), video.shape[1:4], config.num_bands, sizes),
            "label": label[:, None],
        }
        tokens = padded(tokens, self.padding)
        hidden = torch.rand(len(label), device=label.device) < config.label_mask_probability
        tokens["label"] = torch.where(hidden[:, None, None], self.mask["label"], tokens["label"])
        return torch.cat([tokens[name] for name in MODALITIES], dim=1)


def padded(tokens: Mapping[str, Tensor], padding: nn.ParameterDict) -> dict[str, Tensor]:
    """Each modality's `(B,M,C)` with its learned vector behind every one."""
    return {
        name: torch.cat([given, padding[name].expand(*given.shape[:2], -1)], dim=-1) for name, given in tokens.items()
    }


class MultimodalQueries(nn.Module):
    """Places of pixels and of patches of sound, and a learned query of the label, padded to one width (appendix H)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__()
        self.config, width = config, config.query_size or 0
        self.padding = nn.ParameterDict({name: torch.randn(1, width - own) for name, own in config.query_sizes.items()})
        self.label = nn.Parameter(torch.randn(1, config.label_query_size))

    def grids(self) -> dict[str, list[int]]:
        """What can be asked for: pixels, and patches of sound."""
        config = self.config
        patches_of_sound = config.audio_samples // config.samples_per_patch
        return {"audio": [patches_of_sound], "image": [config.num_frames, *config.image_size]}

    def forward(self, points: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """`points`: for audio and image the places asked for, as numbers in their grid, int64 `(Q,)` → queries
        `(B,Q,C)` of each modality. The places are `-1 + 2 · number / size`, which is not where the encoder's are.
        """
        config, queries = self.config, {"label": self.label[None]}
        sizes = {"audio": [config.audio_samples], "image": [config.num_frames, *config.image_size]}
        bands = {"audio": config.audio_bands, "image": config.num_bands}
        for name, grid in self.grids().items():
            if len(points[name]) and not 0 <= int(points[name].min()) <= int(points[name].max()) < prod(grid):
                raise UsageError(f"points of {name}: need numbers from 0 to {prod(grid) - 1}")
            places = torch.stack(torch.unravel_index(points[name].to(self.label.device), grid), dim=1)
            where = -1 + 2 * places / torch.tensor(grid, device=places.device)
            queries[name] = fourier(where, bands[name], sizes[name], self.label)[None]
        return padded({name: query.expand(batch, -1, -1) for name, query in queries.items()}, self.padding)
