"""`export`: graphs that give what the model gives, for any batch, number of frames and length of text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    PerceiverVLProcessor,
    UsageError,
)
from perceiver_vl.inference.export import export, run_onnx
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from tiny import tiny_config, tiny_processor

pytest.importorskip("onnxruntime")
WORDS = ["a red circle", "a blue star moves left"] * 2


def saved(kind: type[PerceiverVLPreTrainedModel], folder: Path, **changes: Any) -> Path:
    processor = tiny_processor(WORDS)
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(processor.tokenizer), initializer_range=0.3, **changes)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(PerceiverVLForRetrieval, tmp_path_factory.mktemp("model"))


def inputs_of(folder: Path, frames: list[int]) -> dict[str, torch.Tensor]:
    """A batch of clips of so many frames, each with its words, as the exported processor makes it."""
    processor = PerceiverVLProcessor.from_pretrained(folder)
    clips = [torch.randint(256, (count, 3, 20, 30), dtype=torch.uint8) for count in frames]
    texts = (WORDS * len(frames))[: len(frames)]
    return dict(processor(text=texts, videos=clips, num_frames=max(frames)))


@pytest.mark.parametrize("frames", [[1], [1, 3], [4, 2, 1]])
def test_the_graphs_of_retrieval_give_what_the_model_gives(
    retriever: Path, onnx_graphs: Path, frames: list[int]
) -> None:
    model = PerceiverVLForRetrieval.from_pretrained(retriever).eval()
    given = inputs_of(onnx_graphs, frames)
    with torch.inference_mode():
        vision = model.encode_vision(given["pixel_values"], given["frame_mask"])
        text = model.encode_text(given["input_ids"], given["attention_mask"])
        wanted = [vision, model.pool_vision(vision)], [text, model.pool_text(text)], [model.match(vision, text)]
    graphs = json.loads((onnx_graphs / "export.json").read_text())["parts"]
    given |= {"vision_latents": vision, "text_latents": text}
    assert [graph["name"] for graph in graphs] == ["vision", "text", "matcher"]
    for graph, outputs in zip(graphs, wanted, strict=True):
        found = run_onnx(onnx_graphs / graph["file"], {name: given[name] for name in graph["inputs"]})
        for left, right in zip(found, outputs, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def onnx_graphs(retriever: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = export(retriever, tmp_path_factory.mktemp("exported") / "graphs")
    assert max(part.max_difference for part in result.parts) < 1e-5
    return result.folder


def test_a_budget_is_part_of_the_graph(retriever: Path, onnx_graphs: Path, tmp_path: Path) -> None:
    budget = ComputeBudget(latents=2, text_latents=1, cross_attentions=1)
    result = export(retriever, tmp_path / "small", format="torch", budget=budget)
    given = inputs_of(onnx_graphs, [3, 2])
    vision = torch.export.load(tmp_path / "small" / "vision.pt2").module()
    model = PerceiverVLForRetrieval.from_pretrained(retriever).eval()
    with torch.inference_mode():
        wanted = model.encode_vision(given["pixel_values"], given["frame_mask"], budget)
        found = vision(given["pixel_values"], given["frame_mask"])[0]
    assert wanted.shape[1] == 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert result.budget == str(budget)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(PerceiverVLForQuestionAnswering, "answers"), (PerceiverVLForImageClassification, "classes")],
)
def test_answers_and_classes(tmp_path: Path, kind: type[PerceiverVLPreTrainedModel], name: str) -> None:
    source = saved(kind, tmp_path / "model", id2label={0: "red", 1: "blue", 2: "no"})
    result = export(source, tmp_path / "out", format="onnx" if name == "answers" else "torch")
    (part,) = result.parts
    assert part.max_difference < 1e-5
    given = {key: value for key, value in inputs_of(tmp_path / "out", [2, 3]).items() if key in part.inputs}
    with torch.inference_mode():
        wanted = kind.from_pretrained(source).eval()(**given).logits
    if name == "answers":
        found = run_onnx(tmp_path / "out" / part.file, given)[0]
    else:
        found = torch.export.load(tmp_path / "out" / part.file).module()(*given.values())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["id2label"] == {"0": "red", "1": "blue", "2": "no"}


def test_what_cannot_be_exported(retriever: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    latents = saved(PerceiverVLModel, tmp_path / "latents")
    for source, out, options, said in (
        (retriever, "full", {}, "is not empty"),
        (retriever, "out", {"format": "tflite"}, "format=tflite: choose from onnx, torch"),
        (retriever, "out", {"budget": ComputeBudget(frames=2)}, "takes any number of frames"),
        (retriever, "out", {"budget": ComputeBudget(latents=500)}, "latents=500"),
        (tmp_path / "none", "out", {}, "no such folder"),
        (latents, "out", {}, "a PerceiverVLModel cannot be exported"),
    ):
        with pytest.raises(UsageError, match=said):
            export(source, tmp_path / out, **options)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"full", "latents"}


def test_tubelets_are_not_traced(tmp_path: Path) -> None:
    folder = saved(PerceiverVLForQuestionAnswering, tmp_path / "model", tubelet_size=2)
    with pytest.raises(UsageError, match="tubelet_size=2, a clip of one tubelet is traced apart"):
        export(folder, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()
