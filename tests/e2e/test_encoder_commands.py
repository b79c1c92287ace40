"""Pretrained encoders from the command line: init, a dual encoder for a model, features, and what is warned of."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import run_cli

from perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.data.synthetic.writing import write_world
from small_encoders import save_dual, save_onnx, save_text, save_vision
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`media`, a small CLIP (`clip`), and a vision and a text encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    write_world(folder / "media", clips=6, held_out=2, size=32)
    save_dual(folder / "clip", "clip")
    save_vision(folder / "vision", "vit")
    save_text(folder / "text")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_init_writes_a_model_that_is_whole(place: Path, tmp_path: Path) -> None:
    words = ["init", tmp_path / "out", "token_grid=2", "--vision", place / "vision", "--text", place / "text", "--json"]
    made = run_cli(*map(str, words))
    assert made.code == 0
    said = json.loads(made.out)
    assert said["base"] == "linear"
    assert set(said["licenses"]) == {str(place / "vision"), str(place / "text")}
    assert "its licence is not stated here" in made.err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("# out\n") == 1
    assert "its two encoders have never met" in card
    again = run_cli(*map(str, words))
    assert again.code == 2
    assert "is not empty, name a new folder" in again.err


@pytest.mark.parametrize("typed", ["token_grid", "token_grid=[", "token_gird=2", "num_frames=2", "vision=x"])
def test_init_names_what_it_cannot_read(place: Path, tmp_path: Path, typed: str) -> None:
    words = ["init", tmp_path / "out", typed, "--vision", place / "vision", "--text", place / "text"]
    made = run_cli(*map(str, words))
    assert made.code == 2
    assert typed.partition("=")[0] in made.err
    assert "Traceback" not in made.err
    assert not (tmp_path / "out").exists()


def test_a_dual_encoder_is_indexed_with_by_its_name(place: Path, tmp_path: Path, own_cache: Path) -> None:
    words = ["index", "--model", place / "clip", "--media", place / "media", "--out", tmp_path / "index"]
    made = run_cli(*map(str, words))
    assert made.code == 0
    assert "a dual encoder; a Perceiver-VL that stands on it is now in" in made.err
    assert "no better than chance" not in made.err + made.out
    [model] = (own_cache / "perceiver-vl" / "models").iterdir()
    again = run_cli(*map(str, words))
    assert (again.code, "is now in" in again.err) == (0, False)
    assert [model] == list((own_cache / "perceiver-vl" / "models").iterdir())
    found = run_cli("search", "--index", str(tmp_path / "index"), "a dog", "--json")
    assert found.code == 0
    assert json.loads(found.out)[0]["searched"] == 6


def test_a_hub_name_without_a_network_is_one_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["index", "--model", "nobody/no-such-clip", "--media", place / "media", "--out", tmp_path / "index"]
    made = run_cli(*map(str, words))
    assert made.code == 2
    assert made.err.count("\n") == 1
    assert "nobody/no-such-clip" in made.err
    assert not (tmp_path / "index").exists()


def test_a_model_that_never_learned_to_search_says_so(place: Path, tmp_path: Path) -> None:
    run_cli("init", str(tmp_path / "two"), "--vision", str(place / "vision"), "--text", str(place / "text"))
    tiny_model(PerceiverVLForRetrieval, vocab_size=80).float().save_pretrained(tmp_path / "tiny")
    tiny_processor(["a red circle"]).save_pretrained(tmp_path / "tiny")
    for name, why in (("two", "its two encoders have never met"), ("tiny", "its multi-stream was never trained")):
        words = ["index", "--model", tmp_path / name, "--media", place / "media", "--out", tmp_path / f"index-{name}"]
        made = run_cli(*map(str, words))
        assert made.code == 0
        assert f"{why}: search will be no better than chance" in made.err


def test_a_model_over_an_onnx_file_is_not_exported(place: Path, tmp_path: Path) -> None:
    save_onnx(tmp_path / "onnx")
    run_cli("init", str(tmp_path / "model"), "--vision", str(tmp_path / "onnx"), "--text", str(place / "text"))
    made = run_cli("export", "--model", str(tmp_path / "model"), str(tmp_path / "out"))
    assert made.code == 2
    assert made.err.count("\n") == 1
    assert "its vision encoder is an ONNX file, which cannot be traced" in made.err
    assert not (tmp_path / "out").exists()


def test_a_dual_encoder_that_has_changed_is_another(place: Path, tmp_path: Path, own_cache: Path) -> None:
    clip = tmp_path / "clip"
    shutil.copytree(place / "clip", clip)
    words = ["index", "--model", clip, "--media", place / "media", "--out"]
    assert run_cli(*map(str, [*words, tmp_path / "a"])).code == 0
    (clip / "config.json").write_text((clip / "config.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run_cli(*map(str, [*words, tmp_path / "b"])).code == 0
    assert len(list((own_cache / "perceiver-vl" / "models").iterdir())) == 2


def test_features_are_prepared_at_the_size_of_their_encoder(place: Path, tmp_path: Path) -> None:
    run_cli("init", str(tmp_path / "model"), "--dual", str(place / "clip"))
    words = ["prepare", place / "media", tmp_path / "features", "--features", tmp_path / "model"]
    refused = run_cli(*map(str, [*words, "--size", "64"]))
    assert refused.code == 2
    assert "of frames at the encoder's size, leave size, fps and format out" in refused.err
    assert run_cli(*map(str, [*words, "--num-frames", "3", "--workers", "1"])).code == 0
    assert run_cli("prepare", str(tmp_path / "features"), "--verify").code == 0
    scored = ["evaluate", "--model", tmp_path / "model", "--task", "retrieval", "--data", tmp_path / "features"]
    assert run_cli(*map(str, [*scored, "--num-frames", "3"])).code == 0
    more = run_cli(*map(str, scored))
    assert more.code == 2
    assert "features of 3 frames a clip, 8 are asked for" in more.err
