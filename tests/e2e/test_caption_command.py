"""`perceiver-vl caption`, free answers of `ask`, and captions evaluated, as typed."""

import json
from pathlib import Path

import pytest
from command_line import run_cli, run_program

from perceiver_vl import PerceiverVLForCaptioning, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.caption_words import ends_of
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig


@pytest.fixture(scope="module")
def captioner(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was never trained, on the trunk of the trained model."""
    folder = tmp_path_factory.mktemp("captioner")
    processor = PerceiverVLProcessor.from_pretrained(model)
    config = PerceiverVLConfig.from_pretrained(model, **ends_of(processor.tokenizer), caption_layers=1)
    PerceiverVLForCaptioning.from_pretrained(model, config=config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_captions_are_printed_and_what_cannot_be_read_is_a_line(captioner: Path, world: Path, tmp_path: Path) -> None:
    first, second = sorted((world / "clips").rglob("*.mp4"))[:2]
    told = run_program("caption", first, "--model", captioner, "--max-new-tokens", 3)
    assert told.code == 0, told.err
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    several = ("caption", first, broken, second, "--model", captioner, "--beams", 2, "--budget", "frames=1", "--json")
    told = run_cli(*several)
    assert told.code == 1
    assert told.err.count("\n") == 1
    assert f"{broken}: " in told.err.replace("\n", "")
    found = json.loads(told.out)
    assert [set(one) for one in found] == [
        {"clip", "caption", "score"},
        {"clip", "error"},
        {"clip", "caption", "score"},
    ]
    lines = run_cli("caption", first, second, "--model", captioner, "--max-new-tokens", 2).out
    assert str(first) in lines.replace("\n", "")


def test_ask_answers_in_words_of_the_model(captioner: Path, world: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    questions = "which colour is it?", "how many are there?"
    results = run_cli("ask", "--model", captioner, clip, *questions, "--json").json()
    assert [result["question"] for result in results] == list(questions)
    assert all(len(result["answers"]) == 1 and 0 < result["answers"][0]["score"] < 1 for result in results)
    told = run_cli("ask", "--model", captioner, clip, questions[0], "--choices", "red|blue")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "in words of its own, leave it out" in told.err


def test_captions_are_evaluated_beside_guessers(captioner: Path, world: Path, tmp_path: Path) -> None:
    answers = tmp_path / "captions.json"
    how = ("--model", captioner, "--data", world, "--task", "captioning", "--split", "test")
    found = run_cli("evaluate", *how, "--guess-from", "train", "--submission", answers, "--json").json()
    assert {"cider_d", "bleu_4", "rouge_l", "exact_match", "colour", "shape", "motion"} <= set(found["metrics"])
    assert set(found["beside"]) == {"most frequent", "nearest"}
    assert found["beside"]["nearest"]["rouge_l"] > 10  # a caption of the world for another
    assert set(json.loads(answers.read_text())[0]) == {"image_id", "caption"}
    table = run_cli("evaluate", *how, "--guess-from", "train", "--beams", 2).out
    assert "nearest" in table
    assert "cider_d" in table


def test_who_guesses_may_not_know_the_clips_that_are_scored(captioner: Path, world: Path) -> None:
    how = ("evaluate", "--model", captioner, "--data", world, "--task", "captioning")
    told = run_cli(*how, "--guess-from", "test")
    assert told.code == 2
    assert "clips that are scored are there, too, each its own nearest; score others with --split test" in told.err
    assert run_cli(*how, "--guess-from", "train", "--split", "test").code == 0


def test_files_that_are_not_there_are_passed_by(captioner: Path, world: Path) -> None:
    clip, none = sorted((world / "clips").rglob("*.mp4"))[0], world / "none.mp4"
    told = run_cli("caption", none, clip, "--model", captioner)
    assert told.code == 1
    assert f"{none}: no such file" in told.err
    assert told.out.startswith(f"{clip}: ")


def test_a_benchmark_with_captions_is_read_as_its_official_files(captioner: Path, tmp_path: Path) -> None:
    assert (
        run_cli("world", tmp_path / "w", "--clips", 12, "--held-out", 3, "--size", 16, "--layout", "official").code == 0
    )
    how = ("--model", captioner, "--data", tmp_path / "w", "--benchmark", "msrvtt", "--task", "captioning")
    found = run_cli("evaluate", *how, "--split", "test", "--dtype", "bfloat16", "--json").json()
    assert (found["examples"], found["labelled"], found["left_out"]) == (3, 3, 0)
    assert found["metrics"]["cider_d"] >= 0


def test_what_cannot_be_captioned(captioner: Path, model: Path, world: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    for words, said in (
        (("caption", clip, "--model", model), "give a model trained for captioning"),
        (("caption", clip, "--model", captioner, "--max-new-tokens", 500), "this model has room for"),
        (("caption", world / "none.mp4", "--model", captioner), "no such file"),
        (("evaluate", "--model", captioner, "--data", world, "--beams", 2), "says nothing of task retrieval"),
    ):
        told = run_cli(*words)
        assert (told.code, told.err.count("\n")) == (2, 1)
        assert said in told.err
