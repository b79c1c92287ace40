"""The same road on real clips and photographs, and on files that are odd or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import SHARED_DATA, needs_shared_data, run_cli, tiny_recipe, write_recipe

COLUMNS = {"file_name": "file", "text": "captions"}
COLUMNS_AS_TYPED = "file_name=file,text=captions"

pytestmark = needs_shared_data


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def take_a_few(source: Path, folder: Path) -> Path:
    """A folder of twelve files to train on and four to validate on, laid out as the whole set is."""
    rows = lines(source / "captions.jsonl")
    chosen = [row for row in rows if row["split"] == "train"][:12] + [row for row in rows if row["split"] == "val"][:4]
    for row in chosen:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).symlink_to((source / row["file"]).resolve())
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chosen))
    return folder


@pytest.mark.parametrize("name", ["msrvtt_keyframes", "flickr8k"])
def test_from_real_files_to_search_results(name: str, tmp_path: Path) -> None:
    data, model, index = take_a_few(SHARED_DATA / name, tmp_path / "data"), tmp_path / "model", tmp_path / "index"
    split = {"folder": str(data), "metadata": "captions.jsonl", "columns": COLUMNS}
    recipe = tiny_recipe(model, {**split, "split": "train"}, {**split, "split": "val"})
    recipe["tokenizer"]["vocab_size"] = 1000
    recipe["training"]["max_steps"] = 2
    trained = run_cli("train", write_recipe(tmp_path / "recipe.yaml", recipe), "--json").json()
    assert (trained["steps"], trained["skipped"]) == (2, [])

    described = "--metadata", "captions.jsonl", "--columns", COLUMNS_AS_TYPED
    result = run_cli("evaluate", "--model", model, "--data", data, *described, "--split", "val", "--json").json()
    captions = sum(len(row["captions"]) for row in lines(data / "captions.jsonl") if row["split"] == "val")
    assert (result["clips"], result["captions"], result["skipped"]) == (4, captions, [])

    words = "index", "--model", model, "--media", data, *described, "--out", index, "--json"
    indexed = run_cli(*words).json()
    assert (indexed["encoded"], indexed["total"], indexed["skipped"]) == (16, 16, [])
    query = "two people outside"
    words = "search", "--index", index, query, "--top-k", 5, "--html", tmp_path / "page.html", "--json"
    (found,) = run_cli(*words).json()
    assert len(found["hits"]) == 5
    assert all(Path(hit["path"]).is_file() and hit["texts"] for hit in found["hits"])
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/jpeg") >= 5


def test_a_folder_of_odd_and_damaged_files(model: Path, tmp_path: Path) -> None:
    folder = SHARED_DATA / "odd_media"
    rows = lines(folder / "manifest.jsonl")
    unreadable = {row["file"] for row in rows if row["readable"] is False}
    described = "--metadata", "manifest.jsonl", "--columns", "file_name=file,text=what"
    words = (
        "index",
        "--model",
        model,
        "--media",
        folder,
        *described,
        "--out",
        tmp_path / "index",
        "--max-failed-fraction",
        0.2,
    )
    report = run_cli(*words, "--json").json()
    assert {problem["file_name"] for problem in report["skipped"]} == unreadable
    assert all(problem["reason"] and "\n" not in problem["reason"] for problem in report["skipped"])
    assert report["total"] == report["encoded"] == len(rows) - len(unreadable)

    again = run_cli(*words)
    assert again.code == 0
    assert f"0 encoded, {report['total']} unchanged" in again.out
    assert again.err.splitlines()[0] == f"skipped {len(unreadable)} files:"
    assert all(name in again.err for name in unreadable)


def test_a_folder_without_metadata_is_searched_all_the_same(model: Path, tmp_path: Path) -> None:
    folder = SHARED_DATA / "odd_media" / "videos"
    report = run_cli("index", "--model", model, "--media", folder, "--out", tmp_path / "index", "--json").json()
    assert {problem["file_name"] for problem in report["skipped"]} == {
        "empty.mp4",
        "text_named.mp4",
        "truncated_no_index.mp4",
    }
    page = tmp_path / "page.html"
    (found,) = run_cli(
        *("search", "--index", tmp_path / "index", "a cat", "--top-k", 50, "--json", "--html", page)
    ).json()
    assert len(found["hits"]) == report["total"]
    assert all(hit["texts"] == [] for hit in found["hits"])
    assert page.stat().st_size > 0
