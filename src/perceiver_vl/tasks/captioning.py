"""Captions, and answers in the model's own words."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.data.prefetch import medium_of, read_ahead
from perceiver_vl.data.records import Record
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.data.synthetic.captions import read_caption
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForCaptioning
from perceiver_vl.models.perceiver_vl.caption_words import Said, caption_inputs, ends_of, say
from perceiver_vl.models.perceiver_vl.captioning import CaptioningModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.caption_metrics import caption_metrics
from perceiver_vl.tasks.evaluation import VisionBatch, checked_frames, evaluating, vision_batch_of
from perceiver_vl.tasks.example_task import ExampleTask, Scored, number_or_text
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

_SAID_DRAWS = 6  # beside those of data.batching, training.elastic
_ATTRIBUTES = ("colour", "shape", "motion")
_ROWS = 1024  # that are compared with all others at a time


class Captioning(ExampleTask):
    """MSR-VTT's, COCO's, Flickr's captions; and questions that are answered in words, of whatever data has them.

    Examples: a clip or image and what people say of it: the answers to its question where it has one, else its
    captions; each epoch learns one of these, drawn. No head: words come out by the table that they come in by. Loss:
    cross-entropy of each word after those before it. Metrics: CIDEr-D, BLEU-4, ROUGE-L and exact match
    (`tasks.caption_metrics`); of the generated world's captions also whether colours, shapes and motions are named
    rightly (`attribute_accuracy`). Submission: JSON of `image_id` and `caption`, as COCO's server takes it.

    beams: by which captions are found.
    """

    name = "captioning"
    model_class = PerceiverVLForCaptioning
    metrics = ("cider_d", "bleu_4", "rouge_l", "exact_match")

    def __init__(self, beams: int = 1) -> None:
        self.beams = beams

    def missing(self, record: Record) -> str | None:
        """Nothing: a clip can be described."""
        return None

    def is_labelled(self, record: Record) -> bool:
        return bool(references_of(record))

    def words(self, tokenizer: Any) -> dict[str, Any]:
        return ends_of(tokenizer)

    def drawn(self, record: Record, key: tuple[int, int, int]) -> Record:
        said = references_of(record)
        one = said[int(np.random.default_rng([*key, _SAID_DRAWS]).integers(len(said)))]
        return replace(record, answers=(one,)) if question_of(record) else replace(record, texts=(one,))

    def training_inputs(
        self, records: Sequence[Record], processor: PerceiverVLProcessor, config: PerceiverVLConfig
    ) -> dict[str, Tensor]:
        questions = [question_of(record) for record in records]
        return caption_inputs(processor.tokenizer, questions, [references_of(record)[0] for record in records])

    def answers(
        self,
        model: CaptioningModel,
        processor: PerceiverVLProcessor,
        records: Sequence[Record],
        vision: VisionBatch,
        budget: ComputeBudget,
    ) -> Sequence[Said]:
        prefix = model.encode_prefix(vision.pixel_values, vision.frame_mask, budget)
        questions = [question_of(record) for record in records]
        said = say(model, processor.tokenizer, prefix.rows(vision.rows), questions, beams=self.beams)
        if not np.isfinite([one.score for one in said]).all():
            raise PerceiverVLError("the model's answers are not finite numbers: train it again")
        return said

    def predict(self, record: Record, answer: Said, config: PerceiverVLConfig) -> tuple[str, int, float]:
        return answer.text, -1, answer.score

    def score(self, record: Record, answer: Said, config: PerceiverVLConfig) -> dict[str, float]:
        """Nothing: the metrics are of a whole split."""
        return {}

    def kinds(self, record: Record) -> tuple[str, ...]:
        return ()

    def metrics_of(self, scored: Sequence[Scored]) -> dict[str, float]:
        if not scored:
            return {}
        said, references = [one.said for one in scored], [references_of(one.record) for one in scored]
        return caption_metrics(said, references) | attribute_accuracy(said, references)

    def submission(self, result: TaskResult) -> str:
        rows = [{"image_id": number_or_text(one.example_id), "caption": one.answer} for one in result.predictions]
        return json.dumps(rows, ensure_ascii=False)

    def most_frequent(self, records: Sequence[Record]) -> str:
        """What is said most often of labelled records; of equals the first."""
        return Counter(one for record in records for one in references_of(record)).most_common(1)[0][0]

    @torch.inference_mode()
    def evaluate(  # type: ignore[override]
        self,
        model: Any,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        *,
        beams: int | None = None,
        guess_from: VideoDataset | None = None,
        **how: Any,
    ) -> TaskResult:
        """As `ExampleTask.evaluate`; `beams`: by which captions are found (None: those of the task). `guess_from`:
        other clips, and beside the model stand those who only know these: one who always says what is said most often
        there, and one who says the first thing that is said of the clip there that is nearest (`vision_vectors`).
        """
        if beams is not None and beams < 1:
            raise UsageError(f"beams={beams}: need at least 1")
        task = self if beams is None else Captioning(beams)
        result = super(Captioning, task).evaluate(model, processor, source, **how)
        if guess_from is not None and result.metrics:
            result.beside = task._guessers(model, processor, source, guess_from, result, **how)
        return result

    def _guessers(
        self,
        model: CaptioningModel,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        guess_from: VideoDataset,
        result: TaskResult,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        batch_size: int = 32,
        strict: bool = False,
        max_failed_fraction: float = MAX_FAILED_FRACTION,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        frames = checked_frames(model, processor, num_frames, budget, batch_size)
        scored, others = ({medium_of(one.record(place)) for place in range(len(one))} for one in (source, guess_from))
        if both := len(scored & others):
            raise UsageError(
                f"guess_from: {both} of the clips that are scored are there, too, each its own nearest; score others "
                "with ",
                Setting("split", "test"),
                ", or name another split",
            )
        how: Any = frames, batch_size, [], strict, max_failed_fraction
        found = []
        with evaluating(model):
            for clips in (source, guess_from):
                places = [place for place in range(len(clips)) if self.is_labelled(clips.record(place))]
                if not places:
                    raise UsageError("guess_from: no record there says anything of its clip, name another split")
                vectors: dict[int, Tensor] = {}
                for batch in read_ahead([clips], places, *how):
                    vision = vision_batch_of(batch, processor, frames, model.device)
                    rows = vision_vectors(model, vision.pixel_values, vision.frame_mask, budget)[vision.rows]
                    vectors |= dict(zip(batch.indices, rows.float().cpu(), strict=True))
                found.append([(clips.record(place), vector) for place, vector in sorted(vectors.items())])
        asked, known = found
        nearest = _nearest(asked, known)
        often = self.most_frequent([record for record, _ in known])
        guesses = {
            "most frequent": [often] * len(asked),
            "nearest": [references_of(known[place][0])[0] for place in nearest],
        }
        return {
            name: self.metrics_of([Scored(record, one, {}) for (record, _), one in zip(asked, said, strict=True)])
            for name, said in guesses.items()
        }


def _nearest(asked: Sequence[tuple[Record, Tensor]], known: Sequence[tuple[Record, Tensor]]) -> list[int]:
    """The place in `known` of the clip that is nearest to each of `asked`, of those that were asked the same; of a
    question that nobody was asked, of all.
    """
    of_question: dict[str, list[int]] = {}
    for place, (record, _) in enumerate(known):
        of_question.setdefault(question_of(record), []).append(place)
    rows_of: dict[str, list[int]] = {}
    for row, (record, _) in enumerate(asked):
        rows_of.setdefault(question_of(record), []).append(row)
    theirs, nearest = torch.stack([vector for _, vector in known]), torch.zeros(len(asked), dtype=torch.long)
    for question, rows in rows_of.items():
        places = torch.tensor(of_question.get(question, range(len(known))))
        pool = theirs[places]
        for some in torch.tensor(rows).split(_ROWS):
            own = torch.stack([asked[row][1] for row in some.tolist()])
            nearest[some] = places[(own @ pool.T).argmax(1)]
    return nearest.tolist()


def question_of(record: Record) -> str:
    """What is asked, "" where nothing is."""
    return (record.question or "").strip()


def references_of(record: Record) -> tuple[str, ...]:
    """What people say of a record: the answers to its question, else its captions."""
    said = record.answers if question_of(record) else record.texts
    return tuple(one for one in said if one.strip())


def vision_vectors(
    model: CaptioningModel, pixel_values: Tensor, frame_mask: Tensor, budget: ComputeBudget = FULL_BUDGET
) -> Tensor:
    """Unit vectors `(B,·)` of clips: the mean of what a pretrained vision encoder says of each frame, by itself, or in
    a model without one the mean of the latents (of an encoder that is new where words attend to the frames: nearer all
    the same than by the mean of what these attend to, docs/caption.md).
    """
    base = model.perceiver_vl
    if base.vision_encoder is None:
        vectors = base.encode(base.embed_inputs(None, None, pixel_values, frame_mask, budget), budget).mean(1)
    else:
        frames = F.normalize(base.encode_frames(pixel_values)[:, :, 0], dim=-1)
        vectors = (frames * frame_mask[..., None]).sum(1)
    return F.normalize(vectors, dim=-1)


def attribute_accuracy(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of the generated world's captions: of how many clips, in per cent, everybody's colour, shape and motion is named
    rightly, each by itself and `all_attributes` of each thing together. Nothing where a reference says something else.
    """
    truths = [read_caption(some[0]) for some in references]
    if not all(truths):
        return {}
    hits = dict.fromkeys((*_ATTRIBUTES, "all_attributes"), 0)
    for one, truth in zip(said, truths, strict=True):
        found = read_caption(one) or ()
        for name in _ATTRIBUTES:
            hits[name] += sorted(getattr(thing, name) for thing in found) == sorted(
                getattr(thing, name) for thing in truth or ()
            )
        hits["all_attributes"] += sorted(found) == sorted(truth or ())
    return {name: 100.0 * count / len(said) for name, count in hits.items()}
