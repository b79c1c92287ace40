"""Fine-tuning on each task: the same draws for the same seed, labels as the model takes them, a loss that falls."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import ANSWERS, LETTERS, PROCESSOR, OtherPictures, Pictures, model_of, records_of

from perceiver_vl import MediaError, PerceiverVLConfig, UsageError
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.tasks import EXAMPLE_TASKS, example_task_of
from perceiver_vl.tasks.dataset import TaskCollator, TaskExamples, task_loss
from tiny import tiny_config

EVERY_TASK = pytest.mark.parametrize("name", EXAMPLE_TASKS)


def told(name: str) -> list[Record]:
    """Examples whose right answers go by their files."""
    records = []
    for index, record in enumerate(records_of(name)):
        place = index // 2
        if name == "vqa":
            answers = (ANSWERS[place],) * 6 + (ANSWERS[place - 1],) * 2 + ("none of these",) * 2
            record = replace(record, answers=answers)
        elif name in ("question-answering", "image-classification"):
            record = replace(record, answers=(ANSWERS[place],))
        elif name == "counting":
            record = replace(record, answers=(str(2 * place + 1),))
        elif name == "captioning":
            said = (LETTERS[place], f"{LETTERS[place]} b")
            record = replace(record, answers=said[:1]) if record.question else replace(record, texts=said)
        else:
            record = replace(record, label=place % 2)
        records.append(record)
    return records


def examples_of(
    name: str, records: list[Record], config: PerceiverVLConfig, broken: Any = frozenset(), **how: Any
) -> TaskExamples:
    second = OtherPictures(records, broken) if example_task_of(name).pictures == 2 else None
    given: dict[str, Any] = {"num_frames": 2, "sampling": "uniform", "seed": 3} | how
    return TaskExamples(example_task_of(name), config, PROCESSOR, Pictures(records, broken), second=second, **given)


@EVERY_TASK
def test_the_head_that_the_training_split_asks_for_takes_its_labels(name: str) -> None:
    task, records = example_task_of(name), told(name)
    head = task.head(records)
    model = model_of(name, **head)
    examples = examples_of(name, records, model.config)
    batch = TaskCollator(task, PROCESSOR, model.config)([examples[index] for index in range(8)])
    assert batch["problems"] == []
    if name == "vqa":
        assert batch["labels"].shape == (8, 4)
        assert model.config.problem_type == "multi_label_classification"
        assert batch["labels"][2, model.config.label2id["blue"]] == 1.0
        assert batch["labels"][2, model.config.label2id["red"]] == pytest.approx(0.6)
        assert batch["labels"][2].sum() == pytest.approx(1.6)
    elif name == "counting":
        assert batch["labels"].tolist() == [1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 7.0, 7.0]
    elif name == "captioning":
        for record, ids, labels in zip(records, batch["input_ids"], batch["labels"], strict=True):
            said = PROCESSOR.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
            assert said in (record.answers or record.texts)
            assert torch.equal(ids[labels != -100], labels[labels != -100])
            asked = PROCESSOR.tokenizer.decode(ids[labels == -100], skip_special_tokens=True)
            assert asked == " ".join((record.question or "").split()[:2])  # half of the table is left for the answer
    elif name in ("multiple-choice", "nlvr2"):
        assert batch["labels"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    else:
        assert [model.config.id2label[label] for label in batch["labels"].tolist()] == [
            record.answers[0] for record in records
        ]
    assert batch["pixel_values"].shape == ((8, 2, 2, 3, 16, 16) if name == "nlvr2" else (8, 2, 3, 16, 16))
    loss = task_loss(model, batch)
    assert loss.shape == ()
    assert loss > 0


@EVERY_TASK
def test_training_lowers_the_loss_and_the_metric_says_so(name: str) -> None:
    """A few steps on eight examples whose answers their pictures give away."""
    task, records = example_task_of(name), told(name)
    torch.manual_seed(0)
    words = len(PROCESSOR.tokenizer)
    shallow = {"num_blocks": 1, "self_attentions_per_block": 1, "initializer_range": 0.1}
    shallow["hidden_size"] = 64  # at 16 a seed in two is caught in a minimum that is none of the task's
    config = tiny_config(vocab_size=words, **shallow, **task.head(records), **task.words(PROCESSOR.tokenizer))
    model = task.model_class(config)
    examples = examples_of(name, records, model.config)
    batch = TaskCollator(task, PROCESSOR, model.config)([examples[index] for index in range(8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = task_loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    second = OtherPictures(records) if task.pictures == 2 else None
    result = task.evaluate(model, PROCESSOR, Pictures(records), second=second, num_frames=2)
    if task.lower_is_better:
        assert result.metric(task.metrics[0]) <= 0.25  # two counts of eight may be wrong by one
    else:
        assert result.metric(task.metrics[0]) >= 85.0


@EVERY_TASK
def test_the_collator_and_its_examples_travel_to_other_processes(name: str) -> None:
    records = told(name)
    model = model_of(name, **example_task_of(name).head(records))
    examples, collate = pickle.loads(
        pickle.dumps(
            (examples_of(name, records, model.config), TaskCollator(example_task_of(name), PROCESSOR, model.config))
        )
    )
    again = collate([examples[5]])
    assert set(again) >= {"pixel_values", "frame_mask", "labels", "problems"}


def test_every_draw_comes_from_seed_epoch_and_index() -> None:
    records = told("vqa")
    config = model_of("vqa").config
    first, second, other = (examples_of("vqa", records, config, sampling="random", seed=seed) for seed in (1, 1, 2))
    items = [3, 8 + 3, 16 + 3, 5]
    drawn = [[examples[item].media[0] for item in items] for examples in (first, second, other)]
    for left, right in zip(drawn[0], drawn[1], strict=True):
        np.testing.assert_array_equal(left, right)
    assert any((left != right).any() for left, right in zip(drawn[0], drawn[2], strict=True))
    assert any((drawn[0][0] != later).any() for later in drawn[0][1:3])
    assert first[8 + 3].record is records[3]


def test_unlabelled_records_are_left_out_and_broken_files_replaced() -> None:
    records = told("question-answering")
    records[1] = replace(records[1], answers=())
    config = model_of("question-answering").config
    examples = examples_of("question-answering", records, config, broken={"20.mp4"})
    assert [pool.tolist() for pool in examples.pools] == [[0, 2, 3, 4, 5, 6, 7]]
    assert examples.problems == [SkippedSample("0.mp4", "does not say what is right")]
    found = examples[2]  # records 2 and 3 are about the broken file
    assert found.record is records[4]
    assert found.problems == (SkippedSample("20.mp4", "damaged"), SkippedSample("20.mp4", "damaged"))
    assert found.tried == (2, 3, 4)
    batch = TaskCollator(example_task_of("question-answering"), PROCESSOR, config)(examples.__getitems__([0, 2]))
    assert (batch["tried"], batch["failed"], batch["damaged"]) == ([0, 2, 3, 4], [2, 3], [])
    assert len(batch["problems"]) == 2
    with pytest.raises(MediaError):
        examples_of("question-answering", records, config, broken={"20.mp4"}, strict=True)[2]
    all_broken = examples_of("vqa", told("vqa"), config, broken={f"{clip}.mp4" for clip in (0, 20, 40, 60)})
    handed_on = TaskCollator(example_task_of("vqa"), PROCESSOR, config)(all_broken.__getitems__([0]))
    assert str(handed_on["error"]) == "none of the 8 clips can be read, the first: damaged"
    with pytest.raises(UsageError, match=r"^task=question-answering: no example of it[^\n]+what is right$"):
        examples_of("question-answering", records_of("question-answering"), config)
    with pytest.raises(UsageError, match=r"^[^\n]+trained on other data\?$"):
        examples_of("question-answering", [replace(record, answers=("x",)) for record in records], config)


def test_an_answer_that_the_model_does_not_have_counts_for_nothing() -> None:
    records = told("question-answering")
    records[0] = replace(records[0], answers=("unheard of",))
    model = model_of("question-answering").double()
    examples = examples_of("question-answering", records, model.config)
    collate = TaskCollator(example_task_of("question-answering"), PROCESSOR, model.config)
    both, known = collate([examples[0], examples[1]]), collate([examples[1]])
    assert both["labels"].tolist() == [-100, 0]
    torch.testing.assert_close(task_loss(model, both), task_loss(model, known), rtol=1e-4, atol=1e-4)


def test_of_several_answers_to_an_open_question_what_most_said_is_learned() -> None:
    said = (("blue", "red", "red"), ("green", "blue"), ("odd", "odd", "no"), ("odd",))
    plain = records_of("question-answering", 4)
    records = [replace(record, answers=answers) for record, answers in zip(plain, said, strict=True)]
    task, config = example_task_of("question-answering"), model_of("question-answering").config
    labels = task.training_inputs(records, PROCESSOR, config)["labels"]
    named = [config.id2label[label] if label >= 0 else None for label in labels.tolist()]
    assert named == ["red", "green", "no", None]
    assert task.head(records)["id2label"] == {0: "odd", 1: "red", 2: "green"}


def test_heads_by_hand() -> None:
    def record(**said: Any) -> Record:
        return Record("0.mp4", Path("0.mp4"), **said)

    open_answers = [record(answers=(answer,)) for answer in ("b", "a", "b", "c", "a", "b")]
    assert example_task_of("question-answering").head(open_answers)["id2label"] == {0: "b", 1: "a", 2: "c"}
    many = [record(answers=("The cat", "cat", "The cat"))] * 9 + [record(answers=("dog",) * 3)] * 8
    assert example_task_of("vqa").head(many)["label2id"] == {"cat": 0}  # 9 questions, as VQAv2's label set asks
    assert example_task_of("vqa").head(many[8:])["label2id"] == {"cat": 0, "dog": 1}  # no answer has so many: all
    named = [record(label=2, answers=("wren",)), record(label=0, answers=("owl",))]
    assert example_task_of("image-classification").head(named)["id2label"] == {0: "owl", 1: "1", 2: "wren"}
    by_name = [record(answers=("wren",)), record(answers=("owl",)), record(answers=("wren",))]
    assert example_task_of("image-classification").head(by_name)["label2id"] == {"owl": 0, "wren": 1}
    for name in ("vqa", "question-answering", "image-classification"):
        with pytest.raises(UsageError, match=r"^no record [^\n]+: [^\n]+$"):
            example_task_of(name).head([record()])
    with pytest.raises(UsageError, match=r"^classes by number \(3\) and by name \(owl\): [^\n]+$"):
        example_task_of("image-classification").head([record(label=3), record(answers=("owl",))])
