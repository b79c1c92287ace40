"""Searching: the same order as a direct computation, through every shortlist, and a page to look at it."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from perceiver_vl import ComputeBudget, UsageError
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search import Filters, Searcher, build_index, write_page
from perceiver_vl.search.rows import EncodedClip, IndexEntry, rows_of
from perceiver_vl.search.table import APPROXIMATE, RECALL_AT, open_table
from small_media import write_clip, write_image

QUERY = "a red square moves left"


@pytest.fixture(scope="module")
def indexed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(index, media): twelve clips, two of them with captions, in several parts."""
    media, index = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("index")
    for number in range(12):
        write_clip(media / f"clip{number:02d}.mp4", seed=number)
    lines: list[dict[str, object]] = [{"file_name": f"clip{number:02d}.mp4"} for number in range(12)]
    lines[0]["text"], lines[1]["text"] = "a red <b>square</b>", "a blue circle"
    (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_index(model_folder, media, index, commit_clips=5, batch_size=4)
    return index, media


def directly(
    model_folder: Path, media: Path, budget: ComputeBudget | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """(scale * cosine, matching logit) of the query with every clip, from the files, nothing cached."""
    model, processor = load_retriever(model_folder, "cpu")
    text = processor(text=[QUERY])
    multi, mixed = {}, {}
    with torch.inference_mode():
        for path in sorted(media.glob("*.mp4")):
            video = processor(videos=[path])
            cosine = (
                model.get_vision_features(**video, budget=budget) @ model.get_text_features(**text, budget=budget).T
            )
            multi[path.name] = (model.logit_scale * cosine).item()
            pair = model.encode_vision(**video, budget=budget), model.encode_text(**text, budget=budget)
            mixed[path.name] = model.match(*pair).item()
    return multi, mixed


def names(result: object) -> list[str]:
    return [hit.file_name for hit in result.hits]  # type: ignore[attr-defined]


def best_first(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: -scores[name])


def test_hits_are_in_the_order_of_a_direct_computation(model_folder: Path, indexed: tuple[Path, Path]) -> None:
    index, media = indexed
    multi, mixed = directly(model_folder, media)
    total = F.log_softmax(torch.tensor(list(multi.values())), 0) + F.log_softmax(torch.tensor(list(mixed.values())), 0)
    combined = dict(zip(multi, total.tolist(), strict=True))
    searcher = Searcher(index)
    for rerank, scores in [("none", multi), ("mixed", mixed), ("combined", combined)]:
        result = searcher.search(QUERY, top_k=12, rerank=rerank)  # type: ignore[arg-type]
        assert names(result) == best_first(scores)
        assert [hit.rank for hit in result.hits] == list(range(1, 13))
    assert [hit.score for hit in result.hits] == pytest.approx([combined[name] for name in names(result)], abs=1e-4)


def test_stored_summaries_give_the_score_of_the_files_themselves(
    model_folder: Path, indexed: tuple[Path, Path]
) -> None:
    index, media = indexed
    multi, mixed = directly(model_folder, media)
    assert max(mixed.values()) - min(mixed.values()) > 0.05  # so that the tolerance below tells clips apart
    searcher = Searcher(index)
    for hit in searcher.search(QUERY, top_k=12).hits:
        assert hit.mixed_score == pytest.approx(mixed[hit.file_name], abs=1e-5)
        scale = searcher.queries.logit_scale
        assert scale * hit.multi_score == pytest.approx(multi[hit.file_name], abs=1e-4)


def test_budget_of_the_index_is_the_budget_of_the_query(
    model_folder: Path, indexed: tuple[Path, Path], tmp_path: Path
) -> None:
    budget = ComputeBudget(latents=3, text_latents=2, cross_attentions=1)
    build_index(model_folder, indexed[1], tmp_path / "index", budget=budget)
    multi, _ = directly(model_folder, indexed[1], budget)
    assert names(Searcher(tmp_path / "index").search(QUERY, top_k=12, rerank="none")) == best_first(multi)


def test_only_the_shortlist_is_ranked_again(model_folder: Path, indexed: tuple[Path, Path]) -> None:
    index, media = indexed
    multi, mixed = directly(model_folder, media)
    result = Searcher(index).search(QUERY, top_k=3, shortlist=4, rerank="mixed")
    chosen = best_first(multi)[:4]
    assert names(result) == best_first({name: mixed[name] for name in chosen})[:3]


def test_result_says_how_and_how_long(indexed: tuple[Path, Path]) -> None:
    result = Searcher(indexed[0]).search(QUERY, top_k=2)
    assert (result.method, result.recall, result.searched, len(result.hits)) == ("exact", None, 12, 2)
    assert set(result.seconds) == {"encode", "shortlist", "rerank", "total"}
    plain = json.loads(json.dumps(result.as_dict()))
    assert plain["hits"][0]["path"] == str(indexed[1] / plain["hits"][0]["file_name"])


def test_index_works_from_another_directory(
    indexed: tuple[Path, Path], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(indexed[1].parent)
    build_index(model_folder, indexed[1].name, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    hits = Searcher("index").search(QUERY).hits
    assert all(hit.path.is_file() for hit in hits)


def test_an_approximate_index_agrees_with_exact_search_and_follows_the_clips(
    model_folder: Path, indexed: tuple[Path, Path], tmp_path: Path
) -> None:
    exactly, index = tmp_path / "exactly", tmp_path / "index"
    build_index(model_folder, indexed[1], exactly)
    report = build_index(model_folder, indexed[1], index, commit_clips=5, exact_rows=10)
    assert report.recall == 1.0  # with so few clips, every partition is probed
    for more in (False, True):
        if more:
            for folder in (exactly, index):
                add_random_clips(folder, 300)
        expected, found = (Searcher(folder).search(QUERY, top_k=12) for folder in (exactly, index))
        assert (found.method, expected.method) == (APPROXIMATE, "exact")
        assert (found.recall, expected.recall) == (1.0, None)
        assert names(found) == names(expected)
        assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in expected.hits], abs=1e-4)
        assert found.searched == (312 if more else 12)
    assert RECALL_AT < 12  # so that the recall above could have been less than 1


def add_random_clips(index: Path, count: int) -> None:
    table = open_table(index)
    settings = table.settings
    draw = np.random.default_rng(3)
    vectors = draw.standard_normal((count, settings.vector_size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    size = settings.hidden_size + settings.num_attention_heads
    partial_attentions = draw.standard_normal((count, size)).astype(np.float32)
    clips = [IndexEntry(f"random{number}.mp4", "video", 1, 1, ()) for number in range(count)]
    rows = zip(clips, vectors, partial_attentions, strict=True)
    table.commit(rows_of([EncodedClip(*row) for row in rows], settings))


def test_who_has_opened_an_index_goes_on_with_it_until_the_newest_is_asked_for(
    model_folder: Path, tmp_path: Path
) -> None:
    media, index = tmp_path / "media", tmp_path / "index"
    for number in range(4):
        write_clip(media / f"clip{number}.mp4", seed=number)
    build_index(model_folder, media, index)
    searcher = Searcher(index)
    before = searcher.search(QUERY)
    (media / "clip0.mp4").unlink()
    (media / "clip1.mp4").rename(media / "renamed.mp4")
    write_clip(media / "clip2.mp4", seed=22)
    write_clip(media / "clip9.mp4", seed=9)
    build_index(model_folder, media, index)
    again = searcher.search(QUERY)
    assert [(hit.file_name, hit.score) for hit in again.hits] == [(hit.file_name, hit.score) for hit in before.hits]
    assert again.searched == 4
    searcher.refresh()
    fresh = Searcher(index).search(QUERY)
    assert set(names(fresh)) == {"renamed.mp4", "clip2.mp4", "clip3.mp4", "clip9.mp4"}
    assert searcher.search(QUERY).hits == fresh.hits


@pytest.fixture(scope="module")
def trips(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two folders of clips and images, of several lengths and years, with captions."""
    media, index = tmp_path_factory.mktemp("trips"), tmp_path_factory.mktemp("index")
    for number, place in enumerate(["Rome", "Rome", "it's 100%", "it's 100%"]):
        write_clip(media / place / f"clip{number}.mp4", seed=number, frames=8 * (number + 1))
        write_image(media / place / f"image{number}.png", seed=10 + number)
        for name in (f"clip{number}.mp4", f"image{number}.png"):
            os.utime(media / place / name, (86400 * (365 * number + 18000),) * 2)
    captions = {"Rome/clip0.mp4": "the Trevi fountain", "it's 100%/image3.png": ["a dog", "Fountain pen"]}
    rows = [
        {"file_name": name, "text": captions.get(name, [])}
        for name in (path.relative_to(media).as_posix() for path in sorted(media.glob("*/*")))
    ]
    (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(model_folder, media, index)
    return index


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(folder="Rome"), "clip0 clip1 image0 image1"),
        (Filters(folder="Ro"), ""),
        (Filters(folder="./it's 100%/"), "clip2 clip3 image2 image3"),
        (Filters(type="image"), "image0 image1 image2 image3"),
        (Filters(longer=1.6, type="video"), "clip1 clip2 clip3"),
        (Filters(shorter=1.6), "clip0 clip1"),
        (Filters(after="2020-04-13", before="2021-04-13"), "clip1 image1"),
        (Filters(after="2020-04-13T02:00+02:00", shorter=2), "clip1"),
        (Filters(where="kind = 'image' OR file LIKE '%3.mp4'", folder="it's 100%"), "clip3 image2 image3"),
        (Filters(where="array_length(captions) > 0"), "clip0 image3"),
        (Filters(), "clip0 clip1 clip2 clip3 image0 image1 image2 image3"),
    ],
)
def test_filters_are_applied_before_the_search(trips: Path, filters: Filters, expected: str) -> None:
    searcher = Searcher(trips)
    everything = searcher.search(QUERY, rerank="none").hits
    for top_k in (1, 10):
        result = searcher.search(QUERY, top_k=top_k, filters=filters, rerank="none")
        wanted = [hit.file_name for hit in everything if Path(hit.file_name).stem in expected.split()]
        assert names(result) == wanted[:top_k]
        assert result.searched == len(expected.split())


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"where": "duration >"}, r"where=\(duration >\): .*Expected"),
        ({"where": "colour = 'red'"}, "where=.*colour"),
        ({"where": "duration > 'long'"}, "where=.*long"),
        ({"where": "file LIKE 'open"}, "where="),
        ({"where": " "}, "where="),
        ({"after": "yesterday"}, "after=yesterday: not a day"),
        ({"before": "2024-13-01"}, "before=2024-13-01"),
        ({"longer": -1.0}, "longer=-1"),
        ({"shorter": float("nan")}, "shorter=nan"),
        ({"type": "sound"}, "type=sound: choose video or image"),
    ],
)
def test_filters_that_cannot_be(trips: Path, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Searcher(trips).search(QUERY, filters=Filters(**filters))
    assert "\n" not in str(error.value)
    assert ".rs:" not in str(error.value)


def test_hybrid_search_joins_the_ranking_by_words(trips: Path) -> None:
    searcher = Searcher(trips)
    by_model = searcher.search("fountain", top_k=8)
    ranks = {hit.file_name: hit.rank for hit in by_model.hits}
    result = searcher.search("fountain", top_k=8, hybrid=True)
    assert {"Rome/clip0.mp4", "it's 100%/image3.png"} == set(names(result)[:2]), "both captions have the word"
    for hit in result.hits[2:]:
        assert hit.score == pytest.approx(1 / (60 + ranks[hit.file_name]))
    assert result.hits[1].score > result.hits[2].score
    by_file = searcher.search("clip3", hybrid=True, filters=Filters(type="video")).hits
    assert by_file[0].file_name == "it's 100%/clip3.mp4"
    assert {Path(hit.file_name).suffix for hit in by_file} == {".mp4"}
    unknown = searcher.search("zzzz", top_k=8, hybrid=True)
    assert names(unknown) == names(searcher.search("zzzz", top_k=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "  "}, "query"),
        ({"words": QUERY, "top_k": 0}, "top_k=0"),
        ({"words": QUERY, "shortlist": 0}, "shortlist=0"),
        ({"words": QUERY, "rerank": "best"}, "rerank='best'"),
    ],
)
def test_queries_that_cannot_work(indexed: tuple[Path, Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Searcher(indexed[0]).search(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_folders_that_cannot_be_searched(
    model_folder: Path, other_model_folder: Path, indexed: tuple[Path, Path], tmp_path: Path
) -> None:
    index = tmp_path / "index"
    write_clip(tmp_path / "media" / "clip.mp4", seed=0)
    build_index(model_folder, tmp_path / "media", index)
    open_table(index).commit(gone=["clip.mp4"])
    for folder, model, message in [
        (tmp_path, None, "not an index"),
        (index, None, "without clips"),
        (indexed[0], other_model_folder, "another model"),
        (indexed[0], tmp_path / "nowhere", "no such folder"),
        (indexed[0], tmp_path, "no config.json"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            Searcher(folder, model)
        assert "\n" not in str(error.value)


def test_model_that_moved(model_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    write_clip(tmp_path / "media" / "clip.mp4", seed=0)
    build_index(model, tmp_path / "media", tmp_path / "index")
    model.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="say where it is with model="):
        Searcher(tmp_path / "index")
    assert names(Searcher(tmp_path / "index", tmp_path / "moved").search(QUERY)) == ["clip.mp4"]


def test_page_is_self_contained_and_escapes(indexed: tuple[Path, Path], model_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "media" / "<script>alert(1)<.mp4", seed=0)
    write_clip(tmp_path / "media" / "gone.mp4", seed=1)
    build_index(model_folder, tmp_path / "media", tmp_path / "index")
    results = [Searcher(tmp_path / "index").search("<i>words</i> & more"), Searcher(indexed[0]).search(QUERY, top_k=12)]
    (tmp_path / "media" / "gone.mp4").unlink()
    write_page(tmp_path / "page.html", results)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<i>words" not in page
    assert "<b>square" not in page
    assert "a red &lt;b&gt;square&lt;/b&gt;" in page
    assert "no such file" in page
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)]*)""", page)
    assert addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "file:///")) for address in addresses)
    assert page.count("<figure") == 13 * 8


def test_words_that_the_model_does_not_know_and_words_cut_off_are_said(indexed: tuple[Path, Path]) -> None:
    searcher = Searcher(indexed[0])
    assert searcher.search("a red circle").notes == []
    [unknown] = searcher.search("a red Ω circle 漢").notes
    assert unknown.startswith("the model does not know Ω, 漢: ")
    [cut] = searcher.search("a red circle " * 20 + "at last").notes
    assert cut.startswith("the model reads ")
    assert "at last” was cut off" in cut


def test_a_model_that_never_learned_to_search_is_named_when_it_is_opened(indexed: tuple[Path, Path]) -> None:
    [note] = Searcher(indexed[0]).notes
    assert "its multi-stream was never trained: search will be no better than chance" in note
