"""Words and pixels become one long input array.

Each token is the sum of a content, a position, a temporal (clips only) and a modality embedding (paper 3.1, Figure 1).
Shapes: B batch, T frames, P patches a frame (with the class token where there is one), L text tokens, D width.
"""

from math import isqrt

import torch
from torch import Tensor, nn

from perceiver_vl.layers.patch_stem import ConvolutionalStem, SoftSplitStem, TemporalMixing, patch_projection, tubelets
from perceiver_vl.layers.positions import resize_positions
from perceiver_vl.layers.token_reduction import roll_over_time
from perceiver_vl.layers.untied import TwinNorm
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoders import vision_width
from perceiver_vl.models.perceiver_vl.modalities import make_modalities
from perceiver_vl.utils.errors import UsageError


class TokenProjection(nn.Sequential):
    """The tokens of a pretrained encoder `(…,W)`, normed, since encoders differ in scale → `(…,D)`."""

    def __init__(self, width: int, config: PerceiverVLConfig) -> None:
        super().__init__(nn.LayerNorm(width, eps=config.layer_norm_eps), nn.Linear(width, config.hidden_size))
        self.width = width


class TextEmbeddings(nn.Module):
    """Word and position embeddings (and the first row of BERT's segment table, where there is one), normed as in
    BERT. Over a text encoder its tokens take the place of the word table.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        if config.text_config is None:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.token_projection = TokenProjection(config.text_config.hidden_size, config)
        self.position_embeddings = nn.Embedding(config.max_text_length, config.hidden_size)
        self.segment_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor) -> Tensor:
        """Words `input_ids (B,L)`, or an encoder's tokens `(B,L,W)` → `(B,L,D)`.

        Raises `UsageError` for more tokens than the position table has rows.
        """
        length, longest = words.shape[1], self.position_embeddings.num_embeddings
        if length > longest:
            raise UsageError(f"text of {length} tokens: longer than max_text_length={longest}, truncate it")
        content = self.word_embeddings(words) if words.ndim == 2 else self.token_projection(words)
        return self.place(content, self.position_embeddings.weight[:length])

    def place(self, content: Tensor, positions: Tensor) -> Tensor:
        """What words are `(B,L,D)` and rows of the position table `(L,D)` or `(B,L,D)` → `(B,L,D)`."""
        tokens = content + positions
        if self.segment_embeddings is not None:
            tokens = tokens + self.segment_embeddings.weight[0]
        return self.dropout(self.norm(tokens))


class CoarsePatches(nn.Module):
    """Patches of a second size of the same frames, with a projection and positions of their own. In CrossViT (Chen et
    al. 2021) each size has a transformer and these exchange class tokens; here the latents attend to both.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        assert config.coarse_patch_size is not None
        self.patch_size, width = config.coarse_patch_size, config.hidden_size
        self.grid = config.image_size // self.patch_size
        channels = config.num_channels * config.tubelet_size
        self.projection = nn.Conv2d(channels, width, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.patch_norm else nn.Identity()
        self.position_embeddings = nn.Parameter(torch.zeros(self.grid**2, width))

    def forward(self, frames: Tensor) -> Tensor:
        """`frames (F,3,H,W)` → tokens that know their place `(F,P',D)`."""
        rows, columns = patch_grid(frames, self.patch_size, "coarse_patch_size")
        positions = resize_positions(self.position_embeddings, (self.grid, self.grid), (rows, columns))
        tokens: Tensor = self.norm(patch_projection(frames, self.projection)) + positions
        return tokens


def patch_grid(frames: Tensor, patch_size: int, name: str) -> tuple[int, int]:
    """Rows and columns of the patches of `frames (F,3,H,W)`; raises `UsageError` if they are no whole numbers."""
    height, width = frames.shape[-2:]
    if height % patch_size or width % patch_size:
        raise UsageError(f"frames of {height}x{width} pixels: need multiples of {name}={patch_size}")
    return height // patch_size, width // patch_size


class VisionEmbeddings(nn.Module):
    """Linear projections of the patches of each frame, plus patch positions and, in clips, the frame's own row.

    An image is a clip of one frame: what has one real frame receives no temporal embedding. Over a vision encoder its
    tokens `(B,T,P,W)`, a class token first where there is one, take the place of pixels. Beyond the paper, a stem may
    take the place of the projection, its output be normed before positions are added, patches of a second size stand
    behind those of the first, several frames be projected together (`tubelets`: these then are what is called a frame
    from there on, with a row of time each), and tokens of neighbouring frames be mixed.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_size, self.tubelet_size = config.patch_size, config.tubelet_size
        channels = config.num_channels * config.tubelet_size
        if config.vision_config is not None:
            self.token_projection = TokenProjection(vision_width(config.vision_config), config)
        elif config.patch_stem == "linear":
            self.patch_projection = nn.Conv2d(
                channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
            )
        else:
            kinds = {"convolutional": ConvolutionalStem, "soft_split": SoftSplitStem}
            self.stem = kinds[config.patch_stem](config.hidden_size, config.patch_size, channels)
        self.patch_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.patch_norm else None
        self.temporal_mixing = (
            TemporalMixing(config.hidden_size, config.temporal_kernel, config.layer_norm_eps)
            if config.temporal_kernel
            else None
        )
        self.position_embeddings = nn.Parameter(torch.zeros(self.grid**2, config.hidden_size))
        rows = config.groups_of(config.max_frames)
        self.temporal_embeddings = nn.Parameter(torch.zeros(rows, config.hidden_size))
        self.coarse = None if config.coarse_patch_size is None else CoarsePatches(config)
        rolled = (config.rolled_tokens, False), (config.rolled_channels, True)
        self.rolled = [(share, channels) for share, channels in rolled if share]
        self.has_class_token = config.frame_class_token
        if self.has_class_token:
            if config.vision_config is None:
                self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
            self.class_position = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, pixel_values: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` bool → tokens `(B,T·P,D)` in raster order, mask `(B,T·P)`
        bool.
        """
        frames, most = pixel_values.shape[1], self.tubelet_size * len(self.temporal_embeddings)
        if frames > most:
            raise UsageError(f"clip of {frames} frames: more than max_frames={most}, sample fewer")
        is_clip = (frame_mask.sum(1) > 1)[:, None, None]
        if self.tubelet_size > 1:
            pixel_values, frame_mask = tubelets(pixel_values, frame_mask, self.tubelet_size)
        temporal = self.temporal_embeddings[: pixel_values.shape[1]] * is_clip
        return self.place_frames(pixel_values, frame_mask, temporal)

    def place_frames(self, pixel_values: Tensor, frame_mask: Tensor, temporal: Tensor) -> tuple[Tensor, Tensor]:
        """The same for any frames of a clip, given their rows of time `temporal (T,D)` or `(B,T,D)`; neighbours that
        are mixed are those given.
        """
        project = self.project_encoded if pixel_values.ndim == 4 else self.project_pixels
        tokens = project(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])  # (B,T,P,D)
        if self.temporal_mixing is not None:
            tokens = self.temporal_mixing(tokens, frame_mask)
        first = int(self.has_class_token)
        for share, channels in self.rolled:
            patches = roll_over_time(tokens[:, :, first:], frame_mask, share, channels=channels)
            tokens = torch.cat([tokens[:, :, :first], patches], dim=2)
        tokens = tokens + temporal[..., None, :]
        token_mask = frame_mask[:, :, None].expand(tokens.shape[:3])
        return tokens.flatten(1, 2), token_mask.flatten(1, 2)

    def project_pixels(self, frames: Tensor) -> Tensor:
        """`frames (F,3,H,W)` → tokens that know their place `(F,P,D)`."""
        rows, columns = patch_grid(frames, self.patch_size, "patch_size")
        patches = self.project_patches(frames) if hasattr(self, "patch_projection") else self.stem(frames)
        if self.patch_norm is not None:
            patches = self.patch_norm(patches)
        patches = patches + self.patch_positions(rows, columns)
        if self.coarse is not None:
            patches = torch.cat([patches, self.coarse(frames)], dim=1)
        if not self.has_class_token:
            return patches
        return torch.cat([(self.class_token + self.class_position).expand(len(patches), 1, -1), patches], dim=1)

    def project_encoded(self, tokens: Tensor) -> Tensor:
        """The same of an encoder's tokens `(F,P,W)`, which are padded where the vectors of frames are longer."""
        projected = self.token_projection(tokens[..., : self.token_projection.width])
        side = isqrt(projected.shape[1])
        positions = self.patch_positions(side, side)
        if self.has_class_token:
            positions = torch.cat([self.class_position[None], positions])
        return projected + positions

    def project_patches(self, frames: Tensor) -> Tensor:
        """`frames (F,3,H,W)` → `(F,P,D)`."""
        return patch_projection(frames, self.patch_projection)

    def patch_positions(self, rows: int, columns: int) -> Tensor:
        """The position table, resized bilinearly (corners aligned) where the patch grid is another →
        `(rows·columns,D)`.
        """
        return resize_positions(self.position_embeddings, (self.grid, self.grid), (rows, columns))


class InputEmbeddings(nn.Module):
    """The input array's parts, each with its modality embedding, through the norm they share: vision, text, and what
    else a configuration names (`modalities`), each by a tokenizer of its own. Where modalities are untied, words have a
    norm of their own.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        if config.language_config is None:  # which reads the words by itself
            self.text = TextEmbeddings(config)
        self.vision = VisionEmbeddings(config)
        # row 0 vision, row 1 text
        self.modality_embeddings = nn.Embedding(2, config.hidden_size) if config.modality_embedding else None
        self.zero_frames_are_padding = config.zero_frames_are_padding
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        untied = config.untied_modalities and config.language_config is None
        self.text_norm = TwinNorm(self.norm) if untied else None
        if config.modalities:
            kinds = make_modalities(config.modalities)
            self.tokenizers = nn.ModuleDict({name: kind.tokenizer(config.hidden_size) for name, kind in kinds.items()})
            if config.modality_embedding:  # a row each, in the order of their names
                self.more_modality_embeddings = nn.Embedding(len(kinds), config.hidden_size)

    def embed_vision(self, pixel_values: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`pixel_values (B,T,3,H,W)`, or the tokens of a vision encoder `(B,T,P,W)`, and `frame_mask (B,T)` (1 real, 0
        padding; None: all real) → tokens, bool mask.
        """
        wanted = ("B", "T", "P", "W") if hasattr(self.vision, "token_projection") else ("B", "T", "3", "H", "W")
        if pixel_values.ndim != len(wanted):
            found = tuple(pixel_values.shape)
            raise UsageError(f"pixel_values of shape {found}: need ({','.join(wanted)}), an image has T=1")
        if frame_mask is None:
            frame_mask = torch.ones(pixel_values.shape[:2], device=pixel_values.device)
        frame_mask = frame_mask.bool()
        if pixel_values.shape[1] > 1:
            frame_mask = self.real_frames(pixel_values, frame_mask)
        tokens, token_mask = self.vision(pixel_values, frame_mask)
        return self._finish(tokens, modality=0), token_mask

    def real_frames(self, pixel_values: Tensor, frame_mask: Tensor) -> Tensor:
        """The bool mask `(B,T)`, less the frames of a clip whose pixels average to 0 where those are padding."""
        return frame_mask & (pixel_values.mean(dim=(2, 3, 4)) != 0) if self.zero_frames_are_padding else frame_mask

    def embed_frames(self, pixel_values: Tensor, frame_mask: Tensor, temporal: Tensor) -> tuple[Tensor, Tensor]:
        """Some frames of clips, arguments as of `VisionEmbeddings.place_frames` → tokens, bool mask."""
        tokens, token_mask = self.vision.place_frames(pixel_values, frame_mask, temporal)
        return self._finish(tokens, modality=0), token_mask

    def embed_text(self, words: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Words `input_ids (B,L)`, or the tokens of a text encoder `(B,L,W)`, and `attention_mask (B,L)` (1 real, 0
        padding; None: all real) → tokens `(B,L,D)`, bool mask.
        """
        if attention_mask is None:
            attention_mask = torch.ones(words.shape[:2], device=words.device)
        return self._finish(self.text(words), modality=1), attention_mask.bool()

    def embed_words(self, content: Tensor, places: Tensor) -> Tensor:
        """What words are `(B,L,D)`, read by no text encoder, and the rows of the position table where they stand
        `(B,L)` int64 → tokens `(B,L,D)`.
        """
        return self._finish(self.text.place(content, self.text.position_embeddings(places)), modality=1)

    def embed_modality(self, name: str, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is neither words nor pixels, `values (B,T,…)` of the configuration's modality `name` and `mask (B,T)` (1
        real, 0 padding; None: all real) → tokens `(B,M,D)`, bool mask `(B,M)`. Raises `UsageError` for one that the
        model does not have, and what its tokenizer refuses.
        """
        names = sorted(getattr(self, "tokenizers", ()))  # a configuration that was saved has them in this order
        if name not in names:
            raise UsageError(
                f"modality {name!r}: not of this model, which has {', '.join(names) or 'none'} (modalities)"
            )
        mask = torch.ones(values.shape[:2], device=values.device) if mask is None else mask
        tokens, token_mask = self.tokenizers[name](values, mask.bool())
        width = self.norm.normalized_shape[0]
        if tokens.ndim != 3 or tokens.shape[2] != width or tokens.shape[:2] != token_mask.shape:
            found = f"tokens {tuple(tokens.shape)}, mask {tuple(token_mask.shape)}"
            raise UsageError(f"modality {name}: its tokenizer gives {found}; need (B,M,{width}) and (B,M)")
        if hasattr(self, "more_modality_embeddings"):
            tokens = tokens + self.more_modality_embeddings.weight[names.index(name)]
        return self.norm(tokens), token_mask.bool()

    def _finish(self, tokens: Tensor, modality: int) -> Tensor:
        if self.modality_embeddings is not None:
            tokens = tokens + self.modality_embeddings.weight[modality]
        own: nn.Module = self.norm if modality == 0 or self.text_norm is None else self.text_norm
        return own(tokens)  # type: ignore[no-any-return]
