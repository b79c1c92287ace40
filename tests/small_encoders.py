"""Small encoders with random weights, saved as people name them: CLIP, SigLIP, ViT, DINOv2, ConvNeXt, BERT, ONNX."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer

TEXTS = ["a dog runs", "two cats sleep on the grass", "a man"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
SMALL = {"hidden_size": 24, "num_attention_heads": 4, "num_latents": 4}


def save_tokenizer(folder: Path) -> int:
    tokenizer = train_tokenizer([*TEXTS, "a woman plays guitar"], vocab_size=200, max_length=16)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_dual(folder: Path, kind: str) -> Any:
    """A small CLIP or SigLIP with random weights, its tokenizer and image processor."""
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": save_tokenizer(folder), "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": 3}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
        model: Any = transformers.CLIPModel(config)
        images: Any = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
        images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return model


def save_vision(folder: Path, kind: str) -> Any:
    torch.manual_seed(1)
    models: dict[str, Any] = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**VISION)),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=3)
        ),
        "convnext": lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)
        ),
    }
    size = 64 if kind == "convnext" else 32
    transformers.ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    models[kind]().eval().save_pretrained(folder)
    return models


def save_text(folder: Path) -> Any:
    torch.manual_seed(2)
    words = save_tokenizer(folder)
    config = transformers.BertConfig(**{**TOWER, "hidden_size": 28}, vocab_size=words, max_position_embeddings=16)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def save_onnx(folder: Path, **changes: Any) -> None:
    """A graph of one convolution, whose tokens are a grid of 4 × 4, beside its encoder.json."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(exist_ok=True)
    weight = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32) / 10
    shape = numpy_helper.from_array(np.array([0, 12, 16], np.int64), "shape")
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["map"], strides=[8, 8]),
        helper.make_node("Reshape", ["map", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["tokens"], ["mean"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["b", 16, 12]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["b", 12]),
        ],
        [numpy_helper.from_array(weight, "weight"), shape],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    spec = {"file": "model.onnx", "input": "pixels", "tokens": "tokens", "image_size": 32, "grid": [4, 4], "width": 12}
    spec |= {"rescale": "(pixel - 127) / 128", "license": "MIT"}
    (folder / "encoder.json").write_text(json.dumps(spec | changes), encoding="utf-8")
