"""Equal to the released code, value by value: what the input array, the latents, the decoder and the heads hold, and
the gradients of the losses.
"""

import json
import re
from typing import Any

import pytest
import torch
from parity import DTYPES, TOLERANCE
from released import FOLDER, TASKS, differences, released_model
from safetensors.torch import load_file

from perceiver_vl import PerceiverVLError

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden tensors beside the project ({FOLDER})")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", TASKS)
def test_every_value_of_a_case(case: str, precision: str) -> None:
    found = differences(case, precision)
    assert {name: value for name, value in found.items() if not value <= TOLERANCE[precision]} == {}


@pytest.mark.parametrize("case", TASKS)
def test_no_golden_value_is_left_out(case: str) -> None:
    golden = load_file(FOLDER / f"{case}.safetensors")
    compared = differences(case, "f64")
    values = {name for name in golden if re.match(r"(mid|out)\.f64\.", name)}
    assert len([name for name in compared if not name.startswith("grad.")]) == len(values) > 0


@pytest.mark.parametrize("case", ["video_mlm", "image_vqa"])
def test_every_golden_gradient_has_a_place(case: str) -> None:
    golden = load_file(FOLDER / f"{case}.safetensors")
    gradients = {name.removeprefix("grad.f64."): value for name, value in golden.items() if name.startswith("grad.")}
    _, loaded = released_model(TASKS[case], torch.float64, gradients)
    compared = [name for name in differences(case, "f64") if name.startswith("grad.")]
    assert gradients
    assert len(compared) == len(loaded) >= len(gradients)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("video_mlm", {"cross_attention_residual": "queries"}),
        ("video_mlm", {"mask_embedding_row": 1}),
        ("video_match", {"zero_frames_are_padding": False}),
        ("video_match", {"modality_embedding": True}),
        ("image_match", {"latent_position": "fourier"}),
        ("image_vqa", {"answers_from": "query"}),
    ],
)
def test_as_the_paper_has_it_gives_other_values(case: str, changes: dict[str, Any]) -> None:
    assert max(differences(case, "f64", **changes).values()) > 1e-3


def test_a_segment_table_without_its_place_is_refused() -> None:
    with pytest.raises(PerceiverVLError, match="token_type_embeddings"):
        released_model("retrieval", torch.float64, type_vocab_size=0)


def test_the_weights_are_all_accounted_for() -> None:
    weights = load_file(FOLDER / "weights.safetensors")
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert set(weights) == set(manifest["weights"]["tensors"])
