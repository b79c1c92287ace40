"""`pipeline("captioning")`: captions and free answers of files, images and arrays, as the model says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_vl import (
    ComputeBudget,
    MediaError,
    PerceiverVLError,
    PerceiverVLForCaptioning,
    UsageError,
    load_frames,
    pipeline,
)
from perceiver_vl.data.synthetic.writing import write_frames
from perceiver_vl.inference.captioning import CaptioningPipeline
from perceiver_vl.inference.clips import cached_clip
from perceiver_vl.models.perceiver_vl.caption_words import ends_of, say
from tiny import tiny_config, tiny_processor

QUESTIONS = ["what colour is it", "what moves"]


def captioner(folder: Path, **changes: Any) -> Path:
    processor = tiny_processor([*QUESTIONS, "a red circle moves"] * 2)
    torch.manual_seed(0)
    words = {"vocab_size": len(processor.tokenizer), **ends_of(processor.tokenizer)}
    PerceiverVLForCaptioning(tiny_config(**words, initializer_range=0.4, **changes)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    write_frames(path, np.random.default_rng(0).integers(256, size=(8, 32, 48, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("prefix", ["latents", "frames"])
def test_what_is_said_is_what_the_model_says(prefix: str, clip: Path, tmp_path: Path) -> None:
    describe = pipeline("captioning", captioner(tmp_path, caption_prefix=prefix))
    model, processor = describe.model, describe.processor
    frames = load_frames(clip, 4, size=(16, 16))
    seen = model.encode_prefix(**processor(videos=[frames], num_frames=4))
    for beams in (1, 3):
        [wanted] = say(model, processor.tokenizer, seen, [""], beams=beams)
        found = describe(clip, beams=beams)
        assert found["caption"] == wanted.text
        assert found["score"] == pytest.approx(wanted.score, rel=1e-4)
    answers = describe(clip, QUESTIONS)
    assert [set(one) for one in answers] == [{"answer", "score"}] * 2
    assert describe(clip, QUESTIONS[1]) == pytest.approx(answers[1])
    picture = Image.fromarray(np.asarray(frames[0]))
    assert describe(picture)["score"] == pytest.approx(describe(np.asarray(frames[0]))["score"], rel=1e-4)
    few = describe(clip, max_new_tokens=1, budget=ComputeBudget(frames=1, latents=3 if prefix == "latents" else None))
    assert len(few["caption"].split()) <= 1
    with pytest.raises(TypeError, match="foo"):
        describe(clip, foo=1)
    with pytest.raises(UsageError, match=r"a\.mp4: in a list, which is one clip of pictures"):
        describe([str(clip), str(clip)])


def test_what_a_model_has_no_use_for_is_told(clip: Path, tmp_path: Path) -> None:
    describe = pipeline("captioning", captioner(tmp_path / "frames", caption_prefix="frames"))
    for budget in (ComputeBudget(latents=2), ComputeBudget(blocks=1), ComputeBudget(cross_attentions=1)):
        with pytest.raises(UsageError, match=rf"budget {budget}: the words attend to the frames themselves"):
            describe(clip, budget=budget)
    describe = pipeline("captioning", captioner(tmp_path / "mixed", temporal_kernel=3))
    with pytest.raises(UsageError, match=r"fps=2\.0: temporal_kernel=3: .* leave fps out"):
        describe(clip, fps=2.0)


def test_a_model_gone_wrong_says_nothing(clip: Path, folder: Path) -> None:
    describe = pipeline("captioning", folder)
    with torch.no_grad():
        for weight in describe.model.caption_words.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(PerceiverVLError, match="no finite probabilities"):
        describe(clip)


def test_a_long_clip_is_read_at_a_rate_and_one_that_was_read_is_taken(folder: Path, clip: Path, tmp_path: Path) -> None:
    describe = pipeline("captioning", folder)
    whole = describe(clip, fps=8, spill=tmp_path)
    assert whole == pytest.approx(describe(clip, fps=8))
    with cached_clip(describe.model, describe.processor, clip) as cache:
        assert describe(cache) == pytest.approx(describe(clip))


def test_what_cannot_be_said_is_one_line(folder: Path, clip: Path, tmp_path: Path) -> None:
    describe = pipeline("captioning", folder)
    assert isinstance(describe, CaptioningPipeline)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"^[^\n]+broken\.mp4: [^\n]+$"):
        describe(broken)
    frames = pipeline("captioning", captioner(tmp_path / "frames", caption_prefix="frames"))
    for call, said in (
        (lambda: describe(clip, " "), "question '': say what to ask"),
        (lambda: describe(clip, beams=0), "beams=0: need at least 1"),
        (lambda: describe(clip, max_new_tokens=8), "set 1 to 7"),
        (lambda: frames(clip, fps=2), "fps=2: this model attends to the frames themselves"),
        (lambda: frames(clip, budget=ComputeBudget(latents=99)), "budget latents=99"),
    ):
        with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
            call()
        assert said in str(refused.value)
