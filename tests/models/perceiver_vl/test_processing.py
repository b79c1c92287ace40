import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_utils import PILImageResampling

from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer
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
from perceiver_vl import train_tokenizer
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


# The options of transformers' processors


IMAGE = pixels(12, 20)
UNIT = IMAGE.astype(np.float32).transpose(2, 0, 1) / 255  # (3, 12, 20)
MEANS = np.array([[[0.1]], [[0.2]], [[0.3]]])
IMAGE_OPTIONS = {  # options, and what the pixels of IMAGE, (12, 20, 3), are with them and without being resized
    "do_resize": ({}, UNIT),
    "do_rescale": ({"do_rescale": False}, UNIT * 255),
    "rescale_factor": ({"rescale_factor": 2 / 255}, UNIT * 2),
    "do_normalize": ({"do_normalize": True}, (UNIT - 0.5) / 0.5),
    "image_mean": ({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3]}, (UNIT - MEANS) / 0.5),
    "image_std": ({"do_normalize": True, "image_std": 0.25}, (UNIT - 0.5) / 0.25),
    "do_center_crop": ({"do_center_crop": True, "crop_size": {"height": 8, "width": 10}}, UNIT[:, 2:10, 5:15]),
    "crop_size": ({"do_center_crop": True, "crop_size": 6}, UNIT[:, 3:9, 7:13]),
    "do_pad": ({"do_pad": True, "pad_size": {"height": 14, "width": 20}}, np.pad(UNIT, ((0, 0), (0, 2), (0, 0)))),
    "pad_size": ({"do_pad": True, "pad_size": 24}, np.pad(UNIT, ((0, 0), (0, 12), (0, 4)))),
}  # fmt: skip
LEFT = {"do_resize": False, "do_normalize": False}


@pytest.mark.parametrize("name", IMAGE_OPTIONS)
@pytest.mark.parametrize("form", ["array", "picture", "file", "clip"])
def test_options_of_images(processor, tmp_path, name, form):
    changes, expected = IMAGE_OPTIONS[name]
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    forms = {
        "array": {"images": IMAGE},
        "picture": {"images": [Image.fromarray(IMAGE)]},
        "file": {"images": tmp_path / "image.png"},
        "clip": {"videos": IMAGE[None]},
    }
    found = processor(**forms[form], **LEFT | changes)["pixel_values"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32)[None, None], rtol=1e-6, atol=1e-5)
    nested = {"videos_kwargs" if form == "clip" else "images_kwargs": LEFT | changes}
    assert torch.equal(processor(**forms[form], **nested)["pixel_values"], found)
    assert torch.equal(processor.image_processor(**forms[form], **LEFT | changes)["pixel_values"], found)


@pytest.mark.parametrize(
    "resample", [PILImageResampling.NEAREST, PILImageResampling.BILINEAR, PILImageResampling.LANCZOS]
)
def test_other_filters_are_pillows(processor, tmp_path, resample):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    expected = np.asarray(Image.fromarray(IMAGE).resize((32, 32), resample)).transpose(2, 0, 1) / 255
    for form in (IMAGE, tmp_path / "image.png"):
        found = processor(images=form, resample=resample, do_normalize=False)["pixel_values"][0, 0]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_sizes(processor, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    for form in (IMAGE, tmp_path / "image.png"):
        asked = {"height": 6, "width": 9}
        expected = resize_frame(IMAGE, (6, 9)).transpose(2, 0, 1)
        found = processor(images=form, size=asked, do_rescale=False, do_normalize=False)["pixel_values"]
        np.testing.assert_array_equal(found[0, 0], expected)
        assert processor(images=form, size=5)["pixel_values"].shape[-2:] == (5, 5)
        assert processor(images=form, size={"shortest_edge": 6})["pixel_values"].shape[-2:] == (6, 10)
        assert processor(images=form, size=6, default_to_square=False)["pixel_values"].shape[-2:] == (6, 10)
    found = processor(
        videos=[IMAGE[None], pixels(2, 20, 12)], size={"shortest_edge": 6}, do_center_crop=True, crop_size=6
    )
    assert found["pixel_values"].shape == (2, 2, 3, 6, 6)


def test_frames_of_several_sizes_are_padded_on_request(processor):
    images = [IMAGE, pixels(16, 8)]
    with pytest.raises(UsageError, match=r"frames of sizes \[\(12, 20\), \(16, 8\)\]: need do_resize"):
        processor(images=images, do_resize=False)
    found = processor(images=images, do_resize=False, do_pad=True)["pixel_values"]
    assert found.shape == (2, 1, 3, 16, 20)
    for image, padded in zip(images, found[:, 0], strict=True):
        height, width = image.shape[:2]
        assert torch.equal(padded[:, :height, :width], processor(images=image, do_resize=False)["pixel_values"][0, 0])
        assert torch.count_nonzero(padded[:, height:]) == torch.count_nonzero(padded[:, :, width:]) == 0
    with pytest.raises(UsageError, match="pad_size"):
        processor(images=images, do_resize=False, do_pad=True, pad_size=16)


def test_floats_that_are_not_rescaled_stay_what_they_are(processor):
    normed = np.random.default_rng(1).normal(size=(2, 32, 32, 3))
    found = processor(videos=normed, do_rescale=False, do_normalize=False)["pixel_values"]
    torch.testing.assert_close(found[0], torch.tensor(normed).permute(0, 3, 1, 2).float())
    unit = torch.rand(3, 32, 32)
    found = processor(images=unit, do_rescale=False)["pixel_values"]
    torch.testing.assert_close(found[0, 0], (unit - 0.5) / 0.5)


def test_the_colours_can_be_said_to_be_first_or_last(processor):
    unclear = pixels(3, 8)  # (3, 8, 3)
    same(
        processor(images=unclear, input_data_format="channels_first"),
        processor(images=unclear.transpose(1, 2, 0).copy()),
    )
    same(processor(images=torch.from_numpy(unclear), input_data_format="channels_last"), processor(images=unclear))


def test_pictures_can_be_refused_that_are_not_rgb(processor):
    grey = Image.fromarray(IMAGE[..., 0])
    same(processor(images=grey), processor(images=np.stack([IMAGE[..., 0]] * 3, axis=-1)))
    with pytest.raises(UsageError, match=r"images\[0\] of mode L: needs do_convert_rgb"):
        processor(images=[grey], do_convert_rgb=False)


def test_all_frames_without_sampling(processor, tmp_path):
    clip = pixels(7, 32, 32)
    Image.fromarray(clip[0]).save(tmp_path / "clip.gif", save_all=True, append_images=[*map(Image.fromarray, clip[1:])])
    for form in (clip, list(clip), tmp_path / "clip.gif"):
        assert processor(videos=form)["frame_mask"].shape == (1, 4)
        assert processor(videos=form, do_sample_frames=False)["frame_mask"].shape == (1, 7)
        assert processor(videos=form, videos_kwargs={"num_frames": 3})["frame_mask"].shape == (1, 3)


def test_tensors_are_put_where_they_are_wanted(processor):
    inputs = processor(videos=pixels(2, 32, 32), device="meta")
    assert {value.device.type for value in inputs.values()} == {"meta"}


LINE, SHORT = "a red square moves left", "blue"
TEXT_OPTIONS = {  # options, and what they do to the shapes of LINE (7 tokens) and SHORT (3 tokens)
    "max_length": ({"max_length": 4}, {"input_ids": (2, 4), "attention_mask": (2, 4)}),
    "truncation": ({"max_length": 4, "truncation": False}, {"input_ids": (2, 7), "attention_mask": (2, 7)}),
    "padding": ({"padding": "max_length"}, {"input_ids": (2, 40), "attention_mask": (2, 40)}),
    "pad_to_multiple_of": ({"pad_to_multiple_of": 5}, {"input_ids": (2, 10), "attention_mask": (2, 10)}),
    "add_special_tokens": ({"add_special_tokens": False}, {"input_ids": (2, 5), "attention_mask": (2, 5)}),
    "return_attention_mask": ({"return_attention_mask": False}, {"input_ids": (2, 7)}),
    "return_token_type_ids": (
        {"return_token_type_ids": True}, {"input_ids": (2, 7), "token_type_ids": (2, 7), "attention_mask": (2, 7)}),
    "return_special_tokens_mask": (
        {"return_special_tokens_mask": True},
        {"input_ids": (2, 7), "special_tokens_mask": (2, 7), "attention_mask": (2, 7)}),
    "return_offsets_mapping": (
        {"return_offsets_mapping": True}, {"input_ids": (2, 7), "offset_mapping": (2, 7, 2), "attention_mask": (2, 7)}),
    "return_length": ({"return_length": True}, {"input_ids": (2, 7), "length": (2,), "attention_mask": (2, 7)}),
    "return_overflowing_tokens": (
        {"max_length": 5, "return_overflowing_tokens": True},
        {"input_ids": (3, 5), "overflow_to_sample_mapping": (3,), "attention_mask": (3, 5)}),
    "stride": (
        {"max_length": 5, "return_overflowing_tokens": True, "stride": 2},
        {"input_ids": (4, 5), "overflow_to_sample_mapping": (4,), "attention_mask": (4, 5)}),
    "is_split_into_words": ({"is_split_into_words": True}, {"input_ids": (1, 8), "attention_mask": (1, 8)}),
    "text_pair": ({"text_pair": [SHORT, LINE]}, {"input_ids": (2, 9), "attention_mask": (2, 9)}),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_OPTIONS)
def test_options_of_text(processor, name):
    changes, expected = TEXT_OPTIONS[name]
    found = processor(text=[LINE, SHORT], **changes)
    assert {key: tuple(value.shape) for key, value in found.items()} == expected
    same(processor(text=[LINE, SHORT], text_kwargs=changes), found)


def test_the_side_of_padding(processor):
    assert processor(text=[LINE, SHORT], padding_side="left")["attention_mask"][1].tolist() == [0] * 4 + [1] * 3


def test_common_options_reach_text_and_clips(processor):
    given = {"text": LINE, "videos": pixels(2, 32, 32)}
    inputs = processor(**given, common_kwargs={"return_tensors": "np"})
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    inputs = processor(**given, text_kwargs={"return_tensors": "np"}, videos_kwargs={"return_tensors": "pt"})
    assert [type(value) for value in inputs.values()] == [np.ndarray] * 2 + [torch.Tensor] * 2


def test_every_option_is_tested_here(processor):
    with pytest.raises(UsageError) as caught:
        processor(text=LINE, do_nothing=True)
    offered = set(str(caught.value).split("choose among ")[1].split(", "))
    nested = {"text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs"}
    others = {"size", "default_to_square", "resample", "device", "do_convert_rgb", "do_sample_frames", "num_frames"}
    others |= {"padding_side", "input_data_format", "return_tensors"}
    assert offered == nested | others | IMAGE_OPTIONS.keys() | TEXT_OPTIONS.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_nothing": True}, "^do_nothing=True: unknown option"),
        ({"images_kwargs": {"colour": 3}}, "^images_kwargs: colour=3: unknown option"),
        ({"text_kwargs": {"size": 3}}, "^text_kwargs: size=3: unknown option"),
        ({"common_kwargs": {"size": 3}}, "^common_kwargs: size=3: unknown option, choose among return_tensors$"),
        ({"audio_kwargs": {}}, "^audio_kwargs={}: unknown option"),
        ({"disable_grouping": True}, "^disable_grouping=True: unknown option"),
        ({"do_rescale": "yes"}, "do_rescale"),
        ({"size": {"heigth": 3, "width": 3}}, "size"),
        ({"resample": 9}, "resampl"),
        ({"do_center_crop": True}, "crop_size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 8}}, "crop_size={'shortest_edge': 8}: need a height"),
        ({"do_pad": True, "pad_size": {"shortest_edge": 8}}, "pad_size={'shortest_edge': 8}: need a height"),
        ({"image_mean": [0.1, 0.2]}, "image_mean"),
        ({"num_frames": "many"}, "num_frames"),
        ({"padding": False}, "padding"),
        ({"padding": "longer"}, "longer is not a valid PaddingStrategy"),
        ({"max_length": 4, "text_kwargs": {"max_length": 3}}, "max_length"),
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ({"common_kwargs": {"return_tensors": "tf"}}, "return_tensors='tf'"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(processor, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        processor(text=[LINE, SHORT], images=IMAGE, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"do_resize": False}, {"resample": 0}, {"size": {"shortest_edge": 8}}])
def test_settings_that_the_decoders_would_ignore_are_refused(arguments):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        PerceiverVLImageProcessor(**arguments)


def test_settings_are_kept(tokenizer, tmp_path):
    made = {"do_rescale": False, "do_normalize": False, "do_center_crop": True, "crop_size": {"height": 6, "width": 4}}
    made |= {
        "size": {"height": 8, "width": 8},
        "num_frames": 2,
        "do_sample_frames": True,
        "image_mean": [0.1, 0.2, 0.3],
    }
    PerceiverVLProcessor(PerceiverVLImageProcessor(**made), tokenizer).save_pretrained(tmp_path)
    clip = pixels(5, 8, 8)
    expected = torch.from_numpy(clip[[1, 3], 1:7, 2:6]).permute(0, 3, 1, 2).float()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "perceiver_vl"}))
    for loaded in (
        PerceiverVLImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path).image_processor,
    ):
        assert type(loaded) is PerceiverVLImageProcessor
        assert loaded.to_dict().items() >= PerceiverVLImageProcessor(**made).to_dict().items()
        assert torch.equal(loaded(videos=clip)["pixel_values"][0], expected)


def test_halves_of_characters_are_words_that_are_not_known(processor):
    same(processor(text=["red \ud83d \udce9"]), processor(text=["red � �"]))
