"""Averages of models: what they hold, that they are models, and what has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perceiver_vl import PerceiverVLError, PerceiverVLForRetrieval, PerceiverVLProcessor, UsageError
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.merging import merge, shares_of
from perceiver_vl.training.reporting.model_card import write_model_card
from small_media import save_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of one configuration that share a tensor; not to be changed."""
    folders = [save_model(tmp_path_factory.mktemp(f"model{seed}") / "model", seed) for seed in range(3)]
    shared = load_file(folders[0] / WEIGHTS)["vtm_query.query"]
    for folder in folders:
        save_file(load_file(folder / WEIGHTS) | {"vtm_query.query": shared}, folder / WEIGHTS, {"format": "pt"})
    return folders


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0], [0.0, 0.3, 0.9]])
def test_every_tensor_is_the_average(models: list[Path], weights: list[float] | None, tmp_path: Path) -> None:
    merged = merge(models, tmp_path / "merged", weights)
    given = [1.0, 1.0, 1.0] if weights is None else weights
    found, states = load_file(tmp_path / "merged" / WEIGHTS), [load_file(folder / WEIGHTS) for folder in models]
    assert found.keys() == states[0].keys()
    for name, value in found.items():
        wanted = sum(one * state[name].double() for one, state in zip(given, states, strict=True)) / sum(given)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["vtm_query.query"], states[0]["vtm_query.query"])
    assert merged.tensors == len(found)
    same = sum(all(torch.equal(states[0][name], state[name]) for state in states) for name in found)
    assert 0 < merged.averaged == merged.tensors - same
    assert sum(merged.shares.values()) == pytest.approx(1)
    model, processor = load_retriever(tmp_path / "merged")
    assert torch.equal(model.vtm_head.dense.weight, found["vtm_head.dense.weight"])
    assert processor.tokenizer.get_vocab() == PerceiverVLProcessor.from_pretrained(models[0]).tokenizer.get_vocab()


def test_the_whole_share_is_the_model_itself_bit_for_bit(models: list[Path], tmp_path: Path) -> None:
    merge(models[:2], tmp_path / "merged", [0, 4])
    assert (tmp_path / "merged" / WEIGHTS).read_bytes()[-1000:] == (models[1] / WEIGHTS).read_bytes()[-1000:]
    one, two = load_file(tmp_path / "merged" / WEIGHTS), load_file(models[1] / WEIGHTS)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_models_in_several_files_and_in_half_precision_are_averaged(models: list[Path], tmp_path: Path) -> None:
    halves = []
    for number, folder in enumerate(models[:2]):
        model = PerceiverVLForRetrieval.from_pretrained(folder, dtype=torch.bfloat16)
        half = Path(shutil.copytree(folder, tmp_path / f"half{number}"))
        (half / WEIGHTS).unlink()
        model.save_pretrained(half, max_shard_size="60KB" if number == 0 else "40KB")
        halves.append(half)
    (halves[0] / "ema.safetensors").write_bytes(b"of a run, and no part of the model")
    merge(halves, tmp_path / "merged")
    assert len([*(tmp_path / "merged").glob("model-*.safetensors")]) > 1
    merged, *own = (PerceiverVLForRetrieval.from_pretrained(f).state_dict() for f in (tmp_path / "merged", *halves))
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, ((own[0][name].float() + own[1][name].float()) / 2).bfloat16()), name


def test_values_that_are_no_numbers_have_no_average(models: list[Path], tmp_path: Path) -> None:
    bad = Path(shutil.copytree(models[1], tmp_path / "bad"))
    state = load_file(bad / WEIGHTS)
    name = next(name for name, value in state.items() if value.ndim > 1)
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, bad / WEIGHTS, {"format": "pt"})
    with pytest.raises(PerceiverVLError, match=r"bad: .* has values that are no numbers"):
        merge([models[0], bad], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge([models[0], bad], tmp_path / "merged", [1, 0])  # what has no part in it may be anything
    with pytest.raises(UsageError, match="of a finite sum"):
        merge(models[:2], tmp_path / "other", [1e308, 1e308])
    with pytest.raises(UsageError, match=r"config\.json: is a file, name a new folder"):
        merge(models[:2], tmp_path / "merged" / "config.json")


def test_the_card_says_what_it_was_merged_of(models: list[Path], tmp_path: Path) -> None:
    parts = shares_of(models, [1, 1, 2])
    assert parts == {"model (1)": 0.25, "model (2)": 0.25, "model (3)": 0.5}
    merge(models, tmp_path / "merged", [1, 1, 2], write_card=lambda folder: write_model_card(folder, merged=parts))
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "# merged\n" in card
    assert "| `model (3)` | 50 % |" in card
    assert str(tmp_path) not in card


# --- What has no average --------------------------------------------------------------------------------------------


def changed_config(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"layer_drop": 0.25}))


def changed_word(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    settings = json.loads(text)
    words = settings["model"]["vocab"]
    first, *_, last = words
    words[first], words[last] = words[last], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(settings))


def changed_frames(folder: Path) -> None:
    (name,) = (one.name for one in folder.glob("p*rocessor_config.json"))
    (folder / name).write_text((folder / name).read_text().replace('"num_frames": 4', '"num_frames": 3'))


def another_shape(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(state | {"vtm_query.query": state["vtm_query.query"][:-1].clone()}, folder / WEIGHTS)


def another_name(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(
        {f"{name}2" if name == "vtm_query.query" else name: value for name, value in state.items()}, folder / WEIGHTS
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_config, r"config.json differs from that of \S+: layer_drop is 0.25, not 0.5; only models of one"),
        (changed_word, r"tokenizer.json differs from that of \S+: model.vocab.\S+ is \d+, not \d+; only models of one"),
        (changed_frames, r"\S+ differs from that of \S+: \S*num_frames is 3, not 4; only models of one"),
        (another_shape, r"vtm_query.query is \(31,\) float32, in \S+ \(32,\) float32, merge models of one kind"),
        (another_name, r"vtm_query.query is not in both it and \S+, merge models of one kind"),
    ],
)
def test_models_that_are_not_alike_are_refused_by_the_first_difference(
    models: list[Path], change: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(models[1], tmp_path / "other"))
    change(other)
    with pytest.raises(UsageError, match=rf"^{other}: {named}[^\n]*$"):
        merge([models[0], other], tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_damaged_weights_and_places_that_are_taken_are_refused(models: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(models[1], tmp_path / "other"))
    (other / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(PerceiverVLError, match=rf"^{other / WEIGHTS}: cannot be read[^\n]+$"):
        merge([models[0], other], tmp_path / "merged")
    with pytest.raises(UsageError, match=rf"^{other}: is not empty, name a new folder$"):
        merge(models[:2], other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match=r"^weights=[^\n]+: need [^\n]+$"):
        shares_of(["a", "b"], weights)
    with pytest.raises(UsageError, match=r"^merge: need at least two models$"):
        shares_of(["a"])
