"""Every task on small examples: what the model says of each alone is what it is scored by, and what goes wrong is said
in a line.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_tasks import ANSWERS, LETTERS, PROCESSOR, OtherPictures, Pictures, model_of, records_of

from perceiver_vl import ComputeBudget, MediaError, PerceiverVLError, UsageError
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.sources import FolderDataset
from perceiver_vl.tasks import EXAMPLE_TASKS, example_task_of
from perceiver_vl.tasks.task_result import TaskResult

EVERY_TASK = pytest.mark.parametrize("name", EXAMPLE_TASKS)
EVERY_HEAD = pytest.mark.parametrize("name", [name for name in EXAMPLE_TASKS if name != "captioning"])
BUDGET = ComputeBudget(frames=2, latents=5, cross_attentions=2)


def evaluate(name: str, records: list[Record], model: Any = None, broken: Any = frozenset(), **how: Any) -> TaskResult:
    second = OtherPictures(records, broken) if example_task_of(name).pictures == 2 else None
    source = Pictures(records, broken)
    return example_task_of(name).evaluate(model or model_of(name), PROCESSOR, source, second=second, **how)


def alone(name: str, model: Any, record: Record) -> list[float]:
    """The logits of one example, by the model's own forward."""
    inputs: dict[str, Any] = {}
    clips = [Pictures([record]).frames(0, 2)]
    if name == "nlvr2":
        clips.append(OtherPictures([record]).frames(0, 2))
    vision = PROCESSOR(videos=clips, num_frames=2)
    for key in ("pixel_values", "frame_mask"):
        inputs[key] = vision[key][None] if name == "nlvr2" else vision[key]
    if name == "multiple-choice":
        words = PROCESSOR.tokenizer([record.question] * len(record.choices), list(record.choices), return_tensors="pt")
        inputs |= {key: words[key][None] for key in ("input_ids", "attention_mask")}
    elif name != "image-classification":
        inputs |= dict(PROCESSOR(text=record.question or record.texts[0]))
    with torch.no_grad():
        return model(**inputs, budget=BUDGET).logits[0].tolist()


def with_right_answer(name: str, record: Record, label: int) -> Record:
    """The record, saying that `label` is right."""
    if name in ("vqa", "question-answering", "image-classification"):
        return replace(record, answers=(ANSWERS[label],) * (10 if name == "vqa" else 1))
    if name == "counting":
        return replace(record, answers=(str(label),))
    if name == "captioning":
        return replace(record, texts=(LETTERS[label],), answers=(LETTERS[label],))
    return replace(record, label=label)


@EVERY_HEAD
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_predictions_are_what_the_model_says_of_each_example_alone(name: str, batch_size: int) -> None:
    model, records = model_of(name), records_of(name)
    result = evaluate(name, records, model, budget=BUDGET, batch_size=batch_size)
    assert [one.example_id for one in result.predictions] == [record.example_id for record in records]
    for found, record in zip(result.predictions, records, strict=True):
        logits = torch.tensor(alone(name, model, record))
        if name == "counting":
            assert found.score == pytest.approx(logits.item(), rel=1e-3, abs=1e-4)
            assert found.label == min(max(round(logits.item()), 1), 10)
        else:
            assert found.label == int(logits.argmax())
            assert found.score == pytest.approx(logits.softmax(0).max().item(), rel=1e-3, abs=1e-4)
    assert len({round(one.score, 4) for one in result.predictions}) > 2


@EVERY_TASK
def test_without_right_answers_there_are_predictions_and_no_metrics(name: str) -> None:
    result = evaluate(name, records_of(name))
    assert (result.examples, result.labelled, result.left_out) == (8, 0, 0)
    assert result.metrics == result.by_kind == {}
    with pytest.raises(UsageError, match=r"^metric=[^\n]+no example says what is right$"):
        result.metric(example_task_of(name).metrics[0])


@EVERY_HEAD
def test_the_metric_is_of_what_was_found_right(name: str) -> None:
    """Of eight examples, the first three are made right by construction, the next three wrong, the last two unknown."""
    model, records = model_of(name), records_of(name)
    said = evaluate(name, records, model).predictions
    told = []
    for index, (record, one) in enumerate(zip(records, said, strict=True)):
        wrong = one.label + 1 if one.label == 0 else one.label - 1
        right = one.label if index < 3 else wrong
        record = replace(record, kind="early" if index < 4 else "late")
        told.append(with_right_answer(name, record, right) if index < 6 else record)
    result = evaluate(name, told, model)
    assert (result.task, result.examples, result.labelled) == (name, 8, 6)
    assert [one.label for one in result.predictions] == [one.label for one in said]
    first = example_task_of(name).metrics[0]
    assert next(iter(result.metrics)) == first
    assert set(result.metrics) == set(example_task_of(name).metrics)
    if name == "counting":
        assert result.metric("mean_squared_error") == 0.5
        assert result.metric("accuracy") == 50.0
        assert (result.by_kind["early"].examples, result.by_kind["early"].score) == (4, 0.25)
    else:
        assert result.metric(first) == pytest.approx(50.0)
        assert (result.by_kind["early"].examples, result.by_kind["early"].score) == (4, pytest.approx(75.0))
        assert (result.by_kind["late"].examples, result.by_kind["late"].score) == (2, pytest.approx(0.0))
    written = json.loads(json.dumps(result.to_dict()))
    assert written["metrics"] == result.metrics
    assert "predictions" not in written


def test_statements_are_consistent_over_their_pairs() -> None:
    """Sentences: dev-0 (·,0) of examples 0, 1 and (·,1) of 2, 3; dev-1 (·,0) of 4, 5 and (·,1) of 6, 7."""
    records = records_of("nlvr2")
    said = evaluate("nlvr2", records).predictions
    wrong = {3, 4}
    told = [
        replace(record, label=1 - one.label if index in wrong else one.label)
        for index, (record, one) in enumerate(zip(records, said, strict=True))
    ]
    result = evaluate("nlvr2", told)
    assert result.metrics == pytest.approx({"accuracy": 75.0, "consistency": 50.0})
    others = [replace(record, example_id=str(index)) for index, record in enumerate(told)]
    assert evaluate("nlvr2", others).metrics == {"accuracy": 75.0}
    with pytest.raises(UsageError, match=r"^metric=consistency: nlvr2 measured accuracy$"):
        evaluate("nlvr2", others).metric("consistency")


def test_the_classes_are_ranked() -> None:
    model, records = model_of("image-classification"), records_of("image-classification")
    said = evaluate("image-classification", records, model).predictions
    told = [replace(record, label=(one.label + 1) % 4) for record, one in zip(records, said, strict=True)]
    assert evaluate("image-classification", told, model).metrics == {"top1": 0.0, "top5": 100.0}  # of four classes
    named = [replace(record, label=3, answers=(one.answer,)) for record, one in zip(records, said, strict=True)]
    assert evaluate("image-classification", named, model).metric("top1") == 100.0  # a name that the model knows counts


def test_several_right_answers_to_an_open_question_are_all_right() -> None:
    records = [replace(record, answers=("none of these", *ANSWERS)) for record in records_of("question-answering")]
    result = evaluate("question-answering", records)
    assert result.metric("accuracy") == 100.0
    assert list(result.by_kind) == ["other"]  # no question begins with what, who, how, when or where


def test_an_open_question_with_choices_is_scored_among_them_too() -> None:
    model, plain = model_of("question-answering"), records_of("question-answering", 6)
    ranked = [sorted(ANSWERS, key=lambda name: -alone_by_name(model, record)[name]) for record in plain]
    told = [
        replace(record, answers=(order[1],), choices=(order[3], order[1], order[2], "never said"))
        for record, order in zip(plain[:4], ranked, strict=False)
    ]
    told.append(replace(plain[4], answers=(ranked[4][2],), choices=(ranked[4][1], ranked[4][2])))
    unknown = replace(plain[5], answers=(ranked[5][0],), choices=("never said", "nor this"))
    result = evaluate("question-answering", [*told, unknown], model, num_frames=2, budget=BUDGET)
    assert result.metrics == {"accuracy": pytest.approx(100 / 6), "accuracy_of_choices": pytest.approx(400 / 6)}
    without = replace(unknown, choices=())  # counts for the first metric alone
    result = evaluate("question-answering", [without, *told], model, num_frames=2, budget=BUDGET)
    assert result.metrics == {"accuracy": pytest.approx(100 / 6), "accuracy_of_choices": pytest.approx(80)}


def alone_by_name(model: Any, record: Record) -> dict[str, float]:
    return dict(zip(ANSWERS, alone("question-answering", model, record), strict=True))


def test_choices_without_questions_are_read_as_captions_are() -> None:
    model = model_of("multiple-choice")
    records = [replace(record, question=None) for record in records_of("multiple-choice")]
    result = evaluate("multiple-choice", records, model)
    vision = PROCESSOR(videos=[Pictures(records).frames(2, 4)], num_frames=4)
    words = PROCESSOR(text=list(records[2].choices))
    with torch.no_grad():
        logits = model(words["input_ids"][None], words["attention_mask"][None], **vision).logits[0]
    assert result.predictions[2].label == int(logits.argmax())
    assert result.predictions[2].answer == records[2].choices[int(logits.argmax())]


def test_a_long_question_leaves_what_tells_the_choices_apart() -> None:
    record = replace(records_of("multiple-choice")[0], question="a b c d e f g h i j k l m", choices=("o p", "q r"))
    words = example_task_of("multiple-choice").text_inputs([record], PROCESSOR)
    assert words["input_ids"].shape == (1, 2, 8)
    texts = PROCESSOR.tokenizer.batch_decode(words["input_ids"][0], skip_special_tokens=True)
    assert [text[-3:] for text in texts] == ["o p", "q r"]


# Submission files


def submission(name: str) -> tuple[str, TaskResult]:
    result = evaluate(name, records_of(name))
    return example_task_of(name).submission(result), result


def test_the_submissions_are_in_the_benchmarks_own_form() -> None:
    text, result = submission("vqa")
    assert json.loads(text) == [
        {"question_id": int(one.example_id), "answer": one.answer} for one in result.predictions
    ]
    text, result = submission("question-answering")
    assert json.loads(text) == [{"id": int(one.example_id), "answer": one.answer} for one in result.predictions]
    text, result = submission("captioning")
    assert json.loads(text) == [{"image_id": int(one.example_id), "caption": one.answer} for one in result.predictions]
    for name in ("counting", "multiple-choice"):
        text, result = submission(name)
        assert json.loads(text) == [{"id": int(one.example_id), "pred": one.label} for one in result.predictions]
    text, result = submission("nlvr2")
    assert text.splitlines()[0] == f"dev-0-0-0,{bool(result.predictions[0].label)}"
    assert len(text.splitlines()) == 8
    text, result = submission("image-classification")
    assert list(csv.reader(io.StringIO(text))) == [[one.file_name, one.answer] for one in result.predictions]


# What goes wrong


@EVERY_TASK
def test_broken_files_are_left_out_and_listed(name: str) -> None:
    records = [with_right_answer(name, record, 1) for record in records_of(name)]
    result = evaluate(name, records, broken={"20.mp4"}, batch_size=3)
    assert (result.examples, result.labelled, result.left_out) == (6, 6, 2)
    assert result.skipped == [SkippedSample("20.mp4", "damaged (2 examples)")]
    with pytest.raises(MediaError, match=r"^20\.mp4: damaged$"):
        evaluate(name, records, broken={"20.mp4"}, strict=True)
    with pytest.raises(PerceiverVLError, match=r"^no example of 8 could be read, the first: 0\.mp4: damaged[^\n]+$"):
        evaluate(name, records, broken={f"{clip}.mp4" for clip in (0, 20, 40, 60)})


def test_the_other_picture_of_a_pair_may_be_the_broken_one() -> None:
    result = evaluate("nlvr2", records_of("nlvr2"), broken={"30.mp4"})
    assert result.skipped == [SkippedSample("30.mp4", "damaged (2 examples)")]
    assert result.left_out == 2


Change = Callable[[Record], Record]
LACKING: list[tuple[str, Change, str]] = [
    ("question-answering", lambda record: replace(record, question=" "), "no question"),
    ("vqa", lambda record: replace(record, question=None), "no question"),
    ("counting", lambda record: replace(record, answers=("7 times",)), "answer='7 times': a count is a whole number"),
    ("multiple-choice", lambda record: replace(record, choices=("one",)), "1 choices, need at least two"),
    ("multiple-choice", lambda record: replace(record, label=9), "label=9: not the place of one of its"),
    ("multiple-choice", lambda record: replace(record, answers=("zebra",)), "answer='zebra': not among its"),
    ("nlvr2", lambda record: replace(record, second_file_name=None, second_path=None), "no second picture"),
    ("nlvr2", lambda record: replace(record, texts=()), "no statement"),
    ("nlvr2", lambda record: replace(record, label=2), "label=2: need 1 for true or 0 for false"),
    ("nlvr2", lambda record: replace(record, answers=("perhaps",)), "answer='perhaps': need true or false"),
    ("image-classification", lambda record: replace(record, label=-1), "label=-1: classes are numbered from 0"),
]


@pytest.mark.parametrize(("name", "spoil", "reason"), LACKING, ids=lambda value: value if type(value) is str else "")
def test_records_that_are_no_examples_are_left_out_and_if_all_are_refused(
    name: str, spoil: Change, reason: str
) -> None:
    records = records_of(name)
    result = evaluate(name, [*records[:4], spoil(records[4]), *records[5:]])
    assert (result.examples, result.left_out) == (7, 1)
    assert result.skipped[0].file_name == records[4].file_name
    assert result.skipped[0].reason.startswith(reason)
    with pytest.raises(UsageError, match=rf"^task={name}: no example of it among 8 records, the first: [^\n]+$"):
        evaluate(name, [spoil(record) for record in records])


HEADS: list[tuple[str, dict[str, Any], str]] = [
    ("question-answering", {"num_labels": 1, "problem_type": "regression"}, "use task='counting'"),
    ("question-answering", {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, "have no names"),
    ("question-answering", {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}, "trained on other data?"),
    ("counting", {"problem_type": None, "num_labels": 4}, "trained to count"),
    ("nlvr2", {"num_labels": 3}, "need two: false and true"),
    ("image-classification", {"num_labels": 1, "id2label": {0: "x"}, "label2id": {"x": 0}}, "not among the model's 1"),
]


@pytest.mark.parametrize(("name", "head", "said"), HEADS)
def test_a_head_that_cannot_answer_is_refused(name: str, head: dict[str, Any], said: str) -> None:
    records = [with_right_answer(name, record, 1) for record in records_of(name)]
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        evaluate(name, records, model_of(name, **head))
    assert said in str(refused.value)


def test_vqa_needs_annotators() -> None:
    records = [replace(record, answers=("red",)) for record in records_of("vqa")]
    with pytest.raises(UsageError, match=r"^0\.mp4: 1 answer to [^\n]+use task='question-answering'$"):
        evaluate("vqa", records)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"num_frames": 9}, "num_frames=9"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"budget": ComputeBudget(latents=99)}, "budget latents=99"),
        ({"model": "nlvr2"}, "task=vqa: needs a PerceiverVLForQuestionAnswering"),
    ],
)
def test_arguments_that_cannot_work_are_refused(how: dict[str, Any], named: str) -> None:
    how = {key: model_of(value) if key == "model" else value for key, value in how.items()}
    with pytest.raises(UsageError, match=r"^[^\n]+: [^\n]+$") as refused:
        evaluate("vqa", records_of("vqa"), **how)
    assert named in str(refused.value)


def test_an_empty_split_and_an_unknown_task_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task=vqa: no example of it among 0 records$"):
        evaluate("vqa", [])
    with pytest.raises(UsageError, match=r"^task=vga: unknown, choose from question-answering, vqa, [^\n]+$"):
        example_task_of("vga")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_given_back_as_it_was(training: bool) -> None:
    model = model_of("vqa", hidden_dropout_prob=0.5, layer_drop=1.0).train(training)
    first, second = (evaluate("vqa", records_of("vqa"), model) for _ in range(2))
    assert model.training == training
    assert first.predictions == second.predictions


def test_a_model_gone_wrong_answers_nothing() -> None:
    model = model_of("vqa")
    with torch.no_grad():
        model.perceiver_vl.encoder.latents.fill_(float("nan"))
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+not finite[^\n]+$"):
        evaluate("vqa", records_of("vqa"), model)


def test_pairs_of_files_are_read_from_the_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place in range(4):
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{place}.png")
    records = [
        Record(
            f"{left}.png",
            tmp_path / f"{left}.png",
            texts=("a b",),
            second_file_name=f"{right}.png",
            second_path=tmp_path / f"{right}.png",
        )
        for left, right in ((0, 1), (1, 0), (2, 9))
    ]
    result = example_task_of("nlvr2").evaluate(model_of("nlvr2"), PROCESSOR, FolderDataset(records, (16, 16)))
    assert [one.example_id for one in result.predictions] == ["0", "1"]
    assert result.predictions[0].score != pytest.approx(result.predictions[1].score, abs=1e-6)
    assert [problem.file_name for problem in result.skipped] == ["9.png"]
