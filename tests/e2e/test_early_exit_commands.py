"""`evaluate --early-exit` and `ask --early-exit`, as typed."""

import json
from pathlib import Path

import pytest
from command_line import run_cli

from perceiver_vl import PerceiverVLForQuestionAnswering, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "world"
    options = "--clips", 12, "--held-out", 4, "--size", 32, "--num-frames", 4
    assert run_cli("world", folder, "--tasks", "yesno", *options).code == 0
    return folder


@pytest.fixture
def answering(model: Path, tmp_path: Path) -> Path:
    """A model that says yes or no, on the trunk of the trained one."""
    config = PerceiverVLConfig.from_pretrained(model, id2label={0: "yes", 1: "no"})
    PerceiverVLForQuestionAnswering.from_pretrained(model, config=config).save_pretrained(tmp_path / "answers")
    PerceiverVLProcessor.from_pretrained(model).save_pretrained(tmp_path / "answers")
    return tmp_path / "answers"


def test_examples_leave_early_at_the_cost_that_was_asked_for(answering: Path, questions: Path) -> None:
    words = ("evaluate", "--model", answering, "--data", questions, "--task", "question-answering", "--split", "test")
    whole = run_cli(*words, "--early-exit", "100GFLOPs", "--json").json()
    costs = {key: whole["early_exit"][key] for key in ("gflops", "whole")}
    assert 0 < costs["gflops"] <= costs["whole"]
    limit = f"{0.8 * costs['whole']:.6f}GFLOPs"
    found = run_cli(*words, "--early-exit", limit, "--json").json()
    left = found["early_exit"]["after_block"]
    assert sum(left.values()) == found["examples"] == whole["examples"]
    assert "early exit at" in found["record"]["budget"]
    saved = json.loads((answering / "early_exit.json").read_text())
    assert len(saved) == 2
    assert all(one["split"] == "validation" for one in saved.values())
    assert all(one["cost"] <= float(limit.split()[0]) for limit, one in saved.items())
    assert "GFLOPs an example" in run_cli(*words, "--early-exit", limit).out

    clip = next(questions.rglob("*.mp4"))
    asked = ("ask", "--model", answering, clip, "is it red?", "is it blue?")
    early, late = run_cli(*asked, "--early-exit", limit, "--json").json(), run_cli(*asked, "--json").json()
    assert [one["question"] for one in early] == [one["question"] for one in late]
    for one in early:
        assert sum(answer["score"] for answer in one["answers"]) == pytest.approx(1.0)
    for one in saved.values():
        one["model"] = "another"
    (answering / "early_exit.json").write_text(json.dumps(saved))
    assert "solved before" in run_cli(*asked, "--early-exit", limit).error(2)


def test_what_cannot_leave_early_is_said_in_a_line(answering: Path, model: Path, questions: Path) -> None:
    task = ("--data", questions, "--task", "question-answering")
    clip = next(questions.rglob("*.mp4"))
    for words, said in (
        (("evaluate", *task, "--early-exit", "3GFLOPs"), "exits_from=validation: all is scored"),
        (("evaluate", *task, "--early-exit", "3GFLOPs", "--split", "validation"), "is the split that is scored"),
        (("evaluate", *task, "--early-exit", "50ms", "--split", "test"), "give it as in 3GFLOPs"),
        (("evaluate", *task, "--early-exit", "0.000001GFLOPs", "--split", "test"), "the first exit costs"),
        (("evaluate", *task, "--exits-from", "validation", "--split", "test"), "give a cost, too"),
        (("evaluate", "--data", questions, "--early-exit", "3GFLOPs"), "says nothing of task retrieval"),
        (("ask", clip, "what?", "--early-exit", "3GFLOPs"), "has no thresholds for it"),
        (("ask", clip, "what?", "--early-exit", "3GFLOPs", "--budget", "latents=2"), "is kept with the thresholds"),
    ):
        assert said in run_cli(words[0], "--model", answering, *words[1:]).error(2), words
    told = run_cli("ask", "--model", model, clip, "?", "--early-exit", "3GFLOPs").error(2)
    assert "has no set of answers to be sure of, leave it out" in told
    (answering / "early_exit.json").write_text("[]")
    assert "damaged" in run_cli("ask", "--model", answering, clip, "?", "--early-exit", "3GFLOPs").error(1)
