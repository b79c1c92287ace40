"""Captions and free answers as a task: what is learned, what is said, and who it is compared with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import LETTERS, PROCESSOR, Pictures, model_of, records_of

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.captions import read_caption
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.scene import Description
from perceiver_vl.models.perceiver_vl.caption_words import caption_inputs, ends_of, say, tidied
from perceiver_vl.tasks.captioning import Captioning, attribute_accuracy, references_of
from perceiver_vl.tasks.task_result import TaskResult

TOKENIZER = PROCESSOR.tokenizer


def evaluate(records: list[Record], model: Any, **how: Any) -> TaskResult:
    return Captioning().evaluate(model, PROCESSOR, Pictures(records), num_frames=2, **how)


@pytest.mark.parametrize("prefix", ["latents", "frames"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("beams", [None, 2])
def test_predictions_are_what_the_model_says_of_each_example_alone(
    prefix: str, batch_size: int, beams: int | None
) -> None:
    model, records = model_of("captioning", caption_prefix=prefix), records_of("captioning")
    result = evaluate(records, model, batch_size=batch_size, beams=beams)
    assert len({one.score for one in result.predictions}) > 4
    for found, record in zip(result.predictions, records, strict=True):
        clip = PROCESSOR(videos=[Pictures([record]).frames(0, 2)], num_frames=2)
        [said] = say(model, TOKENIZER, model.encode_prefix(**clip), [record.question or ""], beams=beams or 1)
        assert (found.answer, found.label) == (said.text, -1)
        assert found.score == pytest.approx(said.score, rel=1e-3)


def test_what_is_found_right_is_by_construction() -> None:
    model, records = model_of("captioning"), records_of("captioning")
    said = evaluate(records, model).predictions
    told = []
    for index, (record, one) in enumerate(zip(records, said, strict=True)):
        right = ("z z", one.answer or "y") if index < 3 else ("x",)
        told.append(replace(record, texts=right, answers=right) if index < 6 else record)
    result = evaluate(told, model)
    assert (result.labelled, result.examples, result.left_out) == (6, 8, 0)
    right = sum(bool(one.answer) for one in said[:3])
    assert result.metric("exact_match") == pytest.approx(100 * right / 6)
    assert list(result.metrics) == list(Captioning.metrics)
    assert json.loads(json.dumps(result.to_dict()))["metrics"] == result.metrics


def test_the_score_is_the_mean_probability_of_a_word() -> None:
    model, record = model_of("captioning"), records_of("captioning")[0]
    prefix = model.encode_prefix(**PROCESSOR(videos=[Pictures([record]).frames(0, 2)], num_frames=2))
    for question in ("", "a b"):
        [said] = say(model, TOKENIZER, prefix, [question], max_new_tokens=3)
        words = caption_inputs(TOKENIZER, [question], [""])["input_ids"][:, :-1]  # without the end
        likely, number = 0.0, 0
        while number < 3 and (not number or words[0, -1] != ends_of(TOKENIZER)["eos_token_id"]):
            with torch.no_grad():
                logits = model(words, prefix=prefix).logits[0, -1].log_softmax(-1)
            sayable = logits.clone()
            sayable[
                [mark for mark in TOKENIZER.all_special_ids if mark not in (3, TOKENIZER.unk_token_id)]
            ] = -torch.inf
            likely, number = likely + logits[sayable.argmax()].item(), number + 1
            words = torch.cat([words, sayable.argmax()[None, None]], 1)
        assert said.score == pytest.approx(torch.tensor(likely / number).exp().item(), rel=1e-4)
        spoken = TOKENIZER.decode(words[0, -number:], skip_special_tokens=True)
        assert said.text == tidied(spoken)


def test_a_question_is_how_the_text_begins() -> None:
    ends = ends_of(TOKENIZER)
    numbers = {letter: TOKENIZER.convert_tokens_to_ids(letter) for letter in LETTERS}
    words = caption_inputs(TOKENIZER, ["a b c d e", ""], ["c", "d e f g h i j k l"])
    begin, end = ends["bos_token_id"], ends["eos_token_id"]
    asked = [begin, numbers["a"], numbers["b"], end, numbers["c"], end]
    assert words["input_ids"][0, :6].tolist() == asked
    assert words["labels"][0, :6].tolist() == [-100] * 4 + asked[4:]
    assert words["attention_mask"].sum(1).tolist() == [6, 8]
    assert words["input_ids"][1].tolist() == [begin, *(numbers[letter] for letter in "defghij")]  # cut, without an end
    with pytest.raises(UsageError, match=r"^tokenizer: has no token that ends a text"):
        ends_of(type("Bare", (), dict.fromkeys(("sep_token_id", "eos_token_id", "cls_token_id", "bos_token_id")))())


def test_punctuation_stands_where_people_put_it() -> None:
    assert tidied(" a man ' s t - shirt , and : a dog . ") == "a man's t-shirt, and: a dog."
    assert tidied("3 - 4") == "3-4"
    assert tidied("a - ") == "a -"


def test_each_epoch_draws_one_of_what_is_said() -> None:
    record = Record("0.mp4", Path("0.mp4"), texts=("a", "b", "c"))
    drawn = [Captioning().drawn(record, (0, epoch, 0)).texts for epoch in range(40)]
    assert {len(one) for one in drawn} == {1}
    assert set(drawn) == {("a",), ("b",), ("c",)}
    assert drawn == [Captioning().drawn(record, (0, epoch, 0)).texts for epoch in range(40)]
    asked = replace(record, question="q", answers=("d",))
    assert Captioning().drawn(asked, (0, 0, 0)).answers == references_of(asked) == ("d",)


def test_beside_the_model_stand_those_who_know_other_clips_alone() -> None:
    """The nearest clip is the one that shows the same; of a question, among those that were asked the same."""
    model = model_of("captioning").double()
    told = [
        replace(record, texts=(LETTERS[place // 2],), answers=(LETTERS[place],), question=None)
        for place, record in enumerate(records_of("captioning"))
    ]
    others = [elsewhere(replace(record, texts=(*record.texts, "b"))) for record in told]
    result = evaluate(told, model, guess_from=Pictures(others))
    assert result.beside["nearest"]["exact_match"] == 100.0
    assert result.beside["most frequent"]["exact_match"] == 25.0
    assert set(result.beside["nearest"]) == set(result.metrics)
    asked = [replace(record, question="c d" if place % 2 else "a b") for place, record in enumerate(told)]
    result = evaluate(asked, model, guess_from=Pictures([elsewhere(record) for record in asked]))
    assert result.beside["nearest"]["exact_match"] == 100.0
    others = [elsewhere(replace(record, question="e f")) for record in asked]  # nobody was asked the same: any clip
    found = evaluate(asked, model, guess_from=Pictures(others)).beside["nearest"]
    assert found["exact_match"] == 50.0  # of two records about a clip the first
    with pytest.raises(UsageError, match="guess_from: 1 of the clips that are scored are there, too"):
        evaluate(told[:4], model, guess_from=Pictures([*map(elsewhere, told), told[0]]))
    assert evaluate(records_of("captioning"), model, guess_from=Pictures(others)).beside == {}  # nothing to score
    with pytest.raises(UsageError, match=r"^guess_from: no record there says anything of its clip, name another"):
        evaluate(told, model, guess_from=Pictures([elsewhere(replace(record, texts=())) for record in told]))


def elsewhere(record: Record) -> Record:
    """Another file that shows the same."""
    return replace(record, path=Path("others") / record.path)


def test_the_words_of_the_world_are_read_back() -> None:
    world = World("train", 40, captions_per_clip=20)
    for index in range(40):
        truth = sorted(thing.description for thing in world.scene(index).objects)
        for caption in world.captions(index):
            assert sorted(read_caption(caption) or ()) == truth
    assert read_caption("a dog runs") is None
    assert read_caption("a red ring") == (Description("", "red", "ring", ""),)


def test_attributes_of_the_world_are_counted() -> None:
    references = [["a small red circle that moves left"], ["there is a large blue star growing, and a little red ring"]]
    said = ["a big red circle going to the left", "a large red star that grows and a small blue ring"]
    assert attribute_accuracy(said, references) == {
        "colour": 100.0,
        "shape": 100.0,
        "motion": 100.0,
        "all_attributes": 0.0,
    }
    assert attribute_accuracy(["no words", said[1]], references)["shape"] == 50.0
    assert attribute_accuracy(said[:1], [["a dog runs"]]) == {}


def test_what_cannot_be_is_refused() -> None:
    model = model_of("captioning")
    with pytest.raises(UsageError, match=r"^beams=0: need at least 1$"):
        evaluate(records_of("captioning"), model, beams=0)
    prefix = model.encode_prefix(**PROCESSOR(videos=[Pictures(records_of("captioning")).frames(0, 2)], num_frames=2))
    for number, question, room in ((0, "", 7), (8, "", 7), (5, "a b", 4)):
        with pytest.raises(UsageError, match=rf"^max_new_tokens={number}: after [^\n]+ set 1 to {room}$"):
            say(model, TOKENIZER, prefix, [question], max_new_tokens=number)
    with torch.no_grad():
        model.caption_words.bias.fill_(torch.nan)
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+not finite[^\n]+$"):
        evaluate(records_of("captioning"), model)
