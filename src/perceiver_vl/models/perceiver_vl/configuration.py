"""What a Perceiver-VL is made of; refuses what cannot work, by name."""

from dataclasses import field, fields
from typing import Any, Literal, TypeVar, get_args

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.folder import MODEL_TYPE, search_warning
from perceiver_vl.models.perceiver_vl.option_checks import check_fewer_keys, check_tokens
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import did_you_mean

# Keys that transformers itself writes into a config.json or passes to a configuration, beside the declared fields.
_KEYS_OF_TRANSFORMERS = frozenset(
    {"model_type", "num_labels", "torch_dtype", "name_or_path", "attn_implementation", "output_attentions", "auto_map"}
    | {"use_cache"}  # the Trainer sets it, on every model
)

_Config = TypeVar("_Config", bound=PreTrainedConfig)

_MOST_LAYERS = 10_000
_MOST_WIDTH = 10_000_000
_SIZES_OF_ENCODERS = ("num_", "hidden_size", "intermediate_size", "vocab_size", "max_position", "projection_dim")
_MOST_WEIGHTS = 100_000_000_000  # of one part


def _refuse_in_one_line(config_class: type[_Config]) -> type[_Config]:
    """Say a wrong type as every other error is said; take whole numbers for fractions (`layer_drop: 0` in a recipe)."""
    declared = {field.name: field.type for field in fields(config_class)}
    set_strictly: Any = config_class.__setattr__

    def set_attribute(self: _Config, name: str, value: Any) -> None:
        if declared.get(name) is float and type(value) is int:
            value = float(value)
        try:
            set_strictly(self, name, value)
        except StrictDataclassFieldValidationError as error:
            kinds = get_args(declared[name]) or (declared[name],)
            wanted = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in kinds)
            raise UsageError(f"{name}={value!r}: need {wanted.replace('NoneType', 'None')}") from error

    config_class.__setattr__ = set_attribute  # type: ignore[method-assign, assignment]
    return config_class


@_refuse_in_one_line
@strict
class PerceiverVLConfig(PreTrainedConfig):
    """Configuration of every Perceiver-VL model; the defaults are the paper's base size (paper 4.1; facts in brackets).

    Raises `UsageError` for an unknown key, a value out of range, or values that do not fit each other.
    """

    model_type = MODEL_TYPE

    sub_configs_defaults = {
        name: SubConfigSpec(config_class=AutoConfig, model_type=kind, optional=True)
        for name, kind in (("vision_config", "clip_vision_model"), ("text_config", "bert"), ("language_config", "gpt2"))
    }

    # The width and depth of everything (ViT-B/32, BERT-base)
    hidden_size: int = 768  # D, the width of inputs, latents and queries
    num_attention_heads: int = 12  # heads of every attention; must divide D
    intermediate_ratio: int = 4  # width of every MLP, in units of D
    num_blocks: int = 3  # k: one cross-attention (cross-attention), then l self-attentions
    self_attentions_per_block: int = 4  # l: 12 self-attentions in all (the paper's "l = 3" is a misprint)

    # Latents
    num_latents: int = 128  # N, for vision and for joint inputs
    num_text_latents: int | None = None  # N of a text-only stream; None: as many as num_latents
    latent_position: Literal["learned", "fourier", "none"] = "learned"  # what tells the latents apart (paper 3.2)

    # Vision
    image_size: int = 384  # pixels a side, of the position table; other sizes interpolate it
    patch_size: int = 32  # pixels a side; no overlap
    num_channels: int = 3
    max_frames: int = 64  # rows of the temporal table
    frame_class_token: bool = True  # ViT's class token in front of the patches of each frame: M = 145 a frame
    vision_config: Any = None  # PreTrainedConfig of a pretrained encoder in the place of patches
    token_grid: int | None = None  # rows and columns that its tokens are averaged to; None: as many as it gives
    # Tokens that see more than the paper's: all as in the paper unless set
    # What is in the place of the one projection: several convolutions, or soft splits that overlap (T2T-ViT)
    patch_stem: Literal["linear", "convolutional", "soft_split"] = "linear"
    coarse_patch_size: int | None = None  # pixels a side of second patches beside the first in each frame; None: none
    tubelet_size: int = 1  # consecutive frames that a token sees together
    patch_norm: bool = False  # norm what a patch shows before its place is added
    sincos_positions: float | None = None  # positions and times begin as sines and cosines times this; None: as N(0, …)
    temporal_kernel: int = 0  # frames, an odd number, over which tokens of one place are mixed; 0: none
    # Fewer keys (`fewer_keys`): all tokens are read, each for itself, unless set
    rolled_tokens: float = 0.0  # share of each frame's patches that come from the frames beside it (All-in-one)
    rolled_channels: float = 0.0  # the same of the channels of all its patches (TSM)
    merged_patches: int | None = None  # patches of a frame, the most alike merged until so many are left (ToMe)
    frame_summaries: int = 0  # of every so many frames one is read whole, the others as a token each (Combiner); 0: all
    text_guided_tokens: int | None = None  # of a clip read with words, those they choose (Recoverable Compression)
    sampled_points: int = 0  # a frame, that latents choose after their first cross-attention (Dynamic MDETR); 0: all
    routed_regions: int = 0  # a frame, likewise (BiFormer); 0: all
    region_size: int = 2  # rows and columns of patches of such a region
    # Text
    text_config: Any = None  # PreTrainedConfig of a pretrained encoder in the place of the word table
    vocab_size: int = 30522
    max_text_length: int = 40  # rows of the text position table and of the MLM query table
    pad_token_id: int | None = 0
    mask_token_id: int = 103  # [MASK] of BERT: what is masked when no mlm_labels are given
    bos_token_id: int | None = None  # what a caption begins with, and ends with
    eos_token_id: int | None = None

    # What is neither words nor pixels: the settings of each kind by its name, as {"audio": {"sample_rate": 8000}}
    modalities: dict[str, Any] = field(default_factory=dict)  # see `modalities.register_modality`

    # Reading
    qk_norm: bool = False  # norm what cross-attentions compare, with learned scales: they find their own temperature
    layer_drop: float = 0.5  # probability of DROPPING a read in training, block 0 excepted (paper 3.3)
    # Paper 3.2, Figure 3; text_first is separate, words first: what latents look for in a clip depends on these
    modality_aggregation: Literal["joint", "separate", "separate_plus", "text_first"] = "joint"

    untied_modalities: bool = False  # joint: vision and words have keys, values and norms of their own (MoT, MM-DiT)
    layer_scale: float | None = None  # what attentions and MLPs add is weighed, at first by this (CaiT)
    # Of every other self-attention and its MLP, so many: whether latents read a clip, words or both chooses two, whose
    # weights are summed (Uni-Perceiver-MoE); 0: none
    num_experts: int = 0

    # Where the released code departs from the paper: `as_released` sets these six, and latent_position="none"
    cross_attention_residual: Literal["queries", "normed_queries"] = "queries"  # what a read's findings are added to
    modality_embedding: bool = True  # tell vision from text (paper 3.1)
    type_vocab_size: int = 0  # rows of BERT's segment table, of which the first is added to every word; 0: no table
    mask_embedding_row: Literal[0, 1] = 1  # the row of the MLM queries' table that says "masked"
    zero_frames_are_padding: bool = False  # a frame of a clip whose pixels average to 0 is masked
    answers_from: Literal["query", "mean_latents"] = "query"  # what heads of answers and classes see

    # Answers and classes as texts that are encoded and compared, not as rows of a head (Uni-Perceiver, Zhu et al. 2022)
    answers_as_text: bool = False
    label_token_ids: list[list[int]] = field(default_factory=list)  # the words of each label, in the order of id2label

    # Captions
    caption_prefix: Literal["latents", "frames"] = "latents"  # what is seen of a clip: its latents, or all its tokens
    caption_layers: int = 4  # self-attentions of the words' causal latents
    caption_cross_attentions: int = 1  # how often these attend to what is seen: before the first layer, the second, …

    # Words of a causal language model, in the place of the word table and of the captions' latents (language_bridge)
    language_config: Any = None  # PreTrainedConfig of it
    bridge_blocks: list[int] = field(default_factory=lambda: [-1])  # after which blocks it is shown latents
    bridge_tokens: int | None = None  # soft tokens that a block's latents are averaged to; None: one for each latent
    bridge_layers: list[int] = field(default_factory=list)  # of it, that take the blocks' latents; none: its input does

    masked_patches: bool = False  # queries and a head for what masked patches show, in pre-training (objective mpm)

    # Retrieval
    projection_dim: int | None = None  # E, the length of the multi-stream vectors; None: D
    base: Literal["none", "dual", "linear"] = "none"  # what latents add to: the encoders' own vectors, or maps of them
    base_of_vision: bool = True  # vision has such a vector too; else only text, as in a student (training.distillation)
    base_anchors: int = 0  # of a linear base: clips that others are compared with, to map their similarities; 0: none
    base_kernel_scale: float = 2.0  # of these similarities, exp(scale · (cosine - 1))
    base_queries: int = 0  # of a linear base: texts by which clips that are near to everything are known; 0: none
    encoder_projections: bool = False  # the towers of the dual encoder have projections of their own, as CLIP's
    logit_bias: bool = False  # beside the logit scale, as SigLIP has
    length_weight: bool = False  # what a window of a video gains with the logarithm of its seconds is learned
    knows_search: bool = False  # the multi-stream was trained, or stands on a dual encoder; else `search_warning`

    # Training
    hidden_dropout_prob: float = 0.0  # after the text embeddings, and after each attention and MLP
    initializer_range: float = 0.02  # standard deviation of linear layers and tables
    latent_initializer_range: float = 1.0  # standard deviation of latents and latent positions (N(0, 1) as released)
    layer_norm_eps: float = 1e-6
    text_layer_norm_eps: float = 1e-12  # of the norms that come from BERT
    tie_word_embeddings: bool = False  # share the MLM head's projection with the word table

    def __post_init__(self, **kwargs: Any) -> None:
        declared = {one.name for one in fields(self)}
        for key in kwargs:
            if key not in declared | _KEYS_OF_TRANSFORMERS and not key.startswith("_"):
                near = did_you_mean(key, declared, "see PerceiverVLConfig for the names")
                raise UsageError(f"configuration key {key}={kwargs[key]!r}: unknown, {near}")
        if self.num_text_latents is None:
            self.num_text_latents = self.num_latents
        if self.projection_dim is None:
            self.projection_dim = self.hidden_size
        self._check_values()
        super().__post_init__(**kwargs)
        self._check_encoders()
        check_fewer_keys(self)
        if self.modalities:
            self._check_modalities()
        if self.id2label and not getattr(self, "label2id", None):  # transformers derives it only where both are missing
            self.label2id = {name: label for label, name in self.id2label.items()}

    def _check_values(self) -> None:
        at_least_one = (
            "hidden_size num_attention_heads intermediate_ratio num_blocks self_attentions_per_block num_latents "
            "num_text_latents image_size patch_size num_channels max_frames vocab_size max_text_length projection_dim "
            "caption_layers caption_cross_attentions"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        self._check_size()
        if self.caption_cross_attentions > self.caption_layers + 1:
            raise UsageError(
                f"caption_cross_attentions={self.caption_cross_attentions}: one before each of caption_layers="
                f"{self.caption_layers} layers and one after them, so at most {self.caption_layers + 1}"
            )
        if self.type_vocab_size < 0:
            raise UsageError(f"type_vocab_size={self.type_vocab_size}: need 0 (no segment table) or more")
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"num_attention_heads={self.num_attention_heads}: must divide hidden_size={self.hidden_size} evenly"
            )
        if self.vision_config is None and self.image_size % self.patch_size:
            raise UsageError(f"patch_size={self.patch_size}: must divide image_size={self.image_size} evenly")
        if self.latent_position == "fourier" and self.hidden_size % 2:
            raise UsageError(f"latent_position='fourier': needs an even hidden_size, not {self.hidden_size}")
        if self.num_text_latents > self.num_latents:  # type: ignore[operator]
            raise UsageError(
                f"num_text_latents={self.num_text_latents}: the text stream uses the first of the "
                f"num_latents={self.num_latents}, so at most that many"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise UsageError(f"mask_token_id={self.mask_token_id}: not in the vocabulary of {self.vocab_size} words")
        if not 0.0 <= self.layer_drop <= 1.0:
            raise UsageError(f"layer_drop={self.layer_drop}: a probability of dropping, 0 to 1")
        if not 0.0 <= self.hidden_dropout_prob < 1.0:
            raise UsageError(f"hidden_dropout_prob={self.hidden_dropout_prob}: a probability, 0 to below 1")
        for name in ("initializer_range", "latent_initializer_range"):
            if not getattr(self, name) >= 0.0:
                raise UsageError(f"{name}={getattr(self, name)}: a standard deviation, 0 or more")
        for name in ("layer_norm_eps", "text_layer_norm_eps"):
            if not getattr(self, name) > 0.0:
                raise UsageError(f"{name}={getattr(self, name)}: need a small number above 0")
        check_tokens(self)
        if self.modality_aggregation == "separate_plus" and self.self_attentions_per_block < 2:
            raise UsageError(
                f"self_attentions_per_block={self.self_attentions_per_block}: separate_plus thinks once after each "
                "modality, so at least 2"
            )

    def _check_modalities(self) -> None:
        """Refuse those that are not known, and parts that ask pixels alone."""
        from perceiver_vl.models.perceiver_vl.modalities import make_modalities  # who has none does without torch

        make_modalities(self.modalities)
        if self.base != "none":
            raise UsageError(f"modalities={', '.join(self.modalities)}: base={self.base} is of pixels, leave one out")

    def _check_encoders(self) -> None:
        """Refuse parts that do not fit each other, and encoders that no machine holds."""
        for name in ("vision_config", "text_config", "language_config"):
            encoder = getattr(self, name)
            for key, value in ({} if encoder is None else encoder.to_dict()).items():
                most = _MOST_LAYERS if "layers" in key else _MOST_WIDTH
                if key.startswith(_SIZES_OF_ENCODERS) and isinstance(value, int) and not 0 <= value <= most:
                    raise UsageError(f"{name}.{key}={value}: need 0 to {most}")
        sides = [*["text_config"] * (self.base != "none"), *["vision_config"] * self.has_vision_base]
        if any(getattr(self, side) is None for side in sides):
            raise UsageError(f"base={self.base}: needs a vision_config and a text_config, what it is made of")
        if not self.base_of_vision and (self.base == "none" or self.base_anchors):
            raise UsageError("base_of_vision=False: of a model whose text alone has a base, without base_anchors")
        if not 0 <= self.base_anchors <= 100_000 or (self.base_anchors and self.base != "linear"):
            raise UsageError(f"base_anchors={self.base_anchors}: need 0 to 100000, and base=linear")
        if not 0 <= self.base_queries <= 100_000 or (self.base_queries and self.base != "linear"):
            raise UsageError(f"base_queries={self.base_queries}: need 0 to 100000, and base=linear")
        if not self.base_kernel_scale > 0:
            raise UsageError(f"base_kernel_scale={self.base_kernel_scale}: need more than 0")
        if self.text_config is not None and self.tie_word_embeddings:
            raise UsageError("tie_word_embeddings=True: of the model's own word table, which a text_config replaces")
        if self.encoder_projections and self.base != "dual":
            raise UsageError("encoder_projections=True: are those of a dual encoder, set base=dual")
        if self.vision_config is None and self.token_grid is not None:
            raise UsageError(f"token_grid={self.token_grid}: of the tokens of a vision_config, set a patch_size here")
        if self.token_grid is not None and not 1 <= self.token_grid <= 1000:
            raise UsageError(f"token_grid={self.token_grid}: need 1 to 1000 rows")
        if self.vision_config is not None and self.zero_frames_are_padding:
            raise UsageError("zero_frames_are_padding=True: of the released model, which has no vision_config")
        if self.answers_as_text and self.base != "none":
            raise UsageError(f"answers_as_text=True: of a model without a base, not base={self.base}")
        self._check_bridge()

    def _check_bridge(self) -> None:
        """Refuse what cannot be shown to a language model."""
        if self.language_config is None:
            if self.bridge_blocks != [-1] or self.bridge_tokens is not None or self.bridge_layers:
                raise UsageError("bridge_blocks, bridge_tokens, bridge_layers: of a model with a language_config")
            return
        if self.text_config is not None or self.caption_prefix != "latents":
            raise UsageError(
                "language_config: reads all words itself, and is shown latents; no text_config, caption_prefix=latents"
            )
        layers = int(getattr(self.language_config, "num_hidden_layers", 0))
        for name, most in (("bridge_blocks", self.num_blocks), ("bridge_layers", layers)):
            places = getattr(self, name)
            if any(not -most <= place < most for place in places) or len({place % most for place in places}) < len(
                places
            ):
                raise UsageError(f"{name}={places}: need different ones of the {most} there are, {-most} to {most - 1}")
        if not self.bridge_blocks or len(self.bridge_layers) not in (0, len(self.bridge_blocks)):
            raise UsageError(
                f"bridge_blocks={self.bridge_blocks}, bridge_layers={self.bridge_layers}: need a block, and a layer "
                "for each of them or none"
            )
        if self.bridge_tokens is not None and not 1 <= self.bridge_tokens <= self.num_latents:
            raise UsageError(
                f"bridge_tokens={self.bridge_tokens}: need 1 to the model's num_latents={self.num_latents}"
            )
        room = getattr(self.language_config, "max_position_embeddings", None)
        if room is not None and self.soft_tokens + self.max_text_length > room:
            left = room - self.soft_tokens
            remedy = f"set max_text_length={left} or less" if left > 1 else "set fewer bridge_tokens"
            raise UsageError(
                f"max_text_length={self.max_text_length}: with {self.soft_tokens} soft tokens more than the "
                f"{room} positions of the language model, {remedy}"
            )
        words = int(self.language_config.vocab_size)
        if self.vocab_size != words:
            raise UsageError(f"vocab_size={self.vocab_size}: the language model has {words} words, set that many")

    def _check_size(self) -> None:
        """Refuse, before anything is built, what no machine holds: a configuration may come from anybody."""
        layers = self.num_blocks * (1 + self.self_attentions_per_block)
        if layers > _MOST_LAYERS:
            raise UsageError(
                f"num_blocks={self.num_blocks}, self_attentions_per_block={self.self_attentions_per_block}: {layers} "
                f"layers are more than the {_MOST_LAYERS} that are built, set fewer"
            )
        if self.caption_layers > _MOST_LAYERS:
            raise UsageError(
                f"caption_layers={self.caption_layers}: more than the {_MOST_LAYERS} layers that are built"
            )
        rows: dict[str, float] = {"hidden_size": layers * (4 + 2 * self.intermediate_ratio) * self.hidden_size}
        rows["num_experts"] = self.num_experts * rows["hidden_size"]
        for name in ("vocab_size", "num_latents", "max_text_length", "max_frames", "type_vocab_size"):
            rows[name] = getattr(self, name)
        if self.vision_config is None:
            rows["image_size"] = (self.image_size // self.patch_size) ** 2
            rows["patch_size"] = self.num_channels * self.tubelet_size * self.patch_size**2
        if self.coarse_patch_size is not None:
            rows["coarse_patch_size"] = self.num_channels * self.tubelet_size * self.coarse_patch_size**2
            rows["image_size"] += (self.image_size // max(1, self.coarse_patch_size)) ** 2
        rows["projection_dim"] = self.projection_dim or 0
        for name, count in rows.items():
            if count * self.hidden_size > _MOST_WEIGHTS:
                raise UsageError(
                    f"{name}={getattr(self, name)}: with hidden_size={self.hidden_size} more than the "
                    f"{_MOST_WEIGHTS:,} weights that are built, set a smaller one"
                )

    @classmethod
    def as_released(cls, **changes: Any) -> "PerceiverVLConfig":
        """The configuration that computes what the authors' code computes, and that their checkpoint needs."""
        departures: dict[str, Any] = {
            "cross_attention_residual": "normed_queries",
            "latent_position": "none",
            "modality_embedding": False,
            "type_vocab_size": 2,
            "mask_embedding_row": 0,
            "zero_frames_are_padding": True,
            "answers_from": "mean_latents",
        }
        return cls(**(departures | changes))

    def search_warning(self) -> str | None:
        """`folder.search_warning` of this model."""
        return search_warning(self.base, self.knows_search)

    @property
    def has_vision_base(self) -> bool:
        """Whether the latents add to a vector of a clip that there is without them."""
        return self.base != "none" and self.base_of_vision

    @property
    def soft_tokens(self) -> int:
        """How many a language model is shown before the words, at the full budget."""
        blocks = 1 if self.bridge_layers else len(self.bridge_blocks)
        return blocks * (self.bridge_tokens or self.num_latents)

    @property
    def intermediate_size(self) -> int:
        """Width of every MLP."""
        return self.intermediate_ratio * self.hidden_size

    @property
    def grid(self) -> int:
        """Rows, and columns, of a frame's tokens at `image_size` (12 at base size)."""
        if self.vision_config is None:
            return self.image_size // self.patch_size
        return self.token_grid or encoder_grid(self.vision_config)

    @property
    def tokens_per_frame(self) -> int:
        """Length of one frame's, or tubelet's, part of the input array at `image_size` (145 at base size)."""
        coarse = 0 if self.coarse_patch_size is None else (self.image_size // self.coarse_patch_size) ** 2
        return self.grid**2 + coarse + self.frame_class_token

    def groups_of(self, frames: int) -> int:
        """How many tubelets there are of so many frames; without them each frame is one."""
        return -(-frames // self.tubelet_size)

    def vision_tokens_of(self, frames: int) -> int:
        """Length of the vision part of the input array of so many frames at `image_size`."""
        return self.groups_of(frames) * self.tokens_per_frame

    def text_latents_of(self, num_latents: int) -> int:
        """Latents of the text stream if there are `num_latents` in all: all of them if it uses all now, else its
        own number if there are as many.
        """
        assert self.num_text_latents is not None
        return num_latents if self.num_text_latents == self.num_latents else min(self.num_text_latents, num_latents)

    def check_budget(self, budget: ComputeBudget) -> None:
        """Raise `UsageError` if `budget` asks for more than this model has; the lower ends are checked already."""
        most = {
            "frames": (self.max_frames, "the temporal table's rows (max_frames)"),
            "latents": (self.num_latents, "the model's latents (num_latents)"),
            "text_latents": (self.num_latents, "the model's latents (num_latents)"),
            "cross_attentions": (self.num_blocks, "the model's cross-attentions (num_blocks)"),
            "blocks": (self.num_blocks, "the model's blocks (num_blocks)"),
        }
        for dial, (limit, what) in most.items():
            value = getattr(budget, dial)
            if value is not None and value > limit:
                raise UsageError(f"budget {dial}={value}: more than {limit}, {what}")

    def blocks_of(self, budget: ComputeBudget) -> int:
        """How many blocks run."""
        return budget.blocks or self.num_blocks

    def cross_attentions_of(self, budget: ComputeBudget) -> int:
        """How many blocks read the input array."""
        return budget.cross_attentions or self.blocks_of(budget)

    def latents_of(self, budget: ComputeBudget, text_only: bool = False) -> tuple[int, int]:
        """How many latents read first, and how many go on from there; `text_only`: in the text stream.

        They are as many, unless the budget chooses after the first cross-attention.
        """
        pool = self.num_text_latents if text_only else self.num_latents
        assert pool is not None
        kept = (budget.text_latents if text_only else budget.latents) or pool
        return (max(pool, kept) if budget.latent_choice == "diverse" else kept), kept


def encoder_grid(encoder: Any) -> int:
    """Rows, and columns, of the tokens that a pretrained vision encoder gives at its own image size."""
    if getattr(encoder, "grid_size", None) is not None:
        return int(encoder.grid_size)
    if isinstance(getattr(encoder, "patch_size", None), int) and not hasattr(encoder, "depths"):
        return int(encoder.image_size) // int(encoder.patch_size)
    return -(-int(getattr(encoder, "image_size", 224)) // 32)  # of convolutional stages
