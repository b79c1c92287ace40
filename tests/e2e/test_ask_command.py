"""`perceiver-vl ask`, as typed."""

from pathlib import Path

import pytest
from command_line import run_cli, run_program

from perceiver_vl import PerceiverVLForQuestionAnswering, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig


@pytest.fixture(scope="module")
def answering(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of answers, on the trunk of the trained one."""
    folder = tmp_path_factory.mktemp("answers")
    config = PerceiverVLConfig.from_pretrained(model, id2label={0: "red", 1: "blue", 2: "two"})
    PerceiverVLForQuestionAnswering.from_pretrained(model, config=config).save_pretrained(folder)
    PerceiverVLProcessor.from_pretrained(model).save_pretrained(folder)
    return folder


def test_ask(answering: Path, world: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    questions = "which colour is it?", "how many are there?"
    told = run_program("ask", "--model", answering, clip, *questions)
    assert told.code == 0, told.err
    assert all(word in told.out for word in (*questions, "red", "blue", "two"))
    results = run_cli("ask", "--model", answering, clip, *questions, "--top-k", 2, "--json").json()
    assert [result["question"] for result in results] == list(questions)
    for result in results:
        scores = [answer["score"] for answer in result["answers"]]
        assert len(scores) == 2
        assert 1 / 3 < scores[0] < 1
        assert scores == sorted(scores, reverse=True)
    (some,) = run_cli(
        "ask", "--model", answering, clip, questions[0], "--choices", "red|blue", "--budget", "frames=1", "--json"
    ).json()
    assert sum(answer["score"] for answer in some["answers"]) == pytest.approx(1.0)
    assert {answer["answer"] for answer in some["answers"]} == {"red", "blue"}


def test_what_of_a_question_is_not_known_or_not_read_is_said(answering: Path, world: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    long = "which colour is the zxqj " + "very " * 300 + "thing?"
    told = run_cli("ask", "--model", answering, clip, "which colour?", long, "--json").json()
    assert told[0]["notes"] == []
    unknown, cut = told[1]["notes"]
    assert unknown.startswith("the model does not know zxqj")
    assert cut.endswith("thing?” was cut off")
    shown = run_cli("ask", "--model", answering, clip, long).out
    assert "note: the model does not know zxqj" in shown


def test_any_matching_model_chooses(model: Path, world: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    (result,) = run_cli(
        "ask", "--model", model, clip, "what is it?", "--choices", "a circle | a star|a cross", "--end", 0.5, "--json"
    ).json()
    assert {answer["answer"] for answer in result["answers"]} == {"a circle", "a star", "a cross"}
    assert sum(answer["score"] for answer in result["answers"]) == pytest.approx(1.0, abs=1e-5)


def test_what_cannot_be_asked(answering: Path, model: Path, world: Path, tmp_path: Path) -> None:
    clip = sorted((world / "clips").rglob("*.mp4"))[0]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    for words, code, said in (
        (("--model", model, clip, "what?"), 2, "has no answers of its own"),
        (("--model", answering, clip, "what?", "--choices", "red"), 2, "at least two different answers"),
        (("--model", answering, clip, "what?", "--choices", "red|red"), 2, "at least two different answers"),
        (
            ("--model", answering, clip, "what?", "--choices", "red|green"),
            2,
            "choice 'green': not one of the 3 answers",
        ),
        (("--model", answering, clip, " "), 2, "question '': say what to ask"),
        (("--model", answering, clip, "what?", "--budget", "latents=99"), 2, "latents=99"),
        (("--model", answering, broken, "what?"), 1, "broken.mp4"),
        (("--model", answering, tmp_path / "none.mp4", "what?"), 2, "no such file"),
        (("--model", tmp_path, clip, "what?"), 2, "no config.json"),
    ):
        assert said in run_cli("ask", *words).error(code)
