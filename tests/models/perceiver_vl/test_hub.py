"""`push_to_hub` and `from_pretrained` over HTTP, against a stand-in for the hub on the loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, Hub, hub_stand_in
from huggingface_hub import ModelCard
from safetensors.torch import load

from perceiver_vl import PerceiverVLForQuestionAnswering, PerceiverVLForRetrieval
from perceiver_vl.training.reporting.model_card import write_model_card
from tiny import tiny_model, tiny_processor

PUSH_AND_LOAD = """
import json, sys, torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
import perceiver_vl.models.perceiver_vl, perceiver_vl.models.perceiver_vl.processing

model = AutoModelForVisualQuestionAnswering.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
model.push_to_hub("me/perceiver", max_shard_size="50KB", tags=["shapes"])
processor.push_to_hub("me/perceiver")

again = AutoModelForVisualQuestionAnswering.from_pretrained("me/perceiver").eval()
words = AutoProcessor.from_pretrained("me/perceiver")(text="what colour is it")
clip = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(1, 2, 3, 16, 16)
print(json.dumps([again(**words, pixel_values=clip).logits.tolist(), words["input_ids"].tolist()]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stand_in() as hub:
        yield hub


def run(script: str, *arguments: Path, hub: Hub, home: Path) -> str:
    """The standard output of a Python script that knows the hub by its environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    settings["HF_HUB_DISABLE_XET"] = "1"  # the weights over Git LFS, which is plain HTTP
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{hub.requests}"
    return done.stdout


def test_what_is_pushed_arrives_and_loads_again(hub: Hub, tmp_path: Path) -> None:
    labels = {"id2label": {0: "red", 1: "blue"}, "label2id": {"red": 0, "blue": 1}}
    model, processor = (
        tiny_model(PerceiverVLForQuestionAnswering, **labels).float(),
        tiny_processor(["what colour is it"]),
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    printed = run(PUSH_AND_LOAD, tmp_path / "model", hub=hub, home=tmp_path / "home")

    assert list(hub.repositories) == ["me/perceiver"]
    files = hub.repositories["me/perceiver"]
    config = json.loads(files["config.json"])
    assert config["architectures"] == ["PerceiverVLForQuestionAnswering"]
    assert config["model_type"] == "perceiver_vl"
    assert config["id2label"] == {"0": "red", "1": "blue"}
    shards = {name: load(content) for name, content in files.items() if name.endswith(".safetensors")}
    assert len(shards) > 2
    index = json.loads(files["model.safetensors.index.json"])["weight_map"]
    pushed = {name: value for shard in shards.values() for name, value in shard.items()}
    assert pushed.keys() == index.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(pushed[name], value) for name, value in model.named_parameters())
    assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["shapes"]

    logits, ids = json.loads(printed)
    words = processor(text="what colour is it")
    assert ids == words["input_ids"].tolist()
    clip = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(1, 2, 3, 16, 16)
    torch.testing.assert_close(torch.tensor(logits), model(**words, pixel_values=clip).logits, rtol=1e-5, atol=1e-5)


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("me/shapes")
HfApi().upload_folder(repo_id="me/shapes", folder_path=sys.argv[1])
"""


def test_a_folder_is_uploaded_with_its_card(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    processor = tiny_processor(["a red circle", "a blue star"])
    tiny_model(PerceiverVLForRetrieval, vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder)
    run(UPLOAD, folder, hub=hub, home=tmp_path / "home")
    files = hub.repositories["me/shapes"]
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "POST /api/validate-yaml" in hub.requests
