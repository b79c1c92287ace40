"""The page of a training run: everything the run left is on it, and what is missing is said."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import UsageError, cli
from perceiver_vl.cli.report import report_at_end
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.reporting.report import OF_TRAINING, charts, thinned, write_report
from perceiver_vl.training.setup import prepare_start
from tiny import tiny_recipe

VALIDATION = {"split": "validation", "world": {"clips": 6, "size": 16}}
QUESTIONS = {
    "train": {"world": {"task": "frame", "clips": 24, "size": 16}},
    "validation": {"split": "validation", "world": {"task": "frame", "clips": 6, "size": 16}},
}


def run(*words: object) -> int:
    """A command, typed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["perceiver-vl", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


def trained(folder: Path, recipe: dict[str, object]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert run("train", file) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def retrieval_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    how = {"eval_strategy": "steps", "eval_steps": 3}
    return trained(folder, tiny_recipe(folder / "run", data={"validation": VALIDATION}, training=how))


@pytest.fixture(scope="module")
def task_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    how = {"eval_strategy": "steps", "eval_steps": 3}
    recipe = tiny_recipe(folder / "run", data=QUESTIONS, training=how) | {"task": "question-answering"}
    recipe["model"] = recipe["model"] | {"max_text_length": 24}
    del recipe["objectives"]
    return trained(folder, recipe)


@pytest.fixture
def copy(retrieval_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(retrieval_run, tmp_path / "run")
    return tmp_path / "run"


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_training_ends_with_a_page_that_needs_nothing_else(retrieval_run: Path) -> None:
    page = page_of(retrieval_run)
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page), "something is fetched"
    assert not re.search(r"@import|url\((?!#)", page)
    for title in ("Loss", "Loss of each objective", "Learning rate", "Norm of the gradient", "Throughput"):
        assert f">{title}<" in page
    assert ">Validation, text → video<" in page
    assert "max_text_length: 24" in page
    assert "ended at step 6" in page
    assert "What is not on this page" not in page
    assert re.search(r"train: the generated world \(captions\)</td><td>24<", page)
    assert re.search(r"validation: the generated world \(captions\), validation</td><td>6<", page)


def test_hits_and_misses_are_those_of_the_official_evaluation(retrieval_run: Path, tmp_path: Path) -> None:
    examples = write_report(retrieval_run, tmp_path / "page.html", device="cpu").examples
    assert examples is not None
    assert (examples.asked, examples.total) == (6, 6)
    start = prepare_start(read_recipe(retrieval_run / "recipe.yaml"), retrieval_run, 1, 0)
    assert start.validation is not None
    model, processor = load_retriever(retrieval_run, "cpu")
    result = evaluate_retrieval(
        model, processor, start.validation, streams=("multi",), num_frames=2, captions_per_clip=1
    )
    assert 100 * examples.right / examples.asked == pytest.approx(result.stream("multi").text_to_video.r1)
    shown = examples.shown
    assert [one.hit for one in shown] == sorted((one.hit for one in shown), reverse=True)
    for one in shown:
        rank = int(re.fullmatch(r"rank (\d) of 6", one.truth)[1])  # type: ignore[index]
        assert one.hit == (rank == 1)
        assert len(one.clips) == (1 if one.hit else 2)
        assert one.said == one.clips[-1].name
        assert all(clip.strip.pictures for clip in one.clips)
    page = page_of(retrieval_run)
    assert page.count('class="strip"') == sum(len(one.clips) for one in shown)
    assert page.count('src="data:image/jpeg;base64,') >= page.count('class="strip"')


def test_answers_are_beside_the_truth(task_run: Path) -> None:
    report = write_report(task_run, device="cpu")
    assert report.missing == []
    examples = report.examples
    assert examples is not None
    assert len(examples.shown) == min(4, examples.right) + min(4, examples.asked - examples.right) > 0
    for one in examples.shown:
        assert (one.said.split(" (")[0] == one.truth) == one.hit
        assert one.asked.endswith("?")
    accuracy = json.loads((task_run / "metrics.json").read_text())["task"]["metrics"]["accuracy"]
    assert 100 * examples.right / examples.asked == pytest.approx(accuracy)
    assert f"<td>accuracy</td><td>{accuracy:.2f}</td>" in page_of(task_run)


def cells_of(page: str) -> list[list[str]]:
    """The table of scores."""
    table = page.partition("<h2>The last validation</h2>")[2].partition("</table>")[0]
    return [re.findall(r"<t[dh]>([^<]*)</t[dh]>", row) for row in table.split("<tr>")[1:]]


def validations_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if any(name.startswith("eval_") for name in line)]


def test_chance_and_the_best_validation_are_beside_the_last_of_retrieval(retrieval_run: Path) -> None:
    head, *rows = cells_of(page_of(retrieval_run))
    assert all(len(row) == len(head) for row in rows)
    by_name = {re.sub(r" \(step \d+\)", "", row[0]): dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert list(by_name) == [
        *(f"{one}{best}" for one in ("multi", "mixed", "cascade") for best in ("", ", best")),
        "chance",
    ]
    best = max(line["eval_mixed_r1"] for line in validations_of(retrieval_run))
    assert by_name["mixed, best"]["text → video R@1"] == f"{best:.1f}"
    assert by_name["chance"]["text → video R@1"] == f"{100 / 6:.1f}"
    assert by_name["chance"]["text → video R@5"] == f"{500 / 6:.1f}"
    assert by_name["chance"]["text → video R@10"] == "100.0"
    assert by_name["chance"]["text → video median rank"] == "3.5"
    assert 0 < float(by_name["chance"]["video → text R@1"]) < 100


def test_chance_and_the_most_frequent_answer_are_beside_the_last_of_a_task(task_run: Path) -> None:
    head, row = cells_of(page_of(task_run))
    found = dict(zip(head, row, strict=True))
    metrics = json.loads((task_run / "metrics.json").read_text())["task"]["metrics"]
    assert found["at the end"] == f"{metrics['accuracy']:.2f}"
    assert found["best"] == f"{max(line['eval_accuracy'] for line in validations_of(task_run)):.2f}"
    start = prepare_start(read_recipe(task_run / "recipe.yaml"), task_run, 1, 0)
    assert start.validation is not None
    answers = [start.source.record(place).answers[0] for place in range(24)]
    asked = [start.validation.record(place).answers[0] for place in range(6)]
    known = set(answers)
    assert found["chance"] == f"{100 * sum(one in known for one in asked) / 6 / len(known):.2f}"
    most = max(answers.count(answer) for answer in known)
    favourites = [answer for answer in known if answers.count(answer) == most]
    assert found["the most frequent answer"] in {f"{100 * asked.count(answer) / 6:.2f}" for answer in favourites}


def cut(folder: Path, name: str, to: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:to])


def without_log_and_list(folder: Path) -> None:
    (folder / "log.jsonl").unlink()
    (folder / "skipped.jsonl").write_text("{nothing\n")


def while_it_goes_on(folder: Path) -> None:
    for name in ("metrics.json", "config.json", "model.safetensors"):
        (folder / name).unlink()


def with_cut_weights(folder: Path) -> None:
    cut(folder, "model.safetensors", 1000)
    cut(folder, "metrics.json", 20)


def with_a_broken_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("output: [1")


@pytest.mark.parametrize(
    ("harm", "said", "still"),
    [
        (without_log_and_list, ["curves: no line of training", "skipped.jsonl: "], "Hits and misses"),
        (while_it_goes_on, ["the last validation: no metrics.json", "examples: no model yet"], "each objective"),
        (with_cut_weights, ["metrics.json: ", "examples: "], "Loss of each objective"),
        (with_a_broken_recipe, ["data and examples: "], "Norm of the gradient"),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_there(
    copy: Path, harm: Callable[[Path], None], said: list[str], still: str
) -> None:
    harm(copy)
    report = write_report(copy, device="cpu")
    for beginning in said:
        assert any(sentence.startswith(beginning) for sentence in report.missing), report.missing
    assert all("\n" not in sentence for sentence in report.missing)
    page = page_of(copy)
    assert "What is not on this page" in page
    assert still in page


def test_a_log_that_a_crash_has_cut_is_drawn_as_far_as_it_goes(copy: Path) -> None:
    whole = (copy / "log.jsonl").read_bytes()
    (copy / "log.jsonl").write_bytes(whole[: len(whole) // 2])
    report = write_report(copy, device="cpu")
    assert report.state is not None
    assert 1 < len(report.state.log) < 6
    assert ">Loss<" in page_of(copy)


def test_names_of_files_are_text(copy: Path) -> None:
    name = "<script>alert(1)</script>.mp4"
    (copy / "skipped.jsonl").write_text(json.dumps({"file_name": name, "reason": "</td>"}) + "\n")
    write_report(copy, device="cpu")
    page = page_of(copy)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_command_writes_where_it_is_told(
    retrieval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", retrieval_run, "--out", tmp_path / "page.html", "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "page.html"), "missing": []}
    assert "Hits and misses" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no run in it"):
        write_report(tmp_path)
    assert run("report", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'}: no such folder")


def test_a_run_does_not_fail_by_its_page(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page_of(copy)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[report_at_end.__module__], "find_spec", lambda name: None)
        report_at_end(copy)
    assert "pip install 'perceiver-vl[report]'" in capsys.readouterr().err

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("perceiver_vl.training.reporting.report.write_text", full)
    report_at_end(copy)
    assert "no report.html: " in capsys.readouterr().err
    assert page_of(copy) == before


# --- Curves ---------------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_left_out_and_one_point_is_no_curve() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    assert charts(lines, OF_TRAINING) == []
    [figure] = charts([*lines, {"step": 4, "loss": 1.0, "learning_rate": 0.1}], OF_TRAINING)
    assert figure.startswith("<svg")
    assert "nan" not in figure


def test_each_figure_of_a_log_has_its_chart() -> None:
    names = ["loss", "loss_vtm", "learning_rate", "grad_norm", "grad_norm_cross_attentions", "weight_norm_reads"]
    names += ["clips_per_second", "share_of_peak", "data_wait", "latent_similarity", "example_similarity"]
    names += ["cross_attention_2_entropy", "cross_attention_2_text_update", "memory_mib", "gpu_memory_mib"]
    matching = {name: [one.title for one in OF_TRAINING if re.fullmatch(one.pattern, name)] for name in names}
    assert {name: len(titles) for name, titles in matching.items()} == dict.fromkeys(names, 1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20))
def test_a_thinned_curve_keeps_its_ends_and_its_mean(values: list[float], most: int) -> None:
    xs, ys = thinned([*enumerate(values)], most)
    assert len(xs) == len(ys) == min(most, len(values))
    assert xs == sorted(xs)
    assert min(values) - 1e-6 <= min(ys) <= max(ys) <= max(values) + 1e-6
    if len(values) <= most:
        assert (xs, ys) == ([*map(float, range(len(values)))], values)
