"""What a trained model gets right and wrong of its validation clips, with their frames: examples for its report.

The first clips of the split are asked, and the first hits and misses among them shown: none is chosen by its looks.
Shapes: C clips, Q captions, N latents, D width, E retrieval vector.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perceiver_vl.data.answers import normalise_answer
from perceiver_vl.data.records import Record
from perceiver_vl.data.sources import Subset, VideoDataset, kind_of
from perceiver_vl.media.filmstrip import STRIP_FRAMES, Filmstrip, filmstrip, filmstrip_of
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.loading import load_folder, load_retriever
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.example_task import ExampleTask
from perceiver_vl.tasks.task_result import Prediction
from perceiver_vl.training.objectives import Objectives
from perceiver_vl.utils.errors import MediaError, PerceiverVLError

ASKED = 64
"""Clips that are asked: enough to see kinds of mistakes, and soon done."""
SHOWN = 4
"""Hits that are shown, and misses."""
BATCH = 16


@dataclass(frozen=True)
class Shown:
    """A clip on the page: its name, what it is there for, and its frames."""

    name: str
    role: str
    strip: Filmstrip


@dataclass(frozen=True)
class Example:
    """One question to the model: a caption to find the clip of, or a task's. said, truth: in words."""

    hit: bool
    asked: str
    said: str
    truth: str
    clips: list[Shown]


@dataclass(frozen=True)
class Examples:
    """The hits and misses that are shown; of `asked` questions about the first clips of `total`, `right` were hits."""

    how: str
    asked: int
    right: int
    total: int
    shown: list[Example]


@torch.inference_mode()
def retrieval_examples(
    folder: Path, source: VideoDataset, objectives: Objectives, num_frames: int, device: str | None = None
) -> Examples:
    """Find each clip among the first ones by its first caption, with the model of `folder`.

    By the multi-stream where the `objectives` train it, else by the mixed stream. Raises what `load_retriever` raises,
    and `PerceiverVLError` if fewer than two of the clips can be read.
    """
    model, processor = load_retriever(folder, device)
    multi = any("features" in objective.encodings for objective in objectives.asked.values())
    few = Subset(source, ASKED)
    places, scores = _scores(model, processor, few, num_frames, multi)
    own = scores.diagonal()[:, None]
    ranks = (scores >= own).sum(1).tolist()  # a tie counts as a miss
    tops = scores.argmax(1).tolist()
    found = []
    for query in _hits_then_misses([rank == 1 for rank in ranks]):
        place, rank = places[query], ranks[query]
        clips = [_shown(few, place, "the clip described")]
        if rank > 1:
            clips.append(_shown(few, places[tops[query]], "found in its place"))
        truth = f"rank {rank} of {len(places)}"
        found.append(Example(rank == 1, few.record(place).texts[0], clips[-1].name, truth, clips))
    how = f"each clip looked for by its first caption, by the {'multi' if multi else 'mixed'}-stream"
    return Examples(how, len(places), sum(rank == 1 for rank in ranks), len(source), found)


def task_examples(
    folder: Path,
    source: VideoDataset,
    task: ExampleTask,
    num_frames: int,
    device: str | None = None,
) -> Examples:
    """Ask the model of `folder` the first examples of a task. Raises what `load_folder` and `task.evaluate` raise."""
    model, processor = load_folder(task.model_class, task.name, folder, device)
    sources = [Subset(one, ASKED) for one in task.media_sources(source, processor)]
    second = sources[1] if len(sources) > 1 else None
    result = task.evaluate(
        model,
        processor,
        sources[0],
        second=second,
        num_frames=num_frames,
        batch_size=BATCH,
        max_failed_fraction=1.0,
    )
    records = {sources[0].record(place).example_id or str(place): place for place in range(len(sources[0]))}
    answered = []
    for prediction in result.predictions:
        place = records[prediction.example_id]
        if task.is_labelled(record := sources[0].record(place)):
            answered.append((place, record, prediction))
    hits = [_is_right(record, prediction) for _, record, prediction in answered]
    found = []
    for number in _hits_then_misses(hits):
        place, record, prediction = answered[number]
        asked = record.question or (record.texts[0] if task.pictures > 1 and record.texts else "what is this?")
        if record.choices:
            asked = f"{asked} — {' / '.join(record.choices)}"
        clips = [_shown(one, place, "") for one in sources]
        truth = _truth(record, model.config.id2label)
        found.append(Example(hits[number], asked, _said(task, prediction), truth, clips))
    return Examples(f"task {task.name}", len(answered), sum(hits), len(source), found)


def _scores(
    model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor, source: VideoDataset, num_frames: int, multi: bool
) -> tuple[list[int], Tensor]:
    """The places of the clips that can be read and have captions, and scores `(Q,C)` of their captions with each."""
    places: list[int] = []
    seen = []
    for start in range(0, len(source), BATCH):
        read = _read(source, range(start, min(start + BATCH, len(source))), num_frames)
        if read:
            inputs = processor(videos=list(read.values()), num_frames=num_frames).to(model.device)
            seen.append(model.encode_and_pool_vision(**inputs))
            places += read
    if len(places) < 2:
        raise PerceiverVLError(f"{len(places)} of the first {len(source)} validation clips can be read, need two")
    vision, vision_features = (torch.cat(parts) for parts in zip(*seen, strict=True))
    words = processor(text=[source.record(place).texts[0] for place in places]).to(model.device)
    text, text_features = model.encode_and_pool_text(words["input_ids"], words["attention_mask"])
    if multi:
        return places, (text_features @ vision_features.T).float().cpu()
    return places, model.match_all(vision, text).float().cpu()


def _read(source: VideoDataset, places: range, num_frames: int) -> dict[int, Frames]:
    found = {}
    for place in places:
        if source.record(place).texts:
            try:
                found[place] = source.frames(place, num_frames)
            except MediaError:  # the run has named it
                continue
    return found


def _hits_then_misses(hits: list[bool]) -> list[int]:
    """The places of the first hits, then of the first misses."""
    return [
        place
        for wanted in (True, False)
        for place in [place for place, hit in enumerate(hits) if hit is wanted][:SHOWN]
    ]


def _shown(source: VideoDataset, place: int, role: str) -> Shown:
    record = source.record(place)
    if (kind := kind_of(record)) not in ("videos", "images"):
        return Shown(record.file_name, role, Filmstrip([], f"{kind}: nothing to be seen"))
    if record.path.is_file() and record.start is None and record.end is None:
        return Shown(record.file_name, role, filmstrip(record.path))
    try:
        return Shown(record.file_name, role, filmstrip_of(source.frames(place, STRIP_FRAMES)))
    except MediaError as error:
        return Shown(record.file_name, role, Filmstrip([], error.reason))


def _is_right(record: Record, prediction: Prediction) -> bool:
    if record.label is not None:
        return prediction.label == record.label
    return normalise_answer(prediction.answer) in map(normalise_answer, record.answers or record.texts)


def _truth(record: Record, names: dict[int, str]) -> str:
    if record.choices and record.label is not None:
        return record.choices[record.label]
    if record.answers:
        return ", ".join(dict.fromkeys(record.answers))
    if record.label is None and record.texts:
        return " / ".join(record.texts)
    return names.get(record.label or 0, str(record.label))


def _said(task: ExampleTask, prediction: Prediction) -> str:
    if task.lower_is_better:  # the number before it was rounded
        return f"{prediction.answer} ({prediction.score:.2f})"
    return f"{prediction.answer} ({prediction.score:.0%})"
