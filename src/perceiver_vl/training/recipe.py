"""A training run as a file: YAML into strict dataclasses, with `key=value` overrides; a misspelt key is an error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_share
from perceiver_vl.data.stretches import Stretch
from perceiver_vl.data.synthetic.tasks import TASKS, check_fewest_things
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.retrieval import STREAMS
from perceiver_vl.training.elastic import Elastic
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.training.recipe_parsing import RecipeLoader, as_plain, one_line, parse, set_at
from perceiver_vl.utils.errors import Setting, UsageError
from perceiver_vl.utils.text import did_you_mean

MOMENTS, SOUNDS = "moments", "sounds"
WORLD_TASKS = (*TASKS, MOMENTS, SOUNDS)
RECIPES = Path(__file__).parent / "recipes"
"""Those of the package, `recipes/` in the repository."""
ENCODERS = ("vision_encoder", "text_encoder", "language_model")
OF_ENCODERS = ("base_answers", "bridge", *ENCODERS)
"""The parts that only models over pretrained ones have."""
PARTS = (
    "cross_attentions",
    "latents",
    "self_attentions",
    "embeddings",
    "decoder",
    "heads",
    *OF_ENCODERS,
    "all",
)


@dataclass(frozen=True)
class WorldSplit:
    """Clips of the generated world, drawn while training instead of read from files.

    task: captions, or what is asked about the clips (see `open_world`), or moments: timed captions of events in
    `clips` videos, or sounds with captions; seconds: of a clip of `task: long`, of a video of moments (60 to 600 unless
    given); questions_per_clip: of `task: frame` so many of the `clips` questions are about one clip; fewest_things: of
    questions about clips and pictures, these have as few things as that, too: something easy to learn from.
    """

    clips: int = 2000
    seed: int = 0
    size: int = 64
    task: str = "captions"
    seconds: float | None = None
    questions_per_clip: int = 1
    fewest_things: int | None = None

    def __post_init__(self) -> None:
        if self.task not in WORLD_TASKS:
            raise UsageError(f"data: world.task={self.task}: unknown, choose from {', '.join(WORLD_TASKS)}")
        if self.seconds is not None and self.task not in ("long", MOMENTS):
            raise UsageError(
                f"data: world.seconds={self.seconds:g}: only task=long and moments have clips of any length"
            )
        if self.questions_per_clip != 1 and self.task != "frame":
            raise UsageError(f"data: world.questions_per_clip={self.questions_per_clip}: of task=frame alone, need 1")
        check_fewest_things(self.task, self.fewest_things)


@dataclass(frozen=True)
class DataSource:
    """Where one split's clips are: a `folder`, `shards` or the generated `world`; give one of them.

    benchmark: which public benchmark's official files the folder holds (`data.datasets`).
    metadata, columns: for files that do not follow the folder convention (see `data.folder.read_folder`).
    moments: an official file of sentences with their seconds, about the videos of the folder (`data.datasets
    .moment_queries`); benchmarks and metadata may have these, too.
    shards: a folder or URL that `data shard` wrote.
    weight: how often batches of this source come, beside the other sources' weights; None, for all of them: as many
    batches as it has clips.
    num_frames: that are read of each of its clips, where that is less than `data.num_frames`.
    """

    folder: Path | None = None
    split: str | None = None
    metadata: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    world: WorldSplit | None = None
    benchmark: str | None = None
    moments: Path | None = None
    shards: str | None = None
    weight: float | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.folder, self.world, self.shards)) != 1:
            raise UsageError("data: give a folder or a world or shards for each split, one of them")
        if self.benchmark is not None and (self.folder is None or self.metadata is not None or self.columns):
            raise UsageError(f"data: benchmark={self.benchmark}: needs the folder it lies in, no metadata or columns")
        if self.folder is None and (self.metadata is not None or self.columns):
            raise UsageError("data: metadata and columns are those of a folder, leave them out")
        if self.moments is not None and (
            self.folder is None or self.benchmark is not None or self.metadata is not None or self.columns or self.split
        ):
            raise UsageError(f"data: moments={self.moments}: needs the folder of its videos, and nothing else")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise UsageError(f"data: weight={self.weight:g}: need more than 0, or leave the source out")


@dataclass(frozen=True)
class Data:
    """What is trained on, what is validated on (None: nothing), and how clips are sampled.

    train: one source, or several (a list in YAML), mixed by their weights. `augmentation`: of training clips.
    `bucket`: sort the captions of so many batches at a time by length, so that less is padded; 0: do not.
    `stretch`: how videos are cut for the objective `moments`, of whose segments `num_frames` are read each.
    `cache`: keep decoded frames in memory (uniform sampling only). `strict`: stop at the first broken file.
    `max_failed_fraction`: stop when more than this share of the clips cannot be read.
    """

    train: tuple[DataSource, ...]
    validation: DataSource | None = None
    num_frames: int = 8
    sampling: Literal["uniform", "random"] = "random"
    augmentation: Augmentation = field(default_factory=Augmentation)
    bucket: int = 0
    stretch: Stretch | None = None
    cache: bool = False
    strict: bool = False
    max_failed_fraction: float = MAX_FAILED_FRACTION

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """Of training, then that of validation."""
        return (*self.train, *([self.validation] if self.validation else []))

    @property
    def validation_frames(self) -> int:
        """Frames of a clip that is validated."""
        return (self.validation and self.validation.num_frames) or self.num_frames

    def __post_init__(self) -> None:
        if not self.train:
            raise UsageError("data.train=[]: give at least one source")
        weighted = [source.weight is not None for source in self.train]
        if any(weighted) and not all(weighted):
            raise UsageError(f"data.train[{weighted.index(False)}]: no weight, give one to every source or to none")
        if self.num_frames < 1:
            raise UsageError(f"data.num_frames={self.num_frames}: need at least one frame")
        for source in self.sources:
            if source.num_frames is not None and not 1 <= source.num_frames <= self.num_frames:
                raise UsageError(
                    f"data: num_frames={source.num_frames}: of a source, need 1 to {self.num_frames}, data.num_frames"
                )
            if source.num_frames is not None and self.stretch is not None:
                raise UsageError("data: num_frames of a source: its segments have data.num_frames, leave it out")
        if self.bucket < 0:
            raise UsageError(f"data.bucket={self.bucket}: need a number of batches, or 0")
        check_share(self.max_failed_fraction, "data.max_failed_fraction")
        if self.cache and self.stretch is not None:
            raise UsageError(
                "data.cache=true: a stretch is cut elsewhere each time, leave out data.stretch or set ",
                Setting("data.cache", False),
            )
        if self.cache and self.sampling == "random":
            raise UsageError(
                "data.cache=true: random sampling takes new frames each time, set ",
                Setting("data.sampling", "uniform"),
                " or ",
                Setting("data.cache", False),
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: BERT's or another's by `name` (a local folder or a hub name), else one trained on the words of the
    training clips.
    """

    name: str | None = None
    vocab_size: int = 8000


@dataclass(frozen=True)
class Evaluation:
    """How the validation split is scored while training; of a `task` only `batch_size` matters."""

    streams: tuple[str, ...] = ("multi", "mixed", "cascade")
    captions_per_clip: int | None = None
    shortlist: int = 20
    batch_size: int = 32

    def __post_init__(self) -> None:
        for stream in self.streams:
            if stream not in STREAMS:
                raise UsageError(f"evaluation.streams: unknown stream {stream!r}, choose from {', '.join(STREAMS)}")
        for name in ("captions_per_clip", "shortlist", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"evaluation.{name}={value}: need at least 1")


@dataclass(frozen=True)
class Initialise:
    """What a model starts from instead of chance; what is left out starts fresh, and so does what that model lacks.

    `model`: a whole Perceiver-VL, as `save_pretrained` or `convert` wrote it. `latents`: where the recipe asks for
    another number of latents than it has, new ones (fresh) or its own interpolated. `vision`: a ViT or CLIP, `text`: a
    BERT or CLIP (paper 4.2); `language_model`: a causal language model that is to say captions and answers
    (`models.language_bridge`), whose tokenizer becomes the model's; folders or hub names.
    """

    model: Path | None = None
    latents: Literal["fresh", "interpolate"] = "fresh"
    vision: str | None = None
    text: str | None = None
    language_model: str | None = None


@dataclass(frozen=True)
class Teacher:
    """A model whose vectors of clips are learned, instead of what captions say (`training.distillation`).

    model: a Perceiver-VL that searches, or a dual encoder (CLIP, SigLIP), a folder or hub name. num_frames: that it
    looks at, of each clip; None: as many as its processor samples.
    """

    model: str
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise UsageError(f"teacher.num_frames={self.num_frames}: need at least 1, or leave it out")


@dataclass(frozen=True)
class EncoderTuning:
    """What of the pretrained encoders and the language model of a model learns; as it stands, nothing.

    vision_blocks, text_blocks, language_blocks: their last so many blocks. vision_lora, text_lora, language_lora:
    low-rank adapters of this rank instead (`training.adapters`).
    """

    vision_blocks: int = 0
    text_blocks: int = 0
    language_blocks: int = 0
    vision_lora: int = 0
    text_lora: int = 0
    language_lora: int = 0

    def __post_init__(self) -> None:
        for side in ("vision", "text", "language"):
            for name in (f"{side}_blocks", f"{side}_lora"):
                if getattr(self, name) < 0:
                    raise UsageError(f"encoders.{name}={getattr(self, name)}: need 0 or more")
            blocks, rank = getattr(self, f"{side}_blocks"), getattr(self, f"{side}_lora")
            if blocks and rank:
                raise UsageError(
                    f"encoders.{side}_lora={rank}: adapters leave the encoder as it is, {side}_blocks={blocks} does "
                    "not; leave one of them out"
                )


@dataclass(frozen=True)
class Stage:
    """Some steps of a run in which only the parts named in `train` learn.

    cross_attentions: those of the encoder; latents: with their positions; self_attentions: the encoder's, and the
    encoder's last norm; embeddings: of words and pixels; decoder: with its queries; heads: whatever else there is;
    base_answers: what pretrained encoders alone answer (`models.perceiver_vl.heads.BaseAnswers`); vision_encoder,
    text_encoder, language_model: as far as `encoders` lets them; bridge: what leads to a language model; all.
    The learning rate starts anew with each stage; `learning_rate` and `warmup_steps` are those of `training` if None.
    """

    steps: int
    train: tuple[str, ...] = ("all",)
    learning_rate: float | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"stages: steps={self.steps}: need at least 1")
        if not self.train:
            raise UsageError(f"stages: train=[]: name what learns, of {', '.join(PARTS)}")
        for part in self.train:
            if part not in PARTS:
                raise UsageError(f"stages: train: unknown part {part!r}, choose from {', '.join(PARTS)}")
        if self.learning_rate is not None and not self.learning_rate >= 0:
            raise UsageError(f"stages: learning_rate={self.learning_rate}: need 0 or more")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= self.steps:
            raise UsageError(f"stages: warmup_steps={self.warmup_steps}: need 0 to the stage's {self.steps} steps")


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs.

    `task`: what is learned, one of `tasks.EXAMPLE_TASKS`; None: the `objectives` of pre-training and retrieval.
    `model`: fields of `PerceiverVLConfig` (vocabulary and mask token come from the tokenizer), laid over those of
    `initialise.model`. `training`: fields of `transformers.TrainingArguments`.
    `optimizer`: adamw, the paper's adam (weight decay as L2), or muon (of matrices; adamw of the rest). `stages`: what
    learns when, one stage after the other, instead of `training.max_steps` or `training.num_train_epochs`; empty:
    everything, all the time.
    `ema`: decay of an exponential moving average of the weights, which is validated and kept instead; None: none.
    `patience`: stop after so many evaluations without a better `training.metric_for_best_model`; None: never.
    `max_nonfinite`: stop after so many steps in a row whose loss or gradient is not finite.
    `elastic`: train smaller budgets beside the full one; None: the full one alone. `encoders`: what of pretrained
    encoders learns. `teacher`: whose vectors of clips are learned, no captions being needed; its text side becomes the
    model's.
    """

    output: Path
    data: Data
    model: dict[str, Any] = field(default_factory=dict)
    objectives: Objectives = field(default_factory=Objectives)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    evaluation: Evaluation = field(default_factory=Evaluation)
    training: dict[str, Any] = field(default_factory=dict)
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    initialise: Initialise = field(default_factory=Initialise)
    stages: tuple[Stage, ...] = ()
    task: str | None = None
    ema: float | None = None
    patience: int | None = None
    max_nonfinite: int = 5
    elastic: Elastic | None = None
    encoders: EncoderTuning = field(default_factory=EncoderTuning)
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self._check_student()
        if (self.data.stretch is not None) != (self.task is None and self.objectives.needs_stretches):
            raise UsageError(
                "data.stretch, objectives.moments: how videos are cut, and what is learned of it; need both, or neither"
            )
        if self.elastic is not None and self.elastic.text_latents is not None and not self._reads_text_alone():
            *those, last = (name for name, objective in OBJECTIVES.items() if objective.encodings)
            raise UsageError(
                f"elastic.text_latents={self.elastic.text_latents}: nothing here reads text alone, as "
                f"{', '.join(those)} and {last} do; leave it out"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema={self.ema:g}: a decay, above 0 and below 1 (0.999), or leave it out")
        for name in ("patience", "max_nonfinite"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: need at least 1")
        self._check_language_model()
        if self.task is not None:
            example_task_of(self.task)
            if self.objectives != Objectives():
                raise UsageError(
                    f"objectives: those of pre-training; task={self.task} has its own loss, leave them out"
                )
            if self.evaluation != Evaluation(batch_size=self.evaluation.batch_size):
                raise UsageError(f"evaluation: task={self.task} has its own metric, set nothing but batch_size")
        if any(set(stage.train) == {"decoder"} for stage in self.stages) and not self._asks_decoder():
            whose = "no objective" if self.task is None else "no head"
            some = ", ".join([name for name, objective in OBJECTIVES.items() if objective.needs_decoder][:3])
            raise UsageError(
                f"stages: train=[decoder]: {whose} asks the decoder, add an objective ({some}, …) "
                "or leave out answers_from: mean_latents"
            )
        for name in ("max_steps", "num_train_epochs"):
            if self.stages and name in self.training:
                raise UsageError(
                    f"training.{name}={self.training[name]}: the stages say how long to train, leave one of them out"
                )

    def _check_language_model(self) -> None:
        """Refuse what a language model has no use for."""
        name = self.initialise.language_model
        if name is None:
            return
        if self.task != "captioning":
            raise UsageError(f"initialise.language_model={name}: says captions and answers, set task=captioning")
        if self.tokenizer != TokenizerConfig() or self.initialise.text is not None:
            raise UsageError(
                f"initialise.language_model={name}: reads all words, by its own tokenizer; leave out tokenizer and "
                "initialise.text"
            )

    def _check_student(self) -> None:
        """Refuse what a student has from its teacher, or has no use for."""
        assert self.teacher is not None
        about = f"teacher.model={self.teacher.model}"
        if self.task is not None:
            raise UsageError(f"task={self.task}: {about} is learned from instead, leave one of them out")
        for name, unused in (
            ("objectives", self.objectives != Objectives()),
            ("elastic", self.elastic is not None),
            ("tokenizer", self.tokenizer != TokenizerConfig()),
            ("initialise.text", self.initialise.text is not None),
            ("encoders.text_blocks", self.encoders.text_blocks > 0),
            ("encoders.text_lora", self.encoders.text_lora > 0),
            ("evaluation", self.evaluation != Evaluation(batch_size=self.evaluation.batch_size)),
            ("data: num_frames of a source", any(source.num_frames for source in self.data.sources)),
        ):
            if unused:
                but = " but batch_size" if name == "evaluation" else ""
                raise UsageError(
                    f"{name}: {about} says what is learned and scored, and of what words; leave it out{but}"
                )

    def _reads_text_alone(self) -> bool:
        return self.task is None and bool(self.objectives.encodings)

    def _asks_decoder(self) -> bool:
        if self.task is not None:
            return self.task in ("multiple-choice", "captioning") or self.model.get("answers_from") != "mean_latents"
        return any(objective.needs_decoder for objective in self.objectives.asked.values())

    def to_dict(self) -> dict[str, Any]:
        """As its file has it, in plain values, with all that was left out."""
        plain: dict[str, Any] = as_plain(asdict(self) | {"objectives": self.objectives.to_dict()})
        return plain


def find_recipe(name: str | Path) -> Path:
    """The file of this name, or the recipe of the package that is called so; `UsageError` if there is neither."""
    path, own = Path(name), {recipe.name: recipe for recipe in RECIPES.glob("*.yaml")}
    if path.exists() and not (path.is_dir() and f"{path}.yaml" in own):
        return path
    called = f"{path.name.removesuffix('.yaml')}.yaml"
    if str(path.parent) in (".", "recipes") and called in own:
        return own[called]
    raise UsageError(f"recipe {path}: cannot be read (no such file); of the package, {did_you_mean(called, own)}")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a file, or one of the package by its name (`world`, `world.yaml`, `recipes/world.yaml`).

    `overrides` are `dotted.key=value`, as in `training.max_steps=100` or, `stages.0.steps=9`.

    Raises `UsageError` for a file that cannot be read, an unknown key or a value of the wrong type.
    """
    path = find_recipe(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: cannot be read ({one_line(error)}), give a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path}: not YAML ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe {path}: need a mapping with output, data, model, …, found a {type(values).__name__}")
    values = {section: value for section, value in values.items() if value is not None}  # an empty `training:`
    for override in overrides:
        key, equals, text = override.partition("=")
        if not (key and equals):
            raise UsageError(f"override {override!r}: need key=value, as in training.max_steps=100")
        try:
            set_at(values, key, yaml.load(text, RecipeLoader))
        except yaml.YAMLError as error:
            raise UsageError(f"override {override}: not a YAML value ({one_line(error)})") from error

    data, where = values.get("data"), f"recipe {path}"
    if isinstance(data, dict) and isinstance(train := data.get("train"), dict | list):
        sources = train if isinstance(train, list) else [train]
        names = [f"data.train[{number}]" for number in range(len(sources))] if train is sources else ["data.train"]
        parsed = [parse(DataSource, one, f"{where}: {name}") for one, name in zip(sources, names, strict=True)]
        values["data"] = {**data, "train": parsed}
    if isinstance(values.get("objectives"), dict):
        values["objectives"] = _objectives(values["objectives"], where)
    return parse(Recipe, values, where)


def _objectives(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `Objectives`, of what a recipe has in their place: the weights beside the rest."""
    section = _objectives_section(tuple(Objectives().weights.items()))
    found = asdict(parse(section, {"objectives": values}, where))["objectives"]
    return {"weights": {name: found.pop(name) for name in OBJECTIVES}, **found}


@cache
def _objectives_section(default_weights: tuple[tuple[str, float], ...]) -> Any:
    rest: list[Any] = [(one.name, one.type, one.default) for one in fields(Objectives) if one.name != "weights"]
    weights = [(name, float, weight) for name, weight in default_weights]
    return make_dataclass("Section", [("objectives", make_dataclass("Objectives", [*weights, *rest]))])
