import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor, train_tokenizer
from perceiver_vl.utils.errors import MediaError, UsageError

CAPTIONS = [f"a {colour} {shape} {verb}" for colour in ("red", "blue", "green") for shape in ("square", "circle")
            for verb in ("moves left", "is growing", "Blinks twice!")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=200)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return PerceiverVLProcessor(PerceiverVLImageProcessor(size=32, num_frames=4), tokenizer)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def same(inputs, others):
    assert inputs.keys() == others.keys()
    for name, value in inputs.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(others[name])), name


# Pixels


def test_values_are_normalised_in_channel_order(processor):
    image = pixels(32, 32)
    inputs = processor(images=image)
    assert inputs.keys() == {"pixel_values", "frame_mask"}
    assert inputs["pixel_values"].shape == (1, 1, 3, 32, 32)
    assert inputs["pixel_values"].dtype == torch.float32
    expected = (image.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(inputs["pixel_values"][0, 0], expected, atol=1e-6)
    assert inputs["frame_mask"].tolist() == [[1]]
    assert inputs["frame_mask"].dtype == torch.int64


def test_each_channel_has_its_own_mean_and_std():
    image_processor = PerceiverVLImageProcessor(size=8, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.125])
    value = image_processor(np.full((8, 8, 3), 255, np.uint8))["pixel_values"][0, 0, :, 0, 0]
    torch.testing.assert_close(value, torch.tensor([1.8, 3.2, 5.6]))


def test_an_image_is_the_same_in_every_form(processor, tmp_path):
    image = pixels(40, 50)
    picture = Image.fromarray(image)
    picture.save(tmp_path / "image.png")
    expected = processor(images=image)
    np.testing.assert_allclose(
        expected["pixel_values"][0, 0].permute(1, 2, 0), resize_frame(image, (32, 32)) / 127.5 - 1, atol=1e-6
    )
    tensor = torch.from_numpy(image)
    forms = [
        picture,
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        tensor,
        tensor.permute(2, 0, 1),
        image.astype(np.float32) / 255,
        tensor.permute(2, 0, 1).double() / 255,
        [image],
        image[None],
    ]
    for form in forms:
        same(processor(images=form), expected)


def test_a_clip_is_the_same_in_every_form(processor, tmp_path):
    clip = pixels(3, 24, 40)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=5, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 24, 40, "rgb24"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    expected = processor(videos=clip)
    assert expected["frame_mask"].tolist() == [[1, 1, 1]]
    tensor = torch.from_numpy(clip)
    pictures = [Image.fromarray(frame) for frame in clip]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    forms = [
        str(tmp_path / "clip.mkv"),
        [tmp_path / "clip.mkv"],
        tensor,
        tensor.permute(0, 3, 1, 2),
        clip / 255,
        pictures,
        [pictures],
        list(clip),
        [[tmp_path / f"{number}.png" for number in range(3)]],
        clip[None],
    ]
    for form in forms:
        same(processor(videos=form), expected)


def test_shorter_clips_are_padded_with_zeros(processor):
    inputs = processor(videos=[pixels(1, 32, 32), pixels(3, 32, 32), pixels(2, 20, 20)])
    assert inputs["frame_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    padding = inputs["pixel_values"][inputs["frame_mask"] == 0]
    assert torch.count_nonzero(padding) == 0
    alone = processor(videos=pixels(2, 20, 20))["pixel_values"]
    assert torch.equal(inputs["pixel_values"][2:, :2], alone)


@pytest.mark.parametrize(("num_frames", "expected"), [(None, [1, 3, 5, 7]), (2, [2, 6]), (64, list(range(8)))])
def test_longer_clips_are_sampled_at_equal_distances(processor, num_frames, expected):
    clip = np.arange(8, dtype=np.uint8).repeat(8 * 8 * 3).reshape(8, 8, 8, 3)
    for form in (clip, torch.from_numpy(clip), list(clip)):
        inputs = processor(videos=form, num_frames=num_frames)
        levels = (inputs["pixel_values"][0, :, 0, 0, 0] * 0.5 + 0.5) * 255
        assert levels.round().int().tolist() == expected


def test_images_are_clips_of_one_frame(processor):
    images = [pixels(32, 32, seed=seed) for seed in range(3)]
    inputs = processor(images=images)
    assert inputs["pixel_values"].shape == (3, 1, 3, 32, 32)
    same(processor(images=np.stack(images)), inputs)
    same(processor(videos=[image[None] for image in images]), inputs)


def test_the_image_processor_alone_takes_videos(processor):
    clip = pixels(2, 32, 32)
    same(processor.image_processor(videos=clip), processor(videos=clip))
    same(processor.image_processor(clip[0]), processor(images=clip[0]))


@pytest.mark.filterwarnings("error")
def test_inputs_are_not_changed(processor):
    clip = pixels(2, 32, 32)
    before = clip.copy()
    processor(videos=clip)
    np.testing.assert_array_equal(clip, before)
    clip.setflags(write=False)
    processor(videos=clip)


def test_numpy_on_request(processor):
    inputs = processor(text="a red square", images=pixels(32, 32), return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    same(inputs, processor(text="a red square", images=pixels(32, 32)))


# Words


def test_text_is_padded_to_the_longest(processor):
    inputs = processor(text=["a red square", "a blue circle moves left"])
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert inputs["attention_mask"].sum(1).tolist() == [5, 7]
    assert inputs["input_ids"].shape == (2, 7)
    assert inputs["input_ids"][0, 5:].tolist() == [0, 0]


def test_text_is_cut(processor, tokenizer):
    long = "red " * 100
    assert processor(text=long)["input_ids"].shape == (1, 40)
    assert processor(text=long, max_length=8)["input_ids"].shape == (1, 8)
    assert processor(text=long, max_length=8)["input_ids"][0, -1] == tokenizer.sep_token_id
    assert processor(text="red", max_length=8, padding="max_length")["input_ids"].shape == (1, 8)


def test_text_and_clips_together(processor):
    inputs = processor(text=["red", "blue"], videos=[pixels(2, 32, 32)] * 2)
    assert list(inputs) == ["input_ids", "attention_mask", "pixel_values", "frame_mask"]
    assert processor.model_input_names == list(inputs)


def test_the_tokenizer_has_the_form_of_berts(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert tokenizer.mask_token_id == 4
    assert tokenizer.model_max_length == 40
    ids = tokenizer("A RED square blinks twice!")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "square", "blinks", "twice", "!", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("日本")["input_ids"])[1:-1] == ["[UNK]", "[UNK]"]
    assert "token_type_ids" not in tokenizer("a")


def test_the_vocabulary_is_as_small_as_asked(tokenizer):
    needed = len(train_tokenizer(["ab"]))
    assert needed == 5 + 2 + 2  # special tokens, the letters, and the letters within a word
    assert len(train_tokenizer(CAPTIONS, vocab_size=60)) <= 60 < len(tokenizer)
    with pytest.raises(UsageError, match="vocab_size=8"):
        train_tokenizer(["ab"], vocab_size=8)
    with pytest.raises(UsageError, match="no words"):
        train_tokenizer(["", " "])


# Saving and loading

ELSEWHERE = """
import json, sys
import numpy as np
from transformers import AutoProcessor
from perceiver_vl.models.perceiver_vl.processing import train_tokenizer
processor = AutoProcessor.from_pretrained(sys.argv[1])
clip = np.random.default_rng(5).integers(0, 256, (9, 20, 30, 3), np.uint8)
inputs = processor(text="A blue circle, blinking", videos=clip)
print(json.dumps({
    "class": type(processor).__name__,
    "inputs": {name: value.tolist() for name, value in inputs.items()},
    "vocabulary": train_tokenizer(json.loads(sys.argv[2]), vocab_size=80).get_vocab(),
}))
"""
WORDS = [f"{a}{b}{c} {c}{a}" for a in "abcdé" for b in "fghij" for c in "klmn"]


@pytest.fixture(scope="module")
def elsewhere(processor, tmp_path_factory):
    """What another process makes of the saved processor, and of training a tokenizer on WORDS."""
    folder = tmp_path_factory.mktemp("saved")
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "perceiver_vl"}))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ELSEWHERE, str(folder), json.dumps(WORDS)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


def test_auto_processor_loads_it_in_another_process(processor, elsewhere):
    assert elsewhere["class"] == "PerceiverVLProcessor"
    clip = np.random.default_rng(5).integers(0, 256, (9, 20, 30, 3), np.uint8)
    expected = processor(text="A blue circle, blinking", videos=clip)
    same({name: torch.tensor(value) for name, value in elsewhere["inputs"].items()}, expected)


def test_the_same_captions_give_the_same_vocabulary(elsewhere):
    assert train_tokenizer(WORDS, vocab_size=80).get_vocab() == elsewhere["vocabulary"]


def test_from_pretrained(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = PerceiverVLProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.num_frames == 4
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded.tokenizer.model_max_length == 40
    arguments = {"text": CAPTIONS, "videos": [pixels(6, 20, 20), pixels(2, 40, 40)]}
    same(loaded(**arguments), processor(**arguments))


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing given: need text, images or videos"),
        ({"images": pixels(8, 8), "videos": pixels(2, 8, 8)}, "images and videos together"),
        ({"text": 3}, "text of type int"),
        ({"text": ["a", None]}, r"text\[1\] of type NoneType"),
        ({"text": []}, r"text=\[\]"),
        ({"text": "a", "return_tensors": "tf"}, "return_tensors='tf'"),
        ({"images": 3}, "images of type int"),
        ({"images": []}, r"images=\[\]"),
        ({"images": [pixels(8, 8), {}]}, r"images\[1\] of type dict"),
        ({"images": np.zeros((8, 8), np.uint8)}, r"images of shape \(8, 8\)"),
        ({"images": np.zeros((8, 8, 4), np.uint8)}, "need 3 colours"),
        ({"images": np.zeros((0, 8, 3), np.uint8)}, "holds no pixels"),
        ({"images": np.zeros((8, 8, 3), np.int64)}, "dtype int64"),
        ({"images": np.full((8, 8, 3), 200.0)}, "values from 200 to 200"),
        ({"images": np.full((8, 8, 3), np.nan)}, "values from nan"),
        ({"videos": 3}, "videos of type int"),
        ({"videos": pixels(8, 8)}, r"videos of shape \(8, 8, 3\)"),
        ({"videos": [[]]}, r"videos\[0\]: no frames"),
        ({"videos": pixels(2, 8, 8), "num_frames": 0}, "num_frames=0: need at least one frame"),
    ],
)
def test_wrong_values_are_named(processor, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        processor(**arguments)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(processor, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match=r"empty\.mp4: empty file"):
        processor(videos=[tmp_path / "empty.mp4"])


@pytest.mark.parametrize("arguments", [{"do_normalize": False}, {"resample": 0}, {"size": {"shortest_edge": 8}}])
def test_settings_that_would_be_ignored_are_refused(arguments):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        PerceiverVLImageProcessor(**arguments)
