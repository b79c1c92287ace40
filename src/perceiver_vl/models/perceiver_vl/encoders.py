"""Pretrained encoders whose tokens become the input array: a vision model for each frame, a text model for the words.

Frozen unless a recipe says otherwise. Beside its tokens each gives one vector for the whole frame or text; these are
what the *base* of retrieval compares (`BaseVectors`), which the latents can only add to.
Shapes: B batch, T frames, F frames of all clips, P tokens a frame, L text tokens, W an encoder's width, E retrieval
vector.
"""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel

from perceiver_vl.layers.zero_linear import ZeroLinear
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig


class PretrainedPart(nn.Module):
    """A model of transformers that is part of another, frozen unless a recipe says otherwise."""

    model: PreTrainedModel

    @property
    def trainable(self) -> bool:
        """Whether any of its weights learns."""
        return any(weight.requires_grad for weight in self.parameters())

    def train(self, mode: bool = True) -> "PretrainedPart":
        """As of `nn.Module`, but what is frozen stays as it is used: without dropout."""
        return super().train(mode and self.trainable)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks or stages of the model, the first first: its longest list of modules."""
        lists = [list(module) for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len, default=[])


class VisionEncoder(PretrainedPart):
    """Frames → `(F,1+P,W)`: the vector of the frame, padded with zeros to the width of the tokens, then its tokens.

    Of a model with tokens before the patches the first (the class token) is kept where the configuration has a
    `frame_class_token`, others (registers) are not. `token_grid`: the grid is averaged to so many rows and columns.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        encoder = config.vision_config
        self.model = AutoModel.from_config(encoder)
        size = vision_embedding_size(encoder)
        self.projection = _projection(size, config) if config.base_of_vision else None
        self.has_class_token, self.token_grid = config.frame_class_token, config.token_grid
        self.pooled = config.base == "dual"
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """`frames (F,3,H,W)`, normalised as the encoder's → `(F,1+P,W)`; without a gradient while it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable):
            output = self.model(pixel_values=frames.to(_dtype_of(self.model)))
            hidden = output.last_hidden_state
            if hidden.ndim == 4:  # convolutional: (F,W,rows,columns)
                before, grid = hidden.new_zeros(len(hidden), 0, hidden.shape[1]), hidden
            else:
                side = token_side(self.model.config, hidden.shape[1], frames.shape[-1])
                before, patches = hidden[:, : hidden.shape[1] - side**2], hidden[:, hidden.shape[1] - side**2 :]
                grid = patches.transpose(1, 2).unflatten(2, (side, side))
            if self.token_grid is not None and self.token_grid != grid.shape[-1]:
                grid = F.adaptive_avg_pool2d(grid, self.token_grid)
            tokens = grid.flatten(2).transpose(1, 2)
            if self.has_class_token:
                tokens = torch.cat([before[:, :1], tokens], dim=1)
            vector = self._vector(output, before, tokens)
            width = max(vector.shape[-1], tokens.shape[-1])
            vector, tokens = (F.pad(one, (0, width - one.shape[-1])) for one in (vector, tokens))
            return torch.cat([vector[:, None], tokens], dim=1)

    def _vector(self, output: Any, before: Tensor, tokens: Tensor) -> Tensor:
        pooler = getattr(output, "pooler_output", None)
        if pooler is not None and (self.pooled or "onnx" in self.model.config.model_type):
            vector = pooler.flatten(1)
        elif before.shape[1]:
            vector = before[:, 0]
        else:  # of square roots: few large values would drown the others (power normalisation, Perronnin et al. 2010)
            vector = (tokens.sign() * tokens.abs().sqrt()).mean(1)
        return vector if self.projection is None else self.projection(vector)


class TextEncoder(PretrainedPart):
    """Words → their tokens `(B,L,W)` and the vector of the text `(B,W)`: the pooled output of a dual encoder, else the
    mean of its tokens, as sentence encoders are trained.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        encoder = config.text_config
        self.model = text_model(encoder)
        self.projection = _projection(encoder.hidden_size, config)
        self.pooled = config.base == "dual"
        self.padded_length = encoder.max_position_embeddings if "siglip" in encoder.model_type else None
        self.pad_token_id = config.pad_token_id or 0
        self.remembered: dict[bytes, tuple[Tensor, Tensor]] | None = None
        self.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`input_ids (B,L)`, `attention_mask (B,L)` → tokens `(B,L,W)`, vectors `(B,W)` or `(B,E)`.

        Where `remembered` is a dictionary and the encoder frozen, every text is encoded once, and kept there in
        float16: in training captions come again and again.
        """
        if not len(input_ids):  # of a batch that leaves a process nothing, which not every model takes
            width, size = self.model.config.hidden_size, self.vector_size
            return input_ids.new_zeros(*input_ids.shape, width, dtype=self.dtype), input_ids.new_zeros(
                0, size, dtype=self.dtype
            )
        if self.remembered is None or self.trainable:
            return self._encode(input_ids, attention_mask)
        known = [self.remembered[key] for key in self.remember(input_ids, attention_mask)]
        tokens = pad_sequence([tokens for tokens, _ in known], batch_first=True)
        tokens = F.pad(tokens, (0, 0, 0, input_ids.shape[1] - tokens.shape[1]))
        vectors = torch.stack([vector for _, vector in known])
        return tokens.to(input_ids.device, self.dtype), vectors.to(input_ids.device, self.dtype)

    def remember(self, input_ids: Tensor, attention_mask: Tensor) -> list[bytes]:
        """Have all texts of a batch in `remembered`, which must be a dictionary → their keys there."""
        assert self.remembered is not None
        texts, real = input_ids.cpu().numpy(), attention_mask.bool().cpu().numpy()
        keys = [ids[mask].tobytes() for ids, mask in zip(texts, real, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self.remembered}
        if new:
            rows = torch.tensor(list(new.values()), device=input_ids.device)
            length = int(attention_mask[rows].sum(1).max())
            found = self._encode(input_ids[rows, :length], attention_mask[rows, :length])
            for key, tokens, vector, mask in zip(new, *found, attention_mask[rows], strict=True):
                self.remembered[key] = tokens[: int(mask.sum())].half().cpu(), vector.half().cpu()
        return keys

    @property
    def vector_size(self) -> int:
        """The length of the vector of a text."""
        return int(self.model.config.hidden_size if self.projection is None else self.projection.out_features)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return _dtype_of(self.model)

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable):
            if self.padded_length is not None:  # SigLIP is trained on texts of full length, padding unmasked
                filled = input_ids.masked_fill(attention_mask == 0, self.pad_token_id)
                filled = F.pad(filled, (0, self.padded_length - filled.shape[1]), value=self.pad_token_id)
                output = self.model(input_ids=filled)
            elif isinstance(self.model.config, PerceiverVLConfig):  # the text side of another Perceiver-VL
                return self.model.tokens_and_features(input_ids, attention_mask)
            else:
                output = self.model(input_ids=input_ids, attention_mask=attention_mask)
            tokens = output.last_hidden_state[:, : input_ids.shape[1]]
            if self.pooled:
                vector = output.pooler_output
            else:
                real = attention_mask[..., None].to(tokens.dtype)
                vector = (tokens * real).sum(1) / real.sum(1).clamp(min=1)
            return tokens, vector if self.projection is None else self.projection(vector)


class BaseVectors(nn.Module):
    """What the encoders alone say of a clip and of a text, as vectors `(·,E)` of length 1 that can be compared.

    dual: the towers' own embeddings, those of frames averaged (CLIP4Clip's mean pooling, Luo et al. 2021). linear: of
    two encoders that never met, a linear map a side, fitted in closed form (`training.encoder_training`); zero until
    then. With anchors A, clips of the training, a clip is mapped from its similarities to these (a Gaussian kernel on
    the sphere), which a map of its vector alone cannot follow. With queries, texts of the training, a clip that is near
    to many of them loses some of what it has with any (a hub; CSLS, Conneau et al. 2018; QB-Norm, Bogolin et al. 2022):
    the last component of the vectors of clips is `-sqrt(hubness_weight)` times the mean of the largest hundredth of its
    similarities to them, that of texts `sqrt(hubness_weight)`.
    """

    anchors: Tensor
    centre: Tensor
    queries: Tensor
    hubness_weight: Tensor

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.size = 0
        if config.base_of_vision:
            of_tower = vision_embedding_size(config.vision_config)
            self.size = of_tower if config.base == "linear" else config.projection_dim or of_tower
        self.compares, self.scale = bool(config.base_anchors), config.base_kernel_scale
        self.corrects = bool(config.base_queries)
        self.maps: nn.ModuleDict | None = None
        if config.base == "linear":
            sizes = {"vision": self.size, "text": config.text_config.hidden_size}
            if config.base_anchors:
                self.register_buffer("anchors", torch.zeros(config.base_anchors, sizes["vision"]))
                self.register_buffer("centre", torch.zeros(sizes["vision"]))
                sizes["vision"] = config.base_anchors
            if config.base_queries:
                self.register_buffer("hubness_weight", torch.zeros(()))
                if self.size:
                    self.register_buffer("queries", torch.zeros(config.base_queries, sizes["text"]))
            self.maps = nn.ModuleDict(
                {side: ZeroLinear(size, config.projection_dim or size) for side, size in sizes.items() if size}
            )

    def of_vision(self, frame_vectors: Tensor, frame_mask: Tensor) -> Tensor:
        """Vectors of frames `(B,T,W)`, padded with zeros, and `frame_mask (B,T)` → `(B,E)`."""
        return self.of_sums(*self.sums(frame_vectors, frame_mask))

    def sums(self, frame_vectors: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same → what these frames add to a clip, `(B,W)`, and their number `(B,1)`; parts of a clip add up."""
        frame_vectors = frame_vectors[..., : self.size]
        real = frame_mask[..., None].to(frame_vectors.dtype)
        if self.maps is None:
            frame_vectors = F.normalize(frame_vectors, dim=-1)
        return (frame_vectors * real).sum(1), real.sum(1)

    def of_sums(self, total: Tensor, number: Tensor) -> Tensor:
        """From `sums` of all frames of clips → `(B,E)`."""
        mean = total / number.clamp(min=1)
        return self.of_places(self.compared(self.place(mean)) if self.compares else mean)

    def of_places(self, vectors: Tensor) -> Tensor:
        """What the map of vision takes `(B,·)` → `(B,E)`."""
        unit = self._unit("vision", vectors)
        if not self.corrects:
            return unit
        near = (unit[:, :-1] @ self._unit("text", self.queries)[:, :-1].T).topk(max(1, len(self.queries) // 100)).values
        return self._with_last(unit, -self.hubness_weight.sqrt() * near.mean(1))

    def place(self, vectors: Tensor) -> Tensor:
        """Vectors of clips `(B,W)` → their places on the sphere around `centre` `(B,W)`."""
        return F.normalize(F.normalize(vectors, dim=-1) - self.centre, dim=-1)

    def compared(self, places: Tensor) -> Tensor:
        """Places of clips `(B,W)` → their similarities to the anchors `(B,A)`."""
        return torch.exp(self.scale * (places @ self.anchors.T - 1))

    def of_text(self, text_vectors: Tensor) -> Tensor:
        """`(B,W)` → `(B,E)`."""
        unit = self._unit("text", F.normalize(text_vectors, dim=-1))
        return self._with_last(unit, self.hubness_weight.sqrt().expand(len(unit))) if self.corrects else unit

    def _unit(self, side: str, vectors: Tensor) -> Tensor:
        return F.normalize(vectors if self.maps is None else self.maps[side](vectors), dim=-1)

    def _with_last(self, unit: Tensor, last: Tensor) -> Tensor:
        """Unit vectors `(B,E)` with another last component `(B,)`."""
        return F.normalize(torch.cat([unit[:, :-1], last[:, None].to(unit)], dim=1), dim=-1)


def _projection(size: int, config: PerceiverVLConfig) -> nn.Linear | None:
    """A dual encoder's own way from the vector of a tower to the space that both share, where it has one."""
    return nn.Linear(size, config.projection_dim or size, bias=False) if config.encoder_projections else None


def text_model(encoder: PreTrainedConfig) -> PreTrainedModel:
    """A text model of a configuration, its weights new; of an encoder and decoder the encoder."""
    towers = {"siglip_text_model": transformers.SiglipTextModel, "siglip2_text_model": transformers.Siglip2TextModel}
    if isinstance(encoder, PerceiverVLConfig):
        from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval  # which has a text encoder

        return PerceiverVLForRetrieval(encoder)
    if encoder.model_type in towers:  # which AutoModel does not know alone
        return towers[encoder.model_type]._from_config(encoder)
    kind = AutoModelForTextEncoding if getattr(encoder, "is_encoder_decoder", False) else AutoModel
    model: PreTrainedModel = kind.from_config(encoder)
    return model


def vision_embedding_size(encoder: PreTrainedConfig) -> int:
    """The length of the vector that a vision encoder gives for a frame."""
    size = getattr(encoder, "embedding_size", None) if "onnx" in encoder.model_type else None
    return size or vision_width(encoder)


def vision_width(encoder: PreTrainedConfig) -> int:
    """The width of a vision encoder's tokens."""
    if hasattr(encoder, "hidden_sizes"):  # convolutional: of each stage
        return int(encoder.hidden_sizes[-1])
    return int(encoder.hidden_size)


def token_side(encoder: PreTrainedConfig, tokens: int, pixels: int) -> int:
    """Rows, and columns, of the grid that the last of a frame's tokens make, for frames of so many pixels a side."""
    patch = getattr(encoder, "patch_size", None)
    if isinstance(patch, int) and (pixels // patch) ** 2 <= tokens:
        return pixels // patch
    return isqrt(tokens)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in model.parameters()), torch.float32)
