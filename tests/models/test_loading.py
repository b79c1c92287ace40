"""Model folders that cannot be used are refused in one line that names what is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.loading import load_retriever


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def write_index(folder: Path, file: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"some.weight": file}}))


def keep_base_model_only(folder: Path) -> None:
    load_retriever(folder, "cpu")[0].perceiver_vl.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a configuration"),
        (lambda folder: change_config(folder, model_type="bert"), "model_type='bert'"),
        (lambda folder: change_config(folder, hidden_size=33), "hidden_size=33"),
        (lambda folder: change_config(folder, hidden_size=64), "weights of other shapes, give a model trained for"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "processor_config.json").unlink(), "no processor"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (cut_weights, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not a configuration"),
        (lambda folder: change_config(folder, num_blocks=10**6), "num_blocks=1000000"),
        (lambda folder: change_config(folder, vocab_size=10**30), "vocab_size=1"),
        (lambda folder: change_config(folder, vocab_size=40), "its tokenizer has|weights of other shapes"),
        (lambda folder: write_index(folder, "../elsewhere.safetensors"), "names '../elsewhere.safetensors', outside"),
        (lambda folder: write_index(folder, "/elsewhere.safetensors"), "names '/elsewhere.safetensors', outside"),
        (lambda folder: write_index(folder, 3), "names 3, outside"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "not an index of weights"),
        (keep_base_model_only, "trained for retrieval"),
    ],
)
def test_unusable_model_folder(
    spoil: Callable[[Path], object], message: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    spoil(folder)
    with pytest.raises(PerceiverVLError, match=message) as error:
        load_retriever(folder)
    assert "\n" not in str(error.value)


def test_fingerprint_is_of_weights_configuration_and_frame_preparation(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "README.md").write_text("about")
    assert model_fingerprint(folder) == model_fingerprint(model_folder)
    change_config(folder, max_frames=3)
    assert model_fingerprint(folder) != model_fingerprint(model_folder)


def test_fingerprint_is_of_weights_below_the_folder_too(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    names = list(load_file(folder / "model.safetensors"))
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "all.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "parts/all.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = model_fingerprint(folder)
    content = bytearray((folder / "parts" / "all.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "parts" / "all.safetensors").write_bytes(content)
    assert model_fingerprint(folder) != before


def test_loading_is_quiet(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, _ = load_retriever(model_folder)
    assert not model.training
    assert capfd.readouterr() == ("", "")


def test_an_empty_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=str(tmp_path)):
        model_fingerprint(tmp_path)
