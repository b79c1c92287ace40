"""The README of a model folder: what the model is, how to load it, what it was trained on and how well it does."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.folder import check_model_folder
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, pretrained_flops
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor
from perceiver_vl.tasks.retrieval_result import RetrievalResult
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.training.losses.base import LossOptions
from perceiver_vl.training.recipe import DataSource, Initialise, Recipe
from perceiver_vl.utils.files import write_text
from perceiver_vl.utils.html import render


@dataclass(frozen=True)
class _Kind:
    """What a class of models does, for people and for the hub, and the class and lines that show it."""

    does: str
    loads: str
    snippet: str
    pipeline_tag: str
    tags: tuple[str, ...]


_RETRIEVAL = _Kind(
    "This model tells whether words belong to a clip or an image, in three streams: a dot product of two vectors\n"
    "(multi), one cross-attention over two encodings (mixed), or a joint encoding (single).",
    "PerceiverVLForRetrieval",
    """\
inputs = processor(text=["a red circle", "a blue star"], videos=[clip])
with torch.inference_mode():
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    vision = model.get_vision_features(inputs["pixel_values"], inputs["frame_mask"])
print(text @ vision.T)""",
    "feature-extraction",
    ("video-retrieval", "image-retrieval"),
)
_ANSWERS = _Kind(
    "This model answers questions about clips and images, from a fixed set of answers.",
    "PerceiverVLForQuestionAnswering",
    """\
with torch.inference_mode():
    logits = model(**processor(text="what colour is the circle?", videos=[clip])).logits
print(model.config.id2label[logits.argmax(-1).item()])""",
    "visual-question-answering",
    ("video-question-answering",),
)
_CLASSES = _Kind(
    "This model tells the class of an image or a clip.",
    "PerceiverVLForImageClassification",
    """\
with torch.inference_mode():
    logits = model(**processor(videos=[clip])).logits
print(model.config.id2label[logits.argmax(-1).item()])""",
    "image-classification",
    ("video-classification",),
)
_CHOICES = _Kind(
    "This model tells which of several texts belongs to a clip or an image.",
    "PerceiverVLForMultipleChoice",
    """\
words = processor(text=["a red circle", "a blue star"])
choices = {name: value[None] for name, value in words.items()}  # (1, 2, L): one example, two choices
with torch.inference_mode():
    logits = model(**choices, **processor(videos=[clip])).logits
print(logits.argmax(-1).item())""",
    "visual-question-answering",
    ("multiple-choice", "video-question-answering"),
)
_STATEMENTS = _Kind(
    "This model tells whether a statement about two pictures is true.",
    "PerceiverVLForImagesAndTextClassification",
    """\
pair = {name: value[None] for name, value in processor(videos=[clip[:1], clip[:1]]).items()}  # (1, 2, T, …)
with torch.inference_mode():
    logits = model(**processor(text="both pictures are black"), **pair).logits
print(model.config.id2label[logits.argmax(-1).item()])""",
    "visual-question-answering",
    ("image-pairs",),
)
_CAPTIONS = _Kind(
    "This model says in words what is in a clip or an image, and answers questions about it in words where it was\n"
    "trained on some.",
    "PerceiverVLForCaptioning",
    """\
with torch.inference_mode():
    words = model.generate(**processor(videos=[clip]), num_beams=3)
print(processor.tokenizer.decode(words[0], skip_special_tokens=True))""",
    "image-to-text",
    ("video-captioning", "image-captioning"),
)
_LATENTS = _Kind(
    "This model turns words, images and video into latents.",
    "PerceiverVLModel",
    """\
with torch.inference_mode():
    latents = model(**processor(text="a red circle", videos=[clip])).last_hidden_state
print(latents.shape)""",
    "feature-extraction",
    (),
)
_KINDS = {
    "PerceiverVLForPreTraining": _RETRIEVAL,
    "PerceiverVLForRetrieval": _RETRIEVAL,
    "PerceiverVLForQuestionAnswering": _ANSWERS,
    "PerceiverVLForImageClassification": _CLASSES,
    "PerceiverVLForMultipleChoice": _CHOICES,
    "PerceiverVLForCaptioning": _CAPTIONS,
    "LanguageBridgeForConditionalGeneration": replace(_CAPTIONS, loads="LanguageBridgeForConditionalGeneration"),
    "PerceiverVLForImagesAndTextClassification": _STATEMENTS,
}
_DIRECTIONS = {"text_to_video": "Text-to-video retrieval", "video_to_text": "Video-to-text retrieval"}


def write_model_card(
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    steps: int | None = None,
    retrieval: RetrievalResult | None = None,
    task: TaskResult | None = None,
    merged: Mapping[str, float] | None = None,
) -> Path:
    """Write `README.md` into a model folder, in the place of one that is there, and return its path.

    `recipe` and `steps`: how it was trained; `retrieval` or `task`: how it did on the validation clips of that
    recipe; `merged`: the models whose average it is, and their shares. What is not given is left out, and so is the
    licence, which only the owner of the weights can give.
    Raises `UsageError` for a folder without a whole model.
    """
    folder = check_model_folder(folder)
    config = PerceiverVLConfig.from_pretrained(folder)
    name, class_name = folder.resolve().name, (config.architectures or ["PerceiverVLModel"])[0]
    kind = _KINDS.get(class_name, _LATENTS)
    validation = recipe.data.validation if recipe else None
    figures = None
    if validation and (retrieval or task):
        figures = _recalls(retrieval, validation) if retrieval else _scores(task, validation) if task else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=["perceiver-vl", "video", "vision-language", *kind.tags],
        metrics=sorted({figure.metric_type.split("_at_")[0] for figure in figures}) if figures else None,
        model_name=name,
        eval_results=figures,
    )
    num_frames = int(PerceiverVLImageProcessor.from_pretrained(folder).num_frames)
    text = render(
        "training/reporting/model_card.md.jinja",
        name=name,
        kind=kind,
        class_name=class_name,
        config=config,
        parameters=_parameters(folder),
        num_frames=num_frames,
        costs=_costs(config, num_frames),
        encoder_flops=pretrained_flops(config, 1),
        warning=config.search_warning() if kind is _RETRIEVAL else None,
        recipe=recipe,
        steps=steps,
        merged=merged,
        start=_start(recipe.initialise) if recipe else "",
        objectives=_objectives(recipe) if recipe and not recipe.task and not recipe.teacher else {},
        teacher=_name(recipe.teacher.model) if recipe and recipe.teacher else None,
        describe=_describe,
        retrieval=retrieval if figures else None,
        task=task if figures else None,
    )
    card = folder / "README.md"
    write_text(card, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))
    return card


def _parameters(folder: Path) -> int:
    """How many numbers the weights hold, from the heads of their files; the bytes of a graph are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            slices = [weights.get_slice(name) for name in weights.offset_keys()]
            total += sum(prod(one.get_shape()) for one in slices if one.get_dtype() != "U8")
    return total


def _costs(config: PerceiverVLConfig, num_frames: int) -> list[tuple[str, int]]:
    """What it takes to encode a clip with all dials full, and with one turned down."""
    budgets = [FULL_BUDGET]
    if num_frames > 1:
        budgets.append(ComputeBudget(frames=num_frames // 2))
    if config.num_latents > 1:
        budgets.append(ComputeBudget(latents=config.num_latents // 2))
    if config.num_blocks > 1:
        budgets.append(ComputeBudget(cross_attentions=1))
    return [(str(budget), encoder_flops(config, num_frames, budget=budget)) for budget in budgets]


def _start(initialise: Initialise) -> str:
    """What the weights started from; of what lies on somebody's disk only the last name."""
    given = {part: getattr(initialise, part) for part in ("model", "vision", "text", "language_model")}
    names = {part: _name(one) for part, one in given.items() if one}
    return ", ".join(f"{part} `{name}`" for part, name in names.items()) or "random weights"


def _objectives(recipe: Recipe) -> dict[str, Any]:
    """What was asked, without the options of single objectives that stand where they do by themselves."""
    options = {one.name: one.default for one in fields(LossOptions)}
    asked = recipe.objectives.to_dict().items()
    return {name: value for name, value in asked if value and options.get(name) != value}


def _name(model: str | Path) -> str:
    """Of a model on somebody's disk the last name."""
    return Path(model).name if Path(model).exists() else str(model)


def _describe(split: DataSource) -> str:
    """Where clips are from, without the place of a folder on somebody's disk."""
    part = f", split {split.split}" if split.split else ""
    if split.world is not None:
        world = split.world
        told = "clips" if world.task == "captions" else f"examples of the task {world.task}"
        return f"{world.clips} {told} of perceiver-vl's generated world, {world.size} pixels, seed {world.seed}{part}"
    if split.shards is not None:
        return f"the shards `{Path(split.shards).name}`{part}"
    assert split.folder is not None
    return f"{split.benchmark or 'the folder'} `{split.folder.name}`{part}"


def _dataset(split: DataSource) -> str:
    """The name that figures go by."""
    place = split.folder or split.shards
    return split.benchmark or (Path(place).name if place else "perceiver-vl-world")


def _recalls(retrieval: RetrievalResult, split: DataSource) -> list[EvalResult]:
    """Every recall, for the hub's model-index."""
    return [
        EvalResult(
            task_type=f"{direction.replace('_', '-')}-retrieval",
            task_name=task_name,
            dataset_type=_dataset(split),
            dataset_name=_dataset(split),
            dataset_split=split.split,
            metric_type=f"recall_at_{k}",
            metric_name=f"R@{k} ({stream.stream})",
            metric_value=round(getattr(getattr(stream, direction), f"r{k}"), 2),
        )
        for direction, task_name in _DIRECTIONS.items()
        for stream in retrieval.streams
        for k in (1, 5, 10)
    ]


def _scores(result: TaskResult, split: DataSource) -> list[EvalResult]:
    """Every metric of a task, for the hub's model-index."""
    return [
        EvalResult(
            task_type=result.task,
            task_name=result.task.replace("-", " ").capitalize(),
            dataset_type=_dataset(split),
            dataset_name=_dataset(split),
            dataset_split=split.split,
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 2),
        )
        for name, value in result.metrics.items()
    ]
