"""The commands as a person types them, from a world on disk to a page of search results."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from command_line import ENVIRONMENT, PROGRAM, Answer, run_cli, run_program, write_recipe
from safetensors.torch import load_file

from perceiver_vl import __version__, cli
from perceiver_vl.bench.demo import run_demo
from perceiver_vl.search.table import open_table
from perceiver_vl.utils.files import sha256

COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback] + ["index"]
STREAMS = ("multi", "mixed", "single", "cascade", "cascade-single")


# Help and arguments


def test_help_of_the_program_names_every_command() -> None:
    answer = run_program("--help")
    assert answer.code == 0
    assert {"train", "evaluate", "index", "search", "ask", "convert", "demo"} <= set(COMMANDS)
    assert all(re.search(rf"\b{command}\b", answer.out) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    answer = run_program(command, "--help")
    assert answer.code == 0
    assert f"Usage: perceiver-vl {command}" in " ".join(answer.out.split())
    assert ("--json" in answer.out) == (command != "serve")  # which answers in JSON throughout
    assert answer.err == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["nonsense"], 2),
        (["search", "--index", "somewhere"], 2),
        (["search", "--index", "somewhere", "red", "--after", "today"], 2),
        (["evaluate", "--model", "m", "--data", "d", "--task", "juggling"], 2),
        (["evaluate", "--model", "m", "--data", "d", "--budget", "frames=0"], 2),
        (["index", "--model", "m", "--media", "d", "--out", "i", "--columns", "text"], 2),
    ],
)
def test_help_and_mistakes_do_not_wait_for_heavy_imports(words: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True
    )
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert done.returncode == code
    assert "perceiver_vl.cli" in imported
    assert not imported & {"torch", "transformers", "pyarrow", "matplotlib", "av"}


# The generated world


def test_world(written_world: tuple[Path, Answer]) -> None:
    folder, answer = written_world
    assert answer.json() == {"out": str(folder), "train": 12, "validation": 6, "test": 6}
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all((folder / row["file_name"]).stat().st_size > 0 and row["text"] for row in rows)


def test_the_same_world_again_costs_nothing_and_changes_nothing(own_world: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in (own_world / "clips").rglob("*.mp4")}
    answer = run_cli("world", own_world, "--clips", 24, "--held-out", 6, "--size", 32, "--num-frames", 4)
    assert answer.code == 0
    assert "12 clips for train, 6 clips for validation, 6 clips for test" in answer.out
    assert {path: (path.stat().st_mtime_ns, sha256(path)) for path in (own_world / "clips").rglob("*.mp4")} == before


# Training


def test_train_writes_a_model_folder(training: tuple[Path, Answer]) -> None:
    folder, answer = training
    said = answer.json()
    assert (said["output"], said["steps"], said["skipped"]) == (str(folder), 4, [])
    assert [stream["stream"] for stream in said["retrieval"]["streams"]] == ["multi", "mixed", "cascade"]
    assert answer.err == ""
    for name in ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "log.jsonl"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.glob("*.bin"))
    assert json.loads((folder / "metrics.json").read_text())["retrieval"] == said["retrieval"]


def test_overrides_win_and_are_kept(training: tuple[Path, Answer]) -> None:
    folder, _ = training
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert kept["output"] == str(folder)
    assert kept["training"]["learning_rate"] == 1e-3
    assert kept["data"]["sampling"] == "uniform"
    assert not (folder.parent / "never").exists()


def test_train_does_not_write_over_a_run(training: tuple[Path, Answer]) -> None:
    folder, _ = training
    weights = sha256(folder / "model.safetensors")
    message = run_cli("train", folder / "recipe.yaml").error(2)
    assert f"output={folder}" in message
    assert "--resume" in message
    assert sha256(folder / "model.safetensors") == weights


def test_train_does_not_write_over_a_model_without_checkpoints(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"].pop("validation")
    recipe["training"] |= {"save_strategy": "no", "max_steps": 1}
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert run_cli("train", path).code == 0
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert "--resume" in run_cli("train", path).error(2)


def test_no_is_a_strategy_on_the_command_line(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    answer = run_cli("train", path, "training.save_strategy=no", "training.max_steps=1", "data.validation=null")
    assert answer.code == 0, answer.err
    assert "1 steps in" in answer.out


def start_training_and_wait_for_a_checkpoint(path: Path, output: Path) -> "subprocess.Popen[str]":
    words = [PROGRAM, "train", path]
    process = subprocess.Popen(
        words,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests run in the background of a shell, interrupts are ignored, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(output.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_killed_training_goes_on_where_it_was(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"]["max_steps"] = 30
    path, output = write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "run"
    process = start_training_and_wait_for_a_checkpoint(path, output)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "metrics.json").exists()

    assert "--resume" in run_cli("train", path).error(2)
    assert run_cli("train", path, "--resume", "--json").json()["steps"] == 30
    assert run_cli("train", path, f"output={tmp_path / 'whole'}", "training.save_strategy=no").code == 0
    assert [line["step"] for line in log_of(output)] == [line["step"] for line in log_of(tmp_path / "whole")]
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole"))
    torch.testing.assert_close(resumed, whole, rtol=1e-3, atol=1e-5)


def test_an_interrupted_training_says_so(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"]["max_steps"] = 100_000
    process = start_training_and_wait_for_a_checkpoint(write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "run")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert "interrupted" in Answer(process.returncode, out, err).error(130)


# Evaluation


def evaluate(*words: object) -> Any:
    return run_cli("evaluate", *words, "--json").json()


def test_evaluate_all_streams(model: Path, world: Path) -> None:
    answer = run_program(
        *("evaluate", "--task", "retrieval", "--model", model, "--data", world, "--split", "test", "--json"),
        *("--streams", ",".join(STREAMS), "--shortlist", 3),
    )
    result = answer.json()
    assert answer.err == ""
    assert (result["clips"], result["captions"], result["shortlist"], result["skipped"]) == (6, 30, 3, [])
    assert [stream["stream"] for stream in result["streams"]] == list(STREAMS)
    for stream in result["streams"]:
        for way in ("text_to_video", "video_to_text"):
            recall = stream[way]
            assert 0 <= recall["r1"] <= recall["r5"] <= recall["r10"] <= 100
            assert recall["median_rank"] >= 1
        assert stream["seconds_per_query"] > 0
        assert stream["flops_per_query"] > 0
    assert result["record"]["command"].startswith("perceiver-vl evaluate --task retrieval")


def test_evaluation_record(model: Path, world: Path, index: Path) -> None:
    words = "--model", model, "--data", world, "--streams", "multi"
    full = evaluate(*words, "--split", "test")
    small = evaluate(*words, "--split", "test", "--budget", "frames=2,latents=3,text_latents=2,cross_attentions=1")
    other = evaluate(*words, "--split", "validation", "--captions-per-clip", 1)
    record = full["record"]
    assert (record["split"], record["frames"], record["sampling"], record["budget"]) == ("test", 4, "uniform", "full")
    assert record["resize"].startswith("32x32")
    assert "PyAV" in record["decoder"]
    assert record["model_hash"] == open_table(index).settings.fingerprint
    assert set(record["versions"]) >= {"perceiver-vl", "torch", "transformers"}

    assert small["record"]["budget"] == small["budget"] == "frames=2,latents=3,text_latents=2,cross_attentions=1"
    assert small["record"]["frames"] == 2
    assert small["record"]["split_hash"] == record["split_hash"] != other["record"]["split_hash"]
    assert small["record"]["model_hash"] == other["record"]["model_hash"] == record["model_hash"]
    assert small["flops_per_clip"] < full["flops_per_clip"]
    assert other["captions"] == 6


def test_evaluate_as_a_table(model: Path, world: Path) -> None:
    answer = run_cli(
        *("evaluate", "--model", model, "--data", world, "--split", "test"), "--streams", "multi,cascade-single"
    )
    assert (answer.code, answer.err) == (0, "")
    for word in ("30 captions, 6 clips, budget full", "multi", "cascade-single", "R@1", "R@10", "chance"):
        assert word in answer.out


# Index and search


def test_index(indexing: tuple[Path, Answer]) -> None:
    folder, answer = indexing
    said = answer.json()
    assert answer.err == ""
    assert (said["index"], said["encoded"], said["total"], said["skipped"]) == (str(folder), 6, 6, [])


def test_index_encodes_only_what_is_new(model: Path, own_world: Path, tmp_path: Path) -> None:
    clips = own_world / "clips"
    words = "index", "--model", model, "--media", clips, "--out", tmp_path / "index"

    def counts() -> tuple[int, ...]:
        said = run_cli(*words, "--json").json()
        return tuple(said[name] for name in ("encoded", "unchanged", "removed", "total"))

    assert counts() == (24, 0, 0, 24)
    assert counts() == (0, 24, 0, 24)
    (clips / "test" / "000000.mp4").unlink()
    shutil.copy(clips / "test" / "000001.mp4", clips / "a new clip.mp4")
    assert counts() == (0, 23, 1, 24)  # a copy is known by its content
    with (clips / "a new clip.mp4").open("ab") as file:
        file.write(b"more")
    assert counts() == (1, 23, 0, 24)
    assert "24 clips (0 encoded, 24 unchanged, 0 removed)" in run_cli(*words).out


class Links(HTMLParser):
    """What a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_search(index: Path, world: Path, tmp_path: Path) -> None:
    page = tmp_path / "a folder" / "page.html"
    page.parent.mkdir()
    queries = "a red circle moving left", "<marquee>ein großes Quadrat"
    answer = run_program("search", "--index", index, *queries, "--top-k", 3, "--json", "--html", page)
    results = answer.json()
    assert answer.err == ""
    assert [result["query"] for result in results] == list(queries)
    for result in results:
        hits = result["hits"]
        assert [hit["rank"] for hit in hits] == [1, 2, 3]
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        assert all(Path(hit["path"]) == world / hit["file_name"] and hit["texts"] for hit in hits)
        assert result["searched"] == 6

    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert not links.tags & {"script", "link", "iframe", "marquee"}
    assert links.addresses
    files = {hit["path"] for result in results for hit in result["hits"]}
    assert {address for address in links.addresses if not address.startswith("data:image/")} == {
        Path(path).as_uri() for path in files
    }
    assert "url(" not in text
    assert "@import" not in text
    assert all(hit["file_name"] in text for hit in results[0]["hits"])


def test_a_search_does_not_wait_for_torch_and_finds_the_same(index: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = "search", "--index", str(index), "a red circle moving left", "--json"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True
    )
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "onnxruntime" in imported
    assert not imported & {"torch", "transformers", "av", "PIL", "matplotlib"}
    without_graphs = {**ENVIRONMENT, "XDG_CACHE_HOME": str(index / "none")}
    other = subprocess.run([PROGRAM, *words], env=without_graphs, capture_output=True, text=True)
    assert other.stderr == ""
    found, wanted = ({hit["file_name"]: hit for hit in json.loads(one.stdout)[0]["hits"]} for one in (done, other))
    assert list(found) == list(wanted)
    for name, hit in found.items():
        for score in ("score", "multi_score", "mixed_score"):
            assert hit[score] == pytest.approx(wanted[name][score], abs=1e-5)


def test_queries_are_read_line_by_line_where_none_is_given(index: Path) -> None:
    words = [PROGRAM, "search", "--index", str(index), "--top-k", "2", "--json"]
    search = subprocess.Popen(
        [str(word) for word in words], env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert search.stdin is not None
    assert search.stdout is not None
    for query in ("a red circle", "a blue star"):  # the second is asked once the first is answered
        print(query, file=search.stdin, flush=True)
        found = json.loads(search.stdout.readline())
        assert (found["query"], len(found["hits"])) == (query, 2)
    print("\n", file=search.stdin)
    assert search.communicate()[0] == ""
    assert search.returncode == 0


def test_paths_for_other_programs(index: Path, world: Path) -> None:
    words = "search", "--index", index, "a red circle", "--top-k", 3
    expected = [hit["path"] for hit in run_cli(*words, "--json").json()[0]["hits"]]
    assert run_program(*words, "--paths").out.splitlines() == expected
    assert run_program(*words, "--paths", "-0").out.split("\0") == [*expected, ""]
    assert "--paths" in run_cli(*words, "-0").error(2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names and words are of bytes")
def test_words_that_are_not_utf_8_are_read_as_far_as_they_can_be(index: Path) -> None:
    words = [os.fsencode(word) for word in (PROGRAM, "search", "--index", index, "--hybrid", "--json")]
    done = subprocess.run([*words, b"caf\xe9 red"], env=ENVIRONMENT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)[0]["query"] == "caf� red"


def test_the_version() -> None:
    assert run_program("--version").out == f"perceiver-vl {__version__}\n"


def test_a_file_that_is_not_there_is_a_usage_error(model: Path, tmp_path: Path) -> None:
    assert "no such file" in run_cli("ask", "--model", model, tmp_path / "none.mp4", "what?").error(2)


@pytest.mark.parametrize("rerank", ["combined", "mixed", "none"])
def test_search_as_a_table(rerank: str, index: Path) -> None:
    answer = run_cli("search", "--index", index, "a red circle", "--top-k", 100, "--rerank", rerank)
    assert (answer.code, answer.err) == (0, "")
    assert "6 clips searched" in answer.out
    assert all(f"clips/test/{number:06}.mp4" in answer.out for number in range(6)), "names are whole in a file"
    assert "…" not in answer.out


def test_an_index_whose_model_has_moved(index: Path, model: Path, world: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model, tmp_path / "before"))
    assert run_cli("index", "--model", moved, "--media", world / "clips", "--out", tmp_path / "index").code == 0
    moved.rename(tmp_path / "after")
    assert "--model" in run_cli("search", "--index", tmp_path / "index", "a red circle").error(2)
    words = "search", "--index", tmp_path / "index", "a red circle", "--model", tmp_path / "after", "--json"
    assert len(run_cli(*words).json()[0]["hits"]) == 10


def test_an_index_is_brought_up_to_date_and_verified_without_its_model_and_media_being_named(
    model: Path, own_world: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    budget = ("--budget", "latents=4")
    assert run_cli("index", "--out", index, "--model", model, "--media", own_world / "clips", *budget).code == 0
    (own_world / "clips" / "test" / "000000.mp4").unlink()
    said = run_cli("index", "--out", index, "--json").json()
    assert (said["unchanged"], said["removed"], said["mended"]) == (23, 1, 0)
    newest = index / "clips.lance" / "data" / open_table(index).data_files()[0]
    content = bytearray(newest.read_bytes())
    content[200] ^= 255
    newest.write_bytes(content)
    remedy = re.search(r"mend it with (perceiver-vl .+)$", run_cli("search", "--index", index, "red").error(1))
    assert remedy is not None
    words = shlex.split(remedy[1])[1:]
    assert run_cli(*words, "--json").json()["mended"] > 0
    assert run_cli("search", "--index", index, "red", "--json").json()[0]["searched"] == 23
    assert "--model MODEL and --media FOLDER" in run_cli("index", "--out", tmp_path / "none").error(2)
    assert "--out is missing" in run_cli("index").error(2)


def test_search_of_some_clips(index: Path) -> None:
    def found(*words: object) -> list[str]:
        [result] = run_cli("search", "--index", index, "a red circle", "--json", *words).json()
        assert result["searched"] == len(result["hits"])
        return sorted(hit["file_name"] for hit in result["hits"])

    everything = found()
    assert len(everything) == 6
    assert found("--folder", "clips", "--type", "video", "--longer", "0:00.1", "--after", "2020-01-01") == everything
    assert found("--type", "image") == found("--shorter", 0.1) == found("--before", "2020-01-01") == []
    assert found("--where", f"file = '{everything[2]}'") == [everything[2]]
    name = Path(everything[3]).stem
    [result] = run_cli("search", "--index", index, name, "--hybrid", "--json").json()
    assert result["hits"][0]["file_name"] == everything[3]
    for words, part in (
        (("--where", "file ="), "where=(file =)"),
        (("--longer", "soon"), "longer=soon"),
        (("--type", "sound"), "type=sound"),
        (("--after", "today"), "after=today"),
    ):
        assert part in run_cli("search", "--index", index, "red", *words).error(2)


def test_an_index_as_parquet(index: Path, tmp_path: Path) -> None:
    said = run_cli("index", "export", index, "--parquet", tmp_path / "clips.parquet", "--json").json()
    assert said["clips"] == parquet.read_metadata(tmp_path / "clips.parquet").num_rows == 6
    assert "6 clips" in run_cli("index", "export", index, "--parquet", tmp_path / "again.parquet").out
    assert "not an index" in run_cli("index", "export", tmp_path, "--parquet", tmp_path / "x").error(2)


# Demo


def test_demo(tmp_path: Path) -> None:
    overrides = (
        *("training.max_steps=4", "training.eval_steps=4", "training.save_steps=4", "training.logging_steps=2"),
        *("training.per_device_train_batch_size=8", "data.train.world.clips=16", "data.validation.world.clips=8"),
        *("data.num_frames=2", "model.hidden_size=32", "model.num_blocks=2", "model.image_size=32"),
        *("model.num_latents=4", "model.num_text_latents=2"),
    )
    result = run_demo(tmp_path / "demo", overrides=overrides)
    assert result.steps == 4
    assert sorted(result.evaluations) == [1, 2]
    assert len(result.searches) == len(result.targets) == 5
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["steps"] == 4
    assert (tmp_path / "demo" / "picture.png").stat().st_size > 0
    links = Links()
    links.feed(result.report.read_text(encoding="utf-8"))
    assert "script" not in links.tags
    assert all(address.startswith(("data:image/", "#", tmp_path.as_uri())) for address in links.addresses)


@pytest.mark.parametrize("kind", ["html", "parquet", "svg", "submission", "report"])
def test_a_file_in_a_folder_that_is_not_there_is_refused_before_any_work(
    kind: str, index: Path, model: Path, world: Path, training: tuple[Path, Answer], tmp_path: Path
) -> None:
    file = tmp_path / "a new folder" / f"page.{kind}"
    words = {
        "html": ("search", "--index", index, "red", "--html", file),
        "parquet": ("index", "export", index, "--parquet", file),
        "svg": ("bench", "frontier", "--model", model, "--data", world, "--svg", file),
        "submission": ("evaluate", "--model", model, "--data", world, "--task", "vqa", "--submission", file),
        "report": ("report", training[0], "--out", file),
    }[kind]
    message = run_cli(*words).error(2)
    assert f"no folder {file.parent} to write it into" in message
    assert list(tmp_path.iterdir()) == []
    subprocess.run(message.partition("make it first: ")[2], shell=True, check=True)
    if kind in ("html", "parquet", "report"):
        assert run_cli(*words).code == 0
        assert file.is_file()
    assert "is a folder" in run_cli(*words[:-1], tmp_path).error(2)


def test_names_are_left_out_of_what_is_prepared(world: Path, tmp_path: Path) -> None:
    words = ("prepare", world / "clips", tmp_path / "out", "--size", 16, "--exclude", "train", "--exclude", "val*")
    answer = run_cli(*words)
    assert answer.code == 0, answer.err
    assert "2 left out by name" in answer.out
    kept = {path.stem for path in (tmp_path / "out").rglob("*.mp4")}
    assert kept == {f"{number:06d}" for number in range(6)}
    error = run_cli("prepare", world, tmp_path / "other", "--benchmark", "msrvtt", "--exclude", "*.gif").error(2)
    assert "metadata, columns, exclude: for a folder of your own" in error
