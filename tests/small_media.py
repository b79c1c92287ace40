"""Makes tiny retrieval models with their processor, and small clips and images."""

from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from perceiver_vl import PerceiverVLConfig, PerceiverVLForRetrieval, PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer

CAPTIONS = ["a red square moves left", "a blue circle grows", "two green triangles meet", "a yellow star blinks"] * 2


def save_model(folder: Path, seed: int = 0) -> Path:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=120, max_length=12)
    config = PerceiverVLConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_blocks=2,
        self_attentions_per_block=1,
        num_latents=6,
        num_text_latents=3,
        image_size=64,
        patch_size=32,
        max_frames=4,
        vocab_size=len(tokenizer),
        max_text_length=12,
        mask_token_id=tokenizer.mask_token_id,
        projection_dim=16,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    PerceiverVLForRetrieval(config).save_pretrained(folder)
    image_processor = PerceiverVLImageProcessor(size={"height": 64, "width": 64}, num_frames=4)
    PerceiverVLProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def write_clip(path: Path, seed: int, frames: int = 8) -> Path:
    """A clip of 0.8 s: a background of one colour and a square that moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    background, square, start = draw.integers(0, 256, 3), draw.integers(0, 256, 3), draw.integers(0, 30)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for number in range(frames):
            picture = np.broadcast_to(background, (48, 80, 3)).astype(np.uint8)
            picture[10:30, start + 3 * number : start + 3 * number + 20] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((80, 60), Image.Resampling.NEAREST).save(path)
    return path
