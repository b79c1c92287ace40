"""`pipeline("moments")`: the same moments as by an index."""

from pathlib import Path

import pytest

import perceiver_vl
from perceiver_vl import MediaError, UsageError
from perceiver_vl.search import MomentOptions, Searcher, build_index
from small_media import write_clip, write_image


def test_moments_are_those_of_an_index(model_folder: Path, tmp_path: Path) -> None:
    media = [write_clip(tmp_path / "media" / f"{name}.mp4", seed, 50) for seed, name in enumerate("abc")]
    find = perceiver_vl.pipeline("moments", model_folder, device="cpu")
    how = {"segments": 0.5, "segment_fps": 4.0}
    build_index(model_folder, tmp_path / "media", tmp_path / "index", **how)  # type: ignore[arg-type]
    options = MomentOptions(top_k=5, per_video=2, max_length=3)
    words = ["a red square", "a blue circle grows"]
    found = find(words, media, options=options, **how)  # type: ignore[arg-type]
    for query, moments in zip(words, found, strict=True):
        wanted = Searcher(tmp_path / "index").moments(query, options).moments
        assert [(Path(one["file"]).name, one["start"], one["end"]) for one in moments] == [
            (one.file_name, one.start, one.end) for one in wanted
        ]
        for name in ("score", "multi_score", "mixed_score"):
            assert [one[name] for one in moments] == pytest.approx([getattr(one, name) for one in wanted], abs=1e-4)
    assert find(words[0], media[0], **how)[0]["file"] == str(media[0])  # type: ignore[arg-type]


def test_what_cannot_be_searched(model_folder: Path, tmp_path: Path) -> None:
    find = perceiver_vl.pipeline("moments", model_folder, device="cpu")
    clip = write_clip(tmp_path / "a.mp4", 1)
    with pytest.raises(MediaError, match="a picture, it has no moments"):
        find("red", write_image(tmp_path / "a.png", 1))
    with pytest.raises(UsageError, match="segments=often"):
        find("red", clip, segments="often")
    with pytest.raises(UsageError, match="segment_fps=0"):
        find("red", clip, segment_fps=0)
    with pytest.raises(UsageError, match="top_k=0"):
        find("red", clip, options=MomentOptions(top_k=0))
