"""Searches without torch: the same results, from files that may go or break at any time."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver_vl import ComputeBudget, PerceiverVLForPreTraining, PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.search import Filters, Searcher, build_index
from perceiver_vl.search.query_export import write_query_graph
from small_media import CAPTIONS, write_clip
from tiny import tiny_config, tiny_processor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUERIES = ("red", "a blue circle moves left", "a red square " * 20)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for number in range(4):
        write_clip(folder / f"clip{number}.mp4", seed=number)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, in which there is nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "perceiver-vl" / "queries"


@pytest.fixture(scope="module")
def made(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `model`, its `index` and a `cache` with its graphs; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    build_index(save(folder / "model"), media, folder / "index", segments=0.2, segment_fps=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert write_query_graph(folder / "index") is None
    return folder


@pytest.fixture
def indexed(made: Path, cache: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that to be spoilt: its index and its model."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    shutil.copytree(made / "index", tmp_path / "index")
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "index", tmp_path / "model"


def save(
    folder: Path,
    kind: type[PerceiverVLPreTrainedModel] = PerceiverVLForRetrieval,
    most_tokens: int = 8,
    dtype: torch.dtype = torch.float32,
    shards: str = "1GB",
    **changes: Any,
) -> Path:
    processor = tiny_processor(CAPTIONS)
    processor.tokenizer.model_max_length = most_tokens
    torch.manual_seed(0)
    model = kind(tiny_config(vocab_size=len(processor.tokenizer), initializer_range=0.3, knows_search=True, **changes))
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    processor.save_pretrained(folder)
    return folder


def uses_graph(searcher: Searcher) -> bool:
    return type(searcher.queries).__name__ == "QueryGraph"


def assert_same_results(one: Searcher, other: Searcher, queries: tuple[str, ...] = QUERIES) -> None:
    for query in queries:
        for how in ({}, {"rerank": "mixed"}, {"rerank": "none"}, {"hybrid": True}, {"top_k": 1, "shortlist": 1}):
            left, right = (searcher.search(query, **how).hits for searcher in (one, other))  # type: ignore[arg-type]
            assert left
            by_name = {hit.file_name: hit for hit in right}
            for hit in left:
                same = by_name[hit.file_name]
                assert hit.score == pytest.approx(same.score, abs=1e-5)
                assert hit.multi_score == pytest.approx(same.multi_score, abs=1e-5)
                assert hit.mixed_score == (same.mixed_score and pytest.approx(same.mixed_score, abs=1e-5))


@pytest.mark.parametrize(
    ("model", "budget"),
    [
        ({"shards": "20KB"}, ComputeBudget()),
        (
            {"kind": PerceiverVLForPreTraining, "tie_word_embeddings": True, "latent_position": "fourier"},
            ComputeBudget(text_latents=2, latent_choice="diverse"),
        ),
        ({"modality_aggregation": "separate_plus"}, ComputeBudget(text_latents=2, blocks=2)),
    ],
)
def test_without_torch_the_same_is_found(
    model: dict[str, Any], budget: ComputeBudget, media: Path, cache: Path, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", **model)
    build_index(folder, media, tmp_path / "index", budget=budget)
    assert not uses_graph(Searcher(tmp_path / "index", light=True))
    assert write_query_graph(tmp_path / "index") is None
    light, whole = Searcher(tmp_path / "index", light=True, threads=1), Searcher(tmp_path / "index")
    assert (uses_graph(light), uses_graph(whole), light.notes) == (True, False, [])
    assert_same_results(light, whole)
    assert light.search("red", filters=Filters(type="image")).hits == []
    [graph] = cache.iterdir()
    assert graph.stat().st_size < 250_000  # the weights are not in it
    before = graph.stat().st_mtime_ns
    assert write_query_graph(tmp_path / "index") is None
    assert graph.stat().st_mtime_ns == before


def test_moments_are_found_without_torch_too(indexed: tuple[Path, Path]) -> None:
    index, model = indexed
    light, whole = Searcher(index, model, light=True), Searcher(index, model)
    assert uses_graph(light)
    for words in QUERIES:
        one, other = light.moments(words), whole.moments(words)
        assert [(m.file_name, m.start, m.end) for m in one.moments] == [
            (m.file_name, m.start, m.end) for m in other.moments
        ]
        assert [m.score for m in one.moments] == pytest.approx([m.score for m in other.moments], abs=1e-4)
    code = (
        "import sys; from perceiver_vl.search import Searcher\n"
        "print(len(Searcher(*sys.argv[1:], light=True).moments('red').moments), 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(index), str(model)]
    assert subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split() == ["10", "False"]


def test_a_model_that_has_moved_and_another_tokenizer(indexed: tuple[Path, Path]) -> None:
    index, model = indexed
    light = Searcher(index, model, light=True)
    assert uses_graph(light)
    assert_same_results(light, Searcher(index, model), QUERIES[:1])
    settings = model / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 8', '"model_max_length": 4'))
    assert not uses_graph(Searcher(index, model, light=True))


def test_damaged_graphs_are_told_and_made_anew(indexed: tuple[Path, Path], cache: Path) -> None:
    index, model = indexed
    [graph] = cache.iterdir()
    whole = graph.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:], b"no graph"):
        graph.write_bytes(damaged)
        searcher = Searcher(index, model, light=True)
        assert not uses_graph(searcher)
        assert searcher.search("red").hits
        [note] = searcher.notes
        assert f"{graph}: damaged, deleted" in note
        assert f"perceiver-vl index --out {index}" in note
        assert not graph.exists()
    write_query_graph(index)
    assert uses_graph(Searcher(index, model, light=True))


@pytest.mark.parametrize(("dtype", "saved"), [("bfloat16", torch.float32), (None, torch.bfloat16)])
def test_only_float32_has_graphs(
    dtype: str | None, saved: torch.dtype, media: Path, cache: Path, tmp_path: Path
) -> None:
    build_index(save(tmp_path / "model", dtype=saved), media, tmp_path / "index", dtype=dtype)
    assert write_query_graph(tmp_path / "index") is None
    assert not cache.exists()
    assert Searcher(tmp_path / "index", light=True).search("red").hits


def test_weights_that_are_links_out_of_the_folder(indexed: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    index, model = indexed
    weights = model / "model.safetensors"
    weights.symlink_to(weights.rename(tmp_path / "elsewhere"))
    searcher = Searcher(index, model, light=True)
    assert (uses_graph(searcher), searcher.notes) == (False, [])
    assert len(list(cache.iterdir())) == 1


def test_a_model_that_cannot_be_a_graph_is_told_once(media: Path, cache: Path, tmp_path: Path) -> None:
    """Its tokenizer makes longer texts than it takes."""
    folder, index = save(tmp_path / "model", most_tokens=30), tmp_path / "index"
    build_index(folder, media, index)
    assert f"{folder}: has no graphs for quick searches" in str(write_query_graph(index))
    assert write_query_graph(index) is None
    searcher = Searcher(index, light=True)
    assert (uses_graph(searcher), searcher.notes) == (False, [])
    assert searcher.search("red").hits


def test_a_cache_that_cannot_be_written(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(save(tmp_path / "model"), media, tmp_path / "index")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be written" in str(write_query_graph(tmp_path / "index"))
    assert Searcher(tmp_path / "index", light=True).search("red").hits
